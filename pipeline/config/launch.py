"""Where a training runs and in how many processes: all `runtime`, so none of it enters identity."""

from importlib.util import find_spec
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from pipeline.config.base import Block
from pipeline.config.tracker import TrackerConfig
from pipeline.errors import pluralize

Launch = Literal["auto", "torchrun", "ddp", "zero1", "zero2", "zero3", "fsdp2"]

# accelerate's DistributedType after the start, for each launch.
DISTRIBUTED_TYPES: dict[Launch, tuple[str, ...]] = {
    **dict.fromkeys(("auto", "torchrun", "ddp"), ("MULTI_GPU", "MULTI_CPU")),
    **dict.fromkeys(("zero1", "zero2", "zero3"), ("DEEPSPEED",)),
    "fsdp2": ("FSDP",),
}
# Each process holds a part of the training's state …
SHARDED_STATE = ("zero1", "zero2", "zero3", "fsdp2")
# … and with these a part of the weights too: no process has the whole model.
SHARDED_WEIGHTS = ("zero3", "fsdp2")


class TrainerRuntime(Block):
    micro_batch: PositiveInt
    save_every: PositiveInt
    tracker: TrackerConfig | None


class LaunchedRuntime(TrainerRuntime):
    """`typical_…` is what the learning rate and β are held against; `gpu_hour` is a price."""

    micro_batch: PositiveInt | Literal["auto"]  # type: ignore[assignment]
    processes: PositiveInt | Literal["auto"]
    launch: Launch
    machines: PositiveInt
    address: str | None
    port: PositiveInt | None
    by_length: bool
    shared_prompt: Literal["auto", False]
    eval_when_distributed: bool
    memory: PositiveFloat
    keep_checkpoints: bool
    warn_sampler_gap: PositiveFloat | None
    typical_learning_rate: PositiveFloat
    typical_beta: PositiveFloat | None
    gpu_hour: NonNegativeFloat | None

    @property
    def per_device(self) -> int:
        """`micro_batch` as a number, after measuring on the device has replaced `auto`."""
        assert isinstance(self.micro_batch, int)
        return self.micro_batch

    def count_processes(self, gpus: int) -> int:
        """Processes on each machine: one per GPU, unless `processes` is a number."""
        return max(1, gpus) if self.processes == "auto" else self.processes

    def world_size(self, gpus: int) -> int:
        return self.count_processes(gpus) * self.machines

    def explain_misfit(self, batch: int, gpus: int, knob: str = "train") -> str | None:
        """Why these processes cannot train here; None: they can. `knob` is that of the training.

        Without a GPU several processes share the CPU.
        """
        count, world = self.count_processes(gpus), self.world_size(gpus)
        if self.launch.startswith("zero") and find_spec("deepspeed") is None:
            return (
                f"{knob}.runtime.launch={self.launch} needs the package deepspeed,"
                " which is not installed.\n"
                "  Install it into this environment (pip install deepspeed),"
                f" or give {knob}.runtime.launch=fsdp2."
            )
        if gpus and count > gpus:
            return (
                f"{knob}.runtime.processes={count}: this machine has {pluralize(gpus, 'GPU')},"
                " and each process takes one.\n"
                f"  Give {knob}.runtime.processes=auto or up to {gpus},"
                f" or run where there are {count}."
            )
        if self.launch in SHARDED_STATE and not gpus:
            return (
                f"{knob}.runtime.launch={self.launch} shards a model across GPUs,"
                " and this machine has none.\n"
                f"  Give {knob}.runtime.launch=auto, or run where there are GPUs."
            )
        if self.launch in SHARDED_STATE and world == 1:
            return (
                f"{knob}.runtime.launch={self.launch} shards a model across several processes,"
                " and there is one.\n"
                f"  Give {knob}.runtime.launch=auto, or more GPUs."
            )
        return self._explain_uneven_batch(batch, world, knob)

    def _explain_uneven_batch(self, batch: int, world: int, knob: str) -> str | None:
        least = world if self.micro_batch == "auto" else world * self.micro_batch
        if batch % least == 0:
            return None
        pairs = f" of {knob}.runtime.micro_batch={self.micro_batch} pairs"
        return (
            f"{knob}.batch={batch} does not divide evenly among {world} processes"
            f"{'' if self.micro_batch == 'auto' else pairs}.\n"
            f"  Give a batch that is a multiple of {least}, another {knob}.runtime.micro_batch,"
            f" or other {knob}.runtime.processes."
        )
