"""Merge a trained adapter into its base, without training again."""

import shutil
from pathlib import Path

from pipeline import store
from pipeline.artifacts import MODEL_FILE, Model
from pipeline.errors import UserError

# Next to the adapter, but not part of the step's content: the content is enough to make it again.
MERGED = "merged"


def merge(step: Path, out: Path) -> None:
    """Atomic: written to a folder next to `out`, then renamed."""
    from pipeline.models import loading

    manifest, model = store.read_manifest(step), Model(step)
    if manifest is None or store.is_pruned(manifest) or not (step / MODEL_FILE).exists():
        raise UserError(
            f"{step}: it has no weights here (pruned, or not a model).\n"
            "  Run the command of its run again, which makes them."
        )
    if model.adapter is None:
        raise UserError(
            f"{step}: its weights are whole already, not an adapter.\n"
            f"  Give from_pretrained this folder: {model.weights}"
        )
    if not Path(model.weights).exists() and isinstance(model.weights, Path):
        raise UserError(
            f"{step}: its base is gone from {model.weights}.\n"
            "  Run the command of its run again, which makes it."
        )
    if out.exists():
        raise UserError(
            f"{out}: this path exists.\n"
            "  Give a folder that does not exist yet, or remove that one."
        )
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    loading.save_merged(model, manifest["config"]["dtype"], scratch)
    scratch.rename(out)
