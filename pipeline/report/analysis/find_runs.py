"""Models that have been examined, found by a run's folder or in the store: what they answered and what marked it.

A place is `RUN` (the model that it chose), `RUN:MODEL` (a row of its table), a model's folder in the store, or its
fingerprint. Nothing is opened but tables and records.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import (
    MADE_BY,
    STEP_FILE,
    EvalArtifacts,
    Logps,
    Model,
    Prompts,
    Report,
    Samples,
    Scores,
    Verdicts,
    build_tree,
    read_step,
)
from pipeline.config import ANSWER
from pipeline.errors import UserError, suggest
from pipeline.hashing import drop_runtime

Record = dict[str, Any]
EXPECTED = "Give a finished run (runs/latest), one of its models (runs/latest:sft), or an examined model's fingerprint."


@dataclass(frozen=True)
class FoundRun:
    """`row` is its name in its own run's table; `scorers` are as they were configured, without their runtime."""

    name: str
    row: str
    exam: EvalArtifacts
    prompts: Prompts
    setting: Any
    scorers: dict[str, Any]
    chief: str | None


def find(word: str, store: Path) -> FoundRun:
    """`[NAME=]PLACE[:MODEL]`."""
    name, _, place = word.rpartition("=")
    place, _, row = place.partition(":")
    run = Path(place)
    if (run / "store").is_dir():
        return _of_run(run, row, name)
    found = _of_model(run.resolve() if run.is_dir() else _by_fingerprint(store, place), name)
    if row:
        raise UserError(
            f"{word}: {place} is one model, and :{row} chooses one of a run's. {EXPECTED}"
        )
    return found


def verdicts_between(one: FoundRun, other: FoundRun) -> list[tuple[str, pl.DataFrame]]:
    """Judge and verdicts, as said with `one` as a, of every duel that the store has of these very answers."""
    ours, theirs = (each.exam["samples"].path for each in (one, other))
    found = []
    for a, b in ((ours, theirs), (theirs, ours)):
        for step in _readers(ours.parent.parent, "duel", "a", a.name):
            record = _record(step)
            if record["inputs"]["b"]["fingerprint"] == b.name:
                rows = Verdicts(step).read()
                found.append(
                    (record["config"]["engine"]["model"], rows if a == ours else turned(rows))
                )
    return found


def turned(rows: pl.DataFrame) -> pl.DataFrame:
    """The same verdicts with the two sides called the other way round."""
    sides = {"a": "b", "b": "a", "tie": "tie"}
    return rows.with_columns(
        a_id=pl.col("b_id"),
        b_id=pl.col("a_id"),
        winner=pl.col("winner").replace_strict(sides, default=None),
        order=pl.col("order").replace_strict({"ab": "ba", "ba": "ab"}, default=None),
        probability=1 - pl.col("probability"),
    )


def _of_run(run: Path, row: str, name: str) -> FoundRun:
    reports = sorted((run / "store").glob("[0-9]*-evaluate-*"))
    if not reports or not (reports[-1] / STEP_FILE).exists():
        raise UserError(
            f"{run}: no report lies there, so nothing says which models were examined. {EXPECTED}"
        )
    folder = reports[-1].resolve()
    step = _record(folder)
    exams = build_tree(step["inputs"]).get("exams", {})
    if not exams:
        raise UserError(f"{run}: its report names no examined model. {EXPECTED}")
    chosen = row or Report(folder).read()["exam"]["chosen"]
    if chosen not in exams:
        raise UserError(
            f"{run}:{chosen}: its table has no such row. {suggest(str(chosen), list(exams))}"
        )
    told = name or "/".join(run.resolve().parts[-2:]) + (f":{row}" if row else "")
    parts = {
        part: _place(folder, source) for part, source in exams[chosen].items() if part != "metrics"
    }
    return _found(told, chosen, parts, step["config"]["scorer"])


def _by_fingerprint(store: Path, fingerprint: str) -> Path:
    stages = [stage for stage, made in MADE_BY.items() if made is Model]
    models = [
        path for stage in stages if fingerprint and (path := store / stage / fingerprint).is_dir()
    ]
    if not models:
        raise UserError(f"{fingerprint}: neither a run nor a model in {store}. {EXPECTED}")
    return models[0].resolve()


def _of_model(model: Path, name: str) -> FoundRun:
    """By what the store's own records say was drawn from it, and what was made of that."""
    store = model.parent.parent
    drawn = _readers(store, "sample", "policy", model.name)
    drawn = [step for step in drawn if _record(step)["config"]["purpose"] == "exam"]
    drawn = [
        step for step in drawn if _record(step)["inputs"]["prompts"]["part"] == "test"
    ] or drawn
    if not drawn:
        raise UserError(f"{model}: it has not been examined. {EXPECTED}")
    [samples] = _only(model, "examined", drawn)
    parts = {"model": model, "samples": samples}
    for part, edge in (("score", "samples"), ("refer", "rows")):
        if made := _readers(store, part, edge, samples.name):
            [parts["scores" if part == "score" else "logps"]] = _only(
                model, f"read by {part}", made
            )
    row = str(_record(samples)["label"]).partition(" ")[2]
    return _found(name or model.name, row, parts, None)


def _readers(store: Path, stage: str, edge: str, fingerprint: str) -> list[Path]:
    """The steps of a stage that read this one."""
    steps = [path.parent for path in sorted((store / stage).glob(f"*/{STEP_FILE}"))]
    known = [step for step in steps if ".partial" not in step.name and ".old-" not in step.name]
    return [
        step
        for step in known
        if _record(step)["inputs"].get(edge, {}).get("fingerprint") == fingerprint
    ]


def _only(model: Path, what: str, steps: list[Path]) -> list[Path]:
    if len(steps) > 1:
        names = ", ".join(step.name for step in steps)
        raise UserError(
            f"{model}: it was {what} {len(steps)} times ({names}). Name the run that you mean, as RUN:MODEL."
        )
    return steps


def _found(name: str, row: str, parts: dict[str, Path], chief: str | None) -> FoundRun:
    for part, path in parts.items():
        if part != "model" and not (path / STEP_FILE).exists():
            raise UserError(
                f"{name}: its {part} ({path}) were pruned. Run it again, and they are made anew."
            )
    drawn = _record(parts["samples"])
    source = drawn["inputs"]["prompts"]
    prompts = Prompts(_place(parts["samples"], source) / source["part"])
    exam: EvalArtifacts = {"model": Model(parts["model"]), "samples": Samples(parts["samples"])}
    if "scores" in parts:
        exam["scores"] = Scores(parts["scores"])
    if "logps" in parts:
        exam["logps"] = Logps(parts["logps"])
    setting = {"limits": drawn["config"]["limits"], **drawn["config"]["settings"][ANSWER]}
    return FoundRun(name, row, exam, prompts, setting, _scorers(parts.get("scores")), chief)


def _scorers(scores: Path | None) -> dict[str, Any]:
    """A scorer that marks with its run's own model is another one in each run that has another model."""
    if scores is None:
        return {}
    step = _record(scores)
    reward = step["inputs"].get("reward", {}).get("fingerprint")
    of_run = {"kind": "reward_model", "model": None}
    return {
        name: [drop_runtime(one), reward if of_run.items() <= one.items() else None]
        for name, one in step["config"]["scorers"].items()
    }


def _record(step: Path) -> Record:
    return read_step(step)


def _place(reader: Path, source: Record) -> Path:
    """An input lies in the same store as who read it, wherever that is by now."""
    return reader.parent.parent / source["stage"] / source["fingerprint"].partition("/")[0]
