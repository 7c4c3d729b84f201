"""A sweep: Hydra launches the points, and each writes its line to `points.json`.

A failing point stops no other. On a cluster the steps of all points are built first, side by side
and each once; then the points find them. At the end the best point on dev within the KL budget is
evaluated on test, and `sweep.html` shows them all.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipeline import store
from pipeline.artifacts import write_text
from pipeline.backends import api_client
from pipeline.config import Config
from pipeline.config.compose import (
    CONF,
    Arguments,
    build_command,
    quote,
    read_overrides,
    validate_point,
)
from pipeline.driver import store_users
from pipeline.driver.executor import StepFailed, build_missing
from pipeline.driver.outline import outline_plan, select_targets
from pipeline.driver.run import (
    explain_interrupts,
    find_faults,
    keep_records,
    make_run_dir,
    open_run,
    print_warnings,
    run_point,
)
from pipeline.driver.run_index import SHARED
from pipeline.errors import DONE, FAILED, INTERRUPTED, UserError, pluralize
from pipeline.hashing import resolve_commit
from pipeline.plan import plan
from pipeline.preflight.training_fits import TrainingFits
from pipeline.resources import leases
from pipeline.status import RunPlan, list_unbuilt
from pipeline.step import pin_revisions

STATUS = {0: "done", 2: "refused", 75: "stopped"}


def run_sweep(arguments: Arguments, points: list[Config]) -> int:
    """Run every point. Exit code 1 if one did not finish. Prints the path of the page last."""
    if points[0].dry_run:
        return max(run_point(cfg) for cfg in points)
    folder = make_run_dir(points[0]).absolute()
    print(f"{points[0].recipe}: {pluralize(len(points), 'point')} · {folder}")
    output = f"hydra.sweep.dir={quote(str(folder))}"
    sys.argv = [sys.argv[0], "--multirun", *arguments.overrides, *arguments.searchpath, output]
    global _points
    _points = points
    with keep_records(points[0].runs, folder, len(points)):
        try:
            if points[0].cluster.kind != "local":
                build_together(points, folder / SHARED)
            launch()
        except OSError as error:
            error.filename = error.filename or str(folder)  # Hydra's files name none on a full disk
            raise
        written = json.loads((folder / "points.json").read_text())
        finished = len(written) == len(points) and all(line["status"] == "done" for line in written)
        page, code = finish_sweep(points[0], folder, written, arguments.flags)
    print(page)
    return code or (DONE if finished else FAILED)


@explain_interrupts()
def build_together(points: Sequence[Config], run_dir: Path) -> None:
    """Build the steps of all points as one plan, in which each is once.

    Left to its own turn: a point that is refused, and what a step that fails here would lead to.
    """
    accepted: list[tuple[Config, RunPlan]] = []
    for point in points:
        api_client.register_key_names(point.model_dump(mode="json"))
        with suppress(UserError):
            cfg = pin_revisions(point, cache(resolve_commit))
            own = outline_plan(cfg, select_targets(plan(cfg), cfg.until))
            if not find_faults(cfg, own, TrainingFits(own, is_here=False)):
                accepted.append((cfg, own))
                print_warnings(own)
    if not accepted:
        return
    (cfg, _), *_ = accepted
    whole = outline_plan(cfg, [target for _, own in accepted for target in own.targets])
    commands = {
        own.fingerprint(step): cfg.command for cfg, own in reversed(accepted) for step in own.steps
    }
    with suppress(StepFailed), open_run(cfg, whole, run_dir):
        build_missing(cfg, whole, run_dir, commands)
        if unbuilt := list_unbuilt(whole):
            steps = pluralize(len(unbuilt), "step")
            raise StepFailed(f"{steps} not built; their points say why", FAILED, FAILED)


_points: Sequence[Config] = ()  # as the command line composes them


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def launch(composed: DictConfig) -> None:
    job = HydraConfig.get()
    # Hydra's own composition lacks what `compose` adds. Another sweeper makes other points.
    cfg = _find_point(build_command(job)) or validate_point(composed, job)
    run_dir = Path(job.sweep.dir) / str(job.job.num)  # whatever a recipe says of hydra.sweep.subdir
    print(f"\npoint {job.job.num}: {' '.join(_list_overrides(job))}", flush=True)
    code = run_point(cfg, run_dir)
    append_line(run_dir.parent / "points.json", describe_point(cfg, run_dir, code, job))


def _find_point(command: str) -> Config | None:
    def read(typed: str) -> list[str]:
        return [word for word in shlex.split(typed) if word != "hydra.mode=RUN"]

    return next((one for one in _points if read(one.command) == read(command)), None)


def describe_point(cfg: Config, run_dir: Path, code: int, job: Any) -> dict[str, Any]:
    """A point's line: its overrides, its chosen model's score, verdict and KL, its report."""
    line = {
        "point": job.job.num,
        "overrides": _list_overrides(job),
        "status": STATUS.get(code, "failed"),
    }
    report = run_dir / "report.json"
    if code != 0 or not report.exists():
        return line
    results = json.loads(report.read_text())
    chosen = results["evaluation"]["chosen"]
    model = next((model for model in results["models"] if model["name"] == chosen), None)
    score = model and model["metrics"].get(cfg.evaluate.scorer, {}).get("mean")
    kl = model and model["kl"]["mean"]
    sft = next((model for model in results["models"] if model["name"] == "sft"), None)
    return {
        **line,
        "split": cfg.evaluate.split,
        "score": score,
        "sft_score": sft and sft["metrics"].get(cfg.evaluate.scorer, {}).get("mean"),
        "better": results.get("verdict", {}).get("better"),
        "kl": kl,
        **_describe_seeds(results, cfg.evaluate.scorer),
        "report": str(run_dir / "report.html"),
    }


def _describe_seeds(results: Mapping[str, Any], scorer: str) -> dict[str, Any]:
    """The chosen model's gain over SFT with the intervals of its seeds; nothing with one seed."""
    key = results["evaluation"]["chosen"], scorer
    for row in results.get("differences", ()):
        if (row["model"], row["scorer"]) == key and "between" in row:
            names = "mean", "low", "high", "between", "wider"
            return {"gain": {name: row[name] for name in names}}
    return {}


