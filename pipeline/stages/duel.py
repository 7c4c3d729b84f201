"""A judge compares two models' answers to the same prompts, both orders, a row each.

It goes on where it was killed: every verdict lies in the judge's store. A prompt that one of the
two did not answer has a row that says so; a failed verdict is null and counted, never a tie.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import KL, Prompts, Samples, Verdicts, knob_of, note_cost, write_table
from pipeline.config import ANSWER, DuelConfig
from pipeline.errors import StageError, many
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.pairwise import NEEDS, Bout, Verdict, fought
from pipeline.scorers.judging.template import conversation

KNOB = "exam.duels.NAME"  # of its block, where the driver names none
VERDICT = {
    "prompt_id": pl.String,
    "a_id": pl.String,
    "b_id": pl.String,
    "order": pl.String,
    "winner": pl.String,
    "probability": pl.Float64,
    "judge": pl.String,
    "model": pl.String,
    "status": pl.String,
    "detail": pl.String,
}


def run(cfg: DuelConfig, out: Path, *, prompts: Prompts, a: Samples, b: Samples) -> Verdicts:
    court = CachedJudge(cfg, NEEDS, knob_of(out, KNOB))
    try:
        met, unanswered = contests(prompts, a, b)
        sides = [[joined([*map(court.shown, one[side])]) for side in ("a", "b")] for one in met]
        bouts = [
            Bout(conversation(one["prompt"]), *shown) for one, shown in zip(met, sides, strict=True)
        ]
        verdicts = fought(court, bouts)
        judge = court.who.judge
    finally:
        court.close()
        note_cost(out, **court.budget.cost())
    rows = [
        row
        for one, verdict in zip(met, verdicts, strict=True)
        for row in _rows(one, verdict, judge)
    ]
    table = pl.DataFrame([*rows, *_absent(unanswered, judge)], schema=VERDICT)
    check_failures(cfg, out, table)
    write_table(out / "verdicts.parquet", table)
    return Verdicts(out)


def contests(
    prompts: Prompts, a: Samples, b: Samples
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each prompt's answers two by two in the order of their ids, and the prompts that a model did
    not answer.

    Of several turns the whole conversation is one answer, which a model that ended it sooner did
    not give.
    """
    of_a, of_b = _answers(a), _answers(b)
    met, unanswered = [], []
    for prompt_id, prompt, columns in (
        prompts.read().select("prompt_id", "prompt", "columns").iter_rows()
    ):
        given = [of.get(prompt_id, []) for of in (of_a, of_b)]
        turns = max((len(texts) for answers in given for _, texts in answers), default=1)
        ours, theirs = (
            [answer for answer in answers if len(answer[1]) == turns] for answers in given
        )
        later = json.loads(columns).get("turns", [])[1:turns] if turns > 1 else []
        asked = [*prompt, *({"role": "user", "content": question} for question in later)]
        for (a_id, texts_a), (b_id, texts_b) in zip(ours, theirs, strict=False):
            ids = {"prompt_id": prompt_id, "a_id": a_id, "b_id": b_id}
            met.append({**ids, "prompt": asked, "a": texts_a, "b": texts_b})
        if not ours or not theirs:
            unanswered.append(
                {
                    "prompt_id": prompt_id,
                    "by": [n for n, given in (("a", ours), ("b", theirs)) if not given],
                }
            )
    return met, unanswered


def _answers(samples: Samples) -> dict[str, list[tuple[str, list[str]]]]:
    """By prompt each answer's id and what it says in each turn; later turns follow a prompt's
    one answer."""
    rows = samples.read().filter(pl.col("setting") != KL)
    rows = rows.sort("prompt_id", pl.col("setting") != ANSWER, "setting", "sample_id")
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for prompt_id, setting, name, text in rows.select(
        "prompt_id", "setting", "sample_id", "completion"
    ).iter_rows():
        if setting == ANSWER:
            found.setdefault(prompt_id, []).append((name, [text]))
        elif prompt_id in found:
            found[prompt_id][0][1].append(text)
    return found


def joined(texts: list[str]) -> str:
    """What a judge reads of one side."""
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"Answer {turn}:\n{text}" for turn, text in enumerate(texts, 1))


def _rows(one: dict[str, Any], verdict: Verdict, judge: str) -> Iterator[dict[str, Any]]:
    for order, side in (("ab", verdict.ab), ("ba", verdict.ba)):
        yield {
            **{name: one[name] for name in ("prompt_id", "a_id", "b_id")},
            "order": order,
            "winner": side.winner,
            "probability": side.probability,
            "judge": judge,
            "model": side.model,
            "status": "failed" if side.winner is None else "ok",
            "detail": side.detail,
        }


def _absent(unanswered: list[dict[str, Any]], judge: str) -> Iterator[dict[str, Any]]:
    for one in unanswered:
        why = f"no answer by {' and '.join(one['by'])}"
        yield {
            "prompt_id": one["prompt_id"],
            "judge": judge,
            "model": "",
            "status": "unanswered",
            "detail": why,
        }


def check_failures(cfg: DuelConfig, out: Path, table: pl.DataFrame) -> None:
    failed, asked = (
        table.filter(pl.col("status") == "failed"),
        table.filter(pl.col("status") != "unanswered"),
    )
    note_cost(out, verdicts=asked.height, failed=failed.height)
    if failed.height <= cfg.max_failed * asked.height:
        (out / "failed.parquet").unlink(missing_ok=True)  # of an earlier attempt
        return
    write_table(out / "failed.parquet", failed)
    knob, reason = knob_of(out, KNOB), failed["detail"].value_counts(sort=True)["detail"][0]
    raise StageError(
        f"{failed.height} of {many(asked.height, 'verdict')} failed (most often: {reason})."
        f" The limit is {knob}.max_failed={cfg.max_failed}.\n  They are listed in {out / 'failed.parquet'}."
        " Raise the limit, or mend the judge and run the same command again."
    )
