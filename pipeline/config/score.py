"""Scorers, and the log-probabilities that training and the KL of evaluations need."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import (
    Block,
    Dtype,
    Function,
    Local,
    Share,
    Template,
    Trust,
    Weights,
    Workers,
)
from pipeline.config.judge import Judge, PairwiseScorer, RubricScorer, VllmEngine
from pipeline.config.rule_scorers import (
    CheckScorer,
    CodeScorer,
    IfevalScorer,
    RefusalScorer,
    RuleScorer,
)
from pipeline.config.training import Quantization
from pipeline.errors import suggest


class RewardModelRuntime(Block):
    batch_tokens: PositiveInt
    memory: Share


class RewardModelScorer(Block):
    kind: Literal["reward_model"]
    model: Weights | None  # None: the run's reward model, from the stage `reward`
    revision: str | None
    trust: Trust
    template: Template
    input: Literal["chat", "pair"]
    label: str | None
    max_length: PositiveInt | None
    strip_reasoning: bool
    engine: Literal["transformers", "vllm"]
    dtype: Dtype
    gold: bool
    runtime: RewardModelRuntime

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if self.engine == "vllm" and self.input == "pair":
            raise ValueError(
                "input=pair needs engine=transformers:"
                " vLLM takes no segments to separate question from answer"
            )
        return self


class FunctionRuntime(Block):
    timeout: PositiveFloat


class FunctionScorer(Block):
    kind: Literal["function"]
    function: Function
    gold: bool
    runtime: FunctionRuntime


class LabelsScorer(Block):
    kind: Literal["labels"]
    path: Local
    combine: Literal["majority", "mean"]
    min_agreement: Share
    gold: bool


class EnsembleScorer(Block):
    kind: Literal["ensemble"]
    weights: Annotated[dict[str, PositiveFloat], Field(min_length=1)]
    combine: Literal["mean", "mean_rank", "mean_z", "min", "majority"]
    gates: dict[str, float]
    gold: bool

    @property
    def members(self) -> list[str]:
        return sorted({*self.weights, *self.gates})

    @property
    def is_within_prompt(self) -> bool:
        """Whether scores only compare a prompt's answers, so that all models have the same mean."""
        return self.combine not in ("mean", "min")

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.combine == "min" and set(self.weights.values()) != {1.0}:
            raise ValueError(
                "combine=min takes the lowest score and ignores weights."
                " Give each member the weight 1"
            )
        return self


ScorerConfig = Annotated[
    CheckScorer
    | RewardModelScorer
    | RubricScorer
    | PairwiseScorer
    | FunctionScorer
    | LabelsScorer
    | EnsembleScorer,
    Field(discriminator="kind"),
]  # fmt: skip


class ScoreRuntime(Block):
    workers: Workers


class ScoreConfig(Block):
    scorers: Annotated[dict[str, ScorerConfig], Field(min_length=1)]
    max_failed: Share
    runtime: ScoreRuntime

    @property
    def local_model_scorers(self) -> dict[str, ScorerConfig]:
        """Scorers that run a model on this machine; workers share their shards."""
        return {name: scorer for name, scorer in sorted(self.scorers.items()) if count_gpus(scorer)}

    @property
    def other_scorers(self) -> dict[str, ScorerConfig]:
        """Scorers that ask a server, start their own processes, or are quick."""
        rest = self.scorers.keys() - self.local_model_scorers.keys() - self.joint_scorers.keys()
        return {name: self.scorers[name] for name in sorted(rest)}

    @property
    def joint_scorers(self) -> dict[str, EnsembleScorer | RefusalScorer]:
        """Scorers that are computed from the scores of others."""
        return {
            name: one
            for name, one in sorted(self.scorers.items())
            if isinstance(one, EnsembleScorer | RefusalScorer) and list_members(one)
        }

    @property
    def gpus_each(self) -> int:
        """GPUs of one worker, which opens all models on the same ones."""
        return max(map(count_gpus, self.local_model_scorers.values()), default=1)

    @property
    def uses_reward_stage(self) -> bool:
        """Whether a scorer uses the reward model from the stage `reward`."""
        return any(
            isinstance(scorer, RewardModelScorer) and scorer.model is None
            for scorer in self.scorers.values()
        )

    def for_best_answers(self, scorer: str) -> "BestAnswersConfig":
        return BestAnswersConfig(**dict(self), best_by=scorer)

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        if faults := list(_find_member_faults(self.scorers)):
            raise ValueError("\n".join(faults))
        return self


class BestAnswersConfig(ScoreConfig):
    """The same scorers on each prompt's best answer alone; `best_by` names the scorer of that."""

    best_by: str


def count_gpus(scorer: Any) -> int:
    """How many GPUs share the model that a scorer opens here; 0: it opens no model."""
    match scorer:
        case RewardModelScorer():
            return 1
        case Judge(engine=VllmEngine() as engine):
            return engine.runtime.tensor_parallel
        case _:
            return 0


def list_members(scorer: Any) -> list[str]:
    """The scorers of the same block whose scores a scorer reads."""
    match scorer:
        case EnsembleScorer():
            return scorer.members
        case RefusalScorer(refused_by=str(guard)):
            return [guard]
        case _:
            return []


def list_criteria(scorer: Any) -> list[str]:
    """The names of what a scorer also scores apart; `*` where only the prompts tell them."""
    match scorer:
        case RuleScorer(rule="playground"):
            return ["*"]
        case RuleScorer() | CodeScorer():
            return ["all"]
        case IfevalScorer():
            return ["instruction_strict", "instruction_loose", "prompt_strict", "prompt_loose"]
        case RefusalScorer():
            return ["harmful_refused", "harmless_answered"]
        case RubricScorer():
            return [*scorer.active_criteria]
        case _:
            return []


def _find_member_faults(scorers: dict[str, Any]) -> Iterator[str]:
    single = [name for name, scorer in scorers.items() if not list_members(scorer)]
    for name, joint in scorers.items():
        for member in list_members(joint):
            if member not in single:
                known = suggest(member, single) if single else "Add it: +scorer@…=FILE"
                yield f"scorers.{name}: {member} is not a single scorer of this block. {known}"
            elif scorers[member].gold and not joint.gold:
                yield f"scorers.{name}: its member {member} is gold, so it has to be gold as well"


class ReferenceRuntime(Block):
    batch_tokens: PositiveInt
    workers: Workers


class ReferenceConfig(Block):
    dtype: Dtype
    quantization: Quantization | None
    runtime: ReferenceRuntime


class TrainingReference(ReferenceConfig):
    model: Literal["sft", "previous", "init"]

    @property
    def logps(self) -> ReferenceConfig:
        """The block of the stage, whose model the plan gives."""
        return ReferenceConfig(**{name: value for name, value in self if name != "model"})
