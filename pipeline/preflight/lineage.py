"""What a plan's models are made from, and so whose weights and shape they have, as the disk knows it. No network."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import MODEL_FILE, Model, open_artifact
from pipeline.config import Checkpoint, TinyBase
from pipeline.hashing import find_local_folder
from pipeline.resources import model_shape
from pipeline.status import RunPlan
from pipeline.step import Step

INNER = 8 / 3  # a tiny model's gates are so much wider than the model


def trace_lineage(model: Step) -> Iterator[Step]:
    """A model, what it was made from, and so on: one tokenizer, one context, one shape."""
    step: Step | None = model
    while step:
        yield step
        if step.stage == "gate":  # whichever it chooses, all of them were made from sft
            step = step.inputs["exams"]["sft"]["model"]
        else:
            step = step.inputs.get("init") or step.inputs.get("base")


def find_shape(planned: RunPlan, model: Step) -> model_shape.Shape | None:
    """Of a model that is there, that is made here, or that another one is made from."""
    if folder := find_weights(planned, model):
        return model_shape.shape_in(folder)
    tiny = _find_nearest(planned, model).config
    return _make_tiny_shape(tiny) if isinstance(tiny, TinyBase) else None


def find_weights(planned: RunPlan, model: Step) -> Path | None:
    """Where the weights of a model lie, or of the one that it is made from; None where they are not here yet."""
    nearest = _find_nearest(planned, model)
    folder = planned.folder(nearest)
    if (folder / MODEL_FILE).exists():
        made = open_artifact(nearest.stage, folder)
        assert isinstance(made, Model)
        try:
            return find_local_folder(made.weights, made.revision)
        except FileNotFoundError:  # pruned, it or an adapter's base
            return None
    return (
        find_local_folder(nearest.config.place, nearest.config.revision)
        if isinstance(nearest.config, Checkpoint)
        else None
    )


def _find_nearest(planned: RunPlan, model: Step) -> Step:
    """The first of its line that is there; else the one that begins it."""
    line = list(trace_lineage(model))
    return next((step for step in line if (planned.folder(step) / MODEL_FILE).exists()), line[-1])


def _make_tiny_shape(tiny: TinyBase) -> model_shape.Shape | None:
    inner = int(tiny.hidden * INNER)
    sizes = {
        "hidden_size": tiny.hidden,
        "intermediate_size": inner,
        "num_hidden_layers": tiny.layers,
    }
    heads = {"num_attention_heads": tiny.heads, "vocab_size": tiny.vocabulary}
    return model_shape.shape_of({**sizes, **heads, "tie_word_embeddings": True})
