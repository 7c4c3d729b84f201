"""`make pilot`: 10, then 50 prompts through every stage, and what the whole run would then take: hours, disk, money.

The pilot is the run itself with `sample.per_round` and `exam.sample.per_round` lowered, in the same store: what does
not hang on them (prompts, base, SFT) is built once and found there by the whole run. Two sizes tell a stage's fixed
part (an engine's start, a model's load) from what each prompt adds. It measures where `forecast` reckons: a dry run
knows one training's steps and its memory before anything runs; the pilot knows what all stages took on this machine.
"""

import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from pipeline import machine, store
from pipeline.artifacts import write_json
from pipeline.compose import Arguments, compose
from pipeline.config import Config
from pipeline.content import commit_of
from pipeline.drive import Stopped, drive, stop_on_signals
from pipeline.errors import DONE, REFUSED, STOPPED, Refusal
from pipeline.forecast import prompts_published
from pipeline.plan import plan
from pipeline.runner import prepare, select
from pipeline.step import Step, pinned
from pipeline.survey import Planned

FEW, MANY = 10, 50  # prompts of a round and of the exam
ROUND, EXAM, ONCE = "round", "exam", "once"
MONEY = "money"  # of a step's cost, where it paid a judge or a server to sample from
POWER_80 = 2.8  # standard errors that a true difference has to be away from zero to be seen four times in five


def main(words: list[str]) -> int:
    stop_on_signals()
    try:
        return pilot(words)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return REFUSED
    except Stopped:
        return STOPPED


def pilot(words: list[str]) -> int:
    """The exit code of the pilot's own runs; its estimate is printed and lies with the larger one's story."""
    whole = one(words)
    small, large = (one([*words, *lowered(whole, prompts)]) for prompts in (FEW, MANY))
    whole, small, large = (pinned(cfg, functools.cache(commit_of)) for cfg in (whole, small, large))
    started = time.monotonic()
    for cfg in (small.model_copy(update={"until": "train@1"}), large):
        if code := drive(cfg):
            return code
    if large.dry_run:
        return DONE
    seen = [*measured(small), *measured(large)]
    told = estimate(whole, large, seen, between(large, time.monotonic() - started))
    file = (large.runs / "latest").resolve() / "pilot.json"
    write_json(file, told)
    print("\n".join([*lines(told), str(file)]))
    return DONE


def one(words: list[str]) -> Config:
    points, several = compose(Arguments.parse(words))
    if several:
        raise Refusal("pilot: it measures one run, not a sweep. Leave out -m, or choose the recipe of one point.")
    if points[0].until:
        raise Refusal(f"until={points[0].until}: a pilot goes through every stage. Leave it out.")
    return points[0]


def lowered(whole: Config, prompts: int) -> list[str]:
    """One round and one exam, of so many prompts at most."""
    held = getattr(whole.prompts.split, whole.exam.split)
    drawn, asked = (block.per_round or prompts for block in (whole.sample, whole.exam.sample))
    exam = min(prompts, asked, held if isinstance(held, int) else asked)
    runs = f"runs={whole.runs / 'pilot'}"
    return [f"sample.per_round={min(prompts, drawn)}", f"exam.sample.per_round={exam}", "rounds=1", runs]


# ── what the pilot measured ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Seen:
    """One Step of a pilot: what it took for so many prompts."""

    stage: str
    kind: str
    prompts: int
    seconds: float
    size: int
    cost: Mapping[str, float]
    path: Path


def measured(cfg: Config) -> Iterator[Seen]:
    planned = prepare(cfg, select(plan(cfg), cfg.until))
    sizes = sizes_of(cfg, planned)
    for step in planned.steps:
        path = planned.folder(step)
        if manifest := store.read_manifest(path):
            size = sum(entry["size"] for entry in manifest["files"])
            prompts = prompts_of(step, sizes)
            yield Seen(step.stage, kind_of(step), prompts, manifest["seconds"], size, manifest["cost"], path)


