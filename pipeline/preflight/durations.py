"""How long the Steps of a plan will take here, by what the store has measured: a rate for each model and device.

Before anything of the kind was measured it says so; a first shard that is drawn makes the rate of the draws to come.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import hardware, store
from pipeline.artifacts import COST_FILE, KL, STEP_FILE
from pipeline.config import (
    Block,
    Conversation,
    ReferenceConfig,
    SampleRequest,
    ScoreConfig,
    TrainConfig,
)
from pipeline.errors import many
from pipeline.preflight import capacity
from pipeline.preflight.lineage import shape_of
from pipeline.resources.training_fit import format_duration
from pipeline.status import Planned
from pipeline.step import Step

LONG = (
    "sft",
    "reward",
    "sample",
    "score",
    "refer",
    "train",
    "benchmark",
    "duel",
)  # stages that may take hours
AGAIN = 15.0  # seconds between two reckonings while a step runs


@dataclass(frozen=True)
class Measured:
    """What a step of the store cost, or one that is still drawing and has its first shard."""

    config: dict[str, Any]
    cost: dict[str, float]
    seconds: float
    created: str


class Durations:
    def __init__(self, planned: Planned):
        self._planned = planned
        self._parts = capacity.prompts_published(planned)
        self._of = {stage: [*self._measured(stage)] for stage in ("sample", "score", "refer")}

    def _measured(self, stage: str) -> Iterator[Measured]:
        """Newest first, of this device alone."""
        device, found = hardware.device(), []
        for folder in (self._planned.root / stage).glob("*/"):
            made = store.known_manifest(folder)
            if made and made.get("provenance", {}).get("device") == device:
                found.append(
                    Measured(made["config"], made["cost"], made["seconds"], str(made["created"]))
                )
        for folder in (self._planned.root / stage).glob("*.partial/"):
            step, cost = _read(folder / STEP_FILE), _read(folder / COST_FILE)
            if step and cost and step.get("device") == device and "tokens_per_second" in cost:
                found.append(Measured(step["config"], cost, 0.0, "now"))
        yield from sorted(found, key=lambda one: one.created, reverse=True)

    def of(self, step: Step) -> float | None:
        """Seconds; None where nothing like it was measured, or nobody knows how much it will read."""
        match step.config:
            case SampleRequest():  # a round's or an exam's
                return self._of_draw(step, step.config)
            case ReferenceConfig():
                return self._of_reference(step, step.config)
            case ScoreConfig():
                return self._of_marks(step, step.config)
            case TrainConfig():
                return capacity.training_seconds(self._planned, step, step.config)
        return None

    def _of_draw(self, step: Step, cfg: SampleRequest) -> float | None:
        alike = [
            one
            for one in self._of["sample"]
            if _plain(one.config["backend"]) == _plain(cfg.backend)
            and one.cost.get("parameters") == self._parameters(step.inputs["policy"])
            and one.cost.get("tokens_per_second")
        ]
        count = self._completions(step)
        if not alike or count is None:
            return None
        like = next((one for one in alike if one.config["purpose"] == cfg.purpose), alike[0])
        tokens = count * min(like.cost["mean_tokens"], cfg.limits.completion)
        return like.cost.get("engine_start_seconds", 0.0) + tokens / like.cost["tokens_per_second"]

    def _of_reference(self, step: Step, cfg: ReferenceConfig) -> float | None:
        rows, model = self._rows(step.inputs["rows"]), self._parameters(step.inputs["model"])
        for one in self._of["refer"]:
            same = _plain(one.config) == _plain(cfg) and one.cost.get("parameters") == model
            if same and model and rows is not None and one.cost.get("rows"):
                return rows * one.seconds / one.cost["rows"]
        return None

    def _of_marks(self, step: Step, cfg: ScoreConfig) -> float | None:
        count = self._completions(step.inputs["samples"], KL)
        for one in self._of["score"]:
            if count is not None and one.cost.get("answers") and _plain(one.config) == _plain(cfg):
                return count * one.seconds / one.cost["answers"]
        return None

    def _parameters(self, model: Step) -> int | None:
        shape = shape_of(self._planned, model)
        return shape.parameters if shape else None

    def _completions(self, step: Step, without: str = "") -> int | None:
        """Of a draw; a later wave is of those prompts alone whose answers tie, and how many nobody knows."""
        cfg = step.config
        if not isinstance(cfg, SampleRequest) or cfg.wave:
            return None
        part = step.inputs["prompts"]
        known = self._parts if part.step.label == 0 else None
        prompts = cfg.per_round or (known or {}).get(part.part)
        each = sum(setting.n for name, setting in cfg.settings.items() if name != without)
        turns = cfg.turns if isinstance(cfg, Conversation) else 1
        return prompts * each * turns if prompts else None

    def _rows(self, source: Step) -> int | None:
        """Completions whose log-probability is asked for: the draws for the KL of an exam, or both sides of pairs."""
        if isinstance(source.config, SampleRequest):
            kl = source.config.settings.get(KL)
            every = self._completions(source)
            each = sum(setting.n for setting in source.config.settings.values())
            return every // each * kl.n if kl and every else None
        pairs = capacity.pairs_at_most(self._planned, source)
        return 2 * pairs if pairs else None

    def lines(self, to_do: list[Step]) -> Iterator[str]:
        """For the plan: what is known by stage, and what is not."""
        asked = [step for step in to_do if step.stage in LONG]
        known = {id(step): seconds for step in asked if (seconds := self.of(step)) is not None}
        if told := [*_by_kind(asked, known)]:
            yield f"  time {' · '.join(told)}: {format_duration(sum(known.values()))} together, as measured here"
        if missing := [*_counts(step for step in asked if id(step) not in known)]:
            yield (
                f"  time of {', '.join(missing)} is not known: the first shard that is drawn tells that of the draws"
                " and exams; strop pilot measures every stage on 50 prompts"
            )


class Rest:
    """What follows the step that runs, beside its line; reckoned anew now and then, since it measures something."""

    def __init__(self, planned: Planned, steps: list[Step]):
        self._planned, self._steps = planned, [step for step in steps[1:] if step.stage in LONG]
        self._words, self._reckoned = "", time.monotonic()

    def told(self) -> str:
        if self._steps and time.monotonic() - self._reckoned >= AGAIN:
            self._words, self._reckoned = self._reckon(), time.monotonic()
        return self._words

    def _reckon(self) -> str:
        to_do = [
            step for step in self._steps if store.read_manifest(self._planned.folder(step)) is None
        ]
        durations = Durations(self._planned)
        known = [seconds for step in to_do if (seconds := durations.of(step)) is not None]
        if not known:
            return ""
        unknown = (
            f", and {many(len(to_do) - len(known), 'step')} of unknown time"
            if len(known) < len(to_do)
            else ""
        )
        return (
            f" · then about {format_duration(sum(known))} for {many(len(known), 'step')}{unknown}"
        )


def _kind(step: Step) -> str:
    return f"{step.stage} of exams" if isinstance(step.label, str) else step.stage


def _by_kind(steps: list[Step], known: dict[int, float]) -> Iterator[str]:
    for kind in dict.fromkeys(_kind(step) for step in steps if id(step) in known):
        of = [known[id(step)] for step in steps if _kind(step) == kind and id(step) in known]
        yield f"{kind} {format_duration(sum(of))} ({many(len(of), 'step')})"


def _counts(steps: Iterable[Step]) -> Iterator[str]:
    kinds = [_kind(step) for step in steps]
    yield from (f"{kind} ({many(kinds.count(kind), 'step')})" for kind in dict.fromkeys(kinds))


def _plain(config: Any) -> Any:
    """Without what changes no result."""
    if isinstance(config, Block):
        return _plain(config.model_dump(mode="json"))
    if isinstance(config, dict):
        return {name: _plain(value) for name, value in config.items() if name != "runtime"}
    return config


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
