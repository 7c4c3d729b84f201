"""What a reward model learns from: prompts with an answer that was liked, one that was not, or both of them.

A row: `row` (its number), `prompt` (messages), `good`, `bad` (texts; a thumb has one, None is the other), and
`flipped`: whether the label is known to be wrong, None where nobody knows.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pipeline.config import PlaygroundPreferences, PreferencesConfig
from pipeline.data import synthetic
from pipeline.data.jsonl import Lines
from pipeline.data.preferences import read_preferences

Row = dict[str, Any]


def read_reward_rows(cfg: PreferencesConfig, learn_from: Literal["pairs", "thumbs"]) -> Lines:
    """The rows of one kind; pairs give their two sides as thumbs where there are no others."""
    lines = Lines()
    if isinstance(cfg, PlaygroundPreferences):
        pairs = [
            _pair(number, row, row["flipped"])
            for number, row in enumerate(synthetic.preferences(cfg), 1)
        ]
        thumbs: list[Row] = []
    else:
        found = read_preferences(cfg, "reward.data")
        lines.bad = found.bad
        pairs = [_pair(row["row"], pair) for row in found.rows for pair in row["pairs"]]
        thumbs = [_thumb(row["row"], thumb) for row in found.rows for thumb in row["thumbs"]]
    if learn_from == "pairs":
        lines.rows = pairs
    else:
        lines.rows = thumbs or [side for pair in pairs for side in _sides(pair)]
    return lines


def _pair(number: int, pair: Row, flipped: bool | None = None) -> Row:
    told = {"prompt": pair["prompt"], "good": pair["chosen"], "bad": pair["rejected"]}
    return {"row": number, **told, "flipped": flipped}


def _thumb(number: int, thumb: Row) -> Row:
    good, bad = (thumb["completion"], None) if thumb["label"] else (None, thumb["completion"])
    return {"row": number, "prompt": thumb["prompt"], "good": good, "bad": bad, "flipped": None}


def _sides(pair: Row) -> Iterator[Row]:
    yield {**pair, "bad": None}
    yield {**pair, "good": None}
