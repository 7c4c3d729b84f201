"""The whole weights of a trained adapter, beside it: merged without training again."""

import shutil
from pathlib import Path

from pipeline import store
from pipeline.artifacts import MODEL_FILE, Model
from pipeline.errors import UserError

MERGED = "merged"  # beside the adapter, outside the step's content: it is made from what that holds


def merge(step: Path, out: Path) -> None:
    """Whole or not at all: written beside `out` and renamed."""
    from pipeline.models import loading

    manifest, model = store.read_manifest(step), Model(step)
    if manifest is None or store.is_pruned(manifest) or not (step / MODEL_FILE).exists():
        raise UserError(
            f"{step}: it has no weights here (pruned, or no model).\n  Run its run again, which makes them."
        )
    if model.adapter is None:
        raise UserError(f"{step}: its weights are whole already.\n  Open {model.weights}.")
    if not Path(model.weights).exists() and isinstance(model.weights, Path):
        raise UserError(
            f"{step}: its base is gone from {model.weights}.\n  Run its run again, which makes it."
        )
    if out.exists():
        raise UserError(
            f"{out}: something lies there.\n  Give a folder that does not exist yet, or remove that one."
        )
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    loading.save_merged(model, manifest["config"]["dtype"], scratch)
    scratch.rename(out)
