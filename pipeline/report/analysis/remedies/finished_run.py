"""A finished run as the checks read it: report.json, its config, what its trainings recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.formatting import ReportRow


@dataclass(frozen=True)
class Advice:
    """`symptom` has the figure, `remedy` the knob."""

    symptom: str
    remedy: str


@dataclass(frozen=True)
class RoundTraining:
    """What one training recorded: training.json and metrics.jsonl, by its round."""

    round: int | str
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    @property
    def symptoms(self) -> list[dict[str, str]]:
        return list(self.summary.get("symptoms", ()))


@dataclass(frozen=True)
class FinishedRun:
    report: ReportRow
    config: Mapping[str, Any]
    trainings: Sequence[RoundTraining] = ()

    @property
    def scorer(self) -> str:
        return str(self.report["evaluation"]["scorer"])

    @property
    def split(self) -> str:
        return str(self.report["evaluation"]["split"])

    @property
    def is_better(self) -> bool:
        return bool(self.report["verdict"]["better"] == "yes")

    @property
    def model(self) -> ReportRow | None:
        """The chosen model, or the last round where SFT was chosen."""
        chosen = self.report["evaluation"]["chosen"]
        rounds = [each for each in self.report["models"] if each["name"].startswith("round-")]
        if chosen == "sft":
            return rounds[-1] if rounds else None
        return self.find_model(chosen)

    def find_model(self, name: str | None) -> ReportRow | None:
        return next((each for each in self.report["models"] if each["name"] == name), None)

    @property
    def gap(self) -> ReportRow | None:
        """The model's paired difference to SFT."""
        model = self.model
        rows = self.report["differences"] if model else []
        key = model and model["name"], self.scorer
        return next((row for row in rows if (row["model"], row["scorer"]) == key), None)

    @property
    def pairs(self) -> Sequence[ReportRow]:
        return list(self.report["funnel"]["pairs"])

    @property
    def setting(self) -> tuple[str, Mapping[str, Any]]:
        """How pairs are sampled: the first setting and its name."""
        return next(iter(self.config["sample"]["settings"].items()))
