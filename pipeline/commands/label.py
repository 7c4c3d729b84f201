"""`strop label`: pairs of answers for blind annotation: an offline page, a spreadsheet, Argilla.

`of=1` takes two of the policy's answers to each prompt of round 1, `of=1,1-strong` one of it and
one of a member of the pool; `of=test-sft,test-round-1` one of each of two evaluated models. The
scorer `labels` and `strop calibrate` read the page's verdicts.jsonl or the filled spreadsheet.
"""

import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import store
from pipeline.artifacts import KL, Samples, list_steps, resolve_run, write_text
from pipeline.commands.table import describe_usage, parse_words, reports_errors
from pipeline.config import LATER_TURN
from pipeline.data.label_files import FORMULA_SIGNS
from pipeline.errors import DONE, UserError, format_move, pluralize, suggest
from pipeline.report.render.examples import format_prompt

PAGE = Path(__file__).with_suffix(".html")
COLUMNS = ("prompt_id", "a_id", "b_id", "verdict", "annotator", "prompt", "a", "b")

PairRow = dict[str, Any]


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("label", arguments)
    check_count(words.knob("pairs"))
    folder = resolve_run(words.place(0)) / "label"
    rows, skipped = choose_pairs(words.place(0), words.knobs)
    write_files(folder, rows)
    if skipped:
        prompts = pluralize(skipped, "prompt")
        print(f"left out: {prompts} without two different answers", file=sys.stderr)
    files = "pairs.csv for a spreadsheet, pairs.jsonl for Argilla."
    print(f"{pluralize(len(rows), 'pair')} in {folder}: {files}", file=sys.stderr)
    print("Or open this page in a browser; it needs no network:", file=sys.stderr)
    print(folder / "pairs.html")
    return DONE


def check_count(pairs: str) -> None:
    if not re.fullmatch("[0-9]{1,9}", pairs) or not int(pairs):
        raise UserError(
            f"pairs={pairs}: expected a whole number of pairs from 1 to 999999999.\n"
            f"  {describe_usage('label')}"
        )


def choose_pairs(run: Path, options: Mapping[str, str | None]) -> tuple[list[PairRow], int]:
    """The pairs, and how many prompts had none. The seed chooses prompts and which side is A."""
    sides = [read_answers(samples) for samples in find_samples(run, options.get("of"))]
    first, second, seed = sides[0], sides[-1], str(options["seed"])
    rows: list[PairRow] = []
    skipped = 0
    prompts = first.keys() & second.keys()
    for prompt_id in sorted(prompts, key=lambda name: hash_words(seed, name)):
        if len(rows) == int(options["pairs"] or 0):
            break
        chosen = choose_two(first[prompt_id], second[prompt_id], seed)
        if chosen is None:
            skipped += 1
            continue
        a, b = chosen
        ids = {"prompt_id": prompt_id, "a_id": a["sample_id"], "b_id": b["sample_id"]}
        rows.append({**ids, "prompt": a["prompt"], "a": a["completion"], "b": b["completion"]})
    if not rows:
        raise UserError(
            f"{run}: no prompt here has two different answers to compare.\n"
            "  Give of=ROUND or of=MODEL,MODEL for other samples."
        )
    return rows, skipped


def find_samples(run: Path, of: str | None) -> list[list[Samples]]:
    """All samples of each side: a round's later waves are answers too."""
    by_label: dict[str, list[Samples]] = {}
    for path in list_steps(run, "*-sample-*"):
        by_label.setdefault(name_samples(path), []).append(Samples(path))
    if not by_label:
        raise UserError(
            f"{run}: no run with samples here. Give one that has built sample.\n"
            f"  {describe_usage('label')}"
        )
    labels = of.split(",") if of else [find_last_label(list(by_label))]
    for label in labels:
        if label not in by_label:
            known = suggest(label, list(by_label))
            raise UserError(f"of={of}: {run} has no samples of {label}. {known}")
    if len(labels) > 2:
        raise UserError(f"of={of}: a pair has two sides. Name one or two.")
    return [by_label[label] for label in labels]


def name_samples(step: Path) -> str:
    """The step's label. A round's other samples than the policy's have their purpose in it too."""
    label = step.name.split("-", 2)[2]
    if not label.isdigit():
        return label
    manifest = store.read_manifest(step)  # a pruned step has no other file
    purpose = manifest["config"]["purpose"].split() if manifest else []  # `train MEMBER`, `steps`
    return "-".join([label, *(word for word in purpose if word != "train")])


