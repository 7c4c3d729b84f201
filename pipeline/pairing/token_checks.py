"""What is trained is what was sampled: judged for every pair, before anything is paid for, by the policy's tokenizer.

A prompt's tokens are those of its rendered template, whose BOS is not doubled; an answer has no BOS of its own;
a stop token ends both answers; the template that writes the whole conversation begins with the sampled prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.backends.chat import ModelTokenizer, describe_difference
from pipeline.config import PairConfig
from pipeline.errors import UserError
from pipeline.models.bos import REMEDY, contains_bos, is_doubled
from pipeline.pairing.selection import OFFLINE, ON_POLICY

SIDES = ("chosen", "rejected")
AROUND = 4  # tokens shown before and after the first that differs
UNSPELLED = "Take that token out of the text, or leave the row out."
KEPT = "Give a template.chat_template=FILE (or template.kwargs) that keeps the prompt."


@dataclass(frozen=True)
class Fault:
    what: str
    remedy: str


def check(cfg: PairConfig, pairs: pl.DataFrame, chat: ModelTokenizer) -> None:
    """Refuses with the first fault of the first pair that has one, and how many pairs have that fault."""
    faults: dict[Fault, list[str]] = {}
    for row in pairs.iter_rows(named=True):
        for fault, shown in _faults(cfg, row, chat):
            faults.setdefault(fault, []).append(
                f"pair {row['chosen_id']} over {row['rejected_id']}: {shown}"
            )
    if faults:
        told = [
            f"  {fault.what} in {len(rows)} of {pairs.height} pairs, first:\n  {rows[0]}"
            for fault, rows in faults.items()
        ]
        remedies = dict.fromkeys(f"  {fault.remedy}" for fault in faults)
        raise UserError(
            "\n".join(
                [
                    f"pair: the tokens that would be trained are not those that the policy {chat.source} samples:",
                    *told,
                    *remedies,
                ]
            )
        )


def _faults(
    cfg: PairConfig, row: dict[str, Any], chat: ModelTokenizer
) -> Iterator[tuple[Fault, str]]:
    prompt = row["prompt_token_ids"]
    shown = chat.render(row["prompt"], cfg.template_kwargs, generation=True)
    expected = chat.encode_text(shown)
    if is_doubled(expected, chat.bos):
        what = "the chat template's prompt begins with two BOS"
        yield (Fault(what, REMEDY), _start(chat, expected))
    elif prompt != expected:
        doubled = is_doubled(prompt, chat.bos)
        what = (
            "the prompt begins with two BOS"
            if doubled
            else "the prompt's tokens differ from its template's"
        )
        yield (Fault(what, _redrawn(row, chat)), _tokens(chat, expected, prompt))
    for side in SIDES:
        (ids, text) = (row[f"{side}_token_ids"], row[side][-1]["content"])
        drawn = row["origin"] == ON_POLICY
        if not ids or (ids[-1] not in chat.stop_ids and not cfg.filters.allow_truncated):
            what = f"{side} does not end with a stop token"
            yield (
                Fault(what, _redrawn(row, chat)),
                f"it ends with {chat.spell_tokens(ids[-AROUND:])}",
            )
        if chat.leading_bos is not None and (
            chat.leading_bos in ids if drawn else contains_bos(chat.tokenizer, text)
        ):
            yield (
                Fault(f"{side} has a BOS of its own", UNSPELLED),
                f"{chat.tokenizer.bos_token} in {text[:80]!r}",
            )
        whole = chat.render([*row["prompt"], *row[side]], cfg.template_kwargs, generation=False)
        if not whole.startswith(shown):
            yield (
                Fault(f"the prompt is no prefix of it with {side}", KEPT),
                describe_difference(shown, whole[: len(shown)]),
            )
        if drawn and (read := _read(chat, ids)) != text:
            yield (
                Fault(f"{side}'s tokens do not read as its text", _redrawn(row, chat)),
                describe_difference(text, read),
            )


def _redrawn(row: dict[str, Any], chat: ModelTokenizer) -> str:
    """How such tokens are made once more; a new seed is a new draw."""
    if chat.writes_date:
        return (
            "Its chat template writes today's date, so a prompt differs from day to day: fix it by"
            " template.kwargs.date_string='26 Jul 2024', or give template.chat_template=FILE without strftime_now."
        )
    as_before = (
        "Give template.chat_template and template.kwargs as they were when these tokens were made"
    )
    return (
        f"{as_before}."
        if row["origin"] == OFFLINE
        else f"{as_before}, or draw anew: sample.seed=NUMBER, a new one."
    )


def _start(chat: ModelTokenizer, ids: list[int]) -> str:
    return f"it begins {chat.spell_tokens(ids[:AROUND])}"


def _read(chat: ModelTokenizer, ids: list[int]) -> str:
    kept = ids[:-1] if ids and ids[-1] in chat.stop_ids else ids
    return chat.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _tokens(chat: ModelTokenizer, expected: list[int], found: list[int]) -> str:
    return describe_difference(chat.spell_tokens(expected), chat.spell_tokens(found), AROUND)
