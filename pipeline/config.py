"""The shape of conf/: frozen models without defaults. Values live in conf/, shapes live here.

A stage's block is the whole of its identity, apart from what stands under a key named `runtime`
and from the places of local files, which enter by their content (see `Local`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import core_schema

from pipeline.errors import nearest
from pipeline.trl_args import check_args

Share = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


class Local(str):
    """The path of a local file or folder: its content enters identity, its place does not."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))


class Weights(Local):
    """A model: a local folder (its content enters identity) or the name of a hub repository (its commit does)."""

    @property
    def local(self) -> bool:
        return self.startswith((".", "/", "~")) or Path(self).exists()


class Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# ── shared ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Limits(Block):
    prompt: PositiveInt
    completion: PositiveInt


class Template(Block):
    chat_template: Local | None
    kwargs: dict[str, JsonValue]


class Trust(Block):
    """What a checkpoint may bring along that runs code on this machine; each is refused unless named."""

    remote_code: bool
    pickled_weights: bool


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Split(Block):
    dev: PositiveInt
    test: PositiveInt


class Fence(Block):
    ngram: PositiveInt


class PlaygroundPrompts(Block):
    kind: Literal["playground"]
    rows: PositiveInt
    constraints: PositiveInt
    seed: int
    split: Split
    fence: Fence


class JsonlPrompts(Block):
    kind: Literal["jsonl"]
    path: Local
    on_bad_row: Literal["fail", "skip"]
    seed: int
    split: Split
    fence: Fence


PromptsConfig = Annotated[PlaygroundPrompts | JsonlPrompts, Field(discriminator="kind")]


# ── base, sft ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Checkpoint(Block):
    kind: Literal["checkpoint"]
    model: Weights
    revision: str | None
    trust: Trust
    template: Template
    dtype: Dtype


class TinyBase(Block):
    kind: Literal["tiny"]
    vocabulary: PositiveInt
    hidden: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    context: PositiveInt
    seed: int


BaseConfig = Annotated[Checkpoint | TinyBase, Field(discriminator="kind")]


class PlaygroundDemonstrations(Block):
    kind: Literal["playground"]
    rows: PositiveInt
    constraints: PositiveInt
    obeyed: Share
    seed: int


class JsonlDemonstrations(Block):
    kind: Literal["jsonl"]
    path: Local
    on_bad_row: Literal["fail", "skip"]


DemonstrationsConfig = Annotated[PlaygroundDemonstrations | JsonlDemonstrations, Field(discriminator="kind")]


class TrainerRuntime(Block):
    micro_batch: PositiveInt
    save_every: PositiveInt


class Optimization(Block):
    """What every trainer is told: the steps it takes, and on how many rows each."""

    learning_rate: PositiveFloat
    epochs: PositiveFloat
    batch: PositiveInt
    scheduler: str
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegativeFloat
    clip: PositiveFloat
    max_length: PositiveInt
    dtype: Literal["float32", "bfloat16"]  # float16 overflows without loss scaling
    gradient_checkpointing: bool
    seed: int
    runtime: TrainerRuntime

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.batch % self.runtime.micro_batch:
            fits = max(n for n in range(1, self.runtime.micro_batch + 1) if self.batch % n == 0)
            raise ValueError(
                f"batch={self.batch} is not a multiple of runtime.micro_batch={self.runtime.micro_batch}: an optimizer "
                f"step would see another number of rows; give runtime.micro_batch={fits}"
            )
        return self


class SftTraining(Optimization):
    kind: Literal["train"]
    data: DemonstrationsConfig
    fence: Fence
    template: Template


SftConfig = Annotated[Checkpoint | SftTraining, Field(discriminator="kind")]


# ── sample ────────────────────────────────────────────────────────────────────────────────────────────────────────


class VllmRuntime(Block):
    memory: Share
    cpu_cache_gib: PositiveInt
    max_sequences: PositiveInt


class VllmBackend(Block):
    kind: Literal["vllm"]
    dtype: Dtype
    enforce_eager: bool | None
    prefix_caching: bool | None
    runtime: VllmRuntime


class Batch(Block):
    batch: PositiveInt


class TransformersBackend(Block):
    kind: Literal["transformers"]
    dtype: Dtype
    runtime: Batch


class ScriptedBackend(Block):
    """No model at all: completions are a function of prompt and seed. For tests of everything around a backend."""

    kind: Literal["scripted"]
    vocabulary: Annotated[int, Field(ge=2)]


BackendConfig = Annotated[VllmBackend | TransformersBackend | ScriptedBackend, Field(discriminator="kind")]


class Setting(Block):
    n: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _equal_samples(self) -> Self:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"n={self.n} at temperature=0 draws the same completion {self.n} times;"
                " set n=1, or a temperature above 0"
            )
        return self


