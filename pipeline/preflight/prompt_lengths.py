"""A model's own words without transformers and torch: its chat template and its tokenizer, in milliseconds.

For counting alone: what a template that cannot be rendered here puts around a prompt is not counted, and said by
`sample` in its own words.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, str]


class PromptTokenizer:
    """What `sampling.admission` asks of a text. `template` is a file other than the tokenizer's own."""

    def __init__(self, tokenizer: Path, template: Path | None, context: int | None):
        from tokenizers import Tokenizer

        self.context = context
        self._pieces = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self._pieces.no_truncation()
        self._pieces.no_padding()
        told = _read(tokenizer / "tokenizer_config.json")
        self._special = _read_special_tokens(told)
        self._template = _compile_template(
            template.read_text() if template else _read_template(tokenizer, told)
        )

    @property
    def bos(self) -> int | None:
        token: int | None = self._pieces.token_to_id(self._special.get("bos_token", ""))
        return token

    def spell(self, token: int) -> str:
        return str(self._pieces.id_to_token(token))

    def encode(self, messages: list[Message], kwargs: dict[str, Any]) -> list[int]:
        ids: list[int] = self._pieces.encode(
            self._render(messages, kwargs), add_special_tokens=False
        ).ids
        return ids

    def _render(self, messages: list[Message], kwargs: dict[str, Any]) -> str:
        last_turn = messages[-1]["content"].strip()
        if self._template is None:
            return last_turn
        known = {"tools": None, "documents": None, **self._special, **kwargs}
        try:
            return str(
                self._template.render(messages=messages, add_generation_prompt=True, **known)
            )
        except Exception:  # it is the checkpoint's own code, and may raise whatever it likes
            return last_turn


class GenerationBlock(Extension):
    """`{% generation %}` marks what a model says itself; here it is text as any other."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _read_template(tokenizer: Path, told: dict[str, Any]) -> str | None:
    """A file beside the tokenizer; in older checkpoints a text of its config, or several by name."""
    file = tokenizer / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    known = told.get("chat_template")
    if isinstance(known, list):
        known = {one["name"]: one["template"] for one in known}.get("default")
    return known


def _compile_template(template: str | None) -> Any:
    """As transformers compiles it; None where there is none, or one that is no template here."""
    if template is None:
        return None
    known = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    known.filters["tojson"] = _to_json
    known.globals |= {
        "raise_exception": _raise_template_error,
        "strftime_now": datetime.now().strftime,
    }
    try:
        return known.from_string(template)
    except TemplateError:
        return None


def _read_special_tokens(told: dict[str, Any]) -> dict[str, str]:
    named = {name: value for name, value in told.items() if name.endswith("_token")}
    written = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in named.items()
    }
    return {name: value for name, value in written.items() if isinstance(value, str)}


def _to_json(value: Any, **how: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **how})


def _raise_template_error(message: str) -> NoReturn:
    raise TemplateError(message)
