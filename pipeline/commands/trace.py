"""`strop trace PROMPT_ID [RUN]`: one prompt, from its candidates and scores to its new answer.

It reads the steps that the run's folder links to, in the order of the run: all samples of the
prompt, for training and evaluation, all scores, and its pairs of each round.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from pipeline.artifacts import (
    DROPPED_FILE,
    STEP_FILE,
    Pairs,
    Samples,
    Scores,
    list_steps,
    read_step,
    read_table,
)
from pipeline.commands.table import parse_words, reports_errors
from pipeline.errors import DONE, UserError, pluralize

ANSWER_CHARACTERS = 300  # characters of an answer


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("trace", arguments)
    print("\n".join(trace_prompt(words.places[0], words.place(1))))
    return DONE


def trace_prompt(prompt_id: str, run: Path) -> list[str]:
    steps = list_steps(run, "*")
    if not steps:
        raise UserError(
            f"{run}: no run here. Give one as strop trace {prompt_id} runs/RECIPE/TIME."
        )
    scores = collect_scores(steps, prompt_id)
    lines: list[str] = []
    for step in steps:
        stage, _, label = step.name.partition("-")[2].partition("-")
        if stage in ("sample", "revise"):
            lines += describe_samples(Samples(step), label, prompt_id, scores)
        elif stage == "pair":
            lines += describe_pairs(Pairs(step), label, prompt_id)
    if not lines:
        raise UserError(explain_no_samples(steps, prompt_id, run))
    return lines


def explain_no_samples(steps: list[Path], prompt_id: str, run: Path) -> str:
    """Where a prompt without answers is: dropped, or in a part that was not sampled."""
    folders = [step for step in steps if step.name.partition("-")[2].startswith("prompts")]
    is_asked = pl.col("prompt_id") == prompt_id
    for folder in folders:
        if (dropped := folder / DROPPED_FILE).is_file():
            for row in read_table(dropped).filter(is_asked).iter_rows(named=True):
                detail = f" ({row['detail']})" if row["detail"] else ""
                return f"{prompt_id}: {run} dropped this prompt: {row['reason']}{detail}."
        for table in sorted(folder.glob("*/prompts.parquet")):
            if read_table(table).filter(is_asked).height:
                return (
                    f"{prompt_id}: {run} has this prompt in {table.parent.name},"
                    " and sampled no answer to it."
                )
    known = ", ".join(str(folder) for folder in folders)
    return (
        f"{prompt_id}: {run} does not know this prompt.\n"
        f"  Give a prompt_id of a prompts.parquet in {known or run / 'store'}."
    )


def collect_scores(steps: list[Path], prompt_id: str) -> dict[str, list[str]]:
    """Sample id → each scorer's score or status."""
    scores: dict[str, list[str]] = {}
    for step in steps:
        if "-score" not in step.name:
            continue
        rows = Scores(step).read().filter(pl.col("prompt_id") == prompt_id)
        for row in rows.iter_rows(named=True):
            score = row["status"] if row["score"] is None else f"{row['score']:g}"
            scores.setdefault(row["sample_id"], []).append(f"{row['scorer']} {score}")
    return scores


def describe_samples(
    samples: Samples, label: str, prompt_id: str, scores: dict[str, list[str]]
) -> Iterator[str]:
    is_asked = pl.col("prompt_id") == prompt_id
    rows = pl.concat(shard.filter(is_asked) for shard in samples.read_shards())
    if not rows.height:
        return
    writer = f" of {member}" if (member := read_member(samples.path)) else ""
    label = f"round {label}" if label.isdigit() else label
    yield f"{label}: {pluralize(rows.height, 'answer')}{writer} to"
    for message in rows["prompt"][0]:
        yield f"  {message['role']}: {_shorten(message['content'])}"
    for row in rows.sort("setting", "sample_id").iter_rows(named=True):
        facts = [
            *scores.get(row["sample_id"], ["no score"]),
            pluralize(len(row["token_ids"]), "token"),
            row["finish_reason"],
        ]
        yield f"  {row['sample_id']}  {row['setting']}: {', '.join(facts)}"
        yield f"    {_shorten(row['completion'])}"


def read_member(step: Path) -> str | None:
    """The model of sample.pool that a step sampled, if any."""
    config = read_step(step)["config"] if (step / STEP_FILE).exists() else {}
    return (config.get("prompt_share") or {}).get("model")


def describe_pairs(pairs: Pairs, label: str, prompt_id: str) -> Iterator[str]:
    is_asked = pl.col("prompt_id") == prompt_id
    for part, table in {"train": pairs.read_train(), "dev": pairs.read_dev()}.items():
        for row in table.filter(is_asked).iter_rows(named=True):
            margin = "" if row["margin"] is None else f", margin {row['margin']:g}"
            ids = f"{row['chosen_id']} over {row['rejected_id']}"
            yield f"round {label}, pair ({part}, {row['origin']}{margin}): {ids}"
    for row in pairs.read_dropped().filter(is_asked).iter_rows(named=True):
        ids = f"{row['chosen_id']} over {row['rejected_id']}" if row["chosen_id"] else ""
        what = f"{row['kind']} {row['sample_id'] or ids}".rstrip()
        detail = f" ({row['detail']})" if row["detail"] else ""
        yield f"round {label}, dropped {what}: {row['reason']}{detail}"


def _shorten(text: str) -> str:
    flat = text.replace("\n", "⏎")
    return flat if len(flat) <= ANSWER_CHARACTERS else f"{flat[:ANSWER_CHARACTERS]} …"
