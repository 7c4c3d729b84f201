"""`strop label`: pairs of answers for people to judge, blind: a page that opens offline, a spreadsheet, Argilla.

`of=1` takes two answers of each prompt that round 1 sampled; `of=test-sft,test-round-1` one of each of two examined
models. The page's verdicts.jsonl, or the filled spreadsheet, is what the scorer `labels` and `calibrate` read.
"""

import csv
import hashlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import KL, Samples, resolve_run, write_text
from pipeline.config import LATER
from pipeline.errors import USER_ERROR, UserError, pluralize, suggest
from pipeline.report.render.examples import prompt_text
from pipeline.scorers.label_files import FORMULA

PAGE = Path(__file__).with_suffix(".html")
USAGE = "strop label [RUN] [of=ROUND or of=MODEL,MODEL] [pairs=100] [seed=0], with RUN=runs/latest"
COLUMNS = ("prompt_id", "a_id", "b_id", "verdict", "annotator", "prompt", "a", "b")

PairRow = dict[str, Any]


def main(arguments: list[str]) -> int:
    try:
        run, asked = parse_arguments(arguments)
        folder = resolve_run(run) / "label"
        rows, short = choose_pairs(run, asked)
        write_files(folder, rows)
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return USER_ERROR
    if short:
        print(
            f"left out: {pluralize(short, 'prompt')} without two different answers", file=sys.stderr
        )
    print(
        f"{pluralize(len(rows), 'pair')} in {folder}: pairs.csv for a spreadsheet, pairs.jsonl for Argilla.",
        file=sys.stderr,
    )
    print("Or open this in a browser; it needs no network:", file=sys.stderr)
    print(folder / "pairs.html")
    return 0


def parse_arguments(arguments: list[str]) -> tuple[Path, dict[str, str]]:
    asked = {"pairs": "100", "seed": "0"} | dict(
        word.split("=", 1) for word in arguments if "=" in word
    )
    places = [word for word in arguments if "=" not in word]
    if unknown := set(asked) - {"of", "pairs", "seed"} or set(places[1:]):
        raise UserError(
            f"{min(unknown)}: not understood. {suggest(min(unknown), ['of', 'pairs', 'seed'])}\n  {USAGE}"
        )
    if not re.fullmatch("[0-9]{1,9}", asked["pairs"]) or not int(asked["pairs"]):
        raise UserError(
            f"pairs={asked['pairs']}: how many pairs to judge is a whole number from 1 to 999999999.\n  {USAGE}"
        )
    return Path(places[0] if places else "runs/latest"), asked


def choose_pairs(run: Path, asked: dict[str, str]) -> tuple[list[PairRow], int]:
    """So many pairs in an order drawn by the seed, and how many prompts had none; which side is A is drawn as well."""
    sides = [read_answers(draws) for draws in find_samples(run, asked.get("of"))]
    first, second = sides[0], sides[-1]
    rows: list[PairRow] = []
    short = 0
    for prompt_id in sorted(
        first.keys() & second.keys(), key=lambda name: hash_words(asked["seed"], name)
    ):
        if len(rows) == int(asked["pairs"]):
            break
        two = choose_two(first[prompt_id], second[prompt_id], asked["seed"])
        if two is None:
            short += 1
            continue
        a, b = two
        ids = {"prompt_id": prompt_id, "a_id": a["sample_id"], "b_id": b["sample_id"]}
        rows.append({**ids, "prompt": a["prompt"], "a": a["completion"], "b": b["completion"]})
    if not rows:
        raise UserError(
            f"{run}: no prompt there has two different answers to compare. Give of=… another sampling."
        )
    return rows, short


def find_samples(run: Path, of: str | None) -> list[list[Samples]]:
    """Of each side every draw: a round's later waves are answers as well."""
    found: dict[str, list[Samples]] = {}
    for path in sorted((run / "store").glob("*-sample-*")):
        found.setdefault(path.name.split("-", 2)[2], []).append(Samples(path))
    rounds = [name for name in found if name.isdigit()]
    if not found:
        raise UserError(
            f"{run}: no run with samples lies there. Give one that got as far as sample.\n  {USAGE}"
        )
    wanted = (
        of.split(",")
        if of
        else sorted(rounds or found, key=lambda name: (name.isdigit() and int(name), name))[-1:]
    )
    for name in wanted:
        if name not in found:
            raise UserError(
                f"of={of}: {run} has no samples of {name}. {suggest(name, list(found))}"
            )
    if len(wanted) > 2:
        raise UserError(f"of={of}: a pair has two sides. Name one sampling, or two.")
    return [found[name] for name in wanted]


