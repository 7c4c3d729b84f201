"""What the whole run will take: each Step of its plan at the rate that its like had in the pilots."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from pipeline import hardware
from pipeline.commands.pilot.seen import (
    EVAL,
    ONCE,
    ROUND,
    MeasuredStep,
    count_prompts,
    count_sizes,
    find_kind,
)
from pipeline.config import Config
from pipeline.driver.executor import prepare_plan
from pipeline.plan import plan
from pipeline.step import Step

MONEY = "money"  # of a step's cost, where it paid a judge or a server to sample from
POWER_80 = 2.8  # standard errors that a true difference has to be away from zero to be seen four times in five


@dataclass(frozen=True)
class Rate:
    """Seconds of one step: `fixed`, whatever it reads, and `each` for every prompt.

    Where the sizes differ by less than the machine's own mood, the line sees no growth. So `most` says what a prompt
    costs if all but the engine's measured start grows: the truth lies between the two.
    """

    fixed: float
    each: float
    start: float
    most: float

    def predict(self, prompts: int) -> float:
        return self.fixed + self.each * prompts

    def predict_at_most(self, prompts: int) -> float:
        return self.start + self.most * prompts


def estimate_rate(stage: str, kind: str, seen: list[MeasuredStep]) -> Rate:
    """From the larger pilot; the fixed part is where the line through a round's two sizes begins."""
    most = select_largest(stage, kind, seen)
    seconds, prompts = sum(one.seconds for one in most) / len(most), most[0].prompts
    if kind == ONCE:
        return Rate(seconds, 0.0, seconds, 0.0)
    start = min(seconds, *(one.cost.get("engine_start_seconds", 0.0) for one in most))
    fixed = min(max(_find_intercept([one for one in seen if one.stage == stage]), start), seconds)
    return Rate(fixed, (seconds - fixed) / prompts, start, (seconds - start) / prompts)


def select_largest(stage: str, kind: str, seen: list[MeasuredStep]) -> list[MeasuredStep]:
    """The steps of the larger pilot; several where a round draws in waves."""
    own = [one for one in seen if (one.stage, one.kind) == (stage, kind)]
    return [one for one in own if one.prompts == max(each.prompts for each in own)]


def _find_intercept(seen: list[MeasuredStep]) -> float:
    """Where the line through a round's two sizes begins; with one size alone all of it is taken to grow."""
    sizes: dict[int, list[float]] = {}
    for one in seen:
        if one.kind == ROUND:
            sizes.setdefault(one.prompts, []).append(one.seconds)
    if len(sizes) < 2:
        return 0.0
    few, many = min(sizes), max(sizes)
    short, long = (sum(sizes[prompts]) / len(sizes[prompts]) for prompts in (few, many))
    return short - few * max(0.0, long - short) / (many - few)


@dataclass(frozen=True)
class EstimatedStep:
    """A Step of the whole run, beside those of the larger pilot that were like it."""

    stage: str
    kind: str
    prompts: int
    rate: Rate
    alike: list[MeasuredStep]

    @property
    def size(self) -> float:
        """A model is as large whatever it was trained on."""
        grows = self.kind != ONCE and self.stage not in ("sft", "train")
        return (
            sum(one.size for one in self.alike) / len(self.alike) * (self._growth if grows else 1)
        )

    @property
    def money(self) -> float:
        return sum(one.cost.get(MONEY, 0.0) for one in self.alike) / len(self.alike) * self._growth

    @property
    def _growth(self) -> float:
        return self.prompts / self.alike[0].prompts


def estimate(
    whole: Config, large: Config, seen: list[MeasuredStep], overhead: float
) -> dict[str, Any]:
    planned = prepare_plan(whole, [plan(whole)])
    sizes = count_sizes(whole, planned)
    coming = [_estimate_step(step, sizes, seen) for step in planned.steps]
    stages, idle = group_by_stage(coming), overhead * len(coming)
    hours, most = (
        (sum(row[name] for row in stages) + idle) / 3600 for name in ("seconds", "at_most")
    )
    paid = any(MONEY in one.cost for one in seen)
    return {
        "stages": stages,
        "between_steps": idle,
        "hours": hours,
        "hours_at_most": most,
        "gpu_money": price_gpus(whole, hours),
        "disk_bytes": round(sum(one.size for one in coming)),
        "money": round(sum(one.money for one in coming), 4) if paid else None,
        "ties": count_ties(seen),
        "detectable": estimate_detectable(large, seen, sizes[EVAL]),
    }


def _estimate_step(step: Step, sizes: Mapping[str, int], seen: list[MeasuredStep]) -> EstimatedStep:
    stage, kind = step.stage, find_kind(step)
    return EstimatedStep(
        stage,
        kind,
        count_prompts(step, sizes),
        estimate_rate(stage, kind, seen),
        select_largest(stage, kind, seen),
    )


def group_by_stage(coming: list[EstimatedStep]) -> list[dict[str, Any]]:
    """One row for a stage in the rounds and one in the exams; `prompts` are those of its first Step."""
    found: dict[tuple[str, str], list[EstimatedStep]] = {}
    for one in coming:
        found.setdefault((one.stage, one.kind), []).append(one)
    return [
        {
            "stage": stage,
            "kind": kind,
            **asdict(alike[0].rate),
            "steps": len(alike),
            "prompts": alike[0].prompts,
            "seconds": sum(one.rate.predict(one.prompts) for one in alike),
            "at_most": sum(one.rate.predict_at_most(one.prompts) for one in alike),
        }
        for (stage, kind), alike in found.items()
    ]


def price_gpus(cfg: Config, hours: float) -> float | None:
    """A machine is paid while it waits too: every GPU that it shows, and every hour."""
    gpus, price = len(hardware.list_gpus()), cfg.cost.gpu_hour
    return None if price is None or not gpus else round(hours * gpus * price, 4)


def count_ties(seen: list[MeasuredStep]) -> dict[str, int] | None:
    """Of the larger pilot's prompts those whose samples all score alike: they make no pair."""
    [*_, last] = sorted((one for one in seen if one.stage == "pair"), key=lambda one: one.prompts)
    funnel = json.loads((last.path / "funnel.json").read_text())
    return {"of": funnel["prompts_in"], **funnel["ties"]} if funnel["prompts_in"] else None


def estimate_detectable(
    large: Config, seen: list[MeasuredStep], prompts: int
) -> dict[str, Any] | None:
    """The difference to SFT that an exam of so many prompts sees four times in five.

    The pilot's model has hardly moved from SFT, so that its paired difference varies too little: the true figure lies
    between that one and the one of two models whose answers have nothing to do with each other.
    """
    [report] = [
        json.loads((one.path / "report.json").read_text())
        for one in seen
        if one.stage == "evaluate"
    ]
    scorer = large.evaluate.scorer
    gaps = [g for g in report["differences"] if g["model"] == "round-1" and g["scorer"] == scorer]
    sft = next(model["metrics"].get(scorer) for model in report["models"] if model["name"] == "sft")
    if not gaps or gaps[0]["detectable"] is None or not sft or sft["low"] is None:
        return None
    paired = gaps[0]["detectable"] * (gaps[0]["n"] / prompts) ** 0.5
    error = (sft["high"] - sft["low"]) / 2 / NormalDist().inv_cdf(0.5 + large.evaluate.level / 2)
    apart = POWER_80 * 2**0.5 * error * (sft["n"] / prompts) ** 0.5
    return {
        "scorer": scorer,
        "prompts": prompts,
        "least": min(paired, apart),
        "most": max(paired, apart),
    }
