"""The first wrong step of a wrong solution to each prompt, and the beginning before it.

By rule where an equation in a step is false; else by a judge, if there is one. Published as prompts
that a sampler continues: `prompt_id` (of the beginning), `prompt, columns, prefix,
prefix_token_ids`, and the wrong step: `wrong, wrong_token_ids, wrong_id, score`, of which sample.
Every prompt gives one or is dropped with a reason.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Model, Prompts, Samples, Scores, note_cost, write_table
from pipeline.backends.chat import ModelTokenizer
from pipeline.config import StepJudge, StepSearch
from pipeline.data.columns import MESSAGES
from pipeline.data.drop_log import DropLog
from pipeline.data.solution_steps import find_false_equation, split_steps
from pipeline.errors import StageError, pluralize
from pipeline.hashing import hash_json
from pipeline.pairing.step_pairs import cut_tokens, read_tokens
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.first_wrong import (
    MAX_STEPS,
    build_request,
    find_judged_step,
)
from pipeline.scorers.judging.template import FIRST_WRONG_FIELDS, format_conversation

IDS = pl.List(pl.Int64)
BEGINNING: dict[str, Any] = {
    "prompt_id": pl.String,
    "prompt": MESSAGES,
    "columns": pl.String,
    "prefix": pl.String,
    "prefix_token_ids": IDS,
    "wrong": pl.String,
    "wrong_token_ids": IDS,
    "wrong_id": pl.String,
    "score": pl.Float64,
    "found_by": pl.String,
    "sample_id": pl.String,
}
NO_WRONG, NOT_FOUND, NO_VERDICT = "no wrong solution", "no wrong step found", "no verdict"
MORE = (
    "Steps are found by steps.split; a judge finds those whose equations are all true:"
    " steps=judged steps.judge.engine.model=NAME."
)


@dataclass(frozen=True)
class Solution:
    """A finished wrong solution, its steps, and the number of the first wrong one if known."""

    row: dict[str, Any]
    spans: list[tuple[int, int]]
    wrong: int | None
    why: str = ""

    @property
    def steps(self) -> list[str]:
        return [self.row["completion"][start:end] for start, end in self.spans]


def run(
    cfg: StepSearch,
    out: Path,
    *,
    policy: Model,
    samples: list[Samples],
    scores: list[Scores],
    prompts: Prompts,
    knob: str = "steps",
) -> Prompts:
    answers = pl.concat([each.read() for each in samples])
    log = DropLog(answers["prompt_id"].n_unique(), prompt_id=pl.String)
    solutions = dict(find_by_rule(cfg, select_wrong(cfg, answers, scores)))
    for prompt_id in sorted(set(answers["prompt_id"]) - solutions.keys()):
        log.drop(NO_WRONG, "", prompt_id=prompt_id)
    open_ones = [one for one in solutions.values() if one.wrong is None]
    if cfg.judge and open_ones:
        judged = ask_judge(cfg.judge, out, open_ones, log, f"{knob}.judge")
        solutions |= {one.row["prompt_id"]: one for one in judged}
    chat, columns = ModelTokenizer(policy), prompts.read_columns()
    rows = []
    for prompt_id, solution in sorted(solutions.items()):
        if solution.wrong is None:
            if solution.why != NO_VERDICT:
                log.drop(NOT_FOUND, f"in {len(solution.spans)} steps", prompt_id=prompt_id)
            continue
        rows.append(build_beginning(chat, solution, columns[prompt_id]))
    log.publish(out, len(rows))
    note_cost(out, rows=len(rows), dropped=log.rows_in - len(rows))
    if not rows:
        raise log.explain_empty(f"steps: of {pluralize(log.rows_in, 'prompt')}", out, MORE)
    table = pl.DataFrame(rows, schema=BEGINNING).sort("prompt_id")
    write_table(out / "prompts.parquet", table)
    return Prompts(out)


def select_wrong(
    cfg: StepSearch, answers: pl.DataFrame, scores: list[Scores]
) -> Iterator[dict[str, Any]]:
    """The finished solutions whose result is wrong, prompt by prompt."""
    table = pl.concat([each.read() for each in scores]).filter(pl.col("scorer") == cfg.scorer)
    is_wrong = pl.col("score").is_finite() & (pl.col("score") < cfg.right)
    wrong = answers.filter(finish_reason="stop").join(
        table.filter(is_wrong).select("sample_id", "score"), on="sample_id", validate="1:1"
    )
    return wrong.sort("prompt_id", "sample_id").iter_rows(named=True)


def find_by_rule(
    cfg: StepSearch, wrong: Iterator[dict[str, Any]]
) -> Iterator[tuple[str, Solution]]:
    """By prompt: its first solution with a false equation, or else its first one."""
    found: dict[str, Solution] = {}
    for row in wrong:
        prompt_id = row["prompt_id"]
        if prompt_id in found and found[prompt_id].wrong is not None:
            continue
        spans = split_steps(row["completion"], cfg.split)
        faults = (find_false_equation(row["completion"][start:end]) for start, end in spans)
        at, why = next(((at, why) for at, why in enumerate(faults) if why), (None, ""))
        if spans and (at is not None or prompt_id not in found):
            found[prompt_id] = Solution(row, spans, at, why)
    yield from found.items()


def ask_judge(
    cfg: StepJudge, out: Path, solutions: list[Solution], log: DropLog, knob: str
) -> list[Solution]:
    """The solutions with the steps that the judge calls wrong."""
    judge = CachedJudge(cfg, FIRST_WRONG_FIELDS, knob)
    short = [one for one in solutions if len(one.spans) <= MAX_STEPS]
    try:
        verdicts = judge.get_verdicts(
            [
                build_request(judge, format_conversation(one.row["prompt"]), one.steps)
                for one in short
            ]
        )
    finally:
        judge.close()
        note_cost(out, **judge.budget.get_cost())
    judged = []
    for one, verdict in zip(short, verdicts, strict=True):
        if verdict.fault:
            log.drop(NO_VERDICT, verdict.fault, prompt_id=one.row["prompt_id"])
            judged.append(Solution(one.row, one.spans, None, NO_VERDICT))
        else:
            judged.append(Solution(one.row, one.spans, find_judged_step(verdict), "judge"))
    failed = sum(bool(verdict.fault) for verdict in verdicts)
    if failed > cfg.max_failed * len(short):
        first = next(verdict.fault for verdict in verdicts if verdict.fault)
        raise StageError(
            f"steps: {failed} of {pluralize(len(short), 'verdict')} failed (the first: {first})."
            f" The limit is {knob}.max_failed={cfg.max_failed}.\n"
            "  Fix the judge, or raise the limit, and run the same command again."
        )
    return judged


def build_beginning(
    chat: ModelTokenizer, solution: Solution, columns: dict[str, Any]
) -> dict[str, Any]:
    """Cut between tokens: one that belongs to both begins the wrong step."""
    assert solution.wrong is not None
    row, (start, end) = solution.row, solution.spans[solution.wrong]
    text, ids = row["completion"], row["token_ids"]
    first = cut_tokens(chat, ids, text, start)
    prefix = read_tokens(chat, ids[:first])
    is_last = solution.wrong == len(solution.spans) - 1
    wrong_ids = ids[first:] if is_last else ids[first : cut_tokens(chat, ids, text, end)]
    stops = wrong_ids[-1:] and wrong_ids[-1] in chat.stop_ids
    name = hash_json(["step", row["sample_id"], solution.wrong])[:16]
    return {
        "prompt_id": name,
        "prompt": row["prompt"],
        "columns": json.dumps(columns),
        "prefix": prefix,
        "prefix_token_ids": ids[:first],
        "wrong": read_tokens(chat, wrong_ids[:-1] if stops else wrong_ids),
        "wrong_token_ids": wrong_ids,
        "wrong_id": hash_json(["wrong", name])[:16],
        "score": row["score"],
        "found_by": solution.why,
        "sample_id": row["sample_id"],
    }
