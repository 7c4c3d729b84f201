"""From an SFT checkpoint to a preference-tuned model with proof that it is better."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.results import Run


def open(run: str | Path = "runs/latest") -> "Run":
    """A run for a notebook: `pipeline.open("runs/latest").pairs.to_pandas()`."""
    from pipeline.results import Run

    return Run(Path(run))
