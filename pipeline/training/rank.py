"""One of several processes that train together: `python -m pipeline.training.rank order.json`, under a launcher."""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from pipeline.artifacts import Model, Prompts, read_table, write_json
from pipeline.config import TrainConfig
from pipeline.errors import StageError, UserError
from pipeline.training.launch import FAULTS, NO_MEMORY


def main() -> int:
    die_with_parent()
    take_own_device()
    path = Path(sys.argv[1])
    order = json.loads(path.read_text())
    opened = {
        name: Model(Path(order[name])) if order[name] else None for name in ("init", "reference")
    }
    dev = Prompts(Path(order["dev"])) if order["dev"] else None
    rows = {file.stem: read_table(file) for file in (path.parent / "pairs").glob("*.parquet")}
    assert opened["init"]

    import torch

    from pipeline.training import session

    try:
        session.train(
            TrainConfig(**order["config"]),
            Path(order["out"]),
            opened["init"],
            opened["reference"],
            dev,
            rows,
            processes=order["processes"] * order["config"]["runtime"]["machines"],
        )
    except (UserError, StageError) as error:
        said = {"refusal": isinstance(error, UserError), "text": str(error)}
        write_json(path.with_name(FAULTS.replace("*", os.environ.get("RANK", "0"))), said)
        raise
    except torch.OutOfMemoryError:
        path.with_name(NO_MEMORY).touch()
        raise
    return 0


def die_with_parent() -> None:
    """A launcher starts sessions of their own, which a kill of the step's group would leave behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def take_own_device() -> None:
    """Before any weight is read: a model on plain `cuda` would lie on the first GPU of the machine, for all of them."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


if __name__ == "__main__":
    sys.exit(main())
