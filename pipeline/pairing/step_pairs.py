"""Step-DPO: a right and a wrong step after the same beginning of a solution, as candidates.

A beginning is a part of the prompt: its tokens end `prompt_token_ids`, and its text is the last
message of `prompt`. A step need not end an answer, so it need not end with a stop token.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.artifacts import Prompts, Samples, Scores, write_table
from pipeline.config import PairRound
from pipeline.data.columns import MESSAGES, SCORES
from pipeline.data.solution_steps import find_false_equation, find_step_end

if TYPE_CHECKING:
    from pipeline.backends.chat import ModelTokenizer

CANDIDATE: dict[str, Any] = {
    "prompt_id": pl.String,
    "sample_id": pl.String,
    "prompt": MESSAGES,
    "completion": pl.String,
    "finish_reason": pl.String,
    "prompt_token_ids": pl.List(pl.Int64),
    "token_ids": pl.List(pl.Int64),
}
Row = dict[str, Any]


def cut_tokens(chat: "ModelTokenizer", ids: Sequence[int], text: str, end: int) -> int:
    """How many tokens of a text lie before a place in it. One that goes beyond it does not."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        if len(read_tokens(chat, ids[:middle])) <= end:
            low = middle
        else:
            high = middle - 1
    while low and not text.startswith(
        read_tokens(chat, ids[:low])
    ):  # within a letter of several tokens
        low -= 1
    return low


def read_tokens(chat: "ModelTokenizer", ids: Sequence[int]) -> str:
    return chat.tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def write_candidates(
    cfg: PairRound,
    out: Path,
    chat: "ModelTokenizer",
    steps: Prompts,
    samples: Sequence[Samples],
    scores: Sequence[Scores],
) -> tuple[list[Samples], list[Scores], dict[str, int]]:
    """The first step of each right continuation, and each wrong step; their scores; counts.

    A continuation may come to the right result by a false step, which is not chosen.
    """
    found = {row["prompt_id"]: row for row in steps.read().iter_rows(named=True)}
    score_of = _read_scores(cfg, scores)
    continued = pl.concat([each.read() for each in samples])
    right = continued.filter(pl.col("sample_id").is_in(list(score_of)))
    rows = [
        {**_cut_continuation(cfg, chat, found[row["prompt_id"]], row), "score": score}
        for row in right.iter_rows(named=True)
        for score in [score_of[row["sample_id"]]]
    ]
    true = [row for row in rows if not find_false_equation(row["completion"])]
    rows = [*true, *_list_wrong_steps(cfg, chat, found.values())]
    table = pl.DataFrame(rows, schema={**CANDIDATE, "score": pl.Float64}).sort(
        "prompt_id", "sample_id"
    )
    write_table(out / "samples" / "0.parquet", table.drop("score"))
    marks = table.with_columns(
        scorer=pl.lit(cfg.scorer), status=pl.lit("ok"), detail=pl.lit("")
    ).select(*SCORES)
    write_table(out / "scores" / "0.parquet", marks)
    counts = {
        "beginnings": len(found),
        "continuations": continued.height,
        "right": right.height,
        "right_by_a_true_step": len(true),
    }
    return [Samples(out)], [Scores(out)], counts


def _read_scores(cfg: PairRound, scores: Sequence[Scores]) -> dict[str, float]:
    """Of the right continuations."""
    assert cfg.steps
    table = pl.concat([each.read() for each in scores])
    is_right = (pl.col("scorer") == cfg.scorer) & (pl.col("score") >= cfg.steps.right)
    return dict(table.filter(is_right).select("sample_id", "score").iter_rows())


def _cut_continuation(cfg: PairRound, chat: "ModelTokenizer", step: Row, row: Row) -> Row:
    """Its first step. Where that ends the solution, with the stop token."""
    assert cfg.steps
    begun, text, ids = len(step["prefix"]), row["completion"], row["token_ids"]
    end, finish_reason = (
        find_step_end(step["prefix"] + text, begun, cfg.steps.split) - begun,
        "stop",
    )
    if end < len(text):
        ids = ids[: cut_tokens(chat, ids, text, end)]
        text = read_tokens(chat, ids)
    else:
        finish_reason = row["finish_reason"]
    return {
        "prompt_id": row["prompt_id"],
        "sample_id": row["sample_id"],
        "prompt": row["prompt"],
        "completion": text,
        "finish_reason": finish_reason,
        "prompt_token_ids": row["prompt_token_ids"],
        "token_ids": ids,
    }


def _list_wrong_steps(cfg: PairRound, chat: "ModelTokenizer", steps: Any) -> Iterator[Row]:
    for step in steps:
        prompt_ids = chat.encode(step["prompt"], cfg.template_kwargs)
        yield {
            "prompt_id": step["prompt_id"],
            "sample_id": step["wrong_id"],
            "prompt": [*step["prompt"], {"role": "assistant", "content": step["prefix"]}],
            "completion": step["wrong"],
            "finish_reason": "stop",
            "prompt_token_ids": [*prompt_ids, *step["prefix_token_ids"]],
            "token_ids": step["wrong_token_ids"],
            "score": step["score"],
        }


def split_beginning(prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], str | None]:
    """The messages that the template renders, and the beginning of an answer after them."""
    if prompt[-1]["role"] == "assistant":
        return prompt[:-1], prompt[-1]["content"]
    return prompt, None
