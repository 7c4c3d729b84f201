"""A recipe under construction, and how it is written: knobs with their origin, then the rest."""

import json
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

WIDTH = 100
# Texts that YAML reads as texts without quotes.
PLAIN = re.compile(r"[A-Za-z./~][\w./-]*")
# The blocks of a recipe, in the order of a run.
BLOCKS = ("seed", "dtype", "limits", "sft", "prompts", "offline", "pair", "train", "tracker")
YAML_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "~", ".inf", ".nan"}


@dataclass
class Recipe:
    head: list[str] = field(default_factory=list)  # sentences before everything
    # A group of conf/ → one of its files, and a comment.
    choices: dict[str, tuple[str, str]] = field(default_factory=dict)
    knobs: dict[str, tuple[Any, str]] = field(default_factory=dict)  # path → value and comment
    lost: list[tuple[str, str, str]] = field(default_factory=list)  # key, value, what it would do
    done: list[tuple[str, str, str]] = field(default_factory=list)  # key, value, what Strop does
    unknown: list[tuple[str, str, str]] = field(default_factory=list)  # key, value, close names
    unset: list[str] = field(default_factory=list)  # keys that were empty or off

    def choose(self, group: str, file: str, comment: str = "") -> None:
        self.choices[group] = (file, comment)

    def mentions(self, key: str) -> bool:
        """Whether a knob or a choice has this key as its name or in its comment."""
        comments = [comment for _, comment in (*self.knobs.values(), *self.choices.values())]
        names = {path.rpartition(".")[2] for path in self.knobs}
        words = re.findall(r"\w+", " ".join([*comments, *self.head]))
        return key in names or key in words

    def set(self, path: str, value: Any, comment: str = "") -> None:
        name = path.rpartition(".")[2]
        self.knobs[path] = (value, "" if comment == name else comment)

    def lose(self, key: str, value: str, effect: str) -> None:
        self.lost.append((key, value, effect))

    def note(self, key: str, value: str, reason: str) -> None:
        self.done.append((key, value, reason))

    def render(self) -> str:
        defaults = []
        for group, (file, comment) in self.choices.items():
            line = f"  - override /{group}: {file}"
            defaults.append(f"{line}  # {comment}" if comment else line)
        lines = ["# @package _global_"]
        for sentence in self.head:
            lines += comment_lines(sentence)
        lines += ["defaults:", *defaults, "  - _self_", "", *_render_knobs(self.knobs)]
        lines += self._render_account()
        return "\n".join(lines) + "\n"

    def _render_account(self) -> list[str]:
        lines = []
        for title, rows in (
            ("Not carried over, with what it would have done:", self.lost),
            ("Strop does this in its own way:", self.done),
            ("Unknown to strop convert, and not carried over:", self.unknown),
        ):
            lines += ["", f"# {title}"] if rows else []
            for key, value, reason in rows:
                lines += comment_lines(f"{key}: {value}. {reason}" if reason else f"{key}: {value}")
        if self.unset:
            lines += ["", *comment_lines(f"Empty or off, so nothing is lost: {_join(self.unset)}")]
        return lines


def _join(names: list[str]) -> str:
    return ", ".join(sorted(names))


def comment_lines(sentence: str, width: int = WIDTH) -> list[str]:
    """Comment lines; those after the first are indented."""
    return textwrap.wrap(
        sentence,
        width,
        initial_indent="# ",
        subsequent_indent="#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _render_knobs(knobs: dict[str, tuple[Any, str]]) -> list[str]:
    tree: dict[str, Any] = {}
    for path, leaf in sorted(knobs.items(), key=lambda knob: BLOCKS.index(knob[0].split(".")[0])):
        *blocks, name = path.split(".")
        place = tree
        for block in blocks:
            place = place.setdefault(block, {})
        place[name] = leaf
    return _render_block(tree, "")


def _render_block(tree: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, item in tree.items():
        if isinstance(item, dict):
            lines += [f"{indent}{name}:", *_render_block(item, f"{indent}  ")]
            continue
        value, comment = item
        line = f"{indent}{name}: {format_value(value)}"
        if comment and len(line) + len(comment) + 4 > WIDTH:
            parts = comment_lines(comment, WIDTH - len(indent))
            lines += [f"{indent}{part}" for part in parts]
            comment = ""
        lines.append(f"{line}  # {comment}" if comment else line)
    return lines


def format_value(value: Any) -> str:
    """As conf/ writes it: 5e-7, and no text that Hydra would take for an interpolation."""
    if isinstance(value, float):
        digits = re.sub(r"e([+-])0*", r"e\1", f"{value:.10g}").replace("e+", "e")
        return digits if re.search(r"[.e]", digits) else f"{digits}.0"
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, dict):
        pairs = (f"{format_value(key)}: {format_value(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, str):
        text = value.replace("${", "\\${")
        is_plain = PLAIN.fullmatch(text) and text.lower() not in YAML_WORDS
        return text if is_plain else json.dumps(text, ensure_ascii=not text.isprintable())
    return json.dumps(value, default=str)