# ── the end of a sweep ───────────────────────────────────────────────────────────────────────────


def finish_sweep(
    cfg: Config, folder: Path, points: list[dict[str, Any]], flags: Sequence[str] = ()
) -> tuple[Path, int]:
    """The page of all points (`points.json` if none was evaluated), and the retest's exit code."""
    from pipeline.report.render.sweep_page import SweepGrid, choose_best, render_sweep

    waits = any(point["status"] == STATUS[INTERRUPTED] for point in points)  # for a judge's batch
    if not any("score" in point for point in points):
        return folder / "points.json", INTERRUPTED if waits else DONE
    best = choose_best(points, cfg.sweep.kl_budget)
    code, report = INTERRUPTED if waits else DONE, None
    if best and not waits and cfg.evaluate.split == "dev" and cfg.sweep.retest:
        overrides = " ".join(best["overrides"])
        print(f"\npoint {best['point']} again, on test: {overrides}", flush=True)
        code = run_point(make_test_config(folder / str(best["point"])), folder / "best")
        report = "best/report.html" if code == DONE else None
    if best and not waits and cfg.sweep.keep == "best":
        prune_losers(cfg, folder, [point for point in points if point is not best])
    grid = SweepGrid(
        cfg.recipe,
        points,
        cfg.evaluate.split,
        cfg.sweep.kl_budget,
        best,
        make_best_command(best, flags, cfg.evaluate.split),
        report,
    )
    write_text(folder / "sweep.html", render_sweep(grid))
    return folder / "sweep.html", code


def make_best_command(
    best: Mapping[str, Any] | None, flags: Sequence[str], split: str = "dev"
) -> str:
    """What to type to run the best point alone, evaluated on test.

    `hydra.mode=RUN`: the recipe may ask for a sweep.
    """
    kept = [flag for flag in flags if flag not in ("-m", "--multirun")]
    words = best["overrides"] if best else []
    on_test = ["evaluate.split=test"] if split != "test" else []
    return shlex.join(["strop", "run", *kept, *words, "hydra.mode=RUN", *on_test])


def make_test_config(run_dir: Path) -> Config:
    """A point's resolved config, with its evaluations on the test prompts."""
    import yaml

    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    return Config.model_validate({**config, "evaluate": {**config["evaluate"], "split": "test"}})


def prune_losers(cfg: Config, folder: Path, points: Sequence[Mapping[str, Any]]) -> None:
    """Prune the models that these points of the sweep made and that no other run uses."""
    ours = folder.relative_to(cfg.runs.absolute())
    losers = {(ours / str(name)).as_posix() for name in (SHARED, *(one["point"] for one in points))}
    try:
        with store.lock_exclusive(cfg.own_store):
            known_runs = [cfg.runs, *store_users.check_runs(cfg.own_store, cfg.runs)]
            users = store_users.find_users(cfg.own_store, known_runs)
            users.check()
            for fingerprint, runs in users.runs.items():
                for stage in ("train", "merge"):
                    model = store.step_folder(cfg.own_store, stage, fingerprint)
                    is_inside = model.parent == cfg.own_store / stage and not model.is_symlink()
                    manifest = store.read_manifest(model) if is_inside else None
                    if manifest and not store.is_pruned(manifest) and losers.issuperset(runs):
                        print(_prune_model(model, manifest, runs))
    except UserError as error:
        print(f"sweep.keep=best: the models of the other points are kept.\n  {error}")


def _prune_model(model: Path, manifest: store.Manifest, runs: Sequence[str]) -> str:
    """Prune one model, if it has no file of the user's. Returns what to print."""
    name = f"{model.parent.name}/{model.name} ({', '.join(runs)})"
    if reason := store.explain_foreign_files(model):
        return f"sweep.keep=best: {name} is kept: it {reason}."
    store.prune(model, manifest)
    return f"sweep.keep=best: {name} was pruned"


def _list_overrides(job: Any) -> list[str]:
    """The overrides as the user typed them. A single plus is theirs: it adds a scorer or judge."""
    return [word.removeprefix("++") for word in read_overrides(job)]


def append_line(file: Path, line: dict[str, Any]) -> None:
    """Add one line under a lease, since points may run in several processes. It stays JSON."""
    with leases.hold(file.with_suffix(".lease")):
        lines = json.loads(file.read_text()) if file.exists() else []
        lines = sorted([*lines, line], key=lambda each: each["point"])
        write_text(file, "[\n" + ",\n".join(json.dumps(each) for each in lines) + "\n]\n")