def kind_of(step: Step) -> str:
    if step.stage == "benchmark":  # its questions are not ours to be fewer
        return ONCE
    if isinstance(step.label, str):
        return EXAM
    return ROUND if step.label else ONCE


def prompts_of(step: Step, sizes: Mapping[str, int]) -> int:
    """What a step's time grows with. Training on the pairs of all rounds reads so many more."""
    return sizes[kind_of(step)] * (len(step.inputs["pairs"]) if step.stage == "train" else 1)


def sizes_of(cfg: Config, planned: Planned) -> dict[str, int]:
    """How many prompts a round and an exam have; where the config leaves it open, all that `prompts` published."""
    parts = prompts_published(planned)
    assert parts, "a pilot has built them"
    drawn, asked = cfg.sample.per_round or parts["train"], cfg.exam.sample.per_round or parts[cfg.exam.split]
    return {ROUND: drawn, EXAM: asked, ONCE: 1}


def between(large: Config, wall: float) -> float:
    """Seconds that a step costs beside its own: starting its process, publishing, looking at the store."""
    stories = sorted((large.runs / large.recipe).iterdir())[-2:]
    built = [line for story in stories for line in json.loads((story / "ledger.json").read_text()) if line["counted"]]
    return max(0.0, wall - sum(line["seconds"] for line in built)) / len(built) if built else 0.0


# ── what the whole run will take ──────────────────────────────────────────────────────────────────────────────────


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

    def of(self, prompts: int) -> float:
        return self.fixed + self.each * prompts

    def at_most(self, prompts: int) -> float:
        return self.start + self.most * prompts


def rate(stage: str, kind: str, seen: list[Seen]) -> Rate:
    """From the larger pilot; the fixed part is where the line through a round's two sizes begins."""
    most = largest(stage, kind, seen)
    seconds, prompts = sum(one.seconds for one in most) / len(most), most[0].prompts
    if kind == ONCE:
        return Rate(seconds, 0.0, seconds, 0.0)
    start = min(seconds, *(one.cost.get("engine_start_seconds", 0.0) for one in most))
    fixed = min(max(_intercept([one for one in seen if one.stage == stage]), start), seconds)
    return Rate(fixed, (seconds - fixed) / prompts, start, (seconds - start) / prompts)


def largest(stage: str, kind: str, seen: list[Seen]) -> list[Seen]:
    """The steps of the larger pilot; several where a round draws in waves."""
    own = [one for one in seen if (one.stage, one.kind) == (stage, kind)]
    return [one for one in own if one.prompts == max(each.prompts for each in own)]


def _intercept(seen: list[Seen]) -> float:
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


def estimate(whole: Config, large: Config, seen: list[Seen], overhead: float) -> dict[str, Any]:
    planned = prepare(whole, [plan(whole)])
    sizes = sizes_of(whole, planned)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    disk, money = 0.0, 0.0
    for step in planned.steps:
        kind = kind_of(step)
        alike = largest(step.stage, kind, seen)
        prompts, per = prompts_of(step, sizes), rate(step.stage, kind, seen)
        row = rows.setdefault(
            (step.stage, kind), {**asdict(per), "steps": 0, "prompts": prompts, "seconds": 0.0, "at_most": 0.0}
        )
        row["steps"] += 1
        row["seconds"] += per.of(prompts)
        row["at_most"] += per.at_most(prompts)
        grows = kind != ONCE and step.stage not in ("sft", "train")  # a model is as large whatever it was trained on
        times = prompts / alike[0].prompts
        disk += sum(one.size for one in alike) / len(alike) * (times if grows else 1)
        money += sum(one.cost.get(MONEY, 0.0) for one in alike) / len(alike) * times
    stages = [{"stage": stage, "kind": kind, **row} for (stage, kind), row in rows.items()]
    idle = overhead * len(planned.steps)
    hours, most = ((sum(row[name] for row in stages) + idle) / 3600 for name in ("seconds", "at_most"))
    return {
        "stages": stages,
        "between_steps": idle,
        "hours": hours,
        "hours_at_most": most,
        "gpu_money": gpu_money(whole, hours),
        "disk_bytes": round(disk),
        "money": round(money, 4) if any(MONEY in one.cost for one in seen) else None,
        "ties": ties(seen),
        "detectable": detectable(large, seen, sizes[EXAM]),
    }


