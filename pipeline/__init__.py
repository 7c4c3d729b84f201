"""From an SFT checkpoint to a preference-tuned model, with evidence that it is better."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.results import Run


def open(run: str | Path = "runs/latest") -> "Run":
    """Open a run in a notebook: `pipeline.open("runs/latest").pairs.to_pandas()`."""
    from pipeline.results import Run

    return Run(Path(run))
