"""What watches a training between its steps, and what stops it."""

from typing import Literal, Self

from pydantic import JsonValue, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Block
from pipeline.config.checks import CheckScorer

MAX_PROMPTS = (
    64  # whose KL is known to a fraction of a nat; each look draws and reads all of their answers
)


class GuardsConfig(Block):
    prompts: NonNegativeInt
    tokens: PositiveInt
    template_kwargs: dict[str, JsonValue]
    warn_kl: PositiveFloat
    kl_budget: PositiveFloat | None
    warn_fall: PositiveFloat
    fall_budget: PositiveFloat | None
    stop_on: Literal["loss", "accuracy", "margin", "score"] | None
    patience: PositiveInt
    scorer: CheckScorer | None

    @property
    def may_stop_early(self) -> bool:
        """Whether the published weights may be those of an earlier look than the last."""
        return any(each is not None for each in (self.kl_budget, self.fall_budget, self.stop_on))

    @property
    def needs_generations(self) -> bool:
        """Whether what stops the training is read from the policy's own answers."""
        return self.kl_budget is not None or self.stop_on == "score"

    @property
    def needs_own_metrics(self) -> bool:
        """Whether what stops the training is seen by our own looks; of the trainer's own, all processes know."""
        return self.needs_generations or self.fall_budget is not None

    @model_validator(mode="after")
    def _check_generations(self) -> Self:
        if self.needs_generations and not self.prompts:
            raise ValueError(
                "prompts=0 draws no answers, and kl_budget or stop_on=score needs them; give prompts=64"
            )
        if self.prompts > MAX_PROMPTS:
            raise ValueError(
                f"prompts={self.prompts}: every look answers each of them, and more than {MAX_PROMPTS} make looks "
                f"slow and their figures hardly surer; give prompts={MAX_PROMPTS}, and exam.sample.per_round for the "
                f"proof at the end"
            )
        if self.stop_on == "score" and self.scorer is None:
            raise ValueError(
                "stop_on=score needs a scorer for the policy's own answers; give one of the rules, such as "
                "+scorer@train.guards.scorer=regex with train.guards.scorer.pattern=…"
            )
        return self
