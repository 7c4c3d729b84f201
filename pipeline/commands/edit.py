"""`strop edit`: a run's pairs as `pairs.jsonl`, one line each, to correct and give back as `pair.edits=FILE`.

Set `action` to drop, swap or replace (and then change the text of chosen or rejected); what stays at keep stays.
A file that was corrected is never written over.
"""

import json
import shlex
import sys
from pathlib import Path

import polars as pl

from pipeline.artifacts import Pairs, resolve_run, write_text
from pipeline.errors import USER_ERROR, UserError


def main(arguments: list[str]) -> int:
    try:
        if len(arguments) > 2:
            raise UserError(f"{arguments[2]}: one word too many. Type strop edit [RUN] [ROUND].")
        run = resolve_run(Path(arguments[0] if arguments else "runs/latest"))
        number = arguments[1] if len(arguments) > 1 else None
        file = run / "pairs.jsonl"
        write_new(file, "".join(f"{line}\n" for line in format_lines(find_pairs(run, number))))
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return USER_ERROR
    print(f"Correct this file, then give it back: pair.edits={file}", file=sys.stderr)
    print(file)
    return 0


def write_new(file: Path, text: str) -> None:
    """A file that is there and holds anything else was corrected, or is of another round: it stays."""
    if file.exists() and file.read_bytes() != text.encode():
        raise UserError(
            f"{file}: it is there already and differs from these pairs: it was corrected, or is of another round.\n"
            f"  Nothing was written. Give it back as pair.edits={file}, or move it away first:"
            f" {shlex.join(['mv', str(file), f'{file}.kept'])}"
        )
    write_text(file, text)


def find_pairs(run: Path, number: str | None) -> Pairs:
    """The pairs of one round of a run, the last one unless it is named."""
    found = {
        path.name.rpartition("-")[2]: path for path in sorted((run / "store").glob("*-pair-*"))
    }
    if not found:
        raise UserError(
            f"{run}: no run with pairs. Type strop edit runs/RECIPE/TIME, with a run that got as far as pair."
        )
    if number is not None and number not in found:
        raise UserError(f"ROUND={number}: {run} has pairs of round {', '.join(found)}.")
    return Pairs(found[number] if number else list(found.values())[-1])


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
