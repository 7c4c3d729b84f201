"""Selects the prompts to sample: the round's block, in a later wave those whose scores tie.

Of these, the ones that a model of the pool answers, and that fit. A prompt is dropped and counted,
never cut.
"""

from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, Scores
from pipeline.backends import ChatTokenizer, Message, PromptEncoder
from pipeline.config import PromptShare, SampleRequest
from pipeline.errors import UserError, pluralize
from pipeline.hashing import hash_json
from pipeline.sampling import asking

PREFIX = "prefix_token_ids"
# Tokens, and what they include besides the prompt, as a clause for a message.
PromptLength = tuple[int, str]
DROPPED_SCHEMA: dict[str, Any] = {
    "prompt_id": pl.String,
    "reason": pl.String,
    "detail": pl.String,
}


def select_prompts(cfg: SampleRequest, prompts: Prompts, scores: list[Scores]) -> pl.DataFrame:
    """The round's prompts that this model answers; in a later wave those whose scores tie."""
    rows = select_block(cfg, prompts)
    if share := cfg.prompt_share:
        rows = rows.filter([answers_prompt(share, cfg.seed, key) for key in rows["prompt_id"]])
    if not cfg.ties_by:
        return rows
    return rows.join(find_tied_prompts(cfg, scores), on="prompt_id", how="semi")


def answers_prompt(share: PromptShare, seed: int, prompt_id: str) -> bool:
    """Whether a model of the pool answers a prompt: more of its share keep all that it answers."""

    def place(model: str) -> float:
        return int(hash_json([seed, "pool", model, prompt_id])[:12], 16) / 16**12

    if share.models_per_prompt:
        return share.model in sorted(share.pool, key=place)[: share.models_per_prompt]
    return place(share.model) < share.share


def find_tied_prompts(cfg: SampleRequest, scores: list[Scores]) -> pl.DataFrame:
    """The prompts that have answers, but no two answers with different scores."""
    rows = pl.concat([each.read() for each in scores]).filter(pl.col("scorer") == cfg.ties_by)
    finite = pl.col("score").filter(pl.col("score").is_finite())
    counts = rows.group_by("prompt_id").agg(different=finite.n_unique())
    return counts.filter(pl.col("different") < 2)


def select_block(cfg: SampleRequest, prompts: Prompts) -> pl.DataFrame:
    """This round's prompts: all of them, or the round's block in the order of the file.

    Where answers have begun, with their beginnings: `prefix, prefix_token_ids`.
    """
    table = prompts.read()
    names = "prompt_id", "prompt", "prefix", PREFIX
    rows = table.select(name for name in names if name in table.columns)
    if cfg.per_round is None:
        return rows
    if short := cfg.explain_shortage(rows.height):
        raise UserError(short)
    start = (cfg.round - 1) * cfg.per_round
    if cfg.reuse_prompts:
        return rows[[(start + at) % rows.height for at in range(cfg.per_round)]]
    return rows.slice(start, cfg.per_round)


def split_by_length(
    cfg: SampleRequest,
    open_tokenizer: Callable[[], ChatTokenizer],
    rows: pl.DataFrame,
    trained: ChatTokenizer | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The prompts that fit, by id, and the list of dropped ones.

    `trained`: of the model that trains on the answers, where another one is sampled.
    """
    if (cfg.ties_by or cfg.prompt_share) and rows.is_empty():  # there is nothing to measure
        return rows, pl.DataFrame(schema=DROPPED_SCHEMA)
    tokenizer, rows = open_tokenizer(), rows.sort("prompt_id")
    faults, shortest = [], None
    for row in rows.iter_rows(named=True):
        begun = len(row.get(PREFIX) or ())
        lengths = list(measure_lengths(cfg, tokenizer, row["prompt"], begun))
        shortest = min(shortest or max(lengths), max(lengths))
        if fault := find_length_fault(cfg, tokenizer.context, lengths):
            faults.append({"prompt_id": row["prompt_id"], **fault})
    if len(faults) == rows.height and not cfg.ties_by:
        raise UserError(describe_none_fits(cfg, tokenizer.context, shortest, rows.height))
    if trained or cfg.purpose == "train":
        check_prompt_prefixes(cfg, trained or tokenizer, rows)
    dropped = pl.DataFrame(faults, schema=DROPPED_SCHEMA)
    kept = rows.join(dropped, on="prompt_id", how="anti", maintain_order="left") if faults else rows
    return kept, dropped


def check_prompt_prefixes(cfg: SampleRequest, tokenizer: ChatTokenizer, rows: pl.DataFrame) -> None:
    """Check one prompt per order of roles.

    Some templates move a system message once an answer follows.
    """
    seen = set[tuple[str, ...]]()
    for prompt in rows["prompt"]:
        roles = tuple(message["role"] for message in prompt)
        if roles not in seen:
            tokenizer.check_prompt_prefix(prompt, cfg.template_kwargs)
        seen.add(roles)


def check_one_fits(cfg: SampleRequest, encoder: PromptEncoder, rows: pl.DataFrame) -> None:
    """Refuse what `split_by_length` would refuse, as soon as there is a tokenizer."""
    shortest = None
    for prompt in rows["prompt"]:
        lengths = list(measure_lengths(cfg, encoder, prompt))
        if not find_length_fault(cfg, encoder.context, lengths):
            return
        shortest = min(shortest or max(lengths), max(lengths))
    raise UserError(describe_none_fits(cfg, encoder.context, shortest, rows.height))


def describe_none_fits(
    cfg: SampleRequest, context: int | None, prompt: PromptLength | None, count: int
) -> str:
    """`prompt`: the shortest of `count`; None where there is none."""
    limits, (shortest, addition) = cfg.limits, prompt or (0, "")
    room, remedy = limits.prompt, "Raise limits.prompt"
    if context is not None and context - limits.completion < limits.prompt:
        room = context - limits.completion
        remedy = "Lower limits.completion, give a model with a longer context"
    room = max(room, 0)
    left = f"{pluralize(room, 'token')} {'is' if room == 1 else 'are'} left"
    known = f", with limits.completion={limits.completion} in a context of {context}"
    return (
        f"limits.prompt={limits.prompt}{known if context else ''}: {left} for a prompt,"
        f" and the shortest of {count} has {shortest} with its template{addition}.\n"
        f"  {remedy}, or give shorter prompts."
    )


def measure_lengths(
    cfg: SampleRequest, encoder: PromptEncoder, prompt: list[Message], begun: int = 0
) -> Iterator[PromptLength]:
    """The prompt's tokens as trained, then as shown by each setting that adds to it.

    `begun`: tokens of an answer that is to be continued.
    """
    yield len(encoder.encode(prompt, cfg.template_kwargs)) + begun, ""
    for name, setting in sorted(cfg.settings.items()):
        if setting.has_extra_context:
            ids = encoder.encode(asking.build_messages(setting, prompt), cfg.template_kwargs)
            yield len(ids) + begun, f" with what the setting {name} shows"


def find_length_fault(
    cfg: SampleRequest, context: int | None, lengths: list[PromptLength]
) -> dict[str, str] | None:
    """Why a prompt of these lengths cannot be sampled, if so."""
    limits = cfg.limits
    for tokens, addition in lengths:
        if tokens > limits.prompt:
            detail = f"{tokens} tokens{addition}, limits.prompt={limits.prompt}"
            return {"reason": "prompt_too_long", "detail": detail}
        if context is not None and tokens + limits.completion > context:
            detail = (
                f"{tokens} tokens{addition}, limits.completion={limits.completion},"
                f" a context of {context}"
            )
            return {"reason": "context_too_short", "detail": detail}
    return None
