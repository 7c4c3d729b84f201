"""A model's chat template and tokenizer without transformers and torch, opened in milliseconds.

For counting tokens only. Where a template cannot be rendered here, what it puts around a prompt is
not counted, and `sample` reports the fault.
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
    """What `sampling.prompt_selection` needs. `template`: a file in place of the model's own."""

    def __init__(self, tokenizer: Path, template: Path | None, context: int | None):
        from tokenizers import Tokenizer

        self.context = context
        self._pieces = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self._pieces.no_truncation()
        self._pieces.no_padding()
        config = _read(tokenizer / "tokenizer_config.json")
        self._special = _read_special_tokens(config)
        self._template = _compile_template(
            template.read_text() if template else _read_template(tokenizer, config)
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
        except Exception:  # the checkpoint's template may raise anything
            return last_turn


class GenerationBlock(Extension):
    """`{% generation %}` encloses the model's turns; here they are text like any other."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _read_template(tokenizer: Path, config: dict[str, Any]) -> str | None:
    """From the tokenizer's folder; older checkpoints have it in the config, some have several."""
    file = tokenizer / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {each["name"]: each["template"] for each in template}.get("default")
    return template


def _compile_template(template: str | None) -> Any:
    """Compile as transformers does; None without a template or if it does not compile."""
    if template is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_template_error,
        "strftime_now": datetime.now().strftime,
    }
    try:
        return environment.from_string(template)
    except TemplateError:
        return None


def _read_special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {name: value for name, value in config.items() if name.endswith("_token")}
    for name, value in tokens.items():
        tokens[name] = value.get("content") if isinstance(value, dict) else value
    return {name: value for name, value in tokens.items() if isinstance(value, str)}


def _to_json(value: Any, **how: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **how})


def _raise_template_error(message: str) -> NoReturn:
    raise TemplateError(message)