def gpu_money(cfg: Config, hours: float) -> float | None:
    """A machine is paid while it waits too: every GPU that it shows, and every hour."""
    gpus, price = len(machine.gpus()), cfg.cost.gpu_hour
    return None if price is None or not gpus else round(hours * gpus * price, 4)


def ties(seen: list[Seen]) -> dict[str, int] | None:
    """Of the larger pilot's prompts those whose samples all score alike: they make no pair."""
    [*_, last] = sorted((one for one in seen if one.stage == "pair"), key=lambda one: one.prompts)
    funnel = json.loads((last.path / "funnel.json").read_text())
    return {"of": funnel["prompts_in"], **funnel["ties"]} if funnel["prompts_in"] else None


def detectable(large: Config, seen: list[Seen], prompts: int) -> dict[str, Any] | None:
    """The difference to SFT that an exam of so many prompts sees four times in five.

    The pilot's model has hardly moved from SFT, so that its paired difference varies too little: the true figure lies
    between that one and the one of two models whose answers have nothing to do with each other.
    """
    [report] = [json.loads((one.path / "report.json").read_text()) for one in seen if one.stage == "evaluate"]
    scorer = large.evaluate.scorer
    gaps = [g for g in report["differences"] if g["model"] == "round-1" and g["scorer"] == scorer]
    sft = next(model["metrics"].get(scorer) for model in report["models"] if model["name"] == "sft")
    if not gaps or gaps[0]["detectable"] is None or not sft or sft["low"] is None:
        return None
    paired = gaps[0]["detectable"] * (gaps[0]["n"] / prompts) ** 0.5
    error = (sft["high"] - sft["low"]) / 2 / NormalDist().inv_cdf(0.5 + large.evaluate.level / 2)
    apart = POWER_80 * 2**0.5 * error * (sft["n"] / prompts) ** 0.5
    return {"scorer": scorer, "prompts": prompts, "least": min(paired, apart), "most": max(paired, apart)}


# ── for people ────────────────────────────────────────────────────────────────────────────────────────────────────


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    heads = "steps", "prompts", "fixed s", "s per 1000", "whole run s", "at most s"
    yield f"{'stage':<10}{'of':<13}" + "".join(f"{head:>13}" for head in heads)
    for row in told["stages"]:
        grows = row["kind"] != ONCE
        counts = f"{row['kind']:<13}{row['steps']:>13}{row['prompts'] if grows else '':>13}"
        each = f"{1000 * row['each']:.1f}" if grows else ""
        yield f"{row['stage']:<10}{counts}{row['fixed']:>13.1f}{each:>13}{row['seconds']:>13.1f}{row['at_most']:>13.1f}"
    yield f"between steps {told['between_steps']:.1f} s"
    yield f"time          {told['hours']:.2f} h, at most {told['hours_at_most']:.2f}, with the machine as busy as now"
    yield f"disk          {told['disk_bytes'] / 1e6:,.1f} MB in the store; checkpoints come on top while it trains"
    paid = {"judges and servers": told["money"], "the GPUs of this machine": told["gpu_money"]}
    owed = [f"{money:.2f} for {what}" for what, money in paid.items() if money is not None]
    yield f"money         {' · '.join(owed) or 'nobody is paid'}"
    if tied := told["ties"]:
        among = f"{tied['all_easy']} all easy, {tied['all_hard']} all hard, of {tied['of']}"
        yield f"ties          {tied['prompts'] / tied['of']:.0%} of prompts ({among}): they make no pair"
    if seen := told["detectable"]:
        yield (
            f"detectable    a difference of {seen['least']:.3f} to {seen['most']:.3f} in {seen['scorer']}"
            f" with {seen['prompts']} exam prompts"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
