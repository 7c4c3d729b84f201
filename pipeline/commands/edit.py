"""`strop edit`: a round's pairs as `pairs.jsonl`, to give back as `pair.edits.ROUND=FILE`.

Set `action` to drop, swap or replace; for replace, change the text of chosen or rejected too. Lines
with keep stay. A corrected file is never overwritten.
"""

import json
import shlex
import sys
from pathlib import Path

import polars as pl

from pipeline.artifacts import Pairs, list_steps, resolve_run, write_text
from pipeline.commands.table import parse_words, reports_errors
from pipeline.errors import UserError, format_move


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("edit", arguments)
    run = resolve_run(words.place(0))
    number = words.places[1] if words.places[1:] else None
    file = run / "pairs.jsonl"
    number, pairs = find_pairs(run, number)
    give_back = quote_override(f"pair.edits.{number}", file)
    write_new(file, "".join(f"{line}\n" for line in format_lines(pairs)), number)
    print(
        "Set action to drop, swap or replace where a pair is wrong (a line without a change, or"
        f" removed, changes nothing), then give the file back: {give_back}",
        file=sys.stderr,
    )
    print(file)
    return 0


def write_new(file: Path, text: str, number: str) -> None:
    """Write a new file. An existing one that differs was corrected or is of another round."""
    if file.exists() and file.read_bytes() != text.encode():
        give_back = quote_override(f"pair.edits.{number}", file)
        raise UserError(
            f"{file}: it exists and differs from these pairs: corrected, or of another round.\n"
            f"  Nothing was written. Give it back as {give_back} if it is of round"
            f" {number}, or move it away first: {format_move(file)}"
        )
    write_text(file, text)


def quote_override(knob: str, file: Path) -> str:
    return shlex.quote(f"{knob}={file}")


def find_pairs(run: Path, number: str | None) -> tuple[str, Pairs]:
    """A round of a run, by default the last, and its pairs."""
    folders = list_steps(run, "*-pair-*")
    rounds = {folder.name.rpartition("-")[2]: folder for folder in folders}
    if not rounds:
        raise UserError(
            f"{run}: no run with pairs here.\n"
            "  Type strop edit runs/RECIPE/TIME, with a run that has built pair."
        )
    if number is not None and number not in rounds:
        raise UserError(f"ROUND={number}: {run} has pairs of round {', '.join(rounds)}.")
    number = number or [*rounds][-1]
    return number, Pairs(rounds[number])


def format_lines(pairs: Pairs) -> list[str]:
    texts = [
        pl.col(side).list.last().struct.field("content").alias(side)
        for side in ("prompt", "chosen", "rejected")
    ]
    ids = "prompt_id", "chosen_id", "rejected_id"
    rows = (
        pl.concat([pairs.read_train(), pairs.read_dev()])
        .sort(*ids)
        .select(*ids, "chosen_score", "rejected_score", *texts)
    )
    return [
        json.dumps({"action": "keep", **row}, ensure_ascii=False)
        for row in rows.iter_rows(named=True)
    ]
