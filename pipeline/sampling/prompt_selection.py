"""Which prompts are drawn from: the round's block, in a later wave those whose scores tie, and of them what fits.

A prompt is dropped and counted, never cut.
"""

from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, Scores
from pipeline.backends import Counting, Message, Text
from pipeline.config import SampleRequest
from pipeline.errors import UserError
from pipeline.sampling import asking

Length = tuple[int, str]  # tokens, and what they hold beside the prompt
DROPPED: dict[str, Any] = {"prompt_id": pl.String, "reason": pl.String, "detail": pl.String}


def asked(cfg: SampleRequest, prompts: Prompts, scores: list[Scores]) -> pl.DataFrame:
    """The round's prompts; in a later wave those among them that it is for."""
    rows = block(cfg, prompts)
    return rows.join(tied(cfg, scores), on="prompt_id", how="semi") if cfg.ties_by else rows


def tied(cfg: SampleRequest, scores: list[Scores]) -> pl.DataFrame:
    """The prompts that have answers so far, and no two of them with different scores."""
    marks = pl.concat([each.read() for each in scores]).filter(pl.col("scorer") == cfg.ties_by)
    known = pl.col("score").filter(pl.col("score").is_finite())
    return (
        marks.group_by("prompt_id").agg(different=known.n_unique()).filter(pl.col("different") < 2)
    )


def block(cfg: SampleRequest, prompts: Prompts) -> pl.DataFrame:
    """This round's prompts: all of them, or the round's block in the order they lie in."""
    rows = prompts.read().select("prompt_id", "prompt")
    if cfg.per_round is None:
        return rows
    if short := cfg.explain_shortage(rows.height):
        raise UserError(short)
    return rows.slice((cfg.round - 1) * cfg.per_round, cfg.per_round)


def admitted(
    cfg: SampleRequest, open_text: Callable[[], Text], rows: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The prompts that fit, by id, and the list of those that do not: a prompt is never cut."""
    if cfg.ties_by and rows.is_empty():  # a wave that no prompt needs needs no tokenizer
        return rows, pl.DataFrame(schema=DROPPED)
    text, rows = open_text(), rows.sort("prompt_id")
    faults, most = [], []
    for row in rows.iter_rows(named=True):
        asked = list(lengths(cfg, text, row["prompt"]))
        most.append(max(asked))
        if fault := too_long(cfg, text.context, asked):
            faults.append({"prompt_id": row["prompt_id"], **fault})
    if len(faults) == rows.height and not cfg.ties_by:
        raise UserError(none_fits(cfg, text.context, most))
    if cfg.purpose == "train":
        check_kept(cfg, text, rows)
    dropped = pl.DataFrame(faults, schema=DROPPED)
    kept = rows.join(dropped, on="prompt_id", how="anti", maintain_order="left") if faults else rows
    return kept, dropped


def check_kept(cfg: SampleRequest, text: Text, rows: pl.DataFrame) -> None:
    """Of each order of roles one prompt: some templates move a system message once an answer follows."""
    seen = set[tuple[str, ...]]()
    for prompt in rows["prompt"]:
        roles = tuple(message["role"] for message in prompt)
        if roles not in seen:
            text.check_kept(prompt, cfg.template_kwargs)
        seen.add(roles)


def check_one_fits(cfg: SampleRequest, text: Counting, rows: pl.DataFrame) -> None:
    """Refuses a draw that `admitted` would, as soon as there is a tokenizer."""
    most = []
    for prompt in rows["prompt"]:
        asked = list(lengths(cfg, text, prompt))
        if not too_long(cfg, text.context, asked):
            return
        most.append(max(asked))
    raise UserError(none_fits(cfg, text.context, most))


def none_fits(cfg: SampleRequest, context: int | None, most: list[Length]) -> str:
    limits, (shortest, beside) = cfg.limits, min(most, default=(0, ""))
    known = (
        f", beside limits.completion={limits.completion} in a context of {context}"
        if context
        else ""
    )
    crowded = context is not None and context - limits.completion < limits.prompt
    room = context - limits.completion if context is not None and crowded else limits.prompt
    remedy = (
        "Lower limits.completion, give a model with a longer context"
        if crowded
        else "Raise limits.prompt"
    )
    return (
        f"limits.prompt={limits.prompt}{known}: {room} tokens are left for a prompt, and the shortest of {len(most)}"
        f" has {shortest} with its template{beside}.\n  {remedy}, or give shorter prompts."
    )


def lengths(cfg: SampleRequest, text: Counting, prompt: list[Message]) -> Iterator[Length]:
    """The prompt's tokens as it is trained, then as each setting that shows more asks it."""
    yield len(text.encode(prompt, cfg.template_kwargs)), ""
    for name, setting in sorted(cfg.settings.items()):
        if setting.has_extra_context:
            asked = text.encode(asking.shown(setting, prompt), cfg.template_kwargs)
            yield len(asked), f" with what the setting {name} shows"


def too_long(cfg: SampleRequest, context: int | None, asked: list[Length]) -> dict[str, str] | None:
    """Why a prompt of these lengths cannot be drawn from, if so."""
    limits = cfg.limits
    for tokens, beside in asked:
        if tokens > limits.prompt:
            return {
                "reason": "prompt_too_long",
                "detail": f"{tokens} tokens{beside}, limits.prompt={limits.prompt}",
            }
        if context is not None and tokens + limits.completion > context:
            detail = f"{tokens} tokens{beside}, limits.completion={limits.completion}, a context of {context}"
            return {"reason": "context_too_short", "detail": detail}
    return None
