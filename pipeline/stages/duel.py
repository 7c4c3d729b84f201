"""A judge compares two models' answers to the same prompts, both orders, a row each.

It goes on where it was killed: every verdict lies in the judge's store. A prompt that one of the two did not answer has
a row that says so; a failed verdict is null and counted, never a tie.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, Samples, Verdicts, note_cost, write_table
from pipeline.config import DuelConfig
from pipeline.errors import Broken
from pipeline.scorers.judging.court import Court
from pipeline.scorers.judging.duels import NEEDS, Bout, Verdict, fought
from pipeline.scorers.judging.template import conversation

ANSWER = "answer"
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
    court = Court(cfg, NEEDS)
    try:
        met, unanswered = contests(prompts, a, b)
        bouts = [Bout(conversation(one["prompt"]), *map(court.shown, (one["a"], one["b"]))) for one in met]
        verdicts = fought(court, bouts)
        judge = court.who.judge
    finally:
        court.close()
        note_cost(out, **court.budget.cost())
    rows = [row for one, verdict in zip(met, verdicts, strict=True) for row in _rows(one, verdict, judge)]
    table = pl.DataFrame([*rows, *_absent(unanswered, judge)], schema=VERDICT)
    check_failures(cfg, out, table)
    write_table(out / "verdicts.parquet", table)
    return Verdicts(out)


def contests(prompts: Prompts, a: Samples, b: Samples) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each prompt's answers two by two in the order of their ids, and the prompts that a model did not answer."""
    of_a, of_b = _answers(a), _answers(b)
    met, unanswered = [], []
    for prompt_id, prompt in prompts.read().select("prompt_id", "prompt").iter_rows():
        ours, theirs = of_a.get(prompt_id, []), of_b.get(prompt_id, [])
        for (a_id, text_a), (b_id, text_b) in zip(ours, theirs, strict=False):
            ids = {"prompt_id": prompt_id, "a_id": a_id, "b_id": b_id}
            met.append({**ids, "prompt": prompt, "a": text_a, "b": text_b})
        if not ours or not theirs:
            unanswered.append(
                {"prompt_id": prompt_id, "by": [n for n, given in (("a", ours), ("b", theirs)) if not given]}
            )
    return met, unanswered


def _answers(samples: Samples) -> dict[str, list[tuple[str, str]]]:
    rows = samples.read(ANSWER).select("prompt_id", "sample_id", "completion").sort("prompt_id", "sample_id")
    found: dict[str, list[tuple[str, str]]] = {}
    for prompt_id, *answer in rows.iter_rows():
        found.setdefault(prompt_id, []).append((answer[0], answer[1]))
    return found


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
        yield {"prompt_id": one["prompt_id"], "judge": judge, "model": "", "status": "unanswered", "detail": why}


def check_failures(cfg: DuelConfig, out: Path, table: pl.DataFrame) -> None:
    failed, asked = table.filter(pl.col("status") == "failed"), table.filter(pl.col("status") != "unanswered")
    note_cost(out, verdicts=asked.height, failed=failed.height)
    if failed.height <= cfg.max_failed * asked.height:
        (out / "failed.parquet").unlink(missing_ok=True)  # of an earlier attempt
        return
    write_table(out / "failed.parquet", failed)
    reason = failed["detail"].value_counts(sort=True)["detail"][0]
    raise Broken(
        f"{failed.height} of {asked.height} verdicts failed (most often: {reason})."
        f" The limit is max_failed={cfg.max_failed}.\n  They are listed in {out / 'failed.parquet'}."
        " Raise the limit, or mend the judge and run the same command again."
    )
