"""What a reward model learns from: prompts with a good answer, a bad one, or both.

A row: `row` (its number), `prompt` (messages), `good`, `bad` (answers as in `preferences`; a single
answer has one of them, and the other is None), and `flipped`: whether the label is known to be
wrong, None where this is unknown.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pipeline.config import PlaygroundPreferences, PreferencesConfig
from pipeline.data import synthetic
from pipeline.data.jsonl import Lines
from pipeline.data.preferences import read_preferences

Row = dict[str, Any]


def read_reward_rows(cfg: PreferencesConfig, learn_from: Literal["pairs", "unpaired"]) -> Lines:
    """The rows of one kind. Without unpaired rows, the two sides of each pair serve as such."""
    lines = Lines()
    if isinstance(cfg, PlaygroundPreferences):
        rows = enumerate(synthetic.generate_preferences(cfg), 1)
        pairs = [_pair_row(number, row, row["flipped"]) for number, row in rows]
        unpaired: list[Row] = []
    else:
        found = read_preferences(cfg, "reward.data")
        lines.bad = found.bad
        pairs = [_pair_row(row["row"], pair) for row in found.rows for pair in row["pairs"]]
        unpaired = [_unpaired_row(row["row"], one) for row in found.rows for one in row["unpaired"]]
    if learn_from == "pairs":
        lines.rows = pairs
    else:
        lines.rows = unpaired or [side for pair in pairs for side in _split_pair(pair)]
    return lines


def _pair_row(number: int, pair: Row, flipped: bool | None = None) -> Row:
    texts = {"prompt": pair["prompt"], "good": pair["chosen"], "bad": pair["rejected"]}
    return {"row": number, **texts, "flipped": flipped}


def _unpaired_row(number: int, row: Row) -> Row:
    good, bad = (row["completion"], None) if row["label"] else (None, row["completion"])
    return {"row": number, "prompt": row["prompt"], "good": good, "bad": bad, "flipped": None}


def _split_pair(pair: Row) -> Iterator[Row]:
    yield {**pair, "bad": None}
    yield {**pair, "good": None}
