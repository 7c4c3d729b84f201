"""A judge compares two models' answers to the same prompts, in both orders, one row for each.

A killed run resumes, since every verdict is in the judge's store. A prompt without an answer of one
of the two has a row that tells so, and so has one without the reference that the judge needs. A
failed verdict is null and counted, never a tie.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import KL, Prompts, Samples, Verdicts, note_cost, write_table
from pipeline.config import ANSWER, DuelConfig
from pipeline.errors import StageError, pluralize
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.columns import PromptGuide, read_guide
from pipeline.scorers.judging.pairwise import (
    PAIRWISE_FIELDS,
    Comparison,
    PairVerdict,
    judge_comparisons,
)
from pipeline.scorers.judging.template import format_conversation

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
WEIGHT = {"weight": pl.Float64}  # of a judge with five levels
UNANSWERED, NO_REFERENCE = "unanswered", "no reference"  # why the judge was not asked


def run(
    cfg: DuelConfig,
    out: Path,
    *,
    prompts: Prompts,
    a: Samples,
    b: Samples,
    knob: str = "evaluate.duels.NAME",
) -> Verdicts:
    cached = CachedJudge(cfg, PAIRWISE_FIELDS, knob)
    try:
        matches, unanswered = match_answers(prompts, a, b)
        guides = [
            read_guide(cfg, knob, match["prompt_id"], match["columns"], len(match["a"]))
            for match in matches
        ]
        asked = [
            (match, guide)
            for match, guide in zip(matches, guides, strict=True)
            if not guide.missing
        ]
        comparisons = [build_comparison(cached, match, guide) for match, guide in asked]
        verdicts = judge_comparisons(cached, comparisons, cfg.levels)
        judge = cached.source.judge
    finally:
        cached.close()
        note_cost(out, **cached.budget.get_cost())
    rows: list[dict[str, Any]] = []
    for (match, _), verdict in zip(asked, verdicts, strict=True):
        rows += _verdict_rows(match, verdict, judge)
    skipped = {
        match["prompt_id"]: guide.missing
        for match, guide in zip(matches, guides, strict=True)
        if guide.missing
    }
    rows += [*_unjudged_rows(skipped, NO_REFERENCE, judge)]
    rows += [*_unjudged_rows(unanswered, UNANSWERED, judge)]
    schema = VERDICT if cfg.levels == 3 else VERDICT | WEIGHT
    table = pl.DataFrame(rows, schema=schema)
    check_failures(cfg, out, table, knob)
    write_table(out / "verdicts.parquet", table)
    return Verdicts(out)


def build_comparison(cached: CachedJudge, match: dict[str, Any], guide: PromptGuide) -> Comparison:
    a, b = (join_turns([*map(cached.prepare_answer, match[side])]) for side in ("a", "b"))
    return Comparison(format_conversation(match["prompt"]), a, b, guide.reference)


def match_answers(
    prompts: Prompts, a: Samples, b: Samples
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Each prompt's answers in pairs, in the order of their ids; and why a prompt has no pair.

    A conversation of several turns is one answer. A model that ended it sooner gave none.
    """
    answers_a, answers_b = _read_answers(a), _read_answers(b)
    matches: list[dict[str, Any]] = []
    unanswered: dict[str, str] = {}
    table = prompts.read().select("prompt_id", "prompt", "columns")
    for prompt_id, prompt, text in table.iter_rows():
        columns = json.loads(text)
        given_a, given_b = answers_a.get(prompt_id, []), answers_b.get(prompt_id, [])
        turns = max((len(texts) for _, texts in (*given_a, *given_b)), default=1)
        whole_a = [answer for answer in given_a if len(answer[1]) == turns]
        whole_b = [answer for answer in given_b if len(answer[1]) == turns]
        later = columns.get("turns", [])[1:turns] if turns > 1 else []
        conversation_prompt = [
            *prompt,
            *({"role": "user", "content": question} for question in later),
        ]
        for (a_id, texts_a), (b_id, texts_b) in zip(whole_a, whole_b, strict=False):
            ids = {"prompt_id": prompt_id, "a_id": a_id, "b_id": b_id}
            texts = {"prompt": conversation_prompt, "a": texts_a, "b": texts_b}
            matches.append({**ids, **texts, "columns": columns})
        if not whole_a or not whole_b:
            by = [name for name, whole in (("a", whole_a), ("b", whole_b)) if not whole]
            unanswered[prompt_id] = f"no answer by {' and '.join(by)}"
    return matches, unanswered


def _read_answers(samples: Samples) -> dict[str, list[tuple[str, list[str]]]]:
    """By prompt the id of each answer and its text in each turn.

    Only a prompt's first answer is continued in later turns.
    """
    rows = samples.read().filter(pl.col("setting") != KL)
    rows = rows.sort("prompt_id", pl.col("setting") != ANSWER, "setting", "sample_id")
    found: dict[str, list[tuple[str, list[str]]]] = {}
    columns = ("prompt_id", "setting", "sample_id", "completion")
    for prompt_id, setting, name, text in rows.select(columns).iter_rows():
        if setting == ANSWER:
            found.setdefault(prompt_id, []).append((name, [text]))
        elif prompt_id in found:
            found[prompt_id][0][1].append(text)
    return found


def join_turns(texts: list[str]) -> str:
    """The text of one side, as a judge reads it."""
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"Answer {turn}:\n{text}" for turn, text in enumerate(texts, 1))


def _verdict_rows(
    match: dict[str, Any], verdict: PairVerdict, judge: str
) -> Iterator[dict[str, Any]]:
    for order, side in (("ab", verdict.ab), ("ba", verdict.ba)):
        yield {
            **{name: match[name] for name in ("prompt_id", "a_id", "b_id")},
            "order": order,
            "winner": side.winner,
            "probability": side.probability,
            "judge": judge,
            "model": side.model,
            "status": "failed" if side.winner is None else "ok",
            "detail": side.detail,
            "weight": float(side.weight),
        }


def _unjudged_rows(why: dict[str, str], status: str, judge: str) -> Iterator[dict[str, Any]]:
    for prompt_id, detail in why.items():
        named = {"prompt_id": prompt_id, "judge": judge, "model": ""}
        yield {**named, "status": status, "detail": detail}


def check_failures(cfg: DuelConfig, out: Path, table: pl.DataFrame, knob: str) -> None:
    failed = table.filter(pl.col("status") == "failed")
    judged = table.filter(pl.col("status").is_in(["ok", "failed"]))
    skipped = table.filter(status=NO_REFERENCE).height
    counts = {"no_reference": skipped} if skipped else {}
    note_cost(out, verdicts=judged.height, failed=failed.height, **counts)
    if failed.height <= cfg.max_failed * judged.height:
        (out / "failed.parquet").unlink(missing_ok=True)  # of an earlier attempt
        return
    write_table(out / "failed.parquet", failed)
    reason = failed["detail"].value_counts(sort=True)["detail"][0]
    raise StageError(
        f"{failed.height} of {pluralize(judged.height, 'verdict')} failed (most often: {reason})."
        f" The limit is {knob}.max_failed={cfg.max_failed}.\n"
        f"  They are listed in {out / 'failed.parquet'}."
        " Raise the limit, or fix the judge and run the same command again."
    )
