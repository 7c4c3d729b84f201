"""`strop report`: a run's report again with the present code, from the store, without any model.

The run's config stays as it was. Its report.html, report.md and report.json are rewritten.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline import store
from pipeline.artifacts import find_step, list_steps, read_step, write_atomically, write_json
from pipeline.commands.table import parse_words, reports_errors
from pipeline.config import ReportConfig
from pipeline.driver import worker
from pipeline.driver.run_index import find_runs_folder, refresh_index
from pipeline.errors import DONE, UserError
from pipeline.stages import evaluate


@reports_errors
def main(arguments: list[str]) -> int:
    print(rewrite_report(parse_words("report", arguments).place(0)))
    return DONE


def rewrite_report(run: Path) -> Path:
    step = find_evaluate_step(run)
    for name, source in step["inputs"].items():
        manifest = store.read_manifest(Path(str(source.get("path"))))
        if manifest is None or store.is_pruned(manifest):
            raise UserError(
                f"{run}: its {name} ({source.get('path')}) was pruned.\n"
                "  Type the run's command again to rebuild what is missing."
            )
        if fault := store.find_damage(Path(source["path"]), manifest):
            raise UserError(
                f"{run}: its {name} ({source['path']}) is {fault}.\n"
                "  Type the run's command again: damaged steps are rebuilt."
            )
    try:
        cfg = TypeAdapter(ReportConfig).validate_python(step["config"])
    except ValidationError as error:
        raise UserError(
            f"{run}: its config is of an older version of evaluate.\n"
            "  Type the run's command again; what is built is kept."
        ) from error
    with TemporaryDirectory() as folder:
        out = Path(folder)
        write_json(out / store.STEP, step)  # which names the ancestors
        evaluate.run(cfg, out, **worker.open_inputs(step["inputs"]))
        for file in out.glob("report.*"):
            write_atomically(run / file.name, file.read_bytes())
    if runs := find_runs_folder(run):
        refresh_index(runs)
    return run / "report.html"


def find_evaluate_step(run: Path) -> dict[str, Any]:
    links = list_steps(run, "[0-9]*-evaluate-report")
    file = links[-1] / store.STEP if links else None
    if file is None or not file.exists():
        raise UserError(
            f"{run}: no run with a report in the store.\n"
            "  Type strop report runs/RECIPE/TIME, with a run that has built evaluate."
        )
    step = read_step(file.parent)
    root = file.resolve().parents[2]  # where the store is now: it may have been moved or copied
    for source in (*step["inputs"].values(), *step.get("ancestors", [])):
        here = find_step(root, f"{source['stage']}/{Path(source['path']).name}")
        if here.is_dir():
            source["path"] = str(here)
    return step
