"""Prompts in, four parts out: `train`, `dev`, `test` in hash order, and `fence`, the n-grams of dev and test.

Every row that came in is in a part or in `dropped.parquet`; `funnel.json` has the counts.
"""

import hashlib
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, note_cost, write_json, write_table
from pipeline.config import PromptsConfig
from pipeline.errors import Broken, Refusal
from pipeline.sources import fence, playground
from pipeline.sources.prompts import prompt_row, read_prompts, text_of

DROPPED = {"prompt_id": pl.String, "reason": pl.String, "detail": pl.String}


def run(cfg: PromptsConfig, out: Path) -> Prompts:
    rows, bad = read(cfg)
    rows, repeated = without_repeats(rows)
    rows = in_hash_order(rows, cfg.seed)
    test, rest = rows.head(cfg.split.test), rows.slice(cfg.split.test)
    rest, near_test = clear_of(rest, test, cfg.fence.ngram, "test")
    dev, rest = rest.head(cfg.split.dev), rest.slice(cfg.split.dev)
    train, near_dev = clear_of(rest, dev, cfg.fence.ngram, "dev")

    parts = {"train": train, "dev": dev, "test": test}
    dropped = pl.DataFrame([*bad, *repeated, *near_test, *near_dev], schema=DROPPED)
    check_sizes(cfg, parts)
    for name, part in parts.items():
        write_table(out / name / "prompts.parquet", part.select("prompt_id", "prompt", "columns"))
    fenced = fence.grams_of(texts(pl.concat([dev, test])), cfg.fence.ngram)
    write_table(out / "fence" / "ngrams.parquet", fence.table(fenced))
    write_table(out / "dropped.parquet", dropped)
    note_cost(out, dropped=dropped.height)
    write_json(out / "funnel.json", funnel(parts, dropped, rows.height + len(repeated) + len(bad)))
    return Prompts(out)


def read(cfg: PromptsConfig) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """The rows of the source, and its broken lines where they are skipped."""
    if cfg.kind == "playground":
        made = playground.prompts(cfg.rows, cfg.constraints, cfg.seed)
        return pl.DataFrame([prompt_row(row["prompt"], row["columns"]) for row in made]), []
    lines = read_prompts(cfg)
    if not lines.rows:
        raise Refusal(f"{cfg.path}: holds no prompt. Expected one JSON object with a field 'prompt' a line.")
    return pl.DataFrame(lines.rows), [_dropped(f"line {number}", "bad row", fault) for number, fault in lines.bad]


def without_repeats(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    first = rows.filter(pl.col("hash").is_first_distinct())
    again = rows.filter(~pl.col("hash").is_first_distinct()).join(first.select("hash", kept="prompt_id"), on="hash")
    repeated = [
        _dropped(i, "duplicate", f"the same messages as {kept}") for i, kept in again.select("prompt_id", "kept").rows()
    ]
    return first, repeated


def in_hash_order(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """By a hash of seed and text: the order that splits and rounds draw from, whatever the file's own order was."""
    order = [hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest() for digest in rows["hash"]]
    return rows.with_columns(pl.Series("order", order)).sort("order").drop("order")


def clear_of(
    rows: pl.DataFrame, exam: pl.DataFrame, ngram: int, name: str
) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """The rows that share no n-gram with an evaluation part, and those that do."""
    fenced = fence.grams_of(texts(exam), ngram)
    near = pl.Series([fence.overlaps(text, fenced, ngram) for text in texts(rows)], dtype=pl.Boolean)
    detail = f"shares {ngram} words in a row with a {name} prompt"
    return rows.filter(~near), [_dropped(i, f"overlap with {name}", detail) for i in rows.filter(near)["prompt_id"]]


def texts(rows: pl.DataFrame) -> list[str]:
    return [text_of(messages) for messages in rows["prompt"].to_list()]


def check_sizes(cfg: PromptsConfig, parts: dict[str, pl.DataFrame]) -> None:
    wanted = {"test": cfg.split.test, "dev": cfg.split.dev, "train": 1}
    short = {name: rows for name, rows in wanted.items() if parts[name].height < rows}
    if short:
        has = ", ".join(f"{name} {part.height}" for name, part in parts.items())
        raise Refusal(
            f"prompts: after duplicates and overlap there are too few: {has};"
            f" wanted test {cfg.split.test}, dev {cfg.split.dev} and at least one to train on.\n"
            "  Give more prompts, or lower prompts.split.test and prompts.split.dev."
        )


def funnel(parts: dict[str, pl.DataFrame], dropped: pl.DataFrame, rows_in: int) -> dict[str, Any]:
    """Rows in = rows out + rows dropped with a reason."""
    reasons = dict(sorted(dropped["reason"].value_counts().rows()))
    rows_out = {name: part.height for name, part in parts.items()}
    if rows_in != sum(rows_out.values()) + sum(reasons.values()):
        raise Broken(
            f"prompts: {rows_in} rows came in, {rows_out} went out and {reasons} were dropped: some are unaccounted for"
        )
    return {"in": rows_in, "out": rows_out, "dropped": reasons}


def _dropped(prompt_id: str, reason: str, detail: str) -> dict[str, str]:
    return {"prompt_id": prompt_id, "reason": reason, "detail": detail}
