"""Training: optimisation, adapters, the objective."""

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
from pipeline.config.demonstrations import OptionalRehearsal
from pipeline.config.guards import GuardsConfig
from pipeline.config.launch import SHARDED_WEIGHTS, LaunchedRuntime, TrainerRuntime
from pipeline.config.trl_args import check_args, couples_rows
from pipeline.errors import pluralize

PROMPT_TUNING = ("prefix", "prefix_tuning", "prompt", "prompt_tuning", "p_tuning")

# Times runtime.usual_rate: conf/train/dpo.yaml explains why an adapter may have more.
MAX_RATE_FACTOR = {"full": (10, "ten"), "lora": (100, "a hundred"), "qlora": (100, "a hundred")}


class Optimization(Block):
    """What every trainer needs: its steps, and the rows of each."""

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
    def _check_batch(self) -> Self:
        if isinstance(self.runtime.micro_batch, int) and self.batch % self.runtime.micro_batch:
            fits = max(n for n in range(1, self.runtime.micro_batch + 1) if self.batch % n == 0)
            raise ValueError(
                f"batch={self.batch} is not a multiple of"
                f" runtime.micro_batch={self.runtime.micro_batch}: an optimizer step would see"
                f" another number of rows; give runtime.micro_batch={fits}"
            )
        return self


def refuse_prompt_tuning(adapter: Any) -> Any:
    if isinstance(adapter, dict) and (kind := adapter.get("kind")) in PROMPT_TUNING:
        raise ValueError(
            f"an adapter of kind {kind} trains virtual tokens before the prompt instead of weights:"
            " it cannot be merged, vLLM does not sample from it, and a next round could not start"
            " from it. Use lora, qlora or full"
        )
    return adapter


class FullAdapter(Block):
    kind: Literal["full"]
    learning_rate: PositiveFloat


class Quantization(Block):
    """How QLoRA keeps its frozen base in memory."""

    bits: Literal[4, 8]
    double: bool


