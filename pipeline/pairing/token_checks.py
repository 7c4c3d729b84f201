"""Checks that the tokens to be trained are those that were sampled, before any training.

With the policy's tokenizer, for every pair: a prompt's tokens are those of its rendered template,
whose BOS is not doubled; an answer contains no BOS; both answers end with a stop token; the
template of the whole conversation begins with the sampled prompt. The tokens of an answer that the
policy sampled read as its text. Where a pair continues an answer, the tokens of its beginning
follow the template's, and a side may end without a stop token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.backends.chat import ModelTokenizer, describe_difference
from pipeline.config import POLICY, POOL, REVISED, PairConfig
from pipeline.errors import UserError
from pipeline.models.bos import REMEDY, contains_bos, starts_with_two_bos
from pipeline.pairing.selection import OFFLINE, ON_POLICY
from pipeline.pairing.step_pairs import split_beginning

SIDES = "chosen", "rejected"
AROUND = 4  # tokens shown before and after the first one that differs
REMOVE_BOS = "Take that token out of the text, or leave the row out."
KEEP_PROMPT = "Give a template.chat_template=FILE (or template.kwargs) that keeps the prompt."


@dataclass(frozen=True)
class TokenFault:
    what: str
    remedy: str


def check_pairs(cfg: PairConfig, pairs: pl.DataFrame, chat: ModelTokenizer) -> None:
    """Refuse with every fault: in how many pairs it is, and the first of them."""
    faults: dict[TokenFault, list[str]] = {}
    for row in pairs.iter_rows(named=True):
        for fault, detail in _find_faults(cfg, row, chat):
            where = f"pair {row['chosen_id']} over {row['rejected_id']}"
            faults.setdefault(fault, []).append(f"{where}: {detail}")
    if faults:
        lines = [
            "pair: the tokens that would be trained are not those"
            f" that the policy {chat.source} samples:"
        ]
        for fault, found in faults.items():
            lines.append(
                f"  {fault.what} in {len(found)} of {pairs.height} pairs, first:\n  {found[0]}"
            )
        lines += dict.fromkeys(f"  {fault.remedy}" for fault in faults)
        raise UserError("\n".join(lines))


def _find_faults(
    cfg: PairConfig, row: dict[str, Any], chat: ModelTokenizer
) -> Iterator[tuple[TokenFault, str]]:
    prompt = row["prompt_token_ids"]
    messages, begun = split_beginning(row["prompt"])
    rendered = chat.render(messages, cfg.template_kwargs, generation=True)
    expected = chat.encode_text(rendered)
    if begun is not None:  # the sampler's own tokens of the answer's beginning follow
        beginning = prompt[len(expected) :]
        prompt = prompt[: len(expected)]
        if (decoded := _decode_answer(chat, beginning)) != begun:
            what = "the tokens of the answer's beginning do not read as its text"
            yield TokenFault(what, _remedy(row, chat)), describe_difference(begun, decoded)
    if starts_with_two_bos(expected, chat.bos):
        what = "the chat template's prompt begins with two BOS"
        yield TokenFault(what, REMEDY), _show_start(chat, expected)
    elif prompt != expected:
        what = "the prompt's tokens differ from its template's"
        if starts_with_two_bos(prompt, chat.bos):
            what = "the prompt begins with two BOS"
        yield TokenFault(what, _remedy(row, chat)), _show_difference(chat, expected, prompt)
    for side in SIDES:
        yield from _find_faults_of_side(cfg, row, chat, rendered, side)


def _find_faults_of_side(
    cfg: PairConfig, row: dict[str, Any], chat: ModelTokenizer, rendered: str, side: str
) -> Iterator[tuple[TokenFault, str]]:
    ids, text = row[f"{side}_token_ids"], row[side][-1]["content"]
    is_sampled = row["origin"] in (ON_POLICY, POOL, REVISED) and row[f"{side}_source"] == POLICY
    messages, begun = split_beginning(row["prompt"])
    may_be_open = cfg.filters.allow_truncated or begun is not None
    if not ids or (ids[-1] not in chat.stop_ids and not may_be_open):
        what = f"{side} does not end with a stop token"
        yield (
            TokenFault(what, _remedy(row, chat)),
            f"it ends with {chat.spell_tokens(ids[-AROUND:])}",
        )
    if chat.leading_bos is not None:
        has_bos = chat.leading_bos in ids if is_sampled else contains_bos(chat.tokenizer, text)
        if has_bos:
            detail = f"{chat.tokenizer.bos_token} in {text[:80]!r}"
            yield TokenFault(f"{side} contains a BOS", REMOVE_BOS), detail
    answer = {"role": "assistant", "content": (begun or "") + text}
    whole = chat.render([*messages, answer], cfg.template_kwargs, generation=False)
    if not whole.startswith(rendered):
        what = f"the prompt is not a prefix of the conversation with {side}"
        yield TokenFault(what, KEEP_PROMPT), describe_difference(rendered, whole[: len(rendered)])
    if is_sampled and (decoded := _decode_answer(chat, ids)) != text:
        what = f"{side}'s tokens do not read as its text"
        yield TokenFault(what, _remedy(row, chat)), describe_difference(text, decoded)


def _remedy(row: dict[str, Any], chat: ModelTokenizer) -> str:
    """How to make such tokens again; a new seed is a new draw."""
    if chat.writes_date:
        return (
            "Its chat template writes today's date, so a prompt differs from day to day: fix it by"
            " template.kwargs.date_string='26 Jul 2024',"
            " or give template.chat_template=FILE without strftime_now."
        )
    as_before = (
        "Give template.chat_template and template.kwargs as they were when these tokens were made"
    )
    if row["origin"] == OFFLINE:
        return f"{as_before}."
    return f"{as_before}, or draw anew: sample.seed=NUMBER, a new one."


def _show_start(chat: ModelTokenizer, ids: list[int]) -> str:
    return f"it begins {chat.spell_tokens(ids[:AROUND])}"


def _decode_answer(chat: ModelTokenizer, ids: list[int]) -> str:
    kept = ids[:-1] if ids and ids[-1] in chat.stop_ids else ids
    return chat.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _show_difference(chat: ModelTokenizer, expected: list[int], found: list[int]) -> str:
    return describe_difference(chat.spell_tokens(expected), chat.spell_tokens(found), AROUND)
