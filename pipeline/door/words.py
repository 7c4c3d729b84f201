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


class Words:
    """What `sampling.admission` asks of a text. `template` is a file other than the tokenizer's own."""

    def __init__(self, tokenizer: Path, template: Path | None, context: int | None):
        from tokenizers import Tokenizer

        self.context = context
        self._pieces = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self._pieces.no_truncation()
        self._pieces.no_padding()
        self._special = _special_tokens(tokenizer / "tokenizer_config.json")
        self._template = _compiled(template or tokenizer / "chat_template.jinja")

    def encode(self, messages: list[Message], kwargs: dict[str, Any]) -> list[int]:
        ids: list[int] = self._pieces.encode(self._shown(messages, kwargs), add_special_tokens=False).ids
        return ids

    def _shown(self, messages: list[Message], kwargs: dict[str, Any]) -> str:
        last_turn = messages[-1]["content"].strip()
        if self._template is None:
            return last_turn
        known = {"tools": None, "documents": None, **self._special, **kwargs}
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=True, **known))
        except Exception:  # it is the checkpoint's own code, and may raise whatever it likes
            return last_turn


class Generation(Extension):
    """`{% generation %}` marks what a model says itself; here it is text as any other."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compiled(file: Path) -> Any:
    """As transformers compiles it; None where there is none, or one that is no template here."""
    if not file.is_file():
        return None
    known = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    known.filters["tojson"] = _json
    known.globals |= {"raise_exception": _raise, "strftime_now": datetime.now().strftime}
    try:
        return known.from_string(file.read_text())
    except TemplateError:
        return None


def _special_tokens(file: Path) -> dict[str, str]:
    known = json.loads(file.read_text()) if file.is_file() else {}
    named = {name: value for name, value in known.items() if name.endswith("_token")}
    written = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: value for name, value in written.items() if isinstance(value, str)}


def _json(value: Any, **how: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **how})


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
