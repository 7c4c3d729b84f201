"""`strop merge PLACE [OUT]`: an adapter merged into its base, for tools that take no adapter.

PLACE is a run (its last round's model) or a step's folder in the store. OUT is `merged/` in the
step's folder by default. Nothing is trained. A run with `train.adapter.save_merged=true` does this
for each of its adapters.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pipeline import store
from pipeline.artifacts import find_store, list_steps, read_folder
from pipeline.commands.table import describe_usage, parse_words, reports_errors
from pipeline.errors import DONE, UserError
from pipeline.models.merging import MERGED, check_mergeable, merge


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("merge", arguments)
    step = find_step(words.place(0))
    out = read_folder(words.places[1]) if words.places[1:] else step / MERGED
    check_mergeable(step, out)
    with lock_readable(step):
        merge(step, out)
    print(out)
    return DONE


def lock_readable(step: Path) -> AbstractContextManager[None]:
    """A step of a store that cannot be written needs no lock: no prune can remove it either."""
    if not os.access(find_store(step), os.W_OK):
        return nullcontext()
    return store.lock_step(
        step, on_wait=lambda owner: print(f"waiting for {owner}", file=sys.stderr)
    )


def find_step(place: Path) -> Path:
    """The step's folder: `place` itself, or that of a run's last round."""
    trained = list_steps(place, "[0-9]*-train-*")
    folder = (trained[-1] if trained else place).resolve()
    if store.read_manifest(folder) is None:
        raise UserError(
            f"{place}: no run that has trained a model, and no finished step.\n"
            f"  {describe_usage('merge')}"
        )
    return folder
