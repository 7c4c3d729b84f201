"""Merge a trained adapter into its base, next to the adapter, without training again."""

import secrets
import shutil
from pathlib import Path

from pipeline import store
from pipeline.artifacts import MODEL_FILE, Model
from pipeline.errors import UserError

# Next to the adapter, but not part of the step's content: the content is enough to make it again.
MERGED = "merged"


def merge(step: Path) -> None:
    """Atomic: written to a new folder next to `merged`, then renamed."""
    from pipeline.models import loading

    manifest, out = check_mergeable(step), step / MERGED
    scratch = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        loading.save_merged(Model(step), manifest["config"]["dtype"], scratch)
        files = (file for file in scratch.rglob("*") if file.is_file())
        names = (file.relative_to(scratch).as_posix() for file in files)
        store.note_outside(step, (f"{MERGED}/{name}" for name in names))
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_mergeable(step: Path) -> store.Manifest:
    """The step's manifest. Refuses a step without an adapter; writes nothing."""
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
    return manifest
