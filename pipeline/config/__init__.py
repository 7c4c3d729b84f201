"""The shape of conf/: frozen pydantic models, a file per group. The defaults are in conf/.

A stage's block is its whole identity, except for keys named `runtime`. Local files enter identity
by their content, not their path (see `Local`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipeline.config.base import (
    Block,
    DecontaminationConfig,
    Dtype,
    Folder,
    Function,
    GgufFile,
    Limits,
    Local,
    Prices,
    Seed,
    Share,
    StoreFolders,
    Template,
    Trust,
    Weights,
    list_stores,
    shift_seed,
)
from pipeline.config.benchmark import BenchmarkConfig
from pipeline.config.cluster import (
    ClusterConfig,
    LocalCluster,
    RayCluster,
    Resources,
    SlurmCluster,
    StageResources,
)
from pipeline.config.cross_checks import find_mismatches
from pipeline.config.demonstrations import (
    DemonstrationsConfig,
    JsonlDemonstrations,
    PlaygroundDemonstrations,
    RehearsalConfig,
)
from pipeline.config.evaluate import (
    BEST_OF_PREFIX,
    CONTROL,
    PANEL,
    PROMPTED,
    ChatConfig,
    EvaluateConfig,
    Expectation,
    GateConfig,
    PromptedBaseline,
    ReportConfig,
    VerdictConfig,
    list_retention_names,
)
from pipeline.config.guards import GuardsConfig
from pipeline.config.judge import (
    AnswerJudge,
    AnthropicEngine,
    DuelConfig,
    EndpointEngine,
    EngineConfig,
    Judge,
    JudgeRuntime,
    Name,
    PairwiseScorer,
    RubricScale,
    RubricScorer,
    ServiceRuntime,
    VllmEngine,
)
from pipeline.config.launch import (
    DISTRIBUTED_TYPES,
    SHARDED_STATE,
    SHARDED_WEIGHTS,
    LaunchedRuntime,
    TrainerRuntime,
)
from pipeline.config.merge import (
    MERGED,
    MergeConfig,
    MergePaths,
    MergePoint,
    MergeRounds,
    MergeWithSft,
    is_merged,
)
from pipeline.config.models import (
    BaseConfig,
    BestOfNConfig,
    Checkpoint,
    GgufCheckpoint,
    OtherModel,
    SftConfig,
    SftTraining,
    TinyBase,
)
from pipeline.config.offline import OfflineConfig, PreferenceRows, PreferenceShape
from pipeline.config.online import OnlineTraining, train_online
from pipeline.config.pair import (
    AllPairs,
    BestRandom,
    BestWorst,
    Budget,
    BySource,
    Demonstration,
    DevPairs,
    Filters,
    LengthMatched,
    MarginBand,
    Mix,
    PairConfig,
    PairRound,
    PassRate,
    RandomPair,
    Sigma,
    StrategyConfig,
    TopBottom,
    UserPairConfig,
)
from pipeline.config.pool import CheckpointMember, Member, ServedMember, TrainingSampleConfig
from pipeline.config.prompts import (
    CONSTRAINT_FAMILIES,
    ConstraintFamily,
    EvaluationQuestions,
    FilePrompts,
    HubPrompts,
    InstructionPrompts,
    PlaygroundPrompts,
    PromptCaps,
    PromptRows,
    PromptsConfig,
    PromptShape,
    PromptSplit,
    UserPrompts,
)
from pipeline.config.revise import CRITIQUE, REVISED, ReviseConfig, Revision, RevisionRequest
from pipeline.config.reward import (
    PlaygroundPreferences,
    PreferencesConfig,
    RewardCheckpoint,
    RewardConfig,
    RewardTraining,
    UserPreferences,
)
from pipeline.config.rows import FileRows, HubDataset, HubRows
from pipeline.config.rule_scorers import (
    CheckRuntime,
    CheckScorer,
    CodeExecution,
    CodeLimits,
    CodeScorer,
    IfevalScorer,
    JsonScorer,
    LanguageScorer,
    LengthScorer,
    MathScorer,
    RefusalScorer,
    RegexScorer,
    RuleScorer,
)
from pipeline.config.sample import (
    ANSWER,
    EVAL_PURPOSE,
    LATER_TURN,
    POLICY,
    POOL,
    AnswersFile,
    BackendConfig,
    BatchRuntime,
    ConversationRequest,
    EndpointBackend,
    EndpointRuntime,
    PromptShare,
    Reasoning,
    SampleConfig,
    SampleRequest,
    SampleRuntime,
    SamplingSettings,
    ScriptedBackend,
    Seeded,
    ServedModel,
    ServedRuntime,
    TextModel,
    TransformersBackend,
    Turn,
    VllmBackend,
    VllmRuntime,
)
from pipeline.config.score import (
    BestAnswersConfig,
    EnsembleScorer,
    FunctionScorer,
    LabelsScorer,
    ReferenceConfig,
    ReferenceRuntime,
    RewardModelRuntime,
    RewardModelScorer,
    ScoreConfig,
    ScorerConfig,
    ScoreRuntime,
    TrainingReference,
)
from pipeline.config.steps import StepCut, StepJudge, StepsConfig, StepSearch
from pipeline.config.tracker import Tensorboard, TrackerConfig, Wandb
from pipeline.config.training import (
    AdapterConfig,
    FullAdapter,
    LoraAdapter,
    Optimization,
    Quantization,
    TrainConfig,
)


class SweepConfig(Block):
    """What happens when a sweep (multirun) ends."""

    kl_budget: PositiveFloat | None
    retest: bool
    keep: Literal["best", "all"]


class CostConfig(Block):
    """Prices, for estimates."""

    gpu_hour: NonNegativeFloat | None


class Config(Block):
    recipe: str
    command: str
    seed: Seed
    seeds: Annotated[int, Field(ge=1, le=100)]
    rounds: Annotated[int, Field(ge=1, le=100)]  # a plan of many more is too long to read
    init: Literal["previous", "sft", "best_of_n"]
    train_on: Literal["latest", "all"]
    limits: Limits
    max_length: PositiveInt
    template: Template
    # As it was asked for; each model's block contains it resolved.
    dtype: Literal["auto", "float32", "bfloat16", "float16"]

    prompts: PromptsConfig
    base: BaseConfig | None
    sft: SftConfig
    reward: RewardConfig | None
    sample: TrainingSampleConfig
    revise: ReviseConfig | None
    steps: StepsConfig | None
    score: ScoreConfig
    pair: UserPairConfig
    reference: TrainingReference
    train: TrainConfig
    train_in_round: dict[PositiveInt, TrainConfig]
    best_of_n: BestOfNConfig | None
    offline: OfflineConfig | None
    merge: MergeConfig | None
    gate: GateConfig | None
    benchmark: dict[Name, BenchmarkConfig]
    evaluate: EvaluateConfig
    expect: dict[str, Expectation] | None
    tracker: TrackerConfig | None
    cluster: ClusterConfig
    sweep: SweepConfig
    cost: CostConfig

    store: StoreFolders
    runs: Folder
    until: str | None
    dry_run: bool
    verify: bool
    preload: bool

    def training(self, round: int) -> TrainConfig | OnlineTraining:
        train = self.train_in_round.get(round, self.train)
        return train_online(self, train, round) if train.is_online else train

    @field_validator("train_in_round")
    @classmethod
    def _mount_rounds(cls, blocks: dict[int, TrainConfig]) -> dict[int, TrainConfig]:
        return {r: train.mounted_at(f"train_in_round.{r}") for r, train in blocks.items()}

    @property
    def trainings(self) -> list[TrainConfig]:
        """The block of each round."""
        rounds = range(1, self.rounds + 1)
        return [self.train_in_round.get(number, self.train) for number in rounds]

    @property
    def makes_pairs(self) -> bool:
        return not all(train.is_online for train in self.trainings)

    @property
    def own_store(self) -> Path:
        return list_stores(self.store)[0]

    @property
    def other_stores(self) -> tuple[Path, ...]:
        """Those that are only read."""
        return tuple(list_stores(self.store)[1:])

    @property
    def samples_policy(self) -> bool:
        """Whether anything reads the policy's own answers to training prompts."""
        sources = self.pair.sources
        is_read = not sources or POLICY in sources or bool(self.best_of_n or self.revise)
        return is_read and self.pair.mix.on_policy > 0

    @property
    def scores_samples(self) -> bool:
        """Whether anything reads scores of training samples.

        A pair of two named sources needs none, where each has one answer to a prompt.
        """
        pair, sources = self.pair, self.pair.sources
        reads_scores = pair.filters.need_scores or pair.unpaired_threshold is not None
        if not sources or reads_scores or self.best_of_n:
            return True
        counts = (self.sample.count_answers(name) for name in sources if name != REVISED)
        return max(counts) > 1 or (POLICY in sources and bool(self.sample.resample_ties))

    @property
    def pairing_scorer(self) -> str | None:
        """What trained the models: the scorer that made the pairs, or is online training's reward.

        None where annotators or the answers' sources made the pairs.
        """
        if any(train.is_online for train in self.trainings):
            return self.pair.scorer
        return self.pair.pairing_scorer if self.scores_samples else None

    @property
    def eval_scoring(self) -> tuple[str, ScoreConfig]:
        """The scorers that the report compares models by, and their knob."""
        return self.scoring_on(self.evaluate.split)

    def scoring_on(self, split: str) -> tuple[str, ScoreConfig]:
        """The scorers of a split and their knob. Gold scorers and paid judges see test only."""
        if split == "test":
            is_inherited = self.evaluate.score == self.score
            return "score" if is_inherited else "evaluate.score", self.evaluate.score
        if self.evaluate.dev_score:
            return "evaluate.dev_score", self.evaluate.dev_score
        return "score", self.score

    @model_validator(mode="after")
    def _check_mismatches(self) -> Self:
        """Raise every mismatch between blocks at once."""
        faults = list(find_mismatches(self))
        if faults:
            raise ValueError("\n".join(faults))
        return self
