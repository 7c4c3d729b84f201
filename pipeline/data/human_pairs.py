"""Pairs of answers that annotators judged, with their texts."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.label_files import read_labels
from pipeline.errors import UserError


@dataclass(frozen=True)
class HumanComparison:
    """One pair and its annotators' votes: 1 where the first answer is better, 0 the second."""

    key: str
    prompt: list[dict[str, str]]
    first: str
    second: str
    votes: dict[str, float]

    @property
    def prompt_key(self) -> str:
        """Names the prompt: pairs of one prompt are not independent evidence."""
        return json.dumps(self.prompt)


def read_human_comparisons(path: Path) -> list[HumanComparison]:
    pairs: dict[tuple[str, ...], HumanComparison] = {}
    for label in read_labels(path):
        if (texts := label.texts) is None:
            raise UserError(
                f"{label.place}: it has not the texts that were compared."
                " Give rows with prompt, a and b, as strop label saves them."
            )
        key = " ".join(label.ids)
        pair = HumanComparison(key, texts.prompt, texts.first, texts.second, {})
        pairs.setdefault(label.ids, pair).votes[label.annotator] = label.value
    return list(pairs.values())