class LoraAdapter(Block):
    # A merged copy can be made from a finished training at any time.
    outside_identity: ClassVar[frozenset[str]] = frozenset({"save_merged"})

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
    def _check_quantization(self) -> Self:
        if (self.kind == "qlora") != (self.quantization is not None):
            raise ValueError(
                f"kind={self.kind} does not fit its quantization:"
                " choose adapter@train.adapter=lora or qlora"
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
    rehearsal: OptionalRehearsal
    args: dict[str, JsonValue]
    runtime: LaunchedRuntime

    @model_validator(mode="after")
    def _check_learning_rate(self) -> Self:
        usual, (factor, in_words) = self.runtime.usual_rate, MAX_RATE_FACTOR[self.adapter.kind]
        # 5e-6 counts as ten times 5e-7, whatever floating point makes of it.
        if self.learning_rate / usual > factor * 1.00001:
            raise ValueError(
                f"learning_rate={self.learning_rate:g} is over {in_words} times the usual rate"
                f" ({usual:g}): it breaks models more often than it trains them;"
                f" give train.runtime.usual_rate={self.learning_rate:g} if you mean it"
            )
        return self

    @model_validator(mode="after")
    def _check_args(self) -> Self:
        dropout = getattr(self.adapter, "dropout", 0.0)
        check_args(self.trainer, self.args, self.loss, self.logps, dropout, self.adapter.kind)
        if self.trainer == "kto" and self.guards.stop_on == "accuracy":
            raise ValueError(
                "guards.stop_on=accuracy: kto trains on unpaired answers, which have no accuracy;"
                " take loss or margin"
            )
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            weights = pluralize(len(self.loss_weights), "weight")
            raise ValueError(f"loss_weights has {weights} for {pluralize(len(self.loss), 'loss')}")
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> Self:
        launch = self.runtime.launch
        if launch in SHARDED_WEIGHTS and self.adapter.kind == "qlora":
            raise ValueError(
                f"runtime.launch={launch} shards weights, and no test shows that the packed"
                " weights of adapter=qlora survive that. Use adapter=lora,"
                " or runtime.launch=ddp or zero2"
            )
        return self

    @model_validator(mode="after")
    def _check_loss_group(self) -> Self:
        """`runtime` must not change results: where a loss couples rows, `together` counts them."""
        coupled = couples_rows(self.trainer, self.args, self.loss)
        names, micro = ", ".join(self.loss), self.runtime.micro_batch
        if not coupled and self.together is not None:
            raise ValueError(
                f"together={self.together} would be ignored: {names} treats each row separately"
            )
        if not coupled:
            return self
        if self.together is None:
            raise ValueError(
                f"together: {names} couples several rows; give their number, such as together=8"
            )
        if micro != "auto" and (
            self.together % micro if self.trainer == "kto" else micro != self.together
        ):
            raise ValueError(
                f"runtime.micro_batch={micro}: {names} couples together={self.together} rows;"
                f" give train.together={micro}, which is another experiment"
            )
        if self.trainer == "kto" and self.together == 1:
            raise ValueError(
                "together=1: kto estimates its KL from the other rows;"
                " give 2 or more, such as together=8"
            )
        if self.batch % self.together:
            raise ValueError(
                f"batch={self.batch} is not a multiple of together={self.together}: {names} couples"
                " that many rows, and an optimizer step would see only a part of them"
            )
        return self

    @property
    def low_rate_warning(self) -> str | None:
        """A warning about a learning rate too low to learn anything; None: it is not."""
        usual = self.runtime.usual_rate
        if self.learning_rate / usual > 0.0999:  # a tenth itself is not too low
            return None
        return (
            f"learning_rate={self.learning_rate:g} is under a tenth of the usual rate ({usual:g}):"
            " expect little to change"
        )

    def explain_few_steps(self, steps: int) -> str | None:
        """A warning where the warm-up takes at least twice its share of the steps, or None."""
        warmup_steps = ceil(self.warmup * steps)
        if not warmup_steps or warmup_steps < 2 * self.warmup * steps:
            return None
        return (
            f"too few steps ({steps}) for train.warmup={self.warmup:g}: the warm-up takes"
            f" {warmup_steps} of them, so expect little to change. Give more pairs, a smaller"
            f" train.batch (it is {self.batch}) or more train.epochs"
        )

    @property
    def keeps_reference(self) -> bool:
        """Whether the trainer holds a fixed reference model in memory throughout."""
        return self.logps == "live" and not self.args.get("sync_ref_model")

    @property
    def rehearsal_rows(self) -> int:
        """Demonstrations added to the pairs of each step."""
        return max(1, round(self.rehearsal.share * self.batch)) if self.rehearsal else 0

    def loss_group_per_process(self, world: int) -> int | None:
        """Rows of `together` in one process.

        TRL averages kto's KL over all processes; other losses see the rows of one process.
        """
        return self.together // world if self.together and self.trainer == "kto" else self.together

    def explain_misfit(self, gpus: int) -> str | None:
        """Why this cannot be trained on so many GPUs here; None: it can."""
        world = self.runtime.world_size(gpus)
        if fault := self.runtime.explain_misfit(self.batch, gpus):
            return fault
        if world > 1 and self.runtime.watch == "alone" and self.guards.needs_own_metrics:
            return self._explain_unseen_guards(world)
        return self._explain_uneven_groups(self.together, world) if self.together else None

    def _explain_unseen_guards(self, world: int) -> str:
        budgets = [
            f"{name}={value:g}"
            for name in ("kl_budget", "fall_budget")
            if (value := getattr(self.guards, name))
        ]
        return (
            f"train.guards.{budgets[0] if budgets else 'stop_on=score'} is measured only where one"
            f" process trains alone, and here {world} train together.\n"
            "  Give train.runtime.watch=always, train.runtime.processes=1,"
            " or train.guards.stop_on=loss, accuracy or margin of the dev pairs."
        )

    def _explain_uneven_groups(self, together: int, world: int) -> str | None:
        kto, micro = self.trainer == "kto", self.runtime.micro_batch
        if kto and (together % world or together // world < 2):
            return (
                f"train.together={together} does not divide evenly among {world} processes: kto"
                " couples that many rows over all of them, two or more in each.\n"
                "  Give other train.runtime.processes, or a train.together that is a multiple of"
                f" {2 * world}, which is another experiment."
            )
        if kto and micro not in ("auto", together // world):
            return (
                f"train.runtime.micro_batch={micro}: kto couples train.together={together} rows"
                f" over all {world} processes, which is {together // world} in each.\n"
                "  Give train.runtime.micro_batch=auto."
            )
        if not kto and self.batch % (together * world):
            return (
                f"train.batch={self.batch} does not divide evenly among {world} processes of"
                f" train.together={together} rows.\n"
                f"  Give a batch that is a multiple of {together * world},"
                " or other train.runtime.processes."
            )
        return None
