"""`make docs`: writes docs/configuration.md, every knob of conf/ with its default and comment."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
PAGE = Path(__file__).with_suffix(".md")
# The order of a run; groups that are mounted into others follow.
STAGES = (
    "prompts base sft reward offline sample revise score steps pair reference train best_of_n gate"
)
EVALUATION = "evaluate benchmark duel tracker"
HEAD = """# Configuration

Every knob, its default and what it does. This page is made from the comments in `conf/` by
`make docs`: change them there. `group=name` chooses a file (`train=ipo`), `group.key=value` changes
a value (`train.beta=0.05`), and `+group@place=name` adds a file where a block takes any number of
them (`+scorer@score.scorers.short=length`). `strop plan` shows what a run would do with them.
"""
KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<value>.*?)(?:\s+#\s+(?P<comment>.*))?$")


@dataclass
class Knob:
    path: str
    value: str
    meaning: str


def main() -> None:
    PAGE.write_text(render_page())
    print(PAGE)


def render_page() -> str:
    parts = [HEAD, *render_file(CONF / "config.yaml", "## At the top: `conf/config.yaml`")]
    first = [*STAGES.split(), *EVALUATION.split()]
    groups = sorted(
        path.name for path in CONF.iterdir() if path.is_dir() and path.name != "recipes"
    )
    for group in [*first, *(name for name in groups if name not in first)]:
        parts.append(f"## `{group}`\n")
        for file in sorted((CONF / group).glob("*.yaml")):
            parts += render_file(file, f"### `{group}={file.stem}`")
    return "\n".join(parts)


def render_file(file: Path, title: str) -> Iterator[str]:
    lead, knobs = read_knobs(file.read_text())
    yield f"{title}\n"
    if lead:
        yield f"{lead}\n"
    if knobs:
        yield "| knob | default | meaning |\n|---|---|---|"
        for knob in knobs:
            value = f"`{escape(knob.value)}`" if knob.value else ""
            yield f"| `{knob.path}` | {value} | {escape(knob.meaning)} |"
        yield ""


def read_knobs(text: str) -> tuple[str, list[Knob]]:
    """The comment at the top, and each knob; a block's comment is shown at the block's own name."""
    lines = text.splitlines()
    lead = [line for line in lines[: first_key(lines)] if re.match("#(?! @package)", line)]
    comments: list[str] = []
    knobs: list[Knob] = []
    parents: list[tuple[int, str]] = []
    for line in lines[first_key(lines) :]:
        if line.strip().startswith("#"):
            comments.append(line.strip().lstrip("# "))
            continue
        match = KEY.match(line)
        if match:
            indent = len(match["indent"])
            parents = [(at, name) for at, name in parents if at < indent]
            path = ".".join([*(name for _, name in parents), match["key"]])
            parents.append((indent, match["key"]))
            meaning = " ".join([*comments, match["comment"] or ""]).strip()
            value = match["value"].strip()
            if not path.startswith(("defaults", "hydra", "kind")) and (value or meaning):
                knobs.append(Knob(path, value, meaning))
        comments = []
    return " ".join(line.lstrip("# ") for line in lead), knobs


def first_key(lines: list[str]) -> int:
    return next((at for at, line in enumerate(lines) if line and line[0] != "#"), len(lines))


def escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
