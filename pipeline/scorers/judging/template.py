"""A question in words, from a file in conf/score/ or a person's own: an instruction, a line of `---`, the request.

Every text that is judged stands between marks which hold a nonce: a hash of these very texts, so that no candidate can
know it, and the same question is always asked in the same words.
"""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from pipeline.errors import UserError
from pipeline.hashing import hash_json
from pipeline.scorers.judging import Question

SPLIT = "\n---\n"
NEEDS = {"first", "second"}  # the words that a template has to use
RUBRIC_NEEDS = {"answer", "criterion"}
REPLY = {
    "word": "Reply with {labels} and nothing else.",
    "json": 'Reply with one JSON object and nothing else: {{"reason": "one or two sentences", "verdict": …}}, '
    "where the verdict is {labels}.",
}


class Wording:
    """One template file. `needs` are the words it has to use, such as `first` and `second`."""

    def __init__(self, path: str, needs: set[str], form: str, seed: int):
        self.path = Path(path).expanduser()
        self.form, self.seed = form, seed
        self.text = self._read({"nonce", "reply", "question", *needs})

    def _read(self, needs: set[str]) -> str:
        try:
            text = self.path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self.path}: this template cannot be read ({error}). Give a text file."
            ) from error
        template = Template(text)
        if not template.is_valid():
            raise UserError(
                f"{self.path}: a $ in this template begins no word. Write $$ for the sign itself."
            )
        used = set(template.get_identifiers())
        known = needs | {"low", "high"} if "criterion" in needs else needs
        if lacking := sorted(needs - used):
            raise UserError(
                f"{self.path}: this template does not use ${', $'.join(lacking)}. A judge needs them all."
            )
        if unknown := sorted(used - known):
            have = ", ".join(f"${word}" for word in sorted(known))
            raise UserError(
                f"{self.path}: ${', $'.join(unknown)} means nothing in this template. Known: {have}"
            )
        return text

    def question(
        self, judged: Mapping[str, str], labels: tuple[str, ...], order: str = "", **words: Any
    ) -> Question:
        """`judged` are the texts of others, each under the word by which the template names it."""
        texts = hash_json([self.seed, sorted(judged.values())])
        nonce = texts[:16]
        fenced = {word: fence(nonce, TITLES[word], text) for word, text in judged.items()}
        told = {
            **fenced,
            "nonce": nonce,
            "reply": REPLY[self.form].format(labels=_listed(labels)),
            **words,
        }
        messages = tuple(
            {"role": role, "content": Template(part).substitute(told).strip()}
            for role, part in self._messages()
        )
        return Question(messages, labels, texts, order)

    def _messages(self) -> list[tuple[str, str]]:
        """Split before anything is filled in: a `---` in what is judged splits nothing."""
        head, split, tail = self.text.partition(SPLIT)
        return [("system", head), ("user", tail)] if split else [("user", head)]


TITLES = {
    "question": "request",
    "answer": "answer",
    "first": "first answer (A)",
    "second": "second answer (B)",
}


def fence(nonce: str, title: str, text: str) -> str:
    return f"[{nonce} {title}]\n{text}\n[{nonce} end of the {title}]"


def conversation(messages: list[dict[str, str]]) -> str:
    """A prompt as a judge reads it: one message plain, several each under its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages)


def _listed(labels: tuple[str, ...]) -> str:
    return f"{', '.join(labels[:-1])} or {labels[-1]}"
