"""`python -m pipeline.merge PLACE [OUT]`: the whole weights of a trained adapter, for tools that take no adapter.

PLACE is a run (its last round's model) or a step's folder in the store; OUT is `merged/` in that folder unless given.
Nothing is trained again. A run with `train.adapter.save_merged=true` does this for each of its adapters.
"""

import shutil
import sys
from pathlib import Path

from pipeline import store
from pipeline.artifacts import MODEL_FILE, Model
from pipeline.errors import DONE, REFUSED, Refusal

MERGED = "merged"  # beside the adapter, outside the step's content: it is made from what that holds
USAGE = "Type python -m pipeline.merge PLACE [OUT]: a run or a step's folder in the store, and a folder to write."


def main(words: list[str]) -> int:
    try:
        if not 1 <= len(words) <= 2:
            raise Refusal(f"merge takes one or two folders, and {len(words)} were given.\n  {USAGE}")
        step = step_in(Path(words[0]))
        out = Path(words[1]).expanduser() if words[1:] else step / MERGED
        with store.lock(step, waiting=lambda owner: print(f"waiting for {owner}", file=sys.stderr)):
            merge(step, out)
        print(out)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return REFUSED
    return DONE


def step_in(place: Path) -> Path:
    """The folder of a trained model: the place itself, or that of a run's last round."""
    trained = sorted((place / "store").glob("[0-9]*-train-*"))
    found = trained[-1].resolve() if trained else place.absolute()
    if store.read_manifest(found) is None:
        raise Refusal(f"{place}: no run and no finished step lies there.\n  {USAGE}")
    return found


def merge(step: Path, out: Path) -> None:
    """Whole or not at all: written beside `out` and renamed."""
    from pipeline.training import models

    manifest, model = store.read_manifest(step), Model(step)
    if manifest is None or store.hollow(manifest) or not (step / MODEL_FILE).exists():
        raise Refusal(f"{step}: it has no weights here (pruned, or no model).\n  Run its run again, which makes them.")
    if model.adapter is None:
        raise Refusal(f"{step}: its weights are whole already.\n  Open {model.weights}.")
    if not Path(model.weights).exists() and isinstance(model.weights, Path):
        raise Refusal(f"{step}: its base is gone from {model.weights}.\n  Run its run again, which makes it.")
    if out.exists():
        raise Refusal(f"{out}: something lies there.\n  Give a folder that does not exist yet, or remove that one.")
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    models.save_merged(model, manifest["config"]["dtype"], scratch)
    scratch.rename(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
