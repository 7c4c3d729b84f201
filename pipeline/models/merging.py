"""Merge a trained adapter into its base, without training again."""

import errno
import os
import secrets
import shutil
from pathlib import Path

from pipeline import store
from pipeline.artifacts import MODEL_FILE, Model
from pipeline.errors import UserError

# Next to the adapter, but not part of the step's content: the content is enough to make it again.
MERGED = "merged"


def merge(step: Path, out: Path) -> None:
    """Atomic: written to a new folder next to `out`, then renamed."""
    from pipeline.models import loading

    manifest = check_mergeable(step, out)
    scratch = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        loading.save_merged(Model(step), manifest["config"]["dtype"], scratch)
        if out == step / MERGED:
            files = (file for file in scratch.rglob("*") if file.is_file())
            names = (file.relative_to(scratch).as_posix() for file in files)
            store.note_outside(step, (f"{MERGED}/{name}" for name in names))
        scratch.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _make_exists_error(out) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_mergeable(step: Path, out: Path) -> store.Manifest:
    """The step's manifest. Refuses whatever cannot be merged into `out`; writes nothing."""
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
    try:
        weights = model.weights
    except FileNotFoundError as error:
        raise UserError(
            f"{step}: its base {model.record['base']} is not in its store ({error.filename}).\n"
            "  Give the step's folder in the store, or its run; where the base was pruned, run the"
            " command of its run again."
        ) from error
    if not Path(weights).exists() and isinstance(weights, Path):
        raise UserError(
            f"{step}: its base is gone from {weights}.\n"
            "  Run the command of its run again, which makes it."
        )
    if os.path.lexists(out):
        raise _make_exists_error(out)
    return manifest


def _make_exists_error(out: Path) -> UserError:
    return UserError(
        f"{out}: this path exists.\n  Give a folder that does not exist yet, or remove that one."
    )
