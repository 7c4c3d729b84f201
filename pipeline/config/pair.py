"""How pairs are chosen, filtered, mixed and split."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipeline.config.base import Block, Limits, Local, Seed, Share
from pipeline.config.judge import Name
from pipeline.config.steps import StepCut


class DevPairs(Block):
    share: Share
    min: NonNegativeInt
    max_share: Share


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
    def _check_band(self) -> "MarginBand":
        if self.low >= self.high:
            raise ValueError(
                f"low={self.low} is not below high={self.high}: no margin fits between them"
            )
        return self


class LengthMatched(Block):
    kind: Literal["length_matched"]
    ratio: Annotated[float, Field(ge=1)]


class Demonstration(Block):
    kind: Literal["demonstration"]
    column: str
    against: Literal["best", "worst"]


class BySource(Block):
    """A pair's sides by the models that wrote them; None: any of them."""

    kind: Literal["by_source"]
    chosen: Name | None
    rejected: Name | None

    @property
    def names(self) -> list[str]:
        return [name for name in (self.chosen, self.rejected) if name]

    @model_validator(mode="after")
    def _check_sides(self) -> "BySource":
        if self.chosen == self.rejected:
            same = self.chosen or "null"
            raise ValueError(
                f"chosen={same} and rejected={same} name no two sources; give two of policy and"
                " the names of sample.pool, or pair=best_worst for the best and the worst of all"
            )
        return self


StrategyConfig = Annotated[
    BestWorst
    | BestRandom
    | RandomPair
    | TopBottom
    | AllPairs
    | Sigma
    | MarginBand
    | LengthMatched
    | Demonstration
    | BySource,
    Field(discriminator="kind"),
]


class PassRate(Block):
    threshold: float
    min: Share
    max: Share


class Filters(Block):
    """What a pair may contain; null switches a filter off, and the funnel records that."""

    allow_truncated: bool
    allow_refusals: bool
    languages: Annotated[list[str], Field(min_length=1)] | None
    repeats: bool
    pass_rate: PassRate | None
    min_margin: NonNegativeFloat
    min_chosen: float | None
    max_rejected: float | None
    max_length_ratio: Annotated[float, Field(ge=1)] | None
    max_token_gap: NonNegativeInt | None
    excluded_words: Annotated[list[str], Field(min_length=1)] | Local | None
    max_disagreement: Share | None
    max_flip_rate: Share | None
    min_reference: float | None
    near_duplicate_threshold: Annotated[float, Field(gt=0, lt=1)] | None

    @property
    def need_scores(self) -> bool:
        knobs = (
            self.pass_rate,
            self.min_chosen,
            self.max_rejected,
            self.max_disagreement,
            self.max_flip_rate,
        )
        return self.min_margin > 0 or any(knob is not None for knob in knobs)


class Mix(Block):
    on_policy: Share
    offline: Share
    per_round: PositiveInt | None

    @model_validator(mode="after")
    def _check_sum(self) -> "Mix":
        if abs(self.on_policy + self.offline - 1) > 1e-9:
            raise ValueError(
                f"on_policy={self.on_policy} and offline={self.offline} are shares:"
                " they have to add up to 1"
            )
        return self


class Budget(Block):
    """How many of a round's pairs are trained on. A smaller budget takes a part of a larger one."""

    at_most: PositiveInt | None
    balance: str | None
    per_prompt: PositiveInt | None

    @property
    def outside_identity(self) -> frozenset[str]:
        return frozenset() if self.per_prompt else frozenset({"per_prompt"})

    @model_validator(mode="after")
    def _check_balance(self) -> "Budget":
        if self.balance and self.at_most is None:
            raise ValueError(
                f"balance={self.balance} shares out at_most=N pairs, and at_most is null"
            )
        return self


