"""What is trained and how: optimisation, adapters, the objective."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.config.block import Block, Share
from pipeline.trl_args import check_args


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