class SampleRuntime(Block):
    blocks: PositiveInt


class SampleConfig(Block):
    settings: Annotated[dict[str, Setting], Field(min_length=1)]
    per_round: PositiveInt | None
    limits: Limits
    template_kwargs: dict[str, JsonValue]
    seed: int
    shard: PositiveInt
    backend: BackendConfig
    runtime: SampleRuntime

    def draw(self, purpose: str, round: int = 1, wave: int = 0) -> "Draw":
        return Draw(**dict(self), purpose=purpose, round=round, wave=wave)


class Draw(SampleConfig):
    """One sampling run: the user's block and which draw of it this is, so that no two draws share their seeds."""

    purpose: str
    round: PositiveInt
    wave: NonNegativeInt


# ── offline ───────────────────────────────────────────────────────────────────────────────────────────────────────


class HubDataset(str):
    """The name of a hub dataset: its commit enters identity."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))


class FileRows(Block):
    kind: Literal["file"]
    path: Local


class HubRows(Block):
    kind: Literal["hub"]
    dataset: HubDataset
    revision: str | None
    subset: str | None
    split: str


Shape = Literal["auto", "trl", "argilla", "intel", "hh", "scored", "thumbs", "columns"]


class OfflineConfig(Block):
    source: Annotated[FileRows | HubRows, Field(discriminator="kind")]
    shape: Shape
    columns: dict[str, str]
    thumbs_at: float | None
    on_bad_row: Literal["fail", "skip"]
    template_kwargs: dict[str, JsonValue]
    fence: Fence


# ── score, pair, refer ────────────────────────────────────────────────────────────────────────────────────────────


class RuleScorer(Block):
    kind: Literal["rules"]
    rule: Literal["playground"]
    gold: bool


class ScoreConfig(Block):
    scorers: Annotated[dict[str, RuleScorer], Field(min_length=1)]
    max_failed: Share


class DevPairs(Block):
    share: Share
    least: NonNegativeInt
    most_share: Share


class BestWorst(Block):
    kind: Literal["best_worst"]


class BestRandom(Block):
    kind: Literal["best_random"]


class RandomPair(Block):
    kind: Literal["random"]


class TopBottom(Block):
    kind: Literal["top_bottom"]
    k: PositiveInt


class AllPairs(Block):
    kind: Literal["all_pairs"]


class Sigma(Block):
    kind: Literal["sigma"]
    below: PositiveFloat


class MarginBand(Block):
    kind: Literal["margin_band"]
    low: Share
    high: Share

    @model_validator(mode="after")
    def _a_band(self) -> "MarginBand":
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}: no margin lies between them")
        return self


class LengthMatched(Block):
    kind: Literal["length_matched"]
    ratio: Annotated[float, Field(ge=1)]


class Demonstration(Block):
    kind: Literal["demonstration"]
    column: str
    against: Literal["best", "worst"]


StrategyConfig = Annotated[
    BestWorst | BestRandom | RandomPair | TopBottom | AllPairs | Sigma | MarginBand | LengthMatched | Demonstration,
    Field(discriminator="kind"),
]


class PassRate(Block):
    at: float
    least: Share
    most: Share


class Filters(Block):
    """What may stand in a pair; null switches a filter off, and the funnel says that it was not asked."""

    allow_truncated: bool
    allow_refusals: bool
    languages: Annotated[list[str], Field(min_length=1)] | None
    repeats: bool
    pass_rate: PassRate | None
    min_margin: NonNegativeFloat
    min_chosen: float | None
    max_rejected: float | None
    max_length_ratio: Annotated[float, Field(ge=1)] | None
    max_disagreement: Share | None
    max_flip_rate: Share | None
    min_reference: float | None
    near: Annotated[float, Field(gt=0, lt=1)] | None


class Mix(Block):
    on_policy: Share
    offline: Share
    per_round: PositiveInt | None

    @model_validator(mode="after")
    def _of_one(self) -> "Mix":
        if abs(self.on_policy + self.offline - 1) > 1e-9:
            raise ValueError(
                f"on_policy={self.on_policy} and offline={self.offline} are shares: they have to add up to 1"
            )
        return self


class PairConfig(Block):
    strategy: StrategyConfig
    scorer: str
    pairs_per_prompt: PositiveInt
    ties: Literal["drop", "both"]
    filters: Filters
    mix: Mix
    thumbs_at: float | None
    edits: Local | None
    limits: Limits
    template_kwargs: dict[str, JsonValue]
    dev: DevPairs
    seed: int

    @property
    def asks_prior(self) -> bool:
        """Whether offline rows need their log-probabilities under the SFT model before they can be judged."""
        return self.filters.min_reference is not None

    @property
    def asks_prompts(self) -> bool:
        """Whether the prompts' own columns hold a side of the pairs."""
        return self.strategy.kind == "demonstration" and self.mix.on_policy > 0

    def of(self, round: int) -> "PairRound":
        return PairRound(**dict(self), round=round)


