"""What the written pages show in backticks and in indented blocks exists, and works when typed."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.__main__ import COMMANDS
from pipeline.artifacts import MADE_BY
from pipeline.errors import UserError
from tests.support.house import HOUSE, composed
from tests.test_remedies import GIVEN, KEY, Remedy, found, works

PAGES = [HOUSE / "README.md", HOUSE / "CONTRIBUTING.md", *sorted((HOUSE / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page.stem != "configuration"]  # generated from conf/
FILES = [path for path in HOUSE.rglob("*") if not {".git", ".venv", "site"} & {*path.parts}]
READ = [path for path in FILES if path.suffix in {".py", ".yaml", ".toml"}]
SOURCES = {str(path.relative_to(HOUSE).with_suffix("")): path.read_text() for path in READ}
FOREIGN = {"lm_eval.tasks", "trainer.log", "_factory.build"}  # names of other projects
PRODUCTS = re.compile(r"(runs|store|logs|out)/|.*[<*…]|\W*(\.md)?$")  # what a run makes
ENDING = r"(?:\.(?:py|md|yaml|json|jsonl|toml|parquet|html|js|csv|sqlite)|/)$"
OPTIONS = {word for one in COMMANDS.values() for word in re.findall(r"(\w+)=", one.usage)}
# What follows is a name that the user gives.
USER_NAME = re.compile(r"\b(scorers|others|duels|chats|evaluation)\.\w+")


class Code(NamedTuple):
    place: str  # file:line
    text: str
    is_block: bool

    def list_overrides(self) -> list[Remedy]:
        pairs = [] if re.search(r"\w\(", self.text) else KEY.findall(self.text)
        pairs = [(USER_NAME.sub(r"\1.NAME", key), value) for key, value in pairs]
        return [Remedy(self.place, None, *pair) for pair in pairs if pair[0] not in OPTIONS]


def read_code(page: Path) -> Iterator[Code]:
    (name, text, prose) = (page.relative_to(HOUSE).as_posix(), page.read_text(), "")
    for fence in re.findall(r"^```\w+\n.*?^```$", text, re.M | re.S):
        text = text.replace(fence, "\n" * fence.count("\n"))
    for number, line in enumerate(text.splitlines(), start=1):
        is_block = line.startswith("    ")
        if is_block:
            yield Code(f"{name}:{number}", line.strip(), True)
        prose += "\n" if is_block else f"{line}\n"
    for span in re.finditer(r"`([^`]+)`", prose):
        place = f"{name}:{prose[: span.start()].count(chr(10)) + 1}"
        yield Code(place, " ".join(span[1].split()), False)


CODE = [code for page in PAGES for code in read_code(page)]


def list_lines() -> Iterator[tuple[str, list[str]]]:
    """The overrides of a block's lines and of longer spans; a leading … repeats the line before."""
    before: list[str] = []
    for code in CODE:
        if len(code.list_overrides()) > (not code.is_block):
            words = shlex.split(code.text.split("   ")[0])  # three spaces begin an explanation
            typed = ["-m"] if "sweep" in words else []
            typed += [word for word in words if KEY.match(word)]
            before = [*(before if words[0] == "…" else []), *typed]
            yield (code.place, [word for word in before if is_for_config(word)])


def is_for_config(word: str) -> bool:
    """Arguments of a command are not, nor is a recipe that the reader has yet to write."""
    (key, _, value) = word.partition("=")
    if key == "recipes":
        return (HOUSE / "recipes" / f"{value}.yaml").exists()
    return key not in {*OPTIONS, "scale"}


def complete(words: list[str]) -> list[str]:
    """With a model, prompts and a scorer, where neither the words nor their recipe choose them."""
    if any(word.startswith("recipes=") for word in words):
        return words
    chosen = {"prompts.path": "prompts=", "sft.model": "sft=", "score": "score="}
    missing = [
        word
        for word in GIVEN
        if not any(other.startswith(chosen[word.partition("=")[0]]) for other in words)
    ]
    return [*missing, *words]


@pytest.mark.long
@pytest.mark.parametrize(("place", "words"), [*list_lines()])
def test_every_line_of_overrides_composes(place, words):
    assert composed(*complete(words)), place


def composes(word: str) -> bool:
    try:
        return bool(composed(*complete([word])))
    except UserError:
        return False


@pytest.mark.long
def test_every_other_override_works():
    overrides = [one for code in CODE for one in code.list_overrides()]
    overrides = [one for one in overrides if one.place not in dict(list_lines())]
    assert len(overrides) > 30
    broken = [one for one in overrides if not (works(one) or composes(f"{one.key}={one.value}"))]
    assert [f"{one.place}: {one.key}={one.value}" for one in broken] == []


def test_every_command_and_target_exists():
    makefile = (HOUSE / "Makefile").read_text()
    targets = {*re.findall(r"^([a-z_-]+):", makefile, re.M), *MADE_BY}
    for place, text, _ in CODE:
        assert {*re.findall(r"\bstrop ([a-z]+)", text)} <= {*COMMANDS}, place
        assert {*re.findall(r"\bmake ([a-z_-]+)", text)} <= targets, place


def test_every_file_and_link_exists():
    (paths, sources) = (
        [f"/{path.relative_to(HOUSE)}" for path in FILES],
        "".join(SOURCES.values()),
    )
    for place, text, is_block in CODE:
        for word in text.split() if is_block else [text]:
            if re.fullmatch(rf"[\w./-]*{ENDING}", word) and not PRODUCTS.match(word):
                is_file = any(path.endswith(f"/{word.strip('/')}") for path in paths)
                assert is_file or word in sources, f"{place}: {word}"
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s#]+)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def is_name(text: str) -> bool:
    """`module.name`, `folder/module.name`, `Class.name` or a knob, in full or within a block."""
    (owner, _, name) = text.replace(".", "/").rpartition("/")
    for path, source in SOURCES.items():
        owns = f"/{path.removesuffix('/__init__')}".endswith(f"/{owner}")
        if (owns or f"class {owner}" in source) and re.search(rf"\b{name}\b", source):
            return True
    keys = (USER_NAME.sub(r"\1.NAME", text), USER_NAME.sub(r"\1.NAME", f"<any>.{text}"))
    return text in FOREIGN or any(any(found(Remedy("", None, key, ""))) for key in keys)


@pytest.mark.long
def test_every_name_of_the_code_exists():
    words = {word for source in SOURCES.values() for word in re.findall(r"\w+", source)}
    for place, text, _ in CODE:
        name = text.partition("(")[0]
        if re.fullmatch(r"[\w/]+(\.\w+)+", name) and not re.search(ENDING, name):
            assert is_name(name), f"{place}: {name}"
        elif place.startswith("CONTRIBUTING") and re.fullmatch(r"\w*[A-Z_]\w*", name):
            assert name in words or name == "STAGES", f"{place}: {name}"


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None,
    reason="mkdocs is not installed: pip install .[docs]",
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "howto" / "math" / "index.html").exists()


def test_every_page_is_in_the_navigation():
    site = (HOUSE / "mkdocs.yml").read_text()
    named = {*re.findall(r": ([\w/]+\.md)$", site, re.M)}
    docs = HOUSE / "docs"
    assert named == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
