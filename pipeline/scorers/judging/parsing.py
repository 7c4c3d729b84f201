"""What a reply says: the probability of each label, or why it says nothing that was asked for.

Strict on purpose: a reply that is not what was asked for fails and is counted, it is not guessed at.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.scorers.judging import Reply
from pipeline.text import strip_reasoning

SHOWN = 80
MOST = 0.5  # with less on the labels the first token was not yet the answer, and what follows it counts alone


@dataclass(frozen=True, slots=True)
class Reading:
    """The chances of the labels, which sum to one; `verdict` is the likeliest. Without them there is a fault."""

    chances: Mapping[str, float]
    fault: str = ""
    model: str = ""

    @property
    def verdict(self) -> str | None:
        """The one likeliest label; two equally likely ones are none."""
        ranked = sorted(self.chances, key=lambda label: -self.chances[label])
        if not ranked or (len(ranked) > 1 and self.chances[ranked[0]] == self.chances[ranked[1]]):
            return None
        return ranked[0]


def read(reply: Reply, labels: tuple[str, ...], form: str) -> Reading:
    if reply.text is None:
        return Reading({}, reply.fault, reply.model)
    text = strip_reasoning(reply.text).strip()
    word, fault = _from_json(text) if form == "json" else (text, "")
    label = next((label for label in labels if label.casefold() == _bare(word).casefold()), None)
    if fault or label is None:
        return Reading(
            {},
            fault or f"the judge said {text[:SHOWN]!r} and none of {', '.join(labels)}",
            reply.model,
        )
    chances = _chances(reply, labels) if form == "word" and text == reply.text.strip() else {}
    return Reading(chances or {label: 1.0}, "", reply.model)


def _bare(word: str) -> str:
    return word.strip(" \t\r\n.*`\"'")


def _chances(reply: Reply, labels: tuple[str, ...]) -> dict[str, float]:
    """Over the labels alone. A label may be written as several tokens ("T", "IE"): its first one stands for it."""
    sums = dict.fromkeys(labels, 0.0)
    for token, chance in (reply.first or {}).items():
        begun = [
            label
            for label in labels
            if _bare(token) and label.casefold().startswith(_bare(token).casefold())
        ]
        if len(begun) == 1:
            sums[begun[0]] += chance
    total = sum(sums.values())
    return {label: chance / total for label, chance in sums.items()} if total > MOST else {}


def _from_json(text: str) -> tuple[str, str]:
    """The `verdict` of one JSON object, fenced as code or not."""
    inside = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
    try:
        value = json.loads(inside[1] if inside else text, strict=False)
    except ValueError:
        return "", f"the judge's reply is no JSON: {text[:SHOWN]!r}"
    if not isinstance(value, dict) or not isinstance(value.get("verdict"), str | int):
        return "", f'the judge\'s JSON has no "verdict" of the labels: {text[:SHOWN]!r}'
    return str(value["verdict"]), ""
