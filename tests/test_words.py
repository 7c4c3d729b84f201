"""The words of the house: names that say what they do, sentences without the old dialect."""

import ast
import importlib.util
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.house import HOUSE

SOURCES = sorted((HOUSE / "pipeline").rglob("*.py"))
PAGES = sorted(
    path
    for place in ("README.md", "CONTRIBUTING.md", "docs", "conf", "recipes")
    for path in ((HOUSE / place).rglob("*") if (HOUSE / place).is_dir() else [HOUSE / place])
    if (path.suffix == ".md" and "conf" not in path.parts) or path.suffix == ".yaml"
)
PAGES += sorted((HOUSE / "pipeline").rglob("*.html"))
PARTICIPLES = """
told said drawn found made kept left lost held given taken written shown known seen spent paid sent
built begun fought heard grown spoken spelled gone come done met bound bought brought chosen driven
fallen felt forgotten hidden laid led meant sold sought taught thought"""
PREPOSITIONS = """
of on in at by for from to with without beside between against over under within inside outside
through after before behind apart again alone alike away here there near into since until per via
like as about above below across along among around"""
PRONOUNS = """
it its he they them one ones other others each both some any all none nothing something own same
such this that these those which who what whose when where why how most least more less enough whole
first last only once"""
BARE = set(f"{PARTICIPLES} {PREPOSITIONS} {PRONOUNS}".split())
NOUNS = {"seed", "feed", "need", "speed", "embed", "string", "ranking", "sampling", "training"}
NOUNS |= {"warning", "setting", "ending", "meaning", "pairing", "padding", "spelling"}
NOUNS |= {"rating", "reasoning", "mapping", "encoding", "heading", "spending"}
DIALECT = re.compile(
    r"\b(mend(s|ed|ing)?|nobody|lies|stands|beside|told|said|goes on|of its own)\b"
    r"|(?<!there )\bis no\b(?! longer)"
    # Words that had another name before: see config/renamed.py.
    r"|\b(exams?|refits?|usual_rate|thumbs_at|fall_budget|warn_fall|hollow|crew)\b",
    re.IGNORECASE,
)
# What a model reads or a seed chooses from: its bytes stay. And the table of old names itself.
DATA = {
    "pipeline/config/renamed.py",
    "pipeline/data/synthetic.py",
    "pipeline/data/synthetic_topics.py",
    "pipeline/data/instructions.py",
    "pipeline/data/instruction_phrases.py",
    "pipeline/data/instruction_tasks.py",
    "pipeline/data/instruction_topics.py",
}
PROBE = "and nobody minds"  # of scorers/reward_model.PROBES
SEED_WORD = '"exam"'  # config.sample.EVAL_PURPOSE, of which seeds are made


def is_bare(name: str) -> bool:
    """Whether a name is a participle, a pronoun or a preposition alone, which says not what."""
    word = name.strip("_").lower()
    if "_" in word or name.startswith("__") or word in NOUNS:
        return False
    return word in BARE or word.endswith(("ed", "ing"))


def nodes_of(path: Path, *kinds: type) -> Iterator[ast.AST]:
    yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))


def test_no_function_has_a_bare_participle_pronoun_or_preposition_for_a_name():
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    names = [
        f"{path.relative_to(HOUSE)}:{node.lineno}: {node.name}"
        for path in SOURCES
        for node in nodes_of(path, *kinds)
        if is_bare(node.name)
    ]
    assert names == []


def test_no_class_has_a_bare_participle_pronoun_or_preposition_for_a_name():
    one_word = re.compile(r"_?[A-Z][a-z]+$")
    names = [
        f"{path.relative_to(HOUSE)}:{node.lineno}: {node.name}"
        for path in SOURCES
        for node in nodes_of(path, ast.ClassDef)
        if one_word.match(node.name) and is_bare(node.name)
    ]
    assert names == []


def test_each_name_of_a_class_is_defined_once():
    classes = (node.name for path in SOURCES for node in nodes_of(path, ast.ClassDef))
    assert [name for name, count in Counter(classes).items() if count > 1] == []


def sentences_of(path: Path) -> Iterator[tuple[int, str]]:
    """What a person reads in a file: comments, docstrings, texts with a space, lines of a page."""
    text = path.read_text()
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                yield token.start[0], token.string
    for number, line in enumerate(text.splitlines(), 1) if path.suffix != ".py" else ():
        yield number, line.partition("#")[2] if path.suffix == ".yaml" else line


@pytest.mark.parametrize(
    "path", [*SOURCES, *PAGES], ids=lambda path: path.relative_to(HOUSE).as_posix()
)
def test_no_sentence_is_in_the_old_dialect(path):
    if path.relative_to(HOUSE).as_posix() in DATA:
        return
    found = [
        f"{number}: …{sentence[max(0, match.start() - 40) : match.end() + 30]}…"
        for number, sentence in sentences_of(path)
        for match in DIALECT.finditer(sentence.replace(PROBE, "").replace(SEED_WORD, ""))
    ]
    assert found == []


def test_the_page_of_all_knobs_is_made_from_conf():
    spec = importlib.util.spec_from_file_location("page", HOUSE / "docs" / "configuration.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["page"] = module
    spec.loader.exec_module(module)
    page = (HOUSE / "docs" / "configuration.md").read_text()
    assert page == module.render_page(), "conf/ has changed: type make docs"
    assert page.count("\n| `") > 500
