"""What is trained and how: optimisation, adapters, the objective."""

from math import ceil
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.config.base import Block, Seed, Share, TrainingDtype
from pipeline.config.demonstrations import Rehearsed
from pipeline.config.guards import GuardsConfig
from pipeline.config.launch import SHARDED, LaunchedRuntime, TrainerRuntime
from pipeline.config.trl_args import check_args, looks_at_rows_together
from pipeline.errors import pluralize

PROMPT_TUNING = ("prefix", "prefix_tuning", "prompt", "prompt_tuning", "p_tuning")

# Of the usual rate: conf/train/dpo.yaml says why an adapter may have more.
HIGHEST_RATE = {"full": (10, "ten"), "lora": (100, "a hundred"), "qlora": (100, "a hundred")}


class Optimization(Block):
    """What every trainer is told: the steps it takes, and on how many rows each."""

    learning_rate: PositiveFloat
    epochs: PositiveFloat
    batch: PositiveInt
    scheduler: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"
    ]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegativeFloat
    clip: PositiveFloat
    max_length: PositiveInt
    dtype: TrainingDtype
    gradient_checkpointing: bool
    seed: Seed
    runtime: TrainerRuntime

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if isinstance(self.runtime.micro_batch, int) and self.batch % self.runtime.micro_batch:
            fits = max(n for n in range(1, self.runtime.micro_batch + 1) if self.batch % n == 0)
            raise ValueError(
                f"batch={self.batch} is not a multiple of runtime.micro_batch={self.runtime.micro_batch}: an optimizer "
                f"step would see another number of rows; give runtime.micro_batch={fits}"
            )
        return self


def refuse_prompt_tuning(adapter: Any) -> Any:
    if isinstance(adapter, dict) and (kind := adapter.get("kind")) in PROMPT_TUNING:
        raise ValueError(
            f"an adapter of kind {kind}: it trains virtual tokens before the prompt instead of weights, so it cannot "
            f"be merged, vLLM does not sample from it, and a next round could not go on from it. Use lora, qlora or "
            f"full"
        )
    return adapter


class FullAdapter(Block):
    kind: Literal["full"]
    learning_rate: PositiveFloat


class Quantization(Block):
    """How the frozen base of QLoRA is kept in memory."""

    bits: Literal[4, 8]
    double: bool


class LoraAdapter(Block):
    outside_identity: ClassVar[frozenset[str]] = frozenset(
        {"save_merged"}
    )  # made of what was trained, at any time

    kind: Literal["lora", "qlora"]
    learning_rate: PositiveFloat
    rank: PositiveInt
    alpha: PositiveFloat
    rank_stabilized: bool
    dora: bool
    dropout: Share
    targets: str | list[str]
    quantization: Quantization | None
    save_merged: bool

    @model_validator(mode="after")
    def _quantized_or_not(self) -> Self:
        if (self.kind == "qlora") != (self.quantization is not None):
            raise ValueError(
                f"kind={self.kind} does not fit its quantization: choose adapter@train.adapter=lora or qlora"
            )
        return self


AdapterConfig = Annotated[
    FullAdapter | LoraAdapter, Field(discriminator="kind"), BeforeValidator(refuse_prompt_tuning)
]


