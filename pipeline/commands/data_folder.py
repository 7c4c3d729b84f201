"""A run's data as a data set for the hub: every candidate with its scores, every pair, a card."""

from collections import defaultdict
from pathlib import Path

import polars as pl

from pipeline.artifacts import (
    CARD_FILE,
    Pairs,
    Samples,
    Scores,
    list_steps,
    write_table,
    write_text,
)
from pipeline.commands.origins import Origin, format_origins, join_card
from pipeline.errors import UserError

CANDIDATES, PAIRS = "candidates", "pairs"
CANDIDATE_COLUMNS = [
    "prompt_id",
    "sample_id",
    "round",
    "setting",
    "temperature",
    "prompt",
    "completion",
    "finish_reason",
]
TOKEN_COLUMNS = r"^.*_token_ids$"  # they belong to one tokenizer; the texts serve everyone
SPLITS = {"train": "train", "dev": "validation"}  # a file's part → its split on the hub


def write_data_folder(
    run: Path, folder: Path, origins: list[Origin], generators: list[str], licence: str | None
) -> None:
    """`generators`: the models that wrote the candidates, as the card names them."""
    folder.mkdir()
    samples, scores = _list_rounds(run, "sample"), _list_rounds(run, "score")
    revised, pairs = _list_rounds(run, "revise"), _list_rounds(run, "pair")
    if not pairs:
        raise UserError(
            f"{run}: this run has no pairs, so there is no data set to publish.\n"
            "  Type its command again to resume, or publish the model alone: data=none."
        )
    for number, steps in samples.items():
        table = join_scores([*steps, *revised.get(number, [])], scores.get(number, []))
        write_table(folder / CANDIDATES / f"round-{number}.parquet", table)
    for number, steps in pairs.items():
        for part in SPLITS:
            table = read_pairs(steps, part)
            write_table(folder / PAIRS / f"round-{number}-{part}.parquet", table)
    write_text(folder / CARD_FILE, build_card(bool(samples), origins, generators, licence))


def _list_rounds(run: Path, stage: str) -> dict[str, list[Path]]:
    """A stage's steps by round. A round that samples ties again has several."""
    rounds = defaultdict(list)
    for link in list_steps(run, f"[0-9]*-{stage}-[0-9]*"):
        rounds[link.name.rpartition("-")[2]].append(link)
    return dict(rounds)


def join_scores(samples: list[Path], scores: list[Path]) -> pl.DataFrame:
    """A row for each candidate; `scores` lists each scorer's score, null with its reason."""
    rows = pl.concat([Samples(step).read() for step in samples]).select(CANDIDATE_COLUMNS)
    if not scores:
        return rows
    score = pl.struct("scorer", "score", "status", "detail").alias("scores")
    by_sample = (
        pl.concat([Scores(step).read() for step in scores])
        .group_by("sample_id", maintain_order=True)
        .agg(score)
    )
    return rows.join(by_sample, on="sample_id", how="left", maintain_order="left")


def read_pairs(steps: list[Path], part: str) -> pl.DataFrame:
    tables = [Pairs(step) for step in steps]
    rows = [one.read_train() if part == "train" else one.read_dev() for one in tables]
    return pl.concat(rows).select(pl.exclude(TOKEN_COLUMNS))


def build_card(
    has_candidates: bool, origins: list[Origin], generators: list[str], licence: str | None
) -> str:
    splits = [
        {"split": split, "path": f"{PAIRS}/*-{part}.parquet"} for part, split in SPLITS.items()
    ]
    configs = [{"config_name": PAIRS, "data_files": splits, "default": True}]
    if has_candidates:
        configs.append({"config_name": CANDIDATES, "data_files": f"{CANDIDATES}/*.parquet"})
    fields = {
        "license": licence or "unknown",
        "tags": ["preference", "dpo", "strop"],
        "configs": configs,
    }
    body = [
        "# Preferences, with all candidates and their scores",
        f"- `{PAIRS}`: a row for each pair that was trained on, as `prompt`, `chosen` and"
        " `rejected` (messages) with both scores. `origin` says where a pair is from. The split"
        " `validation` was held out of training.",
        *_describe_candidates(has_candidates),
        "## Generators\n\n"
        + "\n".join(f"- {name}" for name in generators)
        + "\n\nThe answers are a model's, unchecked by people except where `origin` or a scorer's"
        " name says so.",
        format_origins(origins),
    ]
    return join_card(fields, "\n\n".join(body))


def _describe_candidates(has_candidates: bool) -> list[str]:
    if not has_candidates:
        return []
    return [
        f"- `{CANDIDATES}`: a row for each answer that was sampled, with all its `scores`. A score"
        " that could not be made is null, and its `status` and `detail` say why."
    ]