def read_answers(draws: list[Samples]) -> dict[str, list[PairRow]]:
    """Of several turns the whole conversation is one answer, under the id of its first."""
    columns = "prompt_id", "sample_id", "prompt", "completion", "setting"
    told = pl.concat(
        [draw.read().filter(pl.col("setting") != KL).select(columns) for draw in draws]
    )
    told = told.with_columns(turns=pl.lit(1))
    later = pl.col("setting").str.starts_with(LATER)
    by_prompt: dict[str, list[PairRow]] = {}
    for row in told.filter(~later).iter_rows(named=True):
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    turn = pl.col("setting").str.strip_prefix(LATER).cast(pl.Int64)
    for row in told.filter(later).sort("prompt_id", turn).iter_rows(named=True):
        for first in by_prompt.get(row["prompt_id"], []):
            first["completion"] += f"\n\n[{row['prompt'][-1]['content']}]\n\n{row['completion']}"
            first["turns"] += 1
    return by_prompt


def choose_two(
    first: list[PairRow], second: list[PairRow], seed: str
) -> tuple[PairRow, PairRow] | None:
    """One answer of each side, different texts in as many turns, in an order that the seed draws."""
    alike = [(a, b) for a in first for b in second if a["turns"] == b["turns"]]
    couples = [(a, b) for a, b in alike if a["completion"] != b["completion"]]
    if not couples:
        return None
    return min(
        couples + [(b, a) for a, b in couples],
        key=lambda two: hash_words(seed, two[0]["sample_id"], two[1]["sample_id"]),
    )


def hash_words(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


# ── what is written ───────────────────────────────────────────────────────────────────────────────────────────────


def write_files(folder: Path, rows: list[PairRow]) -> None:
    """A spreadsheet that people have filled in is never written over, nor is the page beside it."""
    if is_filled(folder / "pairs.csv"):
        raise UserError(
            f"{folder / 'pairs.csv'}: it has verdicts. Nothing was written. Move the folder away first:"
            f" {shlex.join(['mv', str(folder), f'{folder}-judged'])}"
        )
    write_text(folder / "pairs.html", render_page(rows))
    write_text(folder / "pairs.csv", render_spreadsheet(rows))
    write_text(
        folder / "pairs.jsonl",
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_records(rows)),
    )


def is_filled(file: Path) -> bool:
    """Whether a spreadsheet has anything that we did not write: a verdict, an annotator, or another shape."""
    if not file.exists():
        return False
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            table = csv.DictReader(opened)
            own = tuple(table.fieldnames or ()) == COLUMNS
            return not own or any(row["verdict"] or row["annotator"] for row in table)
    except (ValueError, csv.Error):
        return True


def render_page(rows: list[PairRow]) -> str:
    """The texts go in as JSON in which no tag can begin or end; the page writes them as text, never as HTML."""
    told = json.dumps(
        {"name": hash_words(*(f"{row['a_id']} {row['b_id']}" for row in rows))[:12], "pairs": rows}
    )
    return PAGE.read_text().replace("{{ pairs }}", told.replace("<", "\\u003c"))


def render_spreadsheet(rows: list[PairRow]) -> str:
    """Fill in verdict (a, b or tie). A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="")
    table.writeheader()
    for row in rows:
        told = {**row, "prompt": prompt_text(row["prompt"])}
        table.writerow(
            {
                name: f"'{value}" if value.startswith(FORMULA) else value
                for name, value in told.items()
            }
        )
    return text.getvalue()


def make_records(rows: list[PairRow]) -> Iterator[PairRow]:
    """As `argilla.Record(**row)` takes them, for a dataset with the text fields prompt, a and b, and a label question
    `verdict` (a, b or tie). What its `records.to_json` writes is read back like the page's verdicts."""
    for row in rows:
        yield {
            "id": f"{row['a_id']} {row['b_id']}",
            "fields": {"prompt": prompt_text(row["prompt"]), "a": row["a"], "b": row["b"]},
            "metadata": {name: row[name] for name in ("prompt_id", "a_id", "b_id")},
        }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
