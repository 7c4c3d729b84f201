"""What the whole run will take: each Step of its plan at the rate of its kind in the pilots."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from pipeline import hardware
from pipeline.artifacts import FUNNEL_FILE
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
from pipeline.driver.outline import prepare_plan
from pipeline.plan import plan
from pipeline.report.analysis.statistics import count_errors_to_detect
from pipeline.step import Step

MONEY = "money"  # of a step's cost, where it paid a judge or a server to sample from


@dataclass(frozen=True)
class Rate:
    """Seconds of one step: `fixed`, whatever it reads, and `each` for every prompt.

    Noise of the machine may hide the growth between the two sizes. So `most` is the time per prompt
    if everything but the engine's measured start grows: the truth is between the two.
    """

    fixed: float
    each: float
    start: float
    most: float

    def predict(self, prompts: int) -> float:
        return self.fixed + self.each * prompts

    def predict_at_most(self, prompts: int) -> float:
        return self.start + self.most * prompts


def estimate_rate(stage: str, kind: str, measured: list[MeasuredStep]) -> Rate:
    """The larger pilot's rate. The fixed part is the intercept of a line through both sizes."""
    most = select_largest(stage, kind, measured)
    seconds, prompts = sum(one.seconds for one in most) / len(most), most[0].prompts
    if kind == ONCE:
        return Rate(seconds, 0.0, seconds, 0.0)
    start = min(seconds, *(one.cost.get("engine_start_seconds", 0.0) for one in most))
    intercept = _find_intercept([one for one in measured if one.stage == stage])
    fixed = min(max(intercept, start), seconds)
    return Rate(fixed, (seconds - fixed) / prompts, start, (seconds - start) / prompts)


def select_largest(stage: str, kind: str, measured: list[MeasuredStep]) -> list[MeasuredStep]:
    """The steps of the larger pilot; several where a round samples in waves."""
    steps = [step for step in measured if (step.stage, step.kind) == (stage, kind)]
    most = max(step.prompts for step in steps)
    return [step for step in steps if step.prompts == most]


def _find_intercept(measured: list[MeasuredStep]) -> float:
    """Seconds at no prompts, by a line through a round's two sizes; 0 if there is one size."""
    sizes: dict[int, list[float]] = {}
    for one in measured:
        if one.kind == ROUND:
            sizes.setdefault(one.prompts, []).append(one.seconds)
    if len(sizes) < 2:
        return 0.0
    few, many = min(sizes), max(sizes)
    short, long = (sum(sizes[prompts]) / len(sizes[prompts]) for prompts in (few, many))
    return short - few * max(0.0, long - short) / (many - few)


@dataclass(frozen=True)
class EstimatedStep:
    """A Step of the whole run, and the steps of the larger pilot that are of its kind."""

    stage: str
    kind: str
    prompts: int
    rate: Rate
    alike: list[MeasuredStep]

    @property
    def size(self) -> float:
        """Bytes on disk. A model's size does not grow with its prompts."""
        grows = self.kind != ONCE and self.stage not in ("sft", "train")
        mean = sum(step.size for step in self.alike) / len(self.alike)
        return mean * self._growth if grows else mean

    @property
    def money(self) -> float:
        return sum(one.cost.get(MONEY, 0.0) for one in self.alike) / len(self.alike) * self._growth

    @property
    def _growth(self) -> float:
        return self.prompts / self.alike[0].prompts


def estimate(
    whole: Config, large: Config, measured: list[MeasuredStep], overhead: float
) -> dict[str, Any]:
    run_plan = prepare_plan(whole, [plan(whole)])
    sizes = count_sizes(whole, run_plan)
    coming = [_estimate_step(step, sizes, measured) for step in run_plan.steps]
    stages, idle = group_by_stage(coming), overhead * len(coming)
    hours = (sum(row["seconds"] for row in stages) + idle) / 3600
    most = (sum(row["at_most"] for row in stages) + idle) / 3600
    paid = any(MONEY in one.cost for one in measured)
    return {
        "stages": stages,
        "between_steps": idle,
        "hours": hours,
        "hours_at_most": most,
        "gpu_money": price_gpus(whole, hours),
        "disk_bytes": round(sum(one.size for one in coming)),
        "money": round(sum(one.money for one in coming), 4) if paid else None,
        "ties": count_ties(measured),
        "detectable": estimate_detectable(large, measured, sizes[EVAL]),
    }


def _estimate_step(
    step: Step, sizes: Mapping[str, int], measured: list[MeasuredStep]
) -> EstimatedStep:
    stage, kind = step.stage, find_kind(step)
    return EstimatedStep(
        stage,
        kind,
        count_prompts(step, sizes),
        estimate_rate(stage, kind, measured),
        select_largest(stage, kind, measured),
    )


def group_by_stage(coming: list[EstimatedStep]) -> list[dict[str, Any]]:
    """One row for a stage in rounds, one in evaluations. `prompts` are those of its first Step."""
    groups: dict[tuple[str, str], list[EstimatedStep]] = {}
    for one in coming:
        groups.setdefault((one.stage, one.kind), []).append(one)
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
        for (stage, kind), alike in groups.items()
    ]


def price_gpus(cfg: Config, hours: float) -> float | None:
    """The price of all GPUs of this machine for all hours, since waiting is paid too."""
    gpus, price = len(hardware.list_gpus()), cfg.cost.gpu_hour
    return None if price is None or not gpus else round(hours * gpus * price, 4)


def count_ties(measured: list[MeasuredStep]) -> dict[str, int] | None:
    """The larger pilot's prompts whose samples all have the same score: they make no pair."""
    pairs = [step for step in measured if step.stage == "pair"]
    if not pairs:  # where every round trains online
        return None
    [*_, last] = sorted(pairs, key=lambda step: step.prompts)
    funnel = json.loads((last.path / FUNNEL_FILE).read_text())
    return {"of": funnel["prompts_in"], **funnel["ties"]} if funnel["prompts_in"] else None


def estimate_detectable(
    large: Config, measured: list[MeasuredStep], prompts: int
) -> dict[str, Any] | None:
    """The difference from SFT that an evaluation on so many prompts finds four times in five.

    The pilot's model is still close to SFT, so that its paired difference varies too little. The
    true figure is between that one and the one of two models with independent answers.
    """
    [evaluate] = [one for one in measured if one.stage == "evaluate"]
    report = json.loads((evaluate.path / "report.json").read_text())
    scorer = large.evaluate.scorer
    gaps = [g for g in report["differences"] if g["model"] == "round-1" and g["scorer"] == scorer]
    sft = next(model["metrics"].get(scorer) for model in report["models"] if model["name"] == "sft")
    if not gaps or gaps[0]["detectable"] is None or not sft or sft["low"] is None:
        return None
    paired = gaps[0]["detectable"] * (gaps[0]["n"] / prompts) ** 0.5
    level = large.evaluate.level
    error = (sft["high"] - sft["low"]) / 2 / NormalDist().inv_cdf(0.5 + level / 2)
    apart = count_errors_to_detect(level) * 2**0.5 * error * (sft["n"] / prompts) ** 0.5
    return {
        "scorer": scorer,
        "prompts": prompts,
        "least": min(paired, apart),
        "most": max(paired, apart),
    }