def find_last_label(labels: list[str]) -> str:
    """The last round; without rounds the last evaluation by name."""
    rounds = [label for label in labels if label.isdigit()]
    return max(rounds, key=int) if rounds else max(labels)


def read_answers(samples: list[Samples]) -> dict[str, list[PairRow]]:
    """Answers by prompt. A conversation is one answer, with the id of its first turn."""
    columns = "prompt_id", "sample_id", "prompt", "completion", "setting"
    is_answer = pl.col("setting") != KL
    table = pl.concat([each.read().filter(is_answer).select(columns) for each in samples])
    table = table.with_columns(turns=pl.lit(1))
    later = pl.col("setting").str.starts_with(LATER_TURN)
    by_prompt: dict[str, list[PairRow]] = {}
    for row in table.filter(~later).iter_rows(named=True):
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    turn = pl.col("setting").str.strip_prefix(LATER_TURN).cast(pl.Int64)
    for row in table.filter(later).sort("prompt_id", turn).iter_rows(named=True):
        for first in by_prompt.get(row["prompt_id"], []):
            first["completion"] += f"\n\n[{row['prompt'][-1]['content']}]\n\n{row['completion']}"
            first["turns"] += 1
    return by_prompt


def choose_two(
    first: list[PairRow], second: list[PairRow], seed: str
) -> tuple[PairRow, PairRow] | None:
    """One answer of each side: different texts, equally many turns. The seed chooses the order."""
    equally_long = [(a, b) for a in first for b in second if a["turns"] == b["turns"]]
    pairs = [(a, b) for a, b in equally_long if a["completion"] != b["completion"]]
    if not pairs:
        return None
    both_orders = pairs + [(b, a) for a, b in pairs]
    return min(both_orders, key=lambda ab: hash_words(seed, ab[0]["sample_id"], ab[1]["sample_id"]))


def hash_words(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


# ── files ───────────────────────────────────────────────────────────────────────────────


def write_files(folder: Path, rows: list[PairRow]) -> None:
    """Write page, spreadsheet and records, but never over a file that holds anything else.

    Such a file was filled in, or shows other pairs.
    """
    records = [json.dumps(record, ensure_ascii=False) + "\n" for record in make_records(rows)]
    texts = {
        "pairs.html": render_page(rows),
        "pairs.csv": render_spreadsheet(rows),
        "pairs.jsonl": "".join(records),
    }
    for name, text in texts.items():
        file = folder / name
        if file.exists() and file.read_bytes() != text.encode():
            raise UserError(
                f"{file}: it exists and differs: it was filled in, or shows other pairs."
                f" Nothing was written.\n  Move the folder away first: {format_move(folder)}"
            )
    for name, text in texts.items():
        write_text(folder / name, text)


def render_page(rows: list[PairRow]) -> str:
    """The texts are embedded as JSON without `<`; the page shows them as text, never as HTML."""
    name = hash_words(*(f"{row['a_id']} {row['b_id']}" for row in rows))[:12]
    data = json.dumps({"name": name, "pairs": rows})
    return PAGE.read_text().replace("{{ pairs }}", data.replace("<", "\\u003c"))


def render_spreadsheet(rows: list[PairRow]) -> str:
    """A CSV to fill in `verdict` (a, b or tie). Texts like formulas get an apostrophe."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="")
    table.writeheader()
    for row in rows:
        texts = {**row, "prompt": format_prompt(row["prompt"])}
        table.writerow({name: escape_formula(value) for name, value in texts.items()})
    return text.getvalue()


def escape_formula(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text


def make_records(rows: list[PairRow]) -> Iterator[PairRow]:
    """Rows for `argilla.Record(**row)`.

    The dataset needs the text fields prompt, a and b, and a label question `verdict` (a, b or tie).
    What its `records.to_json` writes can be read back like the page's verdicts.
    """
    for row in rows:
        yield {
            "id": f"{row['a_id']} {row['b_id']}",
            "fields": {"prompt": format_prompt(row["prompt"]), "a": row["a"], "b": row["b"]},
            "metadata": {name: row[name] for name in ("prompt_id", "a_id", "b_id")},
        }
