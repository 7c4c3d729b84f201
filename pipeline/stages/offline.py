"""Offline preferences in the policy's tokens, without overlap with evaluation prompts.

Publishes pairs, and unpaired answers in `unpaired.parquet`. `dev.parquet` is empty: `pair` splits
by prompt. Every row of the input is in a pair, an unpaired answer, or `dropped.parquet`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.artifacts import Decontamination, Model, Pairs, write_table
from pipeline.config import OfflineConfig
from pipeline.data.columns import MESSAGES
from pipeline.data.decontamination import OverlapCheck
from pipeline.data.drop_log import BAD_ROW, DropLog
from pipeline.data.preferences import read_preferences
from pipeline.data.prompts import build_prompt_row, join_user_turns
from pipeline.data.tool_turns import Answer, to_text
from pipeline.errors import UnrenderableTemplate, UserError, pluralize
from pipeline.hashing import hash_json
from pipeline.models.bos import contains_bos
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.backends.chat import ModelTokenizer

IDS = pl.List(pl.Int64)
PAIR: dict[str, Any] = {
    "prompt": MESSAGES,
    "chosen": MESSAGES,
    "rejected": MESSAGES,
    "prompt_id": pl.String,
    "chosen_id": pl.String,
    "rejected_id": pl.String,
    "chosen_score": pl.Float64,
    "rejected_score": pl.Float64,
    "margin": pl.Float64,
    "p_chosen": pl.Float64,
    "weight": pl.Float64,
    "prompt_token_ids": IDS,
    "chosen_token_ids": IDS,
    "rejected_token_ids": IDS,
    "origin": pl.String,
}
UNPAIRED: dict[str, Any] = {
    "prompt": MESSAGES,
    "completion": MESSAGES,
    "label": pl.Boolean,
    "prompt_id": pl.String,
    "sample_id": pl.String,
    "prompt_token_ids": IDS,
    "token_ids": IDS,
}
Row = dict[str, Any]


def run(cfg: OfflineConfig, out: Path, *, policy: Model, decontamination: Decontamination) -> Pairs:
    from pipeline.backends.chat import ModelTokenizer

    lines = read_preferences(cfg)
    log = DropLog(len(lines.rows) + len(lines.bad), row=pl.Int64, prompt_id=pl.String)
    for number, fault in lines.bad:
        log.drop(BAD_ROW, fault, row=number, prompt_id="")
    encoder = PolicyEncoder(cfg, ModelTokenizer(policy))
    check = OverlapCheck(decontamination, cfg.decontamination.ngram)
    pairs: dict[tuple[str, str], Row] = {}
    unpaired: dict[tuple[str, bool], Row] = {}
    progress = Progress("offline", len(lines.rows), "rows")
    for row in lines.rows:
        progress.advance()
        number, texts = row["row"], set(_row_texts(row))
        if any(check.overlaps(text) for text in texts):
            log.drop("overlap with evaluation", check.fault, row=number, prompt_id=_prompt_id(row))
            continue
        if any(encoder.contains_bos(text) for text in texts):
            bos = encoder.chat.tokenizer.bos_token
            detail = f"a text spells out {bos}, which the chat template alone may write"
            log.drop("second BOS", detail, row=number, prompt_id=_prompt_id(row))
            continue
        try:
            new_pairs = [encoder.encode_pair(pair) for pair in row["pairs"]]
            new_unpaired = [encoder.encode_unpaired(answer) for answer in row["unpaired"]]
        except UnrenderableTemplate as error:
            detail = _template_fault(cfg, row, error)
            log.drop(BAD_ROW, detail, row=number, prompt_id=_prompt_id(row))
            continue
        pairs_by_ids = {(pair["chosen_id"], pair["rejected_id"]): pair for pair in new_pairs}
        unpaired_by_id = {(row["sample_id"], row["label"]): row for row in new_unpaired}
        if pairs_by_ids.keys() <= pairs.keys() and unpaired_by_id.keys() <= unpaired.keys():
            log.drop("repeats an earlier row", "", row=number, prompt_id=_prompt_id(row))
        pairs |= pairs_by_ids
        unpaired |= unpaired_by_id
    _publish(out, list(pairs.values()), list(unpaired.values()), log)
    return Pairs(out)


class PolicyEncoder:
    """Texts as ids and the policy's tokens. Equal texts are the same answer."""

    def __init__(self, cfg: OfflineConfig, chat: "ModelTokenizer"):
        self.kwargs, self.chat = cfg.template_kwargs, chat

    def encode_pair(self, pair: Row) -> Row:
        row = self._encode_prompt(pair["prompt"])
        for side in ("chosen", "rejected"):
            name, text, tokens = self._encode_answer(row["prompt_id"], pair["prompt"], pair[side])
            row |= {side: _to_message(text), f"{side}_id": name, f"{side}_token_ids": tokens}
        chosen, rejected = pair["chosen_score"], pair["rejected_score"]
        is_scored = chosen is not None and rejected is not None
        return {
            **row,
            "chosen_score": chosen,
            "rejected_score": rejected,
            "margin": chosen - rejected if is_scored else None,
            "p_chosen": pair["p_chosen"],
            "weight": pair["weight"],
            "origin": "offline",
        }

    def encode_unpaired(self, answer: Row) -> Row:
        row = self._encode_prompt(answer["prompt"])
        name, text, tokens = self._encode_answer(
            row["prompt_id"], answer["prompt"], answer["completion"]
        )
        return {
            **row,
            "completion": _to_message(text),
            "sample_id": name,
            "token_ids": tokens,
            "label": answer["label"],
        }

    def contains_bos(self, text: str) -> bool:
        return self.chat.leading_bos is not None and contains_bos(self.chat.tokenizer, text)

    def _encode_prompt(self, messages: list[dict[str, str]]) -> Row:
        ids = self.chat.encode(messages, self.kwargs)
        return {
            "prompt": messages,
            "prompt_id": build_prompt_row(messages, {})["prompt_id"],
            "prompt_token_ids": ids,
        }

    def _encode_answer(
        self, prompt_id: str, messages: list[dict[str, str]], answer: Answer
    ) -> tuple[str, str, list[int]]:
        text, ids = self.chat.write_answer(messages, answer, self.kwargs)
        return hash_json(["offline", prompt_id, text])[:16], text, ids


