"""Offline preferences in the policy's own tokens, clear of the fence: pairs, and thumbs in
`unpaired.parquet`.

`dev.parquet` is empty: `pair` splits by prompt. Every row that came in is in a pair, a thumb, or
`dropped.parquet`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.artifacts import Decontamination, Model, Pairs, write_json, write_table
from pipeline.config import OfflineConfig
from pipeline.data.decontamination import OverlapCheck
from pipeline.data.preferences import read_preferences
from pipeline.data.prompts import build_prompt_row, join_user_turns
from pipeline.errors import UnrenderableTemplate, UserError, many
from pipeline.hashing import digest_of
from pipeline.models.bos import holds_bos
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.backends.chat import Chat

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
IDS = pl.List(pl.Int64)
PAIR: dict[str, Any] = {
    "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, "prompt_id": pl.String, "chosen_id": pl.String,
    "rejected_id": pl.String, "chosen_score": pl.Float64, "rejected_score": pl.Float64, "margin": pl.Float64,
    "prompt_token_ids": IDS, "chosen_token_ids": IDS, "rejected_token_ids": IDS, "origin": pl.String,
}  # fmt: skip
THUMB: dict[str, Any] = {
    "prompt": MESSAGES, "completion": MESSAGES, "label": pl.Boolean, "prompt_id": pl.String, "sample_id": pl.String,
    "prompt_token_ids": IDS, "token_ids": IDS,
}  # fmt: skip
DROPPED = {"row": pl.Int64, "prompt_id": pl.String, "reason": pl.String, "detail": pl.String}
Row = dict[str, Any]


def run(cfg: OfflineConfig, out: Path, *, policy: Model, fence: Decontamination) -> Pairs:
    from pipeline.backends.chat import Chat

    lines = read_preferences(cfg)
    dropped: list[Row] = [_gone(number, "", "bad row", fault) for number, fault in lines.bad]
    words = Words(cfg, Chat(policy))
    check = OverlapCheck(fence, cfg.fence.ngram)
    pairs: dict[tuple[str, str], Row] = {}
    thumbs: dict[tuple[str, bool], Row] = {}
    progress = Progress("offline", len(lines.rows), "rows")
    for row in lines.rows:
        progress.advance()
        if any(check.overlaps(text) for text in _texts(row)):
            dropped.append(
                _gone(row["row"], _prompt_id(row), "overlap with evaluation", check.fault)
            )
            continue
        if any(words.spells_bos(text) for text in set(_texts(row))):
            detail = f"a text spells out {words.chat.tokenizer.bos_token}, which the chat template alone may write"
            dropped.append(_gone(row["row"], _prompt_id(row), "second BOS", detail))
            continue
        try:
            made = {(p["chosen_id"], p["rejected_id"]): p for p in map(words.pair, row["pairs"])}
            told = {(t["sample_id"], t["label"]): t for t in map(words.thumb, row["thumbs"])}
        except UnrenderableTemplate as refusal:
            dropped.append(_unrendered(cfg, row, refusal))
            continue
        if made.keys() <= pairs.keys() and told.keys() <= thumbs.keys():
            dropped.append(_gone(row["row"], _prompt_id(row), "repeats an earlier row", ""))
        pairs |= made
        thumbs |= told
    _write(
        out, list(pairs.values()), list(thumbs.values()), dropped, len(lines.rows) + len(lines.bad)
    )
    return Pairs(out)


class Words:
    """Texts into ids and the policy's tokens; a text that comes again is the same answer."""

    def __init__(self, cfg: OfflineConfig, chat: "Chat"):
        self.kwargs, self.chat = cfg.template_kwargs, chat

    def pair(self, pair: Row) -> Row:
        row = self._prompt(pair["prompt"])
        for side in ("chosen", "rejected"):
            name, tokens = self._answer(row["prompt_id"], pair["prompt"], pair[side])
            row |= {side: _message(pair[side]), f"{side}_id": name, f"{side}_token_ids": tokens}
        scores = pair["chosen_score"], pair["rejected_score"]
        margin = None if None in scores else scores[0] - scores[1]
        return {
            **row,
            "chosen_score": scores[0],
            "rejected_score": scores[1],
            "margin": margin,
            "origin": "offline",
        }

    def thumb(self, thumb: Row) -> Row:
        row = self._prompt(thumb["prompt"])
        name, tokens = self._answer(row["prompt_id"], thumb["prompt"], thumb["completion"])
        answer = {
            "completion": _message(thumb["completion"]),
            "sample_id": name,
            "token_ids": tokens,
        }
        return {**row, **answer, "label": thumb["label"]}

    def spells_bos(self, text: str) -> bool:
        return self.chat.only_bos is not None and holds_bos(self.chat.tokenizer, text)

    def _prompt(self, messages: list[dict[str, str]]) -> Row:
        ids = self.chat.encode(messages, self.kwargs)
        return {
            "prompt": messages,
            "prompt_id": build_prompt_row(messages, {})["prompt_id"],
            "prompt_token_ids": ids,
        }

    def _answer(
        self, prompt_id: str, messages: list[dict[str, str]], text: str
    ) -> tuple[str, list[int]]:
        return digest_of(["offline", prompt_id, text])[:16], self.chat.answer(
            messages, text, self.kwargs
        )


