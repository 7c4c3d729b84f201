"""`strop trace PROMPT_ID [RUN]`: one prompt's story, from its candidates and their scores to its new answer.

It reads what the run's folder links to, in the order of the run: every sampling of the prompt (for training, or in an
exam), every score, and what became of it in each round's pairs.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from pipeline.artifacts import Pairs, Samples, Scores
from pipeline.errors import USER_ERROR, UserError, pluralize

ANSWER_CHARACTERS = 300  # characters of an answer


def main(arguments: list[str]) -> int:
    try:
        if not 1 <= len(arguments) <= 2 or not arguments[0]:
            raise UserError(
                "Give the id of a prompt: strop trace PROMPT_ID [RUN], such as strop trace 3fa9c1 runs/latest"
            )
        print(
            "\n".join(
                trace_prompt(
                    arguments[0], Path(arguments[1] if len(arguments) > 1 else "runs/latest")
                )
            )
        )
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return USER_ERROR
    return 0


def trace_prompt(prompt_id: str, run: Path) -> list[str]:
    steps = sorted((run / "store").glob("*"))
    if not steps:
        raise UserError(
            f"{run}: no run lies there. Give one as strop trace {prompt_id} runs/RECIPE/TIME."
        )
    scores = collect_scores(steps, prompt_id)
    told: list[str] = []
    for step in steps:
        stage, _, label = step.name.partition("-")[2].partition("-")
        if stage == "sample":
            told += describe_samples(Samples(step), label, prompt_id, scores)
        elif stage == "pair":
            told += describe_pairs(Pairs(step), label, prompt_id)
    if not told:
        raise UserError(
            f"{prompt_id}: no step of {run} has this prompt. Its ids are in prompts.parquet and dropped.parquet."
        )
    return told


def collect_scores(steps: list[Path], prompt_id: str) -> dict[str, list[str]]:
    """sample id → what each scorer gave it."""
    found: dict[str, list[str]] = {}
    for step in steps:
        if "-score" in step.name:
            rows = Scores(step).read().filter(pl.col("prompt_id") == prompt_id)
            for name, scorer, score, status in rows.select(
                "sample_id", "scorer", "score", "status"
            ).rows():
                found.setdefault(name, []).append(
                    f"{scorer} {status if score is None else f'{score:g}'}"
                )
    return found


def describe_samples(
    samples: Samples, label: str, prompt_id: str, scores: dict[str, list[str]]
) -> Iterator[str]:
    rows = pl.concat(
        shard.filter(pl.col("prompt_id") == prompt_id) for shard in samples.read_shards()
    )
    if not rows.height:
        return
    yield f"{'round ' if label.isdigit() else ''}{label}: {pluralize(rows.height, 'answer')} to"
    yield from (
        f"  {message['role']}: {_shorten(message['content'])}" for message in rows["prompt"][0]
    )
    for row in rows.sort("setting", "sample_id").iter_rows(named=True):
        told = [
            *scores.get(row["sample_id"], ["no score"]),
            pluralize(len(row["token_ids"]), "token"),
            row["finish_reason"],
        ]
        yield f"  {row['sample_id']}  {row['setting']}: {', '.join(told)}"
        yield f"    {_shorten(row['completion'])}"


def describe_pairs(pairs: Pairs, label: str, prompt_id: str) -> Iterator[str]:
    for part in ("train", "dev"):
        for row in (
            getattr(pairs, part)().filter(pl.col("prompt_id") == prompt_id).iter_rows(named=True)
        ):
            margin = "" if row["margin"] is None else f", margin {row['margin']:g}"
            yield f"round {label}, pair ({part}, {row['origin']}{margin}): {row['chosen_id']} over {row['rejected_id']}"
    for row in pairs.read_dropped().filter(pl.col("prompt_id") == prompt_id).iter_rows(named=True):
        name = row["sample_id"] or (
            f"{row['chosen_id']} over {row['rejected_id']}" if row["chosen_id"] else ""
        )
        detail = f" ({row['detail']})" if row["detail"] else ""
        yield f"round {label}, dropped {row['kind']} {name}: {row['reason']}{detail}".replace(
            " :", ":"
        )


def _shorten(text: str) -> str:
    flat = text.replace("\n", "⏎")
    return flat if len(flat) <= ANSWER_CHARACTERS else f"{flat[:ANSWER_CHARACTERS]} …"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
