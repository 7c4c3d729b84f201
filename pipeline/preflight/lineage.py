"""What a plan's models are made from, and so whose weights and shape they have, as the disk knows it. No network."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import MODEL_FILE, Model, open_artifact
from pipeline.config import Checkpoint, TinyBase
from pipeline.hashing import here
from pipeline.resources import model_shape
from pipeline.status import Planned
from pipeline.step import Step

INNER = 8 / 3  # a tiny model's gates are so much wider than the model


def line_of(model: Step) -> Iterator[Step]:
    """A model, what it was made from, and so on: one tokenizer, one context, one shape."""
    step: Step | None = model
    while step:
        yield step
        if step.stage == "gate":  # whichever it chooses, all of them were made from sft
            step = step.inputs["exams"]["sft"]["model"]
        else:
            step = step.inputs.get("init") or step.inputs.get("base")


def shape_of(planned: Planned, model: Step) -> model_shape.Shape | None:
    """Of a model that is there, that is made here, or that another one is made from."""
    if folder := weights_of(planned, model):
        return model_shape.read_shape(folder)
    tiny = _nearest(planned, model).config
    return _to_be_made(tiny) if isinstance(tiny, TinyBase) else None


def weights_of(planned: Planned, model: Step) -> Path | None:
    """Where the weights of a model lie, or of the one that it is made from; None where they are not here yet."""
    nearest = _nearest(planned, model)
    folder = planned.folder(nearest)
    if (folder / MODEL_FILE).exists():
        made = open_artifact(nearest.stage, folder)
        assert isinstance(made, Model)
        try:
            return here(made.weights, made.revision)
        except FileNotFoundError:  # pruned, it or an adapter's base
            return None
    return (
        here(nearest.config.place, nearest.config.revision)
        if isinstance(nearest.config, Checkpoint)
        else None
    )


def _nearest(planned: Planned, model: Step) -> Step:
    """The first of its line that is there; else the one that begins it."""
    line = list(line_of(model))
    return next((step for step in line if (planned.folder(step) / MODEL_FILE).exists()), line[-1])


def _to_be_made(tiny: TinyBase) -> model_shape.Shape | None:
    inner = int(tiny.hidden * INNER)
    sizes = {
        "hidden_size": tiny.hidden,
        "intermediate_size": inner,
        "num_hidden_layers": tiny.layers,
    }
    heads = {"num_attention_heads": tiny.heads, "vocab_size": tiny.vocabulary}
    return model_shape.parse_shape({**sizes, **heads, "tie_word_embeddings": True})
