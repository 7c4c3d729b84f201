"""What marks completions, and the log-probabilities that a reference or an exam needs."""

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
from pipeline.config.checks import CheckScorer
from pipeline.config.judge import Judge, PairwiseScorer, RubricScorer, VllmEngine
from pipeline.config.training import Quantization
from pipeline.errors import suggest


class RewardModelRuntime(Block):
    batch_tokens: PositiveInt
    memory: Share


class RewardModelScorer(Block):
    kind: Literal["reward_model"]
    model: Weights | None  # None: the run's own, of the stage `reward`
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
    def _pairs_have_segments(self) -> Self:
        if self.engine == "vllm" and self.input == "pair":
            raise ValueError(
                "input=pair needs engine=transformers: vLLM is not told which tokens are question and which are answer"
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
    of: Annotated[dict[str, PositiveFloat], Field(min_length=1)]
    combine: Literal["mean_rank", "mean_z", "min", "majority"]
    gates: dict[str, float]
    gold: bool

    @property
    def members(self) -> list[str]:
        return sorted({*self.of, *self.gates})

    @property
    def within_prompt(self) -> bool:
        """Whether its scores only say how a prompt's answers compare: their mean is the same for any model."""
        return self.combine != "min"

    @model_validator(mode="after")
    def _no_idle_weight(self) -> Self:
        if self.combine == "min" and set(self.of.values()) != {1.0}:
            raise ValueError(
                "combine=min takes the lowest score and knows no weights. Give each member the weight 1"
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
    def local(self) -> dict[str, ScorerConfig]:
        """Those that run a model on this machine: what workers share."""
        return {name: scorer for name, scorer in sorted(self.scorers.items()) if gpus_of(scorer)}

    @property
    def others(self) -> dict[str, ScorerConfig]:
        """Those that pay a server, have processes of their own, or are soon done."""
        apart = {*self.local, *self.ensembles}
        return {name: scorer for name, scorer in sorted(self.scorers.items()) if name not in apart}

    @property
    def ensembles(self) -> dict[str, EnsembleScorer]:
        return {
            name: one
            for name, one in sorted(self.scorers.items())
            if isinstance(one, EnsembleScorer)
        }

    @property
    def gpus_each(self) -> int:
        """GPUs of one worker: its models are opened side by side."""
        return max(map(gpus_of, self.local.values()), default=1)

    @property
    def asks_reward(self) -> bool:
        """Whether a scorer marks with the model of the run's own stage `reward`."""
        return any(
            isinstance(scorer, RewardModelScorer) and scorer.model is None
            for scorer in self.scorers.values()
        )

    def of_best(self, scorer: str) -> "BestScored":
        return BestScored(**dict(self), best_by=scorer)

    @model_validator(mode="after")
    def _ensembles_have_members(self) -> Self:
        if faults := list(_unfit_ensembles(self.scorers)):
            raise ValueError("\n".join(faults))
        return self


class BestScored(ScoreConfig):
    """The same scorers for each prompt's best answer alone, by a scorer that marked them all."""

    best_by: str


def gpus_of(scorer: Any) -> int:
    """How many GPUs share the model that a scorer opens here; 0: it opens none."""
    match scorer:
        case RewardModelScorer():
            return 1
        case Judge(engine=VllmEngine() as engine):
            return engine.runtime.tensor_parallel
        case _:
            return 0


def _unfit_ensembles(scorers: dict[str, Any]) -> Iterator[str]:
    single = [name for name, scorer in scorers.items() if scorer.kind != "ensemble"]
    for name, ensemble in scorers.items():
        for member in ensemble.members if ensemble.kind == "ensemble" else []:
            if member not in single:
                yield f"scorers.{name}: {member} is no single scorer beside it. {suggest(member, single)}"
            elif scorers[member].gold and not ensemble.gold:
                yield f"scorers.{name}: its member {member} is gold, so it has to be gold as well"


class ReferenceRuntime(Block):
    batch_tokens: PositiveInt
    workers: Workers


class ReferenceConfig(Block):
    dtype: Dtype
    quantization: Quantization | None
    runtime: ReferenceRuntime
