"""How long the Steps of a plan will take here, by the rates in the store for each model and device.

What was never measured is reported as unknown. The first sampled shard gives the rate for the rest.
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
    AnswersFile,
    Block,
    ConversationRequest,
    OnlineTraining,
    ReferenceConfig,
    RevisionRequest,
    SampleRequest,
    ScoreConfig,
    TrainConfig,
)
from pipeline.errors import pluralize
from pipeline.preflight.lineage import find_shape
from pipeline.preflight.row_counts import (
    count_online_rows,
    count_pairs_at_most,
    count_prompts_at_most,
)
from pipeline.preflight.training_fits import TrainingFits
from pipeline.progress import LOAD, PHASES, START, WORK
from pipeline.resources.training_fit import format_duration
from pipeline.status import RunPlan
from pipeline.step import Part, Step

# Stages that may take hours.
LONG_STAGES = (
    "sft",
    "reward",
    "sample",
    "revise",
    "steps",
    "score",
    "reference",
    "train",
    "benchmark",
    "duel",
)
REFRESH_SECONDS = 15.0  # between two estimates while a step runs


@dataclass(frozen=True)
class MeasuredCost:
    """What a step of the store cost, or so far one that is still sampling."""

    config: dict[str, Any]
    cost: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class StepDuration:
    seconds: float
    phases: dict[str, float] | None = None  # of the step that was measured

    def split(self) -> dict[str, float]:
        """Start and load as they were measured, whatever is read; the rest in its proportions."""
        measured = self.phases or {WORK: 1.0}
        fixed = {phase: each for phase, each in measured.items() if phase in (START, LOAD)}
        growing = {phase: each for phase, each in measured.items() if phase not in fixed}
        rest, total = max(self.seconds - sum(fixed.values()), 0.0), sum(growing.values()) or 1.0
        return fixed | {phase: rest * each / total for phase, each in growing.items()}


class Durations:
    def __init__(self, run_plan: RunPlan, fits: TrainingFits):
        self._run_plan, self._fits = run_plan, fits
        self._parts = count_prompts_at_most(run_plan)
        stages = "sample", "score", "reference"
        self._measured = {stage: [*self._read_measured(stage)] for stage in stages}

    def _read_measured(self, stage: str) -> Iterator[MeasuredCost]:
        """Steps of a stage on this device: those that sample now, then the newest first."""
        roots, device = self._run_plan.roots, hardware.describe_device()
        for folder in (self._run_plan.root / stage).glob("*.partial/"):
            step, cost = _read_if_valid(folder / STEP_FILE), _read_if_valid(folder / COST_FILE)
            if step and cost and step.get("device") == device and "tokens_per_second" in cost:
                yield MeasuredCost(step["config"], cost, 0.0)
        for made in store.list_valid_manifests(roots, stage):
            if made.get("provenance", {}).get("device") == device:
                yield MeasuredCost(made["config"], made["cost"], made["seconds"])

    def estimate(self, step: Step) -> StepDuration | None:
        """None if nothing like it was measured or its number of rows is not known."""
        match step.config:
            case SampleRequest():
                return self._estimate_sample(step, step.config)
            case ReferenceConfig():
                return self._estimate_reference(step, step.config)
            case ScoreConfig():
                return self._estimate_score(step, step.config)
            case TrainConfig():
                seconds = self._fits.find(step, step.config).seconds
                return None if seconds is None else StepDuration(seconds)
        return None

    def _estimate_sample(self, step: Step, cfg: SampleRequest) -> StepDuration | None:
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
        same_purpose = (one for one in alike if one.config["purpose"] == cfg.purpose)
        cost = next(same_purpose, alike[0]).cost
        tokens = count * min(cost["mean_tokens"], cfg.limits.completion)
        start = cost.get("engine_start_seconds", 0.0)
        return StepDuration(start + tokens / cost["tokens_per_second"], cost.get("phases"))

    def _estimate_reference(self, step: Step, cfg: ReferenceConfig) -> StepDuration | None:
        rows = self._count_rows(step.inputs["rows"])
        parameters = self._count_parameters(step.inputs["model"])
        if not parameters or rows is None:
            return None
        for one in self._measured["reference"]:
            same_model = one.cost.get("parameters") == parameters
            same_config = _drop_runtime(one.config) == _drop_runtime(cfg)
            if same_model and same_config and one.cost.get("rows"):
                return StepDuration(rows * one.seconds / one.cost["rows"], one.cost.get("phases"))
        return None

    def _estimate_score(self, step: Step, cfg: ScoreConfig) -> StepDuration | None:
        count = self._count_completions(step.inputs["samples"], KL)
        if count is None:
            return None
        for one in self._measured["score"]:
            same_config = _drop_runtime(one.config) == _drop_runtime(cfg)
            if same_config and one.cost.get("answers"):
                return StepDuration(
                    count * one.seconds / one.cost["answers"], one.cost.get("phases")
                )
        return None

    def _count_parameters(self, model: Step) -> int | None:
        shape = find_shape(self._run_plan, model)
        return shape.parameters if shape else None

    def _count_completions(self, step: Step, excluded: str = "") -> int | None:
        """Of a sampling Step; None for a later wave, whose number of prompts is not known."""
        cfg = step.config
        if not isinstance(cfg, SampleRequest) or cfg.wave:
            return None
        if isinstance(cfg, RevisionRequest):  # two completions for each prompt's first answer
            first = step.inputs["samples"]
            every = self._count_completions(first)
            each = sum(setting.n for setting in first.config.settings.values())
            answers = 1 if excluded else 2  # the first of the two is a criticism
            return answers * every // each if every else None
        part = step.inputs["prompts"]
        if not isinstance(part, Part):  # how many solutions are wrong is not known
            return None
        known = self._parts if part.step.label == 0 else {}
        prompts = cfg.per_round or known.get(part.part)
        each = sum(setting.n for name, setting in cfg.settings.items() if name != excluded)
        turns = cfg.turns if isinstance(cfg, ConversationRequest) else 1
        share = cfg.prompt_share.mean_share if cfg.prompt_share else 1
        return round(prompts * share) * each * turns if prompts else None

    def _count_rows(self, source: Step) -> int | None:
        """Completions to compute log-probabilities of.

        KL samples, all samples of a model of the pool, or both sides of pairs.
        """
        if isinstance(source.config, SampleRequest):
            kl = source.config.settings.get(KL)
            every = self._count_completions(source)
            if isinstance(source.config, RevisionRequest):
                return self._count_completions(source, KL)
            if source.config.prompt_share:
                return every
            each = sum(setting.n for setting in source.config.settings.values())
            return every // each * kl.n if kl and every else None
        pairs = count_pairs_at_most(self._run_plan, source)
        return 2 * pairs if pairs else None

    def describe(self, to_do: list[Step]) -> Iterator[str]:
        """Lines for the plan: the time of each stage, and the stages whose time is not known."""
        steps = [step for step in to_do if step.stage in LONG_STAGES]
        estimates = {id(step): one for step in steps if (one := self.estimate(step)) is not None}
        known = {number: one.seconds for number, one in estimates.items()}
        if kinds := " · ".join(_describe_kinds(steps, known)):
            total = format_duration(sum(known.values()))
            yield f"  time {kinds}: {total} together, scaled from what was measured here"
        if any(one.phases for one in estimates.values()):
            yield f"    of which {_describe_phases(estimates.values())}"
        unknown = [step for step in steps if id(step) not in known]
        if sampled := [step for step in unknown if _find_request(step)]:
            yield from self._describe_sampling(sampled)
        if unknown:
            yield (
                f"  time of {', '.join(_count_kinds(unknown))} is not known: strop pilot with the"
                " same words measures every stage on at most 50 prompts; a run's first sampled"
                " shard gives that of sampling"
            )

    def _describe_sampling(self, steps: list[Step]) -> Iterator[str]:
        """How much is sampled where the time is not known: what that time depends on."""
        counts = {id(step): self._count_sampled(step) or 0 for step in steps}
        counted = [step for step in steps if counts[id(step)]]
        if not counted:
            return
        kinds = []
        for kind in dict.fromkeys(map(_name_kind, counted)):
            alike = [step for step in counted if _name_kind(step) == kind]
            answers = sum(counts[id(step)] for step in alike)
            kinds.append(f"{kind} {answers:,} ({self._describe_shape(alike, counts)})")
        tokens = sum(
            counts[id(step)] * request.limits.completion
            for step in counted
            if (request := _find_request(step))
        )
        rest = len(steps) - len(counted)
        others = f", and {pluralize(rest, 'step')} that cannot be counted yet" if rest else ""
        yield f"  answers {' · '.join(kinds)}: at most {tokens:,} tokens together{others}"

    def _count_sampled(self, step: Step) -> int | None:
        if not isinstance(step.config, OnlineTraining):
            return self._count_completions(step)
        each_epoch = count_online_rows(self._run_plan, step.config)
        return each_epoch and round(each_epoch * step.config.epochs)

    def _describe_shape(self, alike: list[Step], counts: dict[int, int]) -> str:
        """`163 prompts × 8`, or the number of steps."""
        cfg = alike[0].config
        if len(alike) > 1 or type(cfg) is not SampleRequest:  # others ask again in each prompt
            return pluralize(len(alike), "step")
        each = sum(setting.n for setting in cfg.settings.values())
        return f"{pluralize(counts[id(alike[0])] // each, 'prompt', grouped=True)} × {each}"


class TimeLeft:
    """The time of the steps that have not begun, estimated again every REFRESH_SECONDS."""

    def __init__(self, run_plan: RunPlan, steps: list[Step]):
        self._run_plan = run_plan
        self._steps = [step for step in steps if step.stage in LONG_STAGES]
        self._words, self._estimated_at = "", time.monotonic()

    def describe(self) -> str:
        if self._steps and time.monotonic() - self._estimated_at >= REFRESH_SECONDS:
            self._words, self._estimated_at = self._estimate(), time.monotonic()
        return self._words

    def _estimate(self) -> str:
        folder = self._run_plan.folder
        to_do = [step for step in self._steps if store.read_manifest(folder(step)) is None]
        # Pairs that are built since the last estimate change what a training takes.
        durations = Durations(self._run_plan, TrainingFits(self._run_plan))
        estimates = [one for step in to_do if (one := durations.estimate(step)) is not None]
        known = [one.seconds for one in estimates]
        if not known:
            return ""
        unknown = ""
        if missing := len(to_do) - len(known):
            unknown = f", and {pluralize(missing, 'step')} of unknown time"
        steps = pluralize(len(known), "step")
        return f" · then about {format_duration(sum(known))} for {steps}{unknown}"


def _find_request(step: Step) -> SampleRequest | None:
    """How a Step samples; None where it does not, or takes its answers from a file."""
    if isinstance(step.config, OnlineTraining):
        return step.config.request
    policy = step.inputs.get("policy")
    if isinstance(policy, Step) and isinstance(policy.config, AnswersFile):
        return None
    return step.config if isinstance(step.config, SampleRequest) else None


def _name_kind(step: Step) -> str:
    return f"{step.stage} of evaluations" if step.in_evaluation else step.stage


def _describe_kinds(steps: list[Step], known: dict[int, float]) -> Iterator[str]:
    for kind in dict.fromkeys(_name_kind(step) for step in steps if id(step) in known):
        alike = [step for step in steps if _name_kind(step) == kind]
        seconds = [known[id(step)] for step in alike if id(step) in known]
        yield f"{kind} {format_duration(sum(seconds))} ({pluralize(len(seconds), 'step')})"


def _describe_phases(estimates: Iterable[StepDuration]) -> str:
    splits = [one.split() for one in estimates]
    sums = {phase: sum(each.get(phase, 0.0) for each in splits) for phase in PHASES}
    return " · ".join(f"{phase} {format_duration(sums[phase])}" for phase in PHASES)


def _count_kinds(steps: Iterable[Step]) -> Iterator[str]:
    kinds = [_name_kind(step) for step in steps]
    yield from (f"{kind} ({pluralize(kinds.count(kind), 'step')})" for kind in dict.fromkeys(kinds))


def _drop_runtime(config: Any) -> Any:
    """A config without `runtime`, which changes no result."""
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
