"""Where a training runs and by how many: all of it `runtime`, so none of it enters identity."""

from importlib.util import find_spec
from typing import Literal, Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Block
from pipeline.config.tracker import TrackerConfig
from pipeline.errors import pluralize

Launch = Literal["auto", "torchrun", "ddp", "zero1", "zero2", "zero3", "fsdp2"]

# What accelerate has to find itself in after the start, by what was asked for.
KINDS: dict[Launch, tuple[str, ...]] = {
    **dict.fromkeys(("auto", "torchrun", "ddp"), ("MULTI_GPU", "MULTI_CPU")),
    **dict.fromkeys(("zero1", "zero2", "zero3"), ("DEEPSPEED",)),
    "fsdp2": ("FSDP",),
}
SHARED = (
    "zero1",
    "zero2",
    "zero3",
    "fsdp2",
)  # what one process holds is a part of the training's state
SHARDED = ("zero3", "fsdp2")  # of the weights too: no process has the model by itself


class TrainerRuntime(Block):
    micro_batch: PositiveInt
    save_every: PositiveInt
    tracker: TrackerConfig | None


class LaunchedRuntime(TrainerRuntime):
    """`usual_rate` judges the learning rate; `gpu_hour` is what an hour of one device costs."""

    micro_batch: PositiveInt | Literal["auto"]  # type: ignore[assignment]
    processes: PositiveInt | Literal["auto"]
    launch: Launch
    machines: PositiveInt
    address: str | None
    port: PositiveInt
    by_length: bool
    watch: Literal["alone", "always"]
    memory: PositiveFloat
    keep_checkpoints: bool
    usual_rate: PositiveFloat
    gpu_hour: NonNegativeFloat | None

    @model_validator(mode="after")
    def _machines_meet_somewhere(self) -> Self:
        if self.machines > 1 and self.address is None:
            raise ValueError(
                f"machines={self.machines} need an address: give address=HOST, where the others reach this one"
            )
        return self

    @property
    def at_once(self) -> int:
        """`micro_batch` once it is a number: what is measured on the device settles `auto`."""
        assert isinstance(self.micro_batch, int)
        return self.micro_batch

    def count(self, gpus: int) -> int:
        """Processes on each machine: one per GPU unless a number is given."""
        return max(1, gpus) if self.processes == "auto" else self.processes

    def world(self, gpus: int) -> int:
        return self.count(gpus) * self.machines

    def unfit(self, batch: int, gpus: int) -> str | None:
        """Why this many cannot train here; None: they can. Without any GPU several processes share the CPU."""
        count, world = self.count(gpus), self.world(gpus)
        if self.launch.startswith("zero") and find_spec("deepspeed") is None:
            return (
                f"train.runtime.launch={self.launch} needs the package deepspeed, which is not installed.\n"
                f"  Install it into this environment (pip install deepspeed), or give train.runtime.launch=fsdp2."
            )
        if gpus and count > gpus:
            return (
                f"train.runtime.processes={count}: this machine shows {pluralize(gpus, 'GPU')}, and each process takes"
                f" one.\n  Give train.runtime.processes=auto or up to {gpus}, or run where there are {count}."
            )
        if self.launch in SHARED and not gpus:
            return (
                f"train.runtime.launch={self.launch} shares a model among GPUs, and this machine shows none.\n"
                f"  Give train.runtime.launch=auto, or run where there are GPUs."
            )
        if self.launch in SHARED and world == 1:
            return (
                f"train.runtime.launch={self.launch} shares a model among several processes, and there is one.\n"
                f"  Give train.runtime.launch=auto, or more GPUs."
            )
        return self._indivisible(batch, world)

    def _indivisible(self, batch: int, world: int) -> str | None:
        least = world if self.micro_batch == "auto" else world * self.micro_batch
        if batch % least == 0:
            return None
        of = (
            ""
            if self.micro_batch == "auto"
            else f" of train.runtime.micro_batch={self.micro_batch} pairs"
        )
        return (
            f"train.batch={batch} does not share out to {world} processes{of}.\n"
            f"  Give a batch that is a multiple of {least}, another train.runtime.micro_batch, or "
            f"train.runtime.processes."
        )
