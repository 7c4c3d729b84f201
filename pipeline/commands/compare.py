"""`strop compare A B …`: finished runs or evaluated models in one report, on their common prompts.

Reads the store and loads no model. Each of A, B … is [NAME=]PLACE (report/analysis/find_runs.py);
the others are compared with the first. Writes report.html, .md, .json and their tables.
"""

import sys
import time
from difflib import get_close_matches
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
from pipeline.errors import USER_ERROR, UserError, pluralize, suggest
from pipeline.report.analysis.comparison import compare_runs
from pipeline.report.analysis.find_runs import FoundRun, find_run
from pipeline.report.analysis.statistics import BootstrapConfig
from pipeline.report.render import comparison_page
from pipeline.report.render.answers import tabulate_answers

USAGE = (
    "strop compare [NAME=]RUN[:MODEL] … [store=store] [out=runs/compare/TIME]"
    " [level=0.95] [resamples=9999] [seed=42]"
)
# As evaluate.level, evaluate.resamples and evaluate.seed of a run.
BOOTSTRAP_KNOBS: dict[str, type] = {"level": float, "resamples": int, "seed": int}
KNOBS = "store", "out", *BOOTSTRAP_KNOBS
# All files in a comparison's folder.
COMPARISON_FILES = {
    "report.html",
    "report.md",
    "report.json",
    "answers.parquet",
    "verdicts.parquet",
}


def main(arguments: list[str]) -> int:
    try:
        words, store, out, bootstrap = parse_arguments(arguments)
        runs = check_names([find_run(word, store) for word in words])
        report, examined, verdicts = compare_runs(runs, bootstrap)
        out = make_folder(out, report["compared"]) if out else make_new_folder(make_default_out())
    except UserError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    names, common = ", ".join(run.name for run in runs), report["ground"]["asked"]
    print(f"common to {names}: {pluralize(common, 'prompt')}")
    for text in (*report["ground"]["apart"], report["verdict"]["why"]):
        print(text)
    write_comparison(out, report, tabulate_answers(examined, runs[0].prompts.read()), verdicts)
    print(out / "report.html")
    return 0


def make_default_out() -> Path:
    return Path("runs") / "compare" / time.strftime("%Y-%m-%d_%H-%M-%S")


def parse_arguments(
    arguments: list[str],
) -> tuple[list[str], Path, Path | None, BootstrapConfig]:
    """The runs, the store, the folder for the comparison if one was given, and the intervals."""
    pairs = [word.partition("=") for word in arguments]
    options = {key: value for key, _, value in pairs if key in KNOBS}
    words = [word for word in arguments if word.partition("=")[0] not in KNOBS]
    for key, _, place in (word.rpartition("=") for word in words):
        if get_close_matches(key, KNOBS) and not Path(place).exists():
            raise UserError(
                f"{key}={place}: not understood. {suggest(key, list(KNOBS))}\n  {USAGE}"
            )
    if len(words) < 2:
        raise UserError(f"Give at least two runs or models to compare: {USAGE}")
    for key in ("store", "out"):
        if options.get(key) == "":
            raise UserError(f"{key}=: a folder was expected, such as {key}=./{key}.\n  {USAGE}")
    store = read_folder(options.get("store", "store"))
    out = read_folder(options["out"]) if "out" in options else None
    return words, store, out, parse_bootstrap(options)


def parse_bootstrap(options: dict[str, str]) -> BootstrapConfig:
    texts = {"level": "0.95", "resamples": "9999", "seed": "42"} | options
    try:
        values = {name: kind(texts[name]) for name, kind in BOOTSTRAP_KNOBS.items()}
        config = BootstrapConfig(**values)
    except ValueError as error:
        raise UserError(f"compare: {error}. Give numbers: {USAGE}") from error
    if not 0 < config.level < 1 or config.resamples < 2 or config.seed < 0:
        raise UserError(
            f"level={config.level:g} resamples={config.resamples} seed={config.seed}: expected a"
            f" level between 0 and 1, at least 2 resamples, and a seed from 0 on.\n  {USAGE}"
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
