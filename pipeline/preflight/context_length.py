"""How long a context the model of a draw has, as far as it is known before it is opened."""

import json

from pipeline.config import Checkpoint, SampleRequest, TinyBase
from pipeline.errors import UserError
from pipeline.hashing import find_local_folder
from pipeline.preflight.lineage import trace_lineage
from pipeline.step import Step


def check_context(step: Step, cfg: SampleRequest) -> None:
    """Where completions alone fill the context no prompt fits, however short."""
    context = find_context(step)
    if context and cfg.limits.completion >= context:
        raise UserError(
            f"limits.completion={cfg.limits.completion}: the model has a context of {context} tokens, so no"
            f" prompt fits before such a completion.\n  Lower limits.completion, or give a model with a longer context."
        )


def find_context(draw: Step) -> int | None:
    return min(
        (
            context
            for model in trace_lineage(draw.inputs["policy"])
            if (context := read_context(model))
        ),
        default=None,
    )


def read_context(step: Step) -> int | None:
    """What is known of it before anything is opened: of a model to be made, and of a checkpoint that is here."""
    match step.config:
        case TinyBase():
            return step.config.context
        case Checkpoint():
            folder = find_local_folder(step.config.place, step.config.revision)
            file = folder / "config.json" if folder else None
            known = json.loads(file.read_text()) if file and file.is_file() else {}
            return known.get("text_config", known).get("max_position_embeddings")
        case _:
            return None
