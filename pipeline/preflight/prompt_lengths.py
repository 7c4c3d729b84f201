"""A model's chat template and tokenizer without transformers and torch, opened in milliseconds.

For counting tokens only. Where a template cannot be rendered here, what it puts around a prompt is
not counted, and `sample` reports the fault.
"""

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.errors import make_printable
from pipeline.models.chat_template import render_with_tools

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
        texts = (
            {"default": template.read_text()} if template else _read_templates(tokenizer, config)
        )
        self._template = _compile_template(texts.get("default"))
        self._tool_template = _compile_template(texts.get("tool_use")) or self._template

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
        if self._template is not None:
            with suppress(Exception):  # the checkpoint's template may raise anything
                return self._render_template(messages, kwargs)
        return messages[-1]["content"].strip()

    def find_tool_fault(self, messages: list[Message], kwargs: dict[str, Any]) -> str | None:
        """Why the template does not render a prompt with tools, if so."""
        if self._template is None:
            return None
        try:
            self._render_template(messages, kwargs)
        except Exception as error:
            return make_printable(str(error) or type(error).__name__)
        return None

    def _render_template(self, messages: list[Message], kwargs: dict[str, Any]) -> str:
        known = {"tools": None, "documents": None, **self._special, **kwargs}

        def render(turns: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
            template, given = self._template, known
            if tools:
                template, given = self._tool_template, {**known, "tools": tools}
            return str(template.render(messages=turns, add_generation_prompt=True, **given))

        return render_with_tools(messages, render)


class GenerationBlock(Extension):
    """`{% generation %}` encloses the model's turns; here they are text like any other."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _read_templates(tokenizer: Path, config: dict[str, Any]) -> dict[str, str]:
    """By name: from the tokenizer's folder; older checkpoints have them in the config."""
    file = tokenizer / "chat_template.jinja"
    if file.is_file():
        others = (tokenizer / "additional_chat_templates").glob("*.jinja")
        return {"default": file.read_text(), **{each.stem: each.read_text() for each in others}}
    template = config.get("chat_template")
    if isinstance(template, list):
        return {each["name"]: each["template"] for each in template}
    return {"default": template} if template else {}


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
