"""What a Step asks of a cluster: `cluster.resources`, with `auto` replaced by a number."""

import math
from dataclasses import dataclass

from pipeline.config import (
    BenchmarkConfig,
    ClusterConfig,
    ConversationRequest,
    DuelConfig,
    EndpointBackend,
    Optimization,
    ReferenceConfig,
    SampleRequest,
    ScoreConfig,
    StepJudge,
    StepSearch,
    VllmBackend,
    VllmEngine,
)
from pipeline.driver.model_sharing import opens_model
from pipeline.errors import UserError, pluralize
from pipeline.step import Step

JOINABLE = "sample", "score", "reference"  # the stages whose work may be in shards


@dataclass(frozen=True)
class Needs:
    """Of one process on one node. `memory` in GiB; None: not asked for, as with `hours`."""

    gpus: int
    cpus: int
    memory: float | None
    hours: float | None

    def describe(self) -> str:
        parts = [pluralize(self.gpus, "GPU")] if self.gpus else []
        parts.append(pluralize(self.cpus, "core"))
        parts += [f"{self.memory:g} GiB"] if self.memory else []
        parts += [f"{self.hours:g} hours"] if self.hours else []
        return ", ".join(parts)


@dataclass(frozen=True)
class StepNeeds:
    own: Needs
    helper: Needs  # of one helper, which opens one engine
    helpers: int
    machines: int = 1  # that have to start together, each with `own`

    def describe(self) -> str:
        if self.machines > 1:
            return f"{self.machines} × {self.own.describe()}, together"
        if not self.helpers:
            return self.own.describe()
        return f"{self.own.describe()}; and {self.helpers} × {self.helper.describe()} to help"


def find_needs(cluster: ClusterConfig, step: Step, has_gpus: bool) -> StepNeeds:
    """`has_gpus`: whether the cluster has any; models are opened on CPUs where it has none."""
    asked = cluster.resources.find(step.stage)
    engine = count_engine_gpus(step) if has_gpus else 0
    gpus = engine * _count_processes(step) if asked.gpus == "auto" else asked.gpus
    own = Needs(gpus, asked.cpus, asked.memory, asked.hours)
    if isinstance(step.config, Optimization):
        runtime = getattr(step.config, "runtime", None)
        return StepNeeds(own, own, 0, getattr(runtime, "machines", 1))
    if asked.machines == 1 or not has_shards(step):
        return StepNeeds(own, own, 0)
    # The step's own process opens an engine for each group of its GPUs, a helper opens one.
    each = max(1, gpus // engine) if engine else 1
    memory = asked.memory and asked.memory / each
    helper = Needs(min(engine, gpus), math.ceil(asked.cpus / each), memory, asked.hours)
    return StepNeeds(own, helper, (asked.machines - 1) * each)


def count_engine_gpus(step: Step) -> int:
    """GPUs that share one model of a Step."""
    if not opens_model(step):
        return 0
    match step.config:
        case SampleRequest(backend=VllmBackend() as backend):
            return backend.gpus
        case BenchmarkConfig(backend=VllmBackend() as backend):
            return backend.gpus
        case ScoreConfig():
            return step.config.gpus_each
        case DuelConfig(engine=VllmEngine() as engine):
            return engine.runtime.tensor_parallel
        case StepSearch(judge=StepJudge(engine=VllmEngine() as engine)):
            return engine.runtime.tensor_parallel
    return 1


def _count_processes(step: Step) -> int:
    """Workers of a sampler or a scorer, processes of a training; 1 where they are `auto`."""
    runtime = getattr(step.config, "runtime", None)
    name = "processes" if isinstance(step.config, Optimization) else "workers"
    count = getattr(runtime, name, 1)
    return count if isinstance(count, int) else 1


def has_shards(step: Step) -> bool:
    """Whether other machines can help with a Step."""
    match step.config:
        case ConversationRequest():  # each turn has its own queue
            return False
        case SampleRequest(backend=backend):
            return not isinstance(backend, EndpointBackend)
        case ScoreConfig():
            return bool(step.config.local_model_scorers)
        case ReferenceConfig():
            return True
    return False


def check_machines(cluster: ClusterConfig) -> None:
    """Refuse more machines for a stage whose work is not in shards."""
    for stage, asked in cluster.resources:
        if asked.machines == 1 or stage in JOINABLE:
            continue
        knob = f"cluster.resources.{stage}.machines={asked.machines}"
        if stage == "train":
            raise UserError(
                f"{knob}: the machines of a training are not helpers, they start together.\n"
                f"  Give train.runtime.machines={asked.machines}; the rest of"
                " cluster.resources.train is of each of them."
            )
        raise UserError(
            f"{knob}: its work is not in shards, so one machine does it.\n"
            f"  Leave this out; {', '.join(JOINABLE)} may have more."
        )
