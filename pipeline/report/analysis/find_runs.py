"""Finds evaluated models by a run's folder or in the store, with their answers and scores.

A place is `RUN` (the model that it chose), `RUN:MODEL` (a row of its table), a model's folder in
the store, or its fingerprint. Only tables and records are read.
"""

from collections.abc import Iterable
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
    find_step,
    find_store,
    list_steps,
    read_other_stores,
    read_step,
)
from pipeline.config import ANSWER, EVAL_PURPOSE
from pipeline.errors import UserError, suggest
from pipeline.hashing import drop_runtime

WHAT_TO_GIVE = (
    "Give a finished run (runs/latest), one of its models (runs/latest:sft), "
    "or an evaluated model's fingerprint."
)


@dataclass(frozen=True)
class FoundRun:
    """One evaluated model. `row` is its name in its own run's table.

    `scorers` are its scorers' configs without their runtime. `stores` are those that its run writes
    and reads: what was made of its answers may be in any.
    """

    name: str
    row: str
    artifacts: EvalArtifacts
    prompts: Prompts
    sampling: Any
    scorers: dict[str, Any]
    primary: str | None
    stores: tuple[Path, ...]


def find_run(word: str, store: Path) -> FoundRun:
    """`[NAME=]PLACE[:MODEL]`."""
    name, _, place = word.rpartition("=")
    place, _, row = place.partition(":")
    run = Path(place)
    if (run / "store").is_dir():
        return _find_in_run(run, row, name)
    model = run.resolve() if run.is_dir() else _find_model(store, place)
    found = _find_by_model(model, _list_stores(find_store(model), store), name)
    if row:
        raise UserError(
            f"{word}: {place} is one model, but :{row} chooses one of a run's. {WHAT_TO_GIVE}"
        )
    return found


def _list_stores(*roots: Path) -> tuple[Path, ...]:
    """These, and all that their runs have read."""
    every = [store for root in roots for store in (root, *read_other_stores(root))]
    return tuple(dict.fromkeys(store.resolve() for store in every))


def read_verdicts_between(one: FoundRun, other: FoundRun) -> list[tuple[str, pl.DataFrame]]:
    """Judge and verdicts of every known duel between these very answers, with `one` as a."""
    ours, theirs = (run.artifacts["samples"].path.name for run in (one, other))
    stores = dict.fromkeys([*one.stores, *other.stores])
    verdicts = []
    for a, b in ((ours, theirs), (theirs, ours)):
        for step in _find_readers(stores, "duel", "a", a):
            record = read_step(step)
            if record["inputs"]["b"]["fingerprint"] == b:
                rows = Verdicts(step).read()
                judge = record["config"]["engine"]["model"]
                verdicts.append((judge, rows if a == ours else swap_sides(rows)))
    return verdicts


def swap_sides(rows: pl.DataFrame) -> pl.DataFrame:
    """The same verdicts with a and b exchanged."""
    sides = {"a": "b", "b": "a", "tie": "tie"}
    return rows.with_columns(
        a_id=pl.col("b_id"),
        b_id=pl.col("a_id"),
        winner=pl.col("winner").replace_strict(sides, default=None),
        order=pl.col("order").replace_strict({"ab": "ba", "ba": "ab"}, default=None),
        probability=1 - pl.col("probability"),
    )


def _find_in_run(run: Path, row: str, name: str) -> FoundRun:
    reports = list_steps(run, "[0-9]*-evaluate-*")
    if not reports or not (reports[-1] / STEP_FILE).exists():
        raise UserError(
            f"{run}: it has no report, so its evaluated models are not known. {WHAT_TO_GIVE}"
        )
    folder = reports[-1].resolve()
    step = read_step(folder)
    inputs = build_tree(step["inputs"])
    evals = inputs.get("evals", {}) | inputs.get("replicates", {})
    if not evals:
        raise UserError(f"{run}: its report names no evaluated model. {WHAT_TO_GIVE}")
    chosen = row or Report(folder).read()["evaluation"]["chosen"]
    if chosen not in evals:
        raise UserError(
            f"{run}:{chosen}: its table has no such row. {suggest(str(chosen), list(evals))}"
        )
    shown = name or "/".join(run.resolve().parts[-2:]) + (f":{row}" if row else "")
    parts = {
        part: _locate_input(folder, source)
        for part, source in evals[chosen].items()
        if part != "metrics"
    }
    stores = _list_stores(find_store(folder))
    return _build_found_run(shown, chosen, parts, step["config"]["scorer"], stores)


