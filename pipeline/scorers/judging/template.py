"""Builds requests from a template: an instruction, a line `---`, the request.

A template is shipped in conf/score/ or the user's own. Every judged text is enclosed in delimiters
that hold a nonce. The nonce is a hash of these very texts: no candidate can know it, and the same
request always has the same words.
"""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from pipeline.errors import UserError
from pipeline.hashing import hash_json
from pipeline.scorers.judging import JudgeRequest

SPLIT = "\n---\n"
PAIRWISE_FIELDS = {"first", "second"}  # that a template has to use
RUBRIC_FIELDS = {"answer", "criterion"}
FIRST_WRONG_FIELDS = {"answer"}
REFERENCE = "reference"  # that a template for prompts with a reference has to use as well
# What a template may use besides: $labels says what each label of a comparison means.
OPTIONAL_FIELDS = {"first": {"labels"}, "criterion": {"low", "high"}}
REPLY = {
    "word": "Reply with {labels} and nothing else.",
    "json": (
        "Reply with one JSON object and nothing else:"
        ' {{"reason": "one or two sentences", "verdict": …}}, where the verdict is {labels}.'
    ),
}


class JudgeTemplate:
    """One template file. `fields` are those it has to use, such as `first` and `second`."""

    def __init__(self, path: str, fields: set[str], form: str, seed: int):
        self.path = Path(path).expanduser()
        self.form, self.seed = form, seed
        self.text = self._read({"nonce", "reply", "question", *fields})

    def _read(self, needed: set[str]) -> str:
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
        known = needed.union(*(OPTIONAL_FIELDS.get(word, ()) for word in needed))
        if missing := sorted(needed - used):
            raise UserError(
                f"{self.path}: this template does not use ${', $'.join(missing)}."
                " A judge needs them all: add them to the file."
            )
        if unknown := sorted(used - known):
            have = ", ".join(f"${word}" for word in sorted(known))
            raise UserError(
                f"{self.path}: ${', $'.join(unknown)} means nothing in this template. Known: {have}"
            )
        return text

    def build_request(
        self, judged: Mapping[str, str], labels: tuple[str, ...], order: str = "", /, **fields: Any
    ) -> JudgeRequest:
        """`judged` are the untrusted texts, each by the field that names it in the template."""
        texts_hash = hash_json([self.seed, sorted(judged.values())])
        nonce = texts_hash[:16]
        values = {
            **{word: delimit(nonce, TITLES[word], text) for word, text in judged.items()},
            "nonce": nonce,
            "reply": REPLY[self.form].format(labels=_join_labels(labels)),
            **fields,
        }
        messages = tuple(
            {"role": role, "content": Template(part).substitute(values).strip()}
            for role, part in self._split_messages()
        )
        return JudgeRequest(messages, labels, texts_hash, order)

    def _split_messages(self) -> list[tuple[str, str]]:
        """Split before any field is filled in, so that a `---` in a judged text splits nothing."""
        head, split, tail = self.text.partition(SPLIT)
        return [("system", head), ("user", tail)] if split else [("user", head)]


TITLES = {
    "question": "request",
    "answer": "answer",
    "first": "first answer (A)",
    "second": "second answer (B)",
    REFERENCE: "reference answer",
}


def delimit(nonce: str, title: str, text: str) -> str:
    return f"[{nonce} {title}]\n{text}\n[{nonce} end of the {title}]"


def format_conversation(messages: list[dict[str, str]]) -> str:
    """A prompt as a judge reads it: one message plain, several each under its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages)


def _join_labels(labels: tuple[str, ...]) -> str:
    return f"{', '.join(labels[:-1])} or {labels[-1]}"