def _to_message(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _row_texts(row: Row) -> Iterator[str]:
    """All texts that would be trained on: the user's turns together, each turn, each answer."""
    for part in [*row["pairs"], *row["unpaired"]]:
        yield join_user_turns(part["prompt"])
        yield from (message["content"] for message in part["prompt"])
        answers = (part[name] for name in ("chosen", "rejected", "completion") if name in part)
        yield from map(to_text, answers)


def _prompt_id(row: Row) -> str:
    first = [*row["pairs"], *row["unpaired"]][0]
    return build_prompt_row(first["prompt"], {})["prompt_id"]


def _template_fault(cfg: OfflineConfig, row: Row, error: UserError) -> str:
    """Roles that this policy's template does not take make a bad row for this policy."""
    if cfg.on_bad_row == "fail":
        raise UserError(
            f"offline: row {row['row']}: {error}\n"
            "  Or skip and count such rows with offline.on_bad_row=skip."
        )
    return str(error).splitlines()[0]


def _publish(out: Path, pairs: list[Row], unpaired: list[Row], log: DropLog) -> None:
    pair_table = pl.DataFrame(pairs, schema=PAIR).sort("prompt_id", "chosen_id", "rejected_id")
    unpaired_table = pl.DataFrame(unpaired, schema=UNPAIRED)
    unpaired_table = unpaired_table.sort("prompt_id", "sample_id", "label")
    up = int(unpaired_table["label"].sum())
    rows_out = log.rows_in - log.table().height
    counts = {"up": up, "down": unpaired_table.height - up}
    log.publish(out, rows_out, order="row", pairs=pair_table.height, unpaired=counts)
    if not pair_table.height and not unpaired_table.height:
        raise log.explain_empty(f"offline: of {pluralize(log.rows_in, 'row')}", out)
    write_table(out / "train.parquet", pair_table)
    write_table(out / "dev.parquet", pair_table.clear())
    write_table(out / "unpaired.parquet", unpaired_table)
