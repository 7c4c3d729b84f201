"""`strop compare A B …`: finished runs or evaluated models in one report, on their common prompts.

Reads the store and loads no model. Each of A, B … is [NAME=]PLACE (report/analysis/find_runs.py);
the others are compared with the first. Writes report.html, .md, .json and their tables.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import (
    make_new_folder,
    read_folder,
    read_json,
    write_json,
    write_table,
    write_text,
)
from pipeline.commands.table import describe_usage, parse_words, reports_errors
from pipeline.errors import DONE, UserError, pluralize
from pipeline.report.analysis.comparison import compare_runs
from pipeline.report.analysis.find_runs import FoundRun, find_run
from pipeline.report.analysis.statistics import BootstrapConfig
from pipeline.report.render import comparison_page
from pipeline.report.render.answers import tabulate_answers

# As evaluate.level, evaluate.resamples and evaluate.seed of a run.
BOOTSTRAP_KNOBS: dict[str, type] = {"level": float, "resamples": int, "seed": int}
# All files in a comparison's folder.
COMPARISON_FILES = {
    "report.html",
    "report.md",
    "report.json",
    "answers.parquet",
    "verdicts.parquet",
}


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("compare", arguments)
    bootstrap, store = parse_bootstrap(words.knobs), read_folder(words.knob("store"))
    runs = check_names([find_run(word, store) for word in words.places])
    report, results, verdicts = compare_runs(runs, bootstrap)
    asked = words.knobs["out"]
    out = (
        make_folder(read_folder(asked), report["compared"])
        if asked
        else make_new_folder(make_default_out())
    )
    names, common = ", ".join(run.name for run in runs), report["ground"]["asked"]
    print(f"common to {names}: {pluralize(common, 'prompt')}")
    for text in (*report["ground"]["apart"], report["verdict"]["why"]):
        print(text)
    write_comparison(out, report, tabulate_answers(results, runs[0].prompts.read()), verdicts)
    print(out / "report.html")
    return DONE


def make_default_out() -> Path:
    return Path("runs") / "compare" / time.strftime("%Y-%m-%d_%H-%M-%S")


def parse_bootstrap(knobs: Mapping[str, str | None]) -> BootstrapConfig:
    try:
        values = {name: kind(knobs[name]) for name, kind in BOOTSTRAP_KNOBS.items()}
        config = BootstrapConfig(**values)
    except ValueError as error:
        raise UserError(
            f"compare: {error}. Give numbers.\n  {describe_usage('compare')}"
        ) from error
    if not 0 < config.level < 1 or config.resamples < 2 or config.seed < 0:
        raise UserError(
            f"level={config.level:g} resamples={config.resamples} seed={config.seed}: expected a"
            f" level between 0 and 1, at least 2 resamples, and a seed from 0 on.\n"
            f"  {describe_usage('compare')}"
        )
    return config


def check_names(runs: list[FoundRun]) -> list[FoundRun]:
    names = [run.name for run in runs]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{duplicates[0]}: two of them have this name. Give one another name: NAME=PLACE, such"
            " as before=runs/latest:sft."
        )
    return runs


def make_folder(out: Path, compared: list[dict[str, Any]]) -> Path:
    """Make the folder. Refuses one with other files of these names, or other runs' comparison."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if fault := _find_fault(out, names, compared) if names & COMPARISON_FILES else "":
        raise UserError(
            f"out={out}: {fault}. Nothing was written.\n  Give a new folder, as out=FOLDER."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out={out}: cannot be written ({error.strerror}).\n"
            "  Give a folder that can, as out=FOLDER."
        ) from error
    return out


def _find_fault(out: Path, names: set[str], compared: list[dict[str, Any]]) -> str:
    """Why what is in a folder must not be replaced: only the same comparison is."""
    try:
        report = read_json(out / "report.json")
    except (OSError, UserError):
        report = None
    is_comparison = isinstance(report, dict) and {"compared", "ground"} <= report.keys()
    if not is_comparison or not names <= COMPARISON_FILES:
        return f"{min(names & COMPARISON_FILES)} in this folder is not from compare"
    if report["compared"] != compared:
        return "this folder has a comparison of other runs"
    return ""


def write_comparison(
    out: Path, report: dict[str, Any], answers: pl.DataFrame, verdicts: pl.DataFrame
) -> None:
    write_json(out / "report.json", report)  # first: by it a next call knows the folder
    write_table(out / "answers.parquet", answers)
    write_table(out / "verdicts.parquet", verdicts)
    write_text(out / "report.md", comparison_page.render_markdown(report))
    write_text(out / "report.html", comparison_page.render_page(report, answers, verdicts))