def _find_model(store: Path, fingerprint: str) -> Path:
    stages = [stage for stage, made in MADE_BY.items() if made is Model]
    stores = _list_stores(store) if fingerprint else ()
    folders = [root / stage / fingerprint for root in stores for stage in stages]
    models = [folder for folder in folders if folder.is_dir()]
    if not models:
        raise UserError(f"{fingerprint}: neither a run nor a model in {store}. {WHAT_TO_GIVE}")
    return models[0].resolve()


def _find_by_model(model: Path, stores: tuple[Path, ...], name: str) -> FoundRun:
    """By records of what was sampled from it, and of what was made from the samples."""
    sampled = [
        step
        for step in _find_first_readers(stores, "sample", "policy", model.name)
        if read_step(step)["config"]["purpose"] == EVAL_PURPOSE
    ]
    on_test = [step for step in sampled if read_step(step)["inputs"]["prompts"]["part"] == "test"]
    sampled = on_test or sampled
    if not sampled:
        raise UserError(f"{model}: it has not been evaluated. {WHAT_TO_GIVE}")
    samples = _require_one(model, "evaluated", sampled)
    parts = {"model": model, "samples": samples}
    for stage, edge, part in (("score", "samples", "scores"), ("reference", "rows", "logps")):
        if readers := _find_first_readers(stores, stage, edge, samples.name):
            parts[part] = _require_one(model, f"read by {stage}", readers)
    row = str(read_step(samples)["label"]).partition(" ")[2]
    return _build_found_run(name or model.name, row, parts, None, stores)


def _find_first_readers(
    stores: Iterable[Path], stage: str, edge: str, fingerprint: str
) -> list[Path]:
    """Those in the first store that has any: a run reads no others."""
    found = (_find_readers([store], stage, edge, fingerprint) for store in stores)
    return next(filter(None, found), [])


def _find_readers(stores: Iterable[Path], stage: str, edge: str, fingerprint: str) -> list[Path]:
    """The steps of a stage that read this one, each from the first store that has it."""
    steps: dict[str, Path] = {}
    for store in stores:
        for path in sorted((store / stage).glob(f"*/{STEP_FILE}")):
            steps.setdefault(path.parent.name, path.parent)
    return [
        step
        for name, step in steps.items()
        if ".partial" not in name
        and ".old-" not in name
        and read_step(step)["inputs"].get(edge, {}).get("fingerprint") == fingerprint
    ]


def _require_one(model: Path, what: str, steps: list[Path]) -> Path:
    if len(steps) > 1:
        names = ", ".join(step.name for step in steps)
        raise UserError(
            f"{model}: it was {what} {len(steps)} times ({names})."
            " Name the run that you mean, as RUN:MODEL."
        )
    return steps[0]


def _build_found_run(
    name: str,
    row: str,
    parts: dict[str, Path],
    primary: str | None,
    stores: tuple[Path, ...],
) -> FoundRun:
    for part, path in parts.items():
        if part != "model" and not (path / STEP_FILE).exists():
            raise UserError(
                f"{name}: its {part} ({path}) were pruned. Run it again to rebuild them."
            )
    record = read_step(parts["samples"])
    source = record["inputs"]["prompts"]
    prompts = Prompts(_locate_input(parts["samples"], source) / source["part"])
    artifacts: EvalArtifacts = {
        "model": Model(parts["model"]),
        "samples": Samples(parts["samples"]),
    }
    if "scores" in parts:
        artifacts["scores"] = Scores(parts["scores"])
    if "logps" in parts:
        artifacts["logps"] = Logps(parts["logps"])
    sampling = {"limits": record["config"]["limits"], **record["config"]["settings"][ANSWER]}
    scorers = _read_scorer_configs(parts.get("scores"))
    return FoundRun(name, row, artifacts, prompts, sampling, scorers, primary, stores)


def _read_scorer_configs(scores: Path | None) -> dict[str, Any]:
    """With the fingerprint of the reward model where a scorer uses its own run's."""
    if scores is None:
        return {}
    step = read_step(scores)
    reward = step["inputs"].get("reward", {}).get("fingerprint")
    of_run = {"kind": "reward_model", "model": None}
    return {
        name: [drop_runtime(one), reward if of_run.items() <= one.items() else None]
        for name, one in step["config"]["scorers"].items()
    }


def _locate_input(reader: Path, source: dict[str, Any]) -> Path:
    """By its reader's store, wherever that is by now."""
    name = f"{source['stage']}/{source['fingerprint'].partition('/')[0]}"
    return find_step(find_store(reader), name)