class PairRound(PairConfig):
    """The user's block and the round: which block of offline rows it takes."""

    round: PositiveInt


class ReferRuntime(Block):
    batch_tokens: PositiveInt


class ReferConfig(Block):
    dtype: Dtype
    runtime: ReferRuntime


# ── train ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class FullAdapter(Block):
    kind: Literal["full"]
    learning_rate: PositiveFloat


class LoraAdapter(Block):
    kind: Literal["lora"]
    learning_rate: PositiveFloat
    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Share
    targets: str | list[str]


AdapterConfig = Annotated[FullAdapter | LoraAdapter, Field(discriminator="kind")]


class TrainConfig(Optimization):
    trainer: Literal["dpo"]
    loss: Annotated[list[str], Field(min_length=1)]
    loss_weights: list[float] | None
    beta: PositiveFloat
    logps: Literal["ready", "live", "none"]
    adapter: AdapterConfig
    eval_every: PositiveInt
    args: dict[str, JsonValue]

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        check_args(self.trainer, self.args, self.loss, self.logps, getattr(self.adapter, "dropout", 0.0))
        return self


# ── exam, evaluate ────────────────────────────────────────────────────────────────────────────────────────────────


class ExamConfig(Block):
    split: Literal["test", "dev"]
    sample: SampleConfig
    score: ScoreConfig
    refer: ReferConfig


class EvaluateConfig(Block):
    scorer: str
    level: Annotated[float, Field(gt=0, lt=1)]
    resamples: PositiveInt
    seed: int


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Config(Block):
    recipe: str
    seed: int
    rounds: PositiveInt
    init: Literal["previous", "sft"]
    reference: Literal["previous", "sft", "init"]
    data: Literal["latest", "all"]
    limits: Limits
    max_length: PositiveInt
    template: Template
    dtype: Dtype

    prompts: PromptsConfig
    base: BaseConfig | None
    sft: SftConfig
    sample: SampleConfig
    score: ScoreConfig
    pair: PairConfig
    refer: ReferConfig
    train: TrainConfig
    offline: OfflineConfig | None
    exam: ExamConfig
    evaluate: EvaluateConfig

    store: Path
    runs: Path
    until: str | None
    dry_run: bool
    verify: bool

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """What no block can know alone; every mismatch is said at once."""
        faults = list(_mismatches(self))
        if faults:
            raise ValueError("\n".join(faults))
        return self


def _mismatches(cfg: Config) -> Iterator[str]:
    marking = cfg.exam.score if cfg.exam.split == "test" else cfg.score
    for knob, name, scorers in (
        ("pair.scorer", cfg.pair.scorer, cfg.score.scorers),
        ("evaluate.scorer", cfg.evaluate.scorer, marking.scorers),
    ):
        if name not in scorers:
            yield f"{knob}={name}: there is no such scorer. {nearest(name, list(scorers))}"
    yield from _unmixable(cfg)
    for name, scorer in cfg.score.scorers.items():
        if scorer.gold:
            yield f"score.scorers.{name}.gold=true: a gold scorer marks exams alone; move it to exam.score.scorers."
    if cfg.rounds > 1 and cfg.sample.per_round is None:
        yield f"rounds={cfg.rounds} draw fresh prompts each: give sample.per_round=N, the prompts of one round."
    if isinstance(cfg.sft, SftTraining) and cfg.base is None:
        yield (
            "sft=train starts from a base model, and base is none."
            " Give base=checkpoint base.model=NAME, or sft=checkpoint sft.model=NAME."
        )


def _unmixable(cfg: Config) -> Iterator[str]:
    """Offline rows and rounds: who asks for what nobody gives."""
    mix = cfg.pair.mix
    if mix.offline and cfg.offline is None:
        yield f"pair.mix.offline={mix.offline:g}: there are no offline rows. Give offline=file offline.source.path=FILE"
    if cfg.offline and not mix.offline:
        yield (
            "offline: pair.mix.offline=0 takes none of its rows."
            " Give pair.mix.on_policy=0.5 pair.mix.offline=0.5, or offline=none."
        )
    if cfg.rounds > 1 and not mix.on_policy:
        yield f"rounds={cfg.rounds}: with offline rows only, every round would train on the same rows. Give rounds=1."
    if cfg.rounds > 1 and mix.on_policy and mix.offline and mix.per_round is None:
        yield f"rounds={cfg.rounds}: each round takes a block of offline rows of its own. Give pair.mix.per_round=ROWS."
    if not mix.offline and cfg.pair.asks_prior:
        yield "pair.filters.min_reference: it is asked of offline rows alone, and pair.mix.offline=0 takes none."
