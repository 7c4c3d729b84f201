"""`strop compare A B …`: finished runs or examined models in one report, on their common prompts.

It reads what the store holds and loads no model. Each of A, B … is [NAME=]PLACE (see
report/analysis/find_runs.py);
the first is what the others are compared with. Writes report.html, .md, .json and its tables.
"""

import sys
import time
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import write_json, write_table, write_text
from pipeline.errors import USER_ERROR, UserError, pluralize, suggest
from pipeline.report.analysis.comparison import compared
from pipeline.report.analysis.find_runs import FoundRun, find
from pipeline.report.analysis.statistics import BootstrapConfig
from pipeline.report.render import comparison_page
from pipeline.report.render.answers import answer_table

USAGE = "strop compare [NAME=]RUN[:MODEL] … [store=store] [out=runs/compare/TIME] [level=0.95] [resamples=9999] [seed=42]"
# Of the intervals, as evaluate.level and the like of a run.
BOOTSTRAP_KNOBS: dict[str, type] = {"level": float, "resamples": int, "seed": int}
KNOBS = "store", "out", *BOOTSTRAP_KNOBS
# All that lies in a comparison's folder.
COMPARISON_FILES = {
    "report.html",
    "report.md",
    "report.json",
    "answers.parquet",
    "verdicts.parquet",
}


def main(arguments: list[str]) -> int:
    try:
        words, store, out, draw = parse_arguments(arguments)
        found = check_names([find(word, store) for word in words])
        report, examined, verdicts = compared(found, draw)
        make_folder(out)
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return USER_ERROR
    print(
        f"common to {', '.join(each.name for each in found)}: {pluralize(report['ground']['asked'], 'prompt')}"
    )
    for text in (*report["ground"]["apart"], report["verdict"]["why"]):
        print(text)
    write_comparison(out, report, answer_table(examined, found[0].prompts.read()), verdicts)
    print(out / "report.html")
    return 0


def parse_arguments(arguments: list[str]) -> tuple[list[str], Path, Path, BootstrapConfig]:
    own = {
        key: value for word in arguments for key, _, value in [word.partition("=")] if key in KNOBS
    }
    words = [word for word in arguments if word.partition("=")[0] not in KNOBS]
    for key, _, place in (word.rpartition("=") for word in words):
        if get_close_matches(key, KNOBS) and not Path(place).exists():
            raise UserError(
                f"{key}={place}: not understood. {suggest(key, list(KNOBS))}\n  {USAGE}"
            )
    if len(words) < 2:
        raise UserError(f"Give at least two runs or models to compare: {USAGE}")
    fresh = Path("runs") / "compare" / time.strftime("%Y-%m-%d_%H-%M-%S")
    return words, Path(own.get("store", "store")), Path(own.get("out", fresh)), parse_bootstrap(own)


def parse_bootstrap(own: dict[str, str]) -> BootstrapConfig:
    given = {"level": "0.95", "resamples": "9999", "seed": "42"} | {
        name: own[name] for name in BOOTSTRAP_KNOBS if name in own
    }
    try:
        draw = BootstrapConfig(
            **{name: kind(given[name]) for name, kind in BOOTSTRAP_KNOBS.items()}
        )
    except ValueError as error:
        raise UserError(f"compare: {error}. Give numbers: {USAGE}") from error
    if not 0 < draw.level < 1 or draw.resamples < 2 or draw.seed < 0:
        raise UserError(
            f"level={draw.level:g} resamples={draw.resamples} seed={draw.seed}: a level lies between 0 and 1, at least"
            f" two resamples are drawn, and a seed is no less than 0.\n  {USAGE}"
        )
    return draw


def check_names(found: list[FoundRun]) -> list[FoundRun]:
    names = [each.name for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{twice[0]}: two of them have this name. Give one another: NAME=PLACE, such as before=runs/latest:sft."
        )
    return found


def make_folder(out: Path) -> None:
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there & COMPARISON_FILES and not ("verdicts.parquet" in there and there <= COMPARISON_FILES):
        raise UserError(
            f"out={out}: {min(there & COMPARISON_FILES)} is there, of no comparison, and would be written over. Nothing was"
            " written.\n  Give a folder that is not there yet, as out=FOLDER."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out={out}: cannot be written ({error.strerror}). Give a folder that can, as out=FOLDER."
        ) from error


def write_comparison(
    out: Path, report: dict[str, Any], answers: pl.DataFrame, verdicts: pl.DataFrame
) -> None:
    write_table(out / "answers.parquet", answers)
    write_table(out / "verdicts.parquet", verdicts)
    write_json(out / "report.json", report)
    write_text(out / "report.md", comparison_page.card(report))
    write_text(out / "report.html", comparison_page.page(report, answers, verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