def _message(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _texts(row: Row) -> Iterator[str]:
    """Everything that would be trained on: the user's words as a whole, each turn, each answer."""
    for made in [*row["pairs"], *row["thumbs"]]:
        yield join_user_turns(made["prompt"])
        yield from (message["content"] for message in made["prompt"])
        yield from (made[name] for name in ("chosen", "rejected", "completion") if name in made)


def _prompt_id(row: Row) -> str:
    return build_prompt_row([*row["pairs"], *row["thumbs"]][0]["prompt"], {})["prompt_id"]


def _unrendered(cfg: OfflineConfig, row: Row, refusal: UserError) -> Row:
    """A row in roles that this policy's template does not take is a bad row for this policy."""
    if cfg.on_bad_row == "fail":
        raise UserError(
            f"offline: row {row['row']}: {refusal}\n  Or skip and count such rows with offline.on_bad_row=skip."
        )
    return _gone(row["row"], _prompt_id(row), "bad row", str(refusal).splitlines()[0])


def _gone(row: int, prompt_id: str, reason: str, detail: str) -> Row:
    return {"row": row, "prompt_id": prompt_id, "reason": reason, "detail": detail}


def _write(
    out: Path, pairs: list[Row], thumbs: list[Row], dropped: list[Row], rows_in: int
) -> None:
    order = "prompt_id", "chosen_id", "rejected_id"
    gone = pl.DataFrame(dropped, schema=DROPPED).sort("row")
    table = pl.DataFrame(pairs, schema=PAIR).sort(*order)
    unpaired = pl.DataFrame(thumbs, schema=THUMB).sort("prompt_id", "sample_id", "label")
    counts = dict(sorted(gone["reason"].value_counts().rows()))
    up = int(unpaired["label"].sum())
    write_table(out / "dropped.parquet", gone)
    story = {
        "rows_in": rows_in,
        "dropped_rows": counts,
        "rows": rows_in - gone.height,
        "pairs": table.height,
    }
    write_json(out / "funnel.json", {**story, "thumbs": {"up": up, "down": unpaired.height - up}})
    if not table.height and not unpaired.height:
        raise UserError(
            f"offline: of {many(rows_in, 'row')} none is left ({counts}).\n"
            f"  Each one's reason is in {out / 'dropped.parquet'}."
        )
    write_table(out / "train.parquet", table)
    write_table(out / "dev.parquet", table.clear())
    write_table(out / "unpaired.parquet", unpaired)
