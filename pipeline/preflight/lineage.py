"""What a plan's models are made from, and so their weights and shape. Uses no network."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.artifacts import MODEL_FILE, Model, open_artifact
from pipeline.config import Checkpoint, GgufCheckpoint, GgufFile, TinyBase
from pipeline.errors import UserError
from pipeline.hashing import find_local_folder
from pipeline.models.gguf import read_local_header
from pipeline.resources import model_shape
from pipeline.status import RunPlan
from pipeline.step import Step

INNER = 8 / 3  # the width of a tiny model's MLP relative to its hidden size


def trace_lineage(model: Step) -> Iterator[Step]:
    """A model, what it was made from, and so on: all have one tokenizer, context and shape."""
    step: Step | None = model
    while step:
        yield step
        if step.stage == "gate":  # whichever model it chooses was made from sft
            step = step.inputs["evals"]["sft"]["model"]
        else:
            inputs = step.inputs
            step = inputs.get("init") or inputs.get("base") or _find_merged_model(step)


def _find_merged_model(step: Step) -> Step | None:
    return step.inputs["model"] if step.stage == "merge" else None


def find_shape(run_plan: RunPlan, model: Step) -> model_shape.Shape | None:
    """The shape of a built model, of its nearest built ancestor, or of a model to be made."""
    if folder := find_weights(run_plan, model):
        return model_shape.read_shape(folder)
    match _find_nearest(run_plan, model).config:
        case TinyBase() as tiny:
            return _make_tiny_shape(tiny)
        case GgufCheckpoint() as cfg:
            return model_shape.parse_shape(read_gguf_config(cfg.path))
        case _:
            return None


def read_gguf_config(path: GgufFile) -> dict[str, Any]:
    """What a local GGUF file's config.json will have; empty for a wheel or a broken file."""
    file = Path(path).expanduser()
    if not path.is_local or not file.is_file():
        return {}
    return _read_gguf_config(path, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)  # several Steps ask for the same model
def _read_gguf_config(path: GgufFile, _mtime: int) -> dict[str, Any]:
    try:
        return model_shape.drop_impossible(read_local_header(path).to_model_config())
    except (OSError, UserError):  # the preflight reports it
        return {}


def find_weights(run_plan: RunPlan, model: Step) -> Path | None:
    """The weights of a model or of what it is made from; None if they are not here yet."""
    nearest = _find_nearest(run_plan, model)
    folder = run_plan.folder(nearest)
    if (folder / MODEL_FILE).exists():
        try:
            made = open_artifact(nearest.stage, folder)
            assert isinstance(made, Model)
            return find_local_folder(made.weights, made.revision)
        except (FileNotFoundError, UserError):  # it or an adapter's base was pruned or damaged
            return None
    if not isinstance(nearest.config, Checkpoint):
        return None
    return find_local_folder(nearest.config.name_or_path, nearest.config.revision)


def _find_nearest(run_plan: RunPlan, model: Step) -> Step:
    """The first model of the lineage that is built; else its origin."""
    line = list(trace_lineage(model))
    return next((step for step in line if (run_plan.folder(step) / MODEL_FILE).exists()), line[-1])


def _make_tiny_shape(tiny: TinyBase) -> model_shape.Shape | None:
    config = {
        "hidden_size": tiny.hidden,
        "intermediate_size": int(tiny.hidden * INNER),
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "vocab_size": tiny.vocabulary,
        "tie_word_embeddings": True,
    }
    return model_shape.parse_shape(config)
