"""Which Steps open a model, and which of them can use one that is open."""

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.artifacts import Model
from pipeline.backends.lora_support import choose_engine_rank, runs_unmerged
from pipeline.config import (
    BenchmarkConfig,
    Block,
    DuelConfig,
    Judge,
    ReferenceConfig,
    SampleRequest,
    ScoreConfig,
    StepJudge,
    StepSearch,
    TransformersBackend,
    VllmBackend,
    VllmEngine,
)
from pipeline.errors import UserError
from pipeline.step import Input, Step

ENGINES = (VllmBackend, TransformersBackend)
# They load weights, whatever their config says.
MODEL_STAGES = ("base", "sft", "reward", "train", "reference", "benchmark")
FindFolder = Callable[[Step], Path]


def opens_model(step: Step) -> bool:
    """Whether a Step fills memory or a GPU. Any other can run at the same time as one that does."""
    match step.config:
        case SampleRequest(backend=backend):
            return isinstance(backend, ENGINES)
        case ScoreConfig():
            return bool(step.config.local_model_scorers)
        case DuelConfig(engine=engine):
            return isinstance(engine, VllmEngine)
        case StepSearch(judge=StepJudge(engine=engine)):
            return isinstance(engine, VllmEngine)
    return step.stage in MODEL_STAGES


def writes_verdicts(step: Step) -> bool:
    """Whether a Step writes into SQLite, which several machines must not do at once."""
    match step.config:
        case DuelConfig() | StepSearch(judge=StepJudge()):
            return True
        case ScoreConfig(scorers=scorers):
            return any(isinstance(scorer, Judge) for scorer in scorers.values())
    return False


def find_model_key(step: Step, folder_of: FindFolder) -> str | None:
    """Equal for two Steps that can use one open model. None: its model is not kept open.

    It only has to be right mostly: a worker opens what its Step needs, whatever is open.
    """
    match step.config:
        case SampleRequest(backend=backend, limits=limits) if isinstance(backend, ENGINES):
            return _describe("sample", folder_of, step.inputs.get("policy"), backend, limits)
        case ScoreConfig() if scorers := step.config.local_model_scorers:
            return _describe("score", folder_of, step.inputs.get("reward"), *scorers.values())
        case ReferenceConfig():
            return _describe("reference", folder_of, step.inputs["model"], step.config)
        case DuelConfig(engine=engine) if isinstance(engine, VllmEngine):
            return _describe("duel", folder_of, None, engine)
        case StepSearch(judge=StepJudge(engine=engine)) if isinstance(engine, VllmEngine):
            return _describe("steps", folder_of, None, engine)
        case BenchmarkConfig(backend=backend):
            return _describe("benchmark", folder_of, step.inputs["model"], backend)
    return None


def _describe_adapter(use: str, model: Model, opened: Block) -> str:
    """vLLM runs adapters of one size on one open base; everything else opens an adapter with it."""
    if use != "sample" or not isinstance(opened, VllmBackend) or model.adapter is None:
        return str(model.adapter)
    return (
        f"rank {choose_engine_rank(model.adapter)}" if runs_unmerged(model) else str(model.adapter)
    )


def _describe(use: str, folder_of: FindFolder, model: Input, *blocks: Block) -> str:
    weights: list[str] = []
    if isinstance(model, Step):
        opened = Model(folder_of(model))
        try:  # several Steps may name the same weights, as a gate does those that it chose
            weights = [str(opened.weights), _describe_adapter(use, opened, blocks[0])]
        except (OSError, UserError):  # not built yet
            weights = [str(opened.path)]
    return json.dumps([use, weights, *(block.model_dump(mode="json") for block in blocks)])