class TrainConfig(Optimization):
    trainer: Literal["dpo", "cpo", "orpo", "kto"]
    loss: Annotated[list[str], Field(min_length=1)]
    loss_weights: list[float] | None
    beta: PositiveFloat
    logps: Literal["ready", "live", "none"]
    together: PositiveInt | None
    adapter: AdapterConfig
    eval_every: PositiveInt
    guards: GuardsConfig
    rehearsal: Rehearsed
    args: dict[str, JsonValue]
    runtime: LaunchedRuntime

    @model_validator(mode="after")
    def _no_rate_of_another_objective(self) -> Self:
        usual, (times, said) = self.runtime.usual_rate, HIGHEST_RATE[self.adapter.kind]
        if (
            self.learning_rate / usual > times * 1.00001
        ):  # 5e-6 is ten times 5e-7, whatever floating point makes of it
            raise ValueError(
                f"learning_rate={self.learning_rate:g} is over {said} times what is usual here ({usual:g}): it "
                f"breaks models more often than it trains them; give train.runtime.usual_rate={self.learning_rate:g} "
                f"if you mean it"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        dropout = getattr(self.adapter, "dropout", 0.0)
        check_args(self.trainer, self.args, self.loss, self.logps, dropout, self.adapter.kind)
        if self.trainer == "kto" and self.guards.stop_on == "accuracy":
            raise ValueError(
                "guards.stop_on=accuracy: thumbs come alone, and no pair is told apart; take loss or margin"
            )
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            weights = pluralize(len(self.loss_weights), "weight")
            raise ValueError(f"loss_weights has {weights} for {pluralize(len(self.loss), 'loss')}")
        return self

    @model_validator(mode="after")
    def _whole_in_each_process(self) -> Self:
        launch = self.runtime.launch
        if launch in SHARDED and self.adapter.kind == "qlora":
            raise ValueError(
                f"runtime.launch={launch} takes weights apart, and those of adapter=qlora are packed into few bits: "
                f"nobody has shown that they come back right. Use adapter=lora, or runtime.launch=ddp or zero2"
            )
        return self

    @model_validator(mode="after")
    def _rows_together(self) -> Self:
        """`runtime` changes no result: where the rows of one forward pass matter, their number is `together`."""
        coupled = looks_at_rows_together(self.trainer, self.args, self.loss)
        names, micro = ", ".join(self.loss), self.runtime.micro_batch
        if not coupled and self.together is not None:
            raise ValueError(
                f"together={self.together} would be ignored: every row counts by itself in {names}"
            )
        if not coupled:
            return self
        if self.together is None:
            raise ValueError(
                f"together: {names} looks at several rows at once; give their number, such as together=8"
            )
        if micro != "auto" and (
            self.together % micro if self.trainer == "kto" else micro != self.together
        ):
            raise ValueError(
                f"runtime.micro_batch={micro}: {names} looks at together={self.together} rows at once; give "
                f"train.together={micro}, which is another experiment"
            )
        if self.trainer == "kto" and self.together == 1:
            raise ValueError(
                "together=1: kto estimates its KL from the other rows; give 2 or more, such as together=8"
            )
        if self.batch % self.together:
            raise ValueError(
                f"batch={self.batch} is not a multiple of together={self.together}: {names} looks at so many rows at "
                f"once, and an optimizer step would see a part of them"
            )
        return self

    @property
    def low_rate(self) -> str | None:
        """What to say of a learning rate by which nothing is learned."""
        usual = self.runtime.usual_rate
        if self.learning_rate / usual > 0.0999:  # nor is a tenth under a tenth
            return None
        return (
            f"learning_rate={self.learning_rate:g} is under a tenth of what is usual here ({usual:g}): expect little "
            f"to change"
        )

    def few_steps(self, steps: int) -> str | None:
        """What to say where the warm-up takes at least twice the share of the steps that was asked for."""
        climbing = ceil(self.warmup * steps)
        if not climbing or climbing < 2 * self.warmup * steps:
            return None
        return (
            f"too few steps ({steps}) for train.warmup={self.warmup:g}: the rate climbs for {climbing} of them, so "
            f"expect little to change. Give more pairs, a smaller train.batch (it is {self.batch}) or more train.epochs"
        )

    @property
    def keeps_reference(self) -> bool:
        """Whether the trainer has the reference with it all the time, as it is: one that moves is no reference."""
        return self.logps == "live" and not self.args.get("sync_ref_model")

    @property
    def rehearsed(self) -> int:
        """Demonstrations beside the pairs of each step."""
        return max(1, round(self.rehearsal.share * self.batch)) if self.rehearsal else 0

    def together_in_each(self, world: int) -> int | None:
        """Of `together` rows those of one process: TRL averages kto's KL over all, and other losses look in one."""
        return self.together // world if self.together and self.trainer == "kto" else self.together

    def unfit(self, gpus: int) -> str | None:
        """Why so many cannot train this here; None: they can."""
        world = self.runtime.world(gpus)
        if fault := self.runtime.unfit(self.batch, gpus):
            return fault
        if world > 1 and self.runtime.watch == "alone" and self.guards.looks_alone:
            return self._not_looked_at(world)
        return self._not_shared_out(self.together, world) if self.together else None

    def _not_looked_at(self, world: int) -> str:
        asked = [
            f"{name}={value:g}"
            for name in ("kl_budget", "fall_budget")
            if (value := getattr(self.guards, name))
        ]
        return (
            f"train.guards.{asked[0] if asked else 'stop_on=score'} is read by one process alone, and {world} train "
            f"together.\n  Give train.runtime.watch=always, train.runtime.processes=1, or train.guards.stop_on=loss, "
            f"accuracy or margin of the dev pairs."
        )

    def _not_shared_out(self, together: int, world: int) -> str | None:
        kto, micro = self.trainer == "kto", self.runtime.micro_batch
        if kto and (together % world or together // world < 2):
            return (
                f"train.together={together} does not share out to {world} processes: kto looks at so many rows over "
                f"all of them, two or more in each.\n"
                f"  Give other train.runtime.processes, or a train.together that is a multiple of {2 * world}, which "
                f"is another experiment."
            )
        if kto and micro not in ("auto", together // world):
            return (
                f"train.runtime.micro_batch={micro}: kto looks at train.together={together} rows over all {world} "
                f"processes, which is {together // world} in each.\n  Give train.runtime.micro_batch=auto."
            )
        if not kto and self.batch % (together * world):
            return (
                f"train.batch={self.batch} does not share out to {world} processes of train.together={together} rows.\n"
                f"  Give a batch that is a multiple of {together * world}, or other train.runtime.processes."
            )
        return None
