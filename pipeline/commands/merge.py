"""`strop merge PLACE [OUT]`: a trained adapter's whole weights, for tools that take no adapter.

PLACE is a run (its last round's model) or a step's folder in the store; OUT is `merged/` in that folder unless given.
Nothing is trained again. A run with `train.adapter.save_merged=true` does this for each of its adapters.
"""

import sys
from pathlib import Path

from pipeline import store
from pipeline.errors import DONE, USER_ERROR, UserError
from pipeline.models.merging import MERGED, merge

USAGE = "Type strop merge PLACE [OUT]: a run or a step's folder in the store, and a new folder."


def main(words: list[str]) -> int:
    try:
        if not 1 <= len(words) <= 2:
            raise UserError(
                f"merge takes one or two folders, and {len(words)} were given.\n  {USAGE}"
            )
        step = find_step(Path(words[0]))
        out = Path(words[1]).expanduser() if words[1:] else step / MERGED
        with store.lock_step(
            step, on_wait=lambda owner: print(f"waiting for {owner}", file=sys.stderr)
        ):
            merge(step, out)
        print(out)
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return USER_ERROR
    return DONE


def find_step(place: Path) -> Path:
    """The folder of a trained model: the place itself, or that of a run's last round."""
    trained = sorted((place / "store").glob("[0-9]*-train-*"))
    found = trained[-1].resolve() if trained else place.absolute()
    if store.read_manifest(found) is None:
        raise UserError(f"{place}: no run and no finished step lies there.\n  {USAGE}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
