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
from pipeline.errors import pluralize
from pipeline.preflight import capacity
from pipeline.preflight.lineage import find_shape
from pipeline.resources.training_fit import spent
from pipeline.status import RunPlan
from pipeline.step import Step

LONG_STAGES = (
    "sft",
    "reward",
    "sample",
    "score",
    "refer",
    "train",
    "benchmark",
    "duel",
)  # stages that may take hours
REFRESH_SECONDS = 15.0  # seconds between two reckonings while a step runs


@dataclass(frozen=True)
class MeasuredCost:
    """What a step of the store cost, or one that is still drawing and has its first shard."""

    config: dict[str, Any]
    cost: dict[str, float]
    seconds: float
    created: str


class Durations:
    def __init__(self, planned: RunPlan):
        self._planned = planned
        self._parts = capacity.count_published_prompts(planned)
        self._measured = {
            stage: [*self._read_measured(stage)] for stage in ("sample", "score", "refer")
        }

    def _read_measured(self, stage: str) -> Iterator[MeasuredCost]:
        """Newest first, of this device alone."""
        device, found = hardware.describe_device(), []
        for folder in (self._planned.root / stage).glob("*/"):
            made = store.read_valid_manifest(folder)
            if made and made.get("provenance", {}).get("device") == device:
                found.append(
                    MeasuredCost(
                        made["config"], made["cost"], made["seconds"], str(made["created"])
                    )
                )
        for folder in (self._planned.root / stage).glob("*.partial/"):
            step, cost = _read_if_valid(folder / STEP_FILE), _read_if_valid(folder / COST_FILE)
            if step and cost and step.get("device") == device and "tokens_per_second" in cost:
                found.append(MeasuredCost(step["config"], cost, 0.0, "now"))
        yield from sorted(found, key=lambda one: one.created, reverse=True)

    def estimate(self, step: Step) -> float | None:
        """Seconds; None where nothing like it was measured, or nobody knows how much it will read."""
        match step.config:
            case SampleRequest():  # a round's or an exam's
                return self._estimate_sample(step, step.config)
            case ReferenceConfig():
                return self._estimate_reference(step, step.config)
            case ScoreConfig():
                return self._estimate_score(step, step.config)
            case TrainConfig():
                return capacity.estimate_training_seconds(self._planned, step, step.config)
        return None

    def _estimate_sample(self, step: Step, cfg: SampleRequest) -> float | None:
        alike = [
            one
            for one in self._measured["sample"]
            if _drop_runtime(one.config["backend"]) == _drop_runtime(cfg.backend)
            and one.cost.get("parameters") == self._count_parameters(step.inputs["policy"])
            and one.cost.get("tokens_per_second")
        ]
        count = self._count_completions(step)
        if not alike or count is None:
            return None
        like = next((one for one in alike if one.config["purpose"] == cfg.purpose), alike[0])
        tokens = count * min(like.cost["mean_tokens"], cfg.limits.completion)
        return like.cost.get("engine_start_seconds", 0.0) + tokens / like.cost["tokens_per_second"]

    def _estimate_reference(self, step: Step, cfg: ReferenceConfig) -> float | None:
        rows, model = (
            self._count_rows(step.inputs["rows"]),
            self._count_parameters(step.inputs["model"]),
        )
        for one in self._measured["refer"]:
            same = (
                _drop_runtime(one.config) == _drop_runtime(cfg)
                and one.cost.get("parameters") == model
            )
            if same and model and rows is not None and one.cost.get("rows"):
                return rows * one.seconds / one.cost["rows"]
        return None

    def _estimate_score(self, step: Step, cfg: ScoreConfig) -> float | None:
        count = self._count_completions(step.inputs["samples"], KL)
        for one in self._measured["score"]:
            if (
                count is not None
                and one.cost.get("answers")
                and _drop_runtime(one.config) == _drop_runtime(cfg)
            ):
                return count * one.seconds / one.cost["answers"]
        return None

    def _count_parameters(self, model: Step) -> int | None:
        shape = find_shape(self._planned, model)
        return shape.parameters if shape else None

    def _count_completions(self, step: Step, without: str = "") -> int | None:
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

    def _count_rows(self, source: Step) -> int | None:
        """Completions whose log-probability is asked for: the draws for the KL of an exam, or both sides of pairs."""
        if isinstance(source.config, SampleRequest):
            kl = source.config.settings.get(KL)
            every = self._count_completions(source)
            each = sum(setting.n for setting in source.config.settings.values())
            return every // each * kl.n if kl and every else None
        pairs = capacity.count_pairs_at_most(self._planned, source)
        return 2 * pairs if pairs else None

    def describe(self, to_do: list[Step]) -> Iterator[str]:
        """For the plan: what is known by stage, and what is not."""
        asked = [step for step in to_do if step.stage in LONG_STAGES]
        known = {
            id(step): seconds for step in asked if (seconds := self.estimate(step)) is not None
        }
        if told := [*_describe_kinds(asked, known)]:
            yield f"  time {' · '.join(told)}: {spent(sum(known.values()))} together, as measured here"
        if missing := [*_count_kinds(step for step in asked if id(step) not in known)]:
            yield (
                f"  time of {', '.join(missing)} is not known: the first shard that is drawn tells that of the draws"
                " and exams; strop pilot measures every stage on 50 prompts"
            )


class TimeLeft:
    """What follows the step that runs, beside its line; reckoned anew now and then, since it measures something."""

    def __init__(self, planned: RunPlan, steps: list[Step]):
        self._planned, self._steps = (
            planned,
            [step for step in steps[1:] if step.stage in LONG_STAGES],
        )
        self._words, self._estimated_at = "", time.monotonic()

    def describe(self) -> str:
        if self._steps and time.monotonic() - self._estimated_at >= REFRESH_SECONDS:
            self._words, self._estimated_at = self._estimate(), time.monotonic()
        return self._words

    def _estimate(self) -> str:
        to_do = [
            step for step in self._steps if store.read_manifest(self._planned.folder(step)) is None
        ]
        durations = Durations(self._planned)
        known = [seconds for step in to_do if (seconds := durations.estimate(step)) is not None]
        if not known:
            return ""
        unknown = (
            f", and {pluralize(len(to_do) - len(known), 'step')} of unknown time"
            if len(known) < len(to_do)
            else ""
        )
        return f" · then about {spent(sum(known))} for {pluralize(len(known), 'step')}{unknown}"


def _name_kind(step: Step) -> str:
    return f"{step.stage} of exams" if isinstance(step.label, str) else step.stage


def _describe_kinds(steps: list[Step], known: dict[int, float]) -> Iterator[str]:
    for kind in dict.fromkeys(_name_kind(step) for step in steps if id(step) in known):
        of = [known[id(step)] for step in steps if _name_kind(step) == kind and id(step) in known]
        yield f"{kind} {spent(sum(of))} ({pluralize(len(of), 'step')})"


def _count_kinds(steps: Iterable[Step]) -> Iterator[str]:
    kinds = [_name_kind(step) for step in steps]
    yield from (f"{kind} ({pluralize(kinds.count(kind), 'step')})" for kind in dict.fromkeys(kinds))


def _drop_runtime(config: Any) -> Any:
    """Without what changes no result."""
    if isinstance(config, Block):
        return _drop_runtime(config.model_dump(mode="json"))
    if isinstance(config, dict):
        return {name: _drop_runtime(value) for name, value in config.items() if name != "runtime"}
    return config


def _read_if_valid(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
