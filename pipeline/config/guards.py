"""Guards: what a training measures between its steps, and what stops it."""

from typing import Literal, Self

from pydantic import JsonValue, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Block
from pipeline.config.rule_scorers import CheckScorer

# The KL of 64 prompts is known to a fraction of a nat; each evaluation samples all their answers.
MAX_PROMPTS = 64


class GuardsConfig(Block):
    prompts: NonNegativeInt
    tokens: PositiveInt
    template_kwargs: dict[str, JsonValue]
    warn_kl: PositiveFloat
    kl_budget: PositiveFloat | None
    warn_chosen_logp_drop: PositiveFloat
    max_chosen_logp_drop: PositiveFloat | None
    stop_on: Literal["loss", "accuracy", "margin", "score"] | None
    patience: PositiveInt
    scorer: CheckScorer | None

    @property
    def may_stop_early(self) -> bool:
        """Whether weights of an evaluation before the last one may be published."""
        return any(
            knob is not None for knob in (self.kl_budget, self.max_chosen_logp_drop, self.stop_on)
        )

    @property
    def needs_generations(self) -> bool:
        """Whether a guard that stops the training reads answers sampled during evaluation."""
        return self.kl_budget is not None or self.stop_on == "score"

    @property
    def needs_own_metrics(self) -> bool:
        """Whether a guard that stops the training reads figures that the trainer does not compute.

        All processes know the trainer's own figures; one process alone may compute ours.
        """
        return self.needs_generations or self.max_chosen_logp_drop is not None

    @model_validator(mode="after")
    def _check_generations(self) -> Self:
        if self.needs_generations and not self.prompts:
            raise ValueError(
                "prompts=0 samples no answers, and kl_budget and stop_on=score need them;"
                " give prompts=64"
            )
        if self.prompts > MAX_PROMPTS:
            raise ValueError(
                f"prompts={self.prompts}: every evaluation answers each of them, and more than"
                f" {MAX_PROMPTS} make it slow and its figures hardly more precise;"
                f" give prompts={MAX_PROMPTS}; more prompts for the evaluation after training are"
                " prompts.split.test"
            )
        if self.stop_on == "score" and self.scorer is None:
            raise ValueError(
                "stop_on=score needs a scorer for the answers sampled during evaluation;"
                " give one of the rules, such as +scorer@{scorer}=regex with {scorer.pattern}=…"
            )
        return self
