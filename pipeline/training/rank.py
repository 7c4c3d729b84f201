"""One of several processes that train together under a launcher.

`python -m pipeline.training.rank order.json`
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.artifacts import Model, Prompts, read_table, write_json
from pipeline.errors import StageError, UserError
from pipeline.training.launch import FAULTS, NO_MEMORY, read_config


def main() -> int:
    die_with_parent()
    select_device()
    path = Path(sys.argv[1])
    order = json.loads(path.read_text())
    kinds: dict[str, Any] = dict.fromkeys(("init", "reference", "reward"), Model)
    kinds |= dict.fromkeys(("dev", "prompts"), Prompts)
    inputs: dict[str, Any] = {
        name: kind(Path(order[name])) if order[name] else None for name, kind in kinds.items()
    }
    rows = {file.stem: read_table(file) for file in (path.parent / "pairs").glob("*.parquet")}

    import torch

    from pipeline.training import session

    try:
        session.train(
            read_config(order),
            Path(order["out"]),
            rows=rows,
            **inputs,
            processes=order["processes"] * order["config"]["runtime"]["machines"],
        )
    except (UserError, StageError) as error:
        fault = {"user_error": isinstance(error, UserError), "text": str(error)}
        write_json(path.with_name(FAULTS.replace("*", os.environ.get("RANK", "0"))), fault)
        raise
    except torch.OutOfMemoryError:
        path.with_name(NO_MEMORY).touch()
        raise
    return 0


def die_with_parent() -> None:
    """A launcher starts each rank in its own session: killing the step's group would miss it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def select_device() -> None:
    """Call before reading weights: every rank would put a model on `cuda` on the first GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


if __name__ == "__main__":
    sys.exit(main())
