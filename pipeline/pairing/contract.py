"""What is trained is what was sampled: judged for every pair, before anything is paid for, by the policy's tokenizer.

A prompt's tokens are those of its template; one BOS; a stop token ends both answers; and the template that writes the
whole conversation begins with the prompt that was sampled from.
"""

from collections.abc import Iterator
from typing import Any

import polars as pl

from pipeline.backends.chat import Chat, differing
from pipeline.config import PairConfig
from pipeline.errors import Refusal
from pipeline.pairing.choice import ON_POLICY

SIDES = "chosen", "rejected"
AROUND = 4  # tokens shown before and after the first that differs


def check(cfg: PairConfig, pairs: pl.DataFrame, chat: Chat) -> None:
    """Refuses with the first fault of the first pair that has one, and how many pairs have that fault."""
    faults: dict[str, list[str]] = {}
    for row in pairs.iter_rows(named=True):
        for fault, shown in _faults(cfg, row, chat):
            faults.setdefault(fault, []).append(f"pair {row['chosen_id']} over {row['rejected_id']}: {shown}")
    if faults:
        told = [
            f"  {fault} in {len(rows)} of {pairs.height} pairs, first:\n  {rows[0]}" for fault, rows in faults.items()
        ]
        raise Refusal(
            "\n".join(["pair: the tokens that would be trained are not those that the policy samples:", *told])
            + f"\n  The policy is {chat.where}. Give the template and template.kwargs that its samples were drawn with,"
            " or sample again."
        )


def _faults(cfg: PairConfig, row: dict[str, Any], chat: Chat) -> Iterator[tuple[str, str]]:
    prompt = row["prompt_token_ids"]
    shown = chat.render(row["prompt"], cfg.template_kwargs, generation=True)
    expected = chat.tokenizer(shown, add_special_tokens=False)["input_ids"]
    if prompt != expected:
        yield "the prompt's tokens differ from its template's", _tokens(chat, expected, prompt)
    for side in SIDES:
        ids = row[f"{side}_token_ids"]
        if not ids or (ids[-1] not in chat.stops and not cfg.filters.allow_truncated):
            yield f"{side} does not end with a stop token", f"it ends with {chat.spell(ids[-AROUND:])}"
        if fault := _bos(chat, [*prompt, *ids]):
            yield f"{side} has not exactly one BOS", fault
        whole = chat.render([*row["prompt"], *row[side]], cfg.template_kwargs, generation=False)
        if not whole.startswith(shown):
            yield f"the prompt is no prefix of it with {side}", differing(shown, whole[: len(shown)])
        if row["origin"] == ON_POLICY and (read := _read(chat, ids)) != row[side][-1]["content"]:
            yield f"{side}'s tokens do not read as its text", differing(row[side][-1]["content"], read)


def _bos(chat: Chat, ids: list[int]) -> str | None:
    if chat.only_bos is None:
        return None
    found = ids.count(chat.only_bos)
    wanted = 1 if chat.begins or ids[:1] == [chat.bos] else 0
    return (
        None
        if found == wanted
        else f"{found} of {chat.tokenizer.bos_token}, the prompt begins {chat.spell(ids[:AROUND])}"
    )


def _read(chat: Chat, ids: list[int]) -> str:
    kept = ids[:-1] if ids and ids[-1] in chat.stops else ids
    return chat.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _tokens(chat: Chat, expected: list[int], found: list[int]) -> str:
    return differing(chat.spell(expected), chat.spell(found), AROUND)
