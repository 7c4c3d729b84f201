"""The context length of the model that is sampled, as far as it is known before it is opened."""

from pipeline.config import Checkpoint, GgufCheckpoint, SampleRequest, TinyBase
from pipeline.errors import UserError
from pipeline.hashing import find_local_folder
from pipeline.preflight.lineage import read_gguf_config, trace_lineage
from pipeline.resources.model_shape import read_model_config
from pipeline.step import Step


def check_context(step: Step, cfg: SampleRequest) -> None:
    """Refuse completions so long that not even a short prompt fits into the context with them."""
    context = find_context(step)
    if context and cfg.limits.completion >= context:
        raise UserError(
            f"limits.completion={cfg.limits.completion}: the model has a context of {context}"
            " tokens, so no prompt fits before such a completion.\n"
            "  Lower limits.completion, or give a model with a longer context."
        )


def find_context(sample: Step) -> int | None:
    """The shortest context of the model that is sampled and of those that it was made from."""
    contexts = map(read_context, trace_lineage(sample.inputs["policy"]))
    return min((context for context in contexts if context), default=None)


def read_context(step: Step) -> int | None:
    """The context of a model to be made or of a local one; None for any other."""
    match step.config:
        case TinyBase():
            return step.config.context
        case Checkpoint():
            folder = find_local_folder(step.config.name_or_path, step.config.revision)
            known = read_model_config(folder) if folder else {}
            return known.get("text_config", known).get("max_position_embeddings")
        case GgufCheckpoint() as cfg:
            return read_gguf_config(cfg.path).get("max_position_embeddings")
        case _:
            return None
