"""What a response says: the probability of each label, or why it has no verdict.

Strict on purpose: a response in another form than requested is a failure and is counted, not
guessed at.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.scorers.judging import Response
from pipeline.text import strip_reasoning

EXCERPT = 80  # characters of a response that a fault repeats
# With less probability on the labels, the first token was not yet the answer: the parsed label
# alone counts.
MIN_LABEL_PROBABILITY = 0.5
# Other spellings of labels that compare, as Arena-Hard reads them.
COMPARISONS = {
    "A>>B": "A>>B", "B<<A": "A>>B", "A>B": "A>B", "B<A": "A>B", "A=B": "A=B", "B=A": "A=B",
    "B>A": "B>A", "A<B": "B>A", "B>>A": "B>>A", "A<<B": "B>>A",
}  # fmt: skip
SIGNS = str.maketrans({"≫": ">>", "≪": "<<"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The probabilities of the labels, which sum to one. Without them there is a fault."""

    probabilities: Mapping[str, float]
    fault: str = ""
    model: str = ""

    @property
    def label(self) -> str | None:
        """The most probable label; None where two share the first place."""
        ranked = sorted(self.probabilities, key=lambda label: -self.probabilities[label])
        if not ranked:
            return None
        if len(ranked) > 1 and self.probabilities[ranked[0]] == self.probabilities[ranked[1]]:
            return None
        return ranked[0]


def parse_verdict(response: Response, labels: tuple[str, ...], form: str) -> Verdict:
    if response.text is None:
        return Verdict({}, response.fault, response.model)
    text = strip_reasoning(response.text).strip()
    word, fault = _parse_json(text) if form == "json" else (text, "")
    label = _find_label(word, labels)
    if fault or label is None:
        unexpected = f"the judge answered {text[:EXCERPT]!r} and none of {', '.join(labels)}"
        return Verdict({}, fault or unexpected, response.model)
    is_bare_word = form == "word" and text == response.text.strip()
    probabilities = _sum_by_label(response, labels) if is_bare_word else {}
    return Verdict(probabilities or {label: 1.0}, "", response.model)


def _find_label(word: str, labels: tuple[str, ...]) -> str | None:
    if COMPARISONS.keys() & {*labels}:
        return _find_comparison(word, labels)
    bare = _strip_punctuation(word).casefold()
    return next((label for label in labels if label.casefold() == bare), None)


def _find_comparison(text: str, labels: tuple[str, ...]) -> str | None:
    """A label such as A>>B in any of its spellings, bare or in Arena-Hard's [[…]].

    Text may stand around [[…]]; two different verdicts in it are none.
    """
    words = re.findall(r"\[\[([^\[\]]*)\]\]", text) or [_strip_punctuation(text).strip("[]")]
    spelt = {re.sub(r"\s", "", word).upper().translate(SIGNS) for word in words}
    found = {COMPARISONS.get(word, word) for word in spelt}
    label = found.pop() if len(found) == 1 else None
    return label if label in labels else None


def _strip_punctuation(word: str) -> str:
    return word.strip(" \t\r\n.*`\"'")


def _sum_by_label(response: Response, labels: tuple[str, ...]) -> dict[str, float]:
    """The first token's probabilities, over the labels alone.

    A label may take several tokens ("T", "IE"): its first one counts for it. Labels that begin
    alike (A>B, A=B) have none.
    """
    if len({label[0].casefold() for label in labels}) < len(labels):
        return {}
    sums = dict.fromkeys(labels, 0.0)
    for token, probability in (response.first_token or {}).items():
        start = _strip_punctuation(token).casefold()
        begun = [label for label in labels if start and label.casefold().startswith(start)]
        if len(begun) == 1:
            sums[begun[0]] += probability
    total = sum(sums.values())
    if total > MIN_LABEL_PROBABILITY:
        return {label: probability / total for label, probability in sums.items()}
    return {}


def _parse_json(text: str) -> tuple[str, str]:
    """The `verdict` of one JSON object, fenced as code or not; and a fault, if there is one."""
    inside = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
    try:
        value = json.loads(inside[1] if inside else text, strict=False)
    except ValueError:
        return "", f"the judge's reply is not JSON: {text[:EXCERPT]!r}"
    if not isinstance(value, dict) or not isinstance(value.get("verdict"), str | int):
        return "", f'the judge\'s JSON has no "verdict" of the labels: {text[:EXCERPT]!r}'
    return str(value["verdict"]), ""