class PairConfig(Block):
    """What a round's pairs are made by, whichever round it is."""

    strategy: StrategyConfig
    scorer: str
    min_scorer_accuracy: Share | None
    unqualified: Literal["refuse", "warn"]
    pairs_per_prompt: PositiveInt
    at_least_one: Name | None
    ties: Literal["drop", "both"]
    filters: Filters
    mix: Mix
    budget: Budget
    rank_edits: bool
    score_scale: PositiveFloat | None
    weight: Literal["margin", "confidence", "rows"] | None
    unpaired_threshold: float | None
    limits: Limits
    template_kwargs: dict[str, JsonValue]
    dev: DevPairs
    seed: Seed

    @property
    def outside_identity(self) -> frozenset[str]:
        """The first two refuse a scorer and change no pair."""
        unused = {"at_least_one": not self.at_least_one, "rank_edits": not self.rank_edits}
        left_out = {name for name, is_unused in unused.items() if is_unused}
        return frozenset({"min_scorer_accuracy", "unqualified", *left_out})

    @property
    def sources(self) -> list[str]:
        """The models whose answers alone can be in a pair; empty: all."""
        names = self.strategy.names if isinstance(self.strategy, BySource) else []
        return names if len(names) == 2 else []

    @property
    def keeps_ties(self) -> bool:
        """Whether equally good answers make pairs. Other strategies choose sides without scores."""
        return self.ties == "both" and self.strategy.kind not in ("demonstration", "by_source")

    @property
    def needs_sft_logps(self) -> bool:
        """Whether a filter reads the log-probabilities of others' answers under the SFT model."""
        return self.filters.min_reference is not None

    @property
    def continues_answers(self) -> bool:
        """Whether a pair's prompt holds the beginning of the answer as well."""
        return False

    @property
    def max_pairs_per_prompt(self) -> int:
        """A prompt whose samples all tie makes two pairs where ties are kept."""
        return max(self.pairs_per_prompt, 2 if self.keeps_ties else 1)

    @property
    def needs_prompt_columns(self) -> bool:
        """Whether a column of the prompts holds one side of the pairs, or shares out the budget."""
        holds_a_side = self.strategy.kind == "demonstration" and self.mix.on_policy > 0
        return holds_a_side or self.budget.balance is not None

    @property
    def pairing_scorer(self) -> str | None:
        """The scorer that paired the policy's samples; None where pairs come from elsewhere."""
        return self.scorer if self.mix.on_policy and self.strategy.kind != "demonstration" else None


class UserPairConfig(PairConfig):
    """The user's block."""

    edits: dict[PositiveInt, Local]  # by round: edits hold for the pairs that they were written of

    @field_validator("edits", mode="before")
    @classmethod
    def _check_rounds(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(
                f"expected a file for each round: write pair.edits.1={value} for round 1"
            )
        return value

    def for_round(
        self, round: int, scored: bool = True, steps: StepCut | None = None
    ) -> "PairRound":
        """A round without edits is the same whatever another round's edits are."""
        own = {**dict(self), "edits": self.edits.get(round)}
        return PairRound(**own, round=round, scored=scored, steps=steps)


class PairRound(PairConfig):
    """One round's pairs, and the number of the round, which decides which offline rows it takes."""

    edits: Local | None
    round: PositiveInt
    scored: bool  # false: nothing scored the samples, and no filter asks for it
    steps: StepCut | None  # the pairs are steps after the beginning of a solution

    @property
    def outside_identity(self) -> frozenset[str]:
        unused = {"scored": self.scored, "steps": self.steps is None}
        return super().outside_identity | {name for name, is_unused in unused.items() if is_unused}

    @property
    def continues_answers(self) -> bool:
        return self.steps is not None

    @property
    def edits_knob(self) -> str:
        return f"pair.edits.{self.round}"

    def explain_shortage(self, rows: int) -> str | None:
        """Why this many offline rows are too few for the round; None: they are enough."""
        if (size := self.mix.per_round) is None or rows >= (needed := size * self.round):
            return None
        return (
            f"pair.mix.per_round={size}: round {self.round} needs {needed} offline rows,"
            f" and there are {rows}.\n"
            f"  Give pair.mix.per_round={rows // self.round} or less, or more rows."
        )
