"""A run opened from Python: tables as polars frames, models as paths for `from_pretrained`."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Artifact, Model, Pairs, open_artifact, read_table


class Run:
    """What a run has made or reused. Of a stage that ran in several rounds, the last by default."""

    def __init__(self, path: Path):
        if not (path / "store").is_dir():
            raise FileNotFoundError(f"{path}: no run here. Give runs/latest or runs/RECIPE/TIME.")
        self.path = path

    def steps(self) -> pl.DataFrame:
        """Its ledger: stage, label, fingerprint, seconds."""
        lines = json.loads((self.path / "ledger.json").read_text())
        return pl.DataFrame([{**line, "label": str(line["label"] or "")} for line in lines])

    def artifact(self, stage: str, label: str | int | None = None) -> Any:
        """Any step's artifact: `artifact("sample", 1)`, `artifact("score", "test round-1")`."""
        ending = "" if label is None else f"-{label}".replace(" ", "-")
        rounds = [f"{stage}-[0-9]*", stage] if label is None else [f"{stage}{ending}"]
        for name in rounds:
            if links := sorted((self.path / "store").glob(f"[0-9]*-{name}")):
                return open_artifact(stage, links[-1].resolve())
        known = ", ".join(self._list_names())
        raise LookupError(f"{self.path} has no {stage}{ending}. It has: {known}")

    samples = property(lambda self: self.artifact("sample").read())
    scores = property(lambda self: self.artifact("score").read())
    answers = property(lambda self: read_table(self._open_report().path / "answers.parquet"))
    report = property(lambda self: self._open_report().read())

    @property
    def pairs(self) -> pl.DataFrame:
        pairs: Pairs = self.artifact("pair")
        parts = {"train": pairs.read_train(), "dev": pairs.read_dev()}
        return pl.concat([table.with_columns(split=pl.lit(name)) for name, table in parts.items()])

    @property
    def replicates(self) -> pl.DataFrame:
        """A row for each seed of the last round and each scorer; none with `seeds=1`.

        `model` is the first seed's; `artifact("train", "round-1-seed-43")` is another one's.
        """
        return pl.DataFrame(self.report.get("replicates", []))

    @property
    def model(self) -> Model:
        """The last round's: `AutoModelForCausalLM.from_pretrained(run.model.weights)`.

        An adapter is at `.adapter`.
        """
        return self.artifact("train")

    def _open_report(self) -> Artifact:
        return self.artifact("evaluate", "report")

    def _list_names(self) -> list[str]:
        return [path.name.partition("-")[2] for path in sorted((self.path / "store").iterdir())]
