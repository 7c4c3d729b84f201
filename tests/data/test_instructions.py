"""Generated instructions: each can be followed and checked, held-out families stay out of training,
and a user's own prompts may not contradict themselves."""

import json
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import polars as pl
import pytest
from hypothesis import strategies as st

from pipeline.artifacts import Prompts
from pipeline.config import CONSTRAINT_FAMILIES, CheckRuntime, IfevalScorer, InstructionPrompts
from pipeline.data import instruction_conflicts as families
from pipeline.data.instruction_conflicts import find_contradiction, go_together
from pipeline.data.instruction_phrases import LANGUAGES, PHRASES
from pipeline.data.instructions import HELD_OUT, MIXED, TRAINED, generate_prompts
from pipeline.errors import UserError
from pipeline.hashing import hash_json
from pipeline.preflight.rows import check_sentence_data
from pipeline.scorers import Answer, ifeval
from pipeline.stages.prompts import run
from tests.support.house import composed

FROZEN = "141c236160102d0a"
IFEVAL = IfevalScorer(
    kind="ifeval", reading="strict", gold=False, runtime=CheckRuntime(workers="auto")
)
ALL = "prompts.excluded=[]"


def config(*words: str) -> InstructionPrompts:
    cfg = composed("sft.model=./m", "prompts=instructions", *words).prompts
    assert isinstance(cfg, InstructionPrompts)
    return cfg


def rows_of(*words: str) -> list[dict[str, Any]]:
    return list(generate_prompts(config(*words)))


def text(row: dict[str, Any]) -> str:
    return row["prompt"][0]["content"]


def named(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    columns = row["columns"]
    return dict(zip(columns["instruction_id_list"], columns["kwargs"], strict=True))


# ── an answer that follows everything ────────────────────────────────────────────────────────────

FILLER_TEXT = """
we think that this is the best way to do it and there is still a lot of time left for all of us so
come with me now because my old friend will be here soon and you know what happens when she waits
"""
FILLER = FILLER_TEXT.split()
FOREIGN = {
    "fr": "Nous pensons que cette histoire est vraiment belle et que chacun devrait la lire.",
    "de": "Wir glauben dass diese Geschichte wirklich schön ist und dass jeder sie lesen sollte.",
    "es": "Creemos que esta historia es realmente hermosa y que todo el mundo debería leerla hoy.",
    "it": "Crediamo che questa storia sia davvero bella e che tutti dovrebbero leggerla oggi.",
    "pl": "Uważamy że ta historia jest naprawdę piękna i że każdy powinien ją dzisiaj przeczytać.",
    "ru": "Мы думаем что эта история действительно прекрасна и что каждый должен её прочитать.",
}


def write_answer(asked: dict[str, dict[str, Any]]) -> str:
    """A text that follows all of these instructions, however dull."""
    get = asked.get
    if families.OPTIONS in asked:
        return "My answer is maybe."
    required = list(get(families.EXISTENCE, {}).get("keywords", []))
    often = get(families.FREQUENCY, {})
    if often.get("relation") == "at least":
        required += [often["keyword"]] * often["frequency"]
    if families.JSON in asked:
        return json.dumps({"words": " ".join(required)})
    parts = split_in_parts(asked)
    parts[-1] += "".join(f" {word}" for word in required)
    parts[-1] += " *so*" * get(families.HIGHLIGHTS, {}).get("num_highlights", 0)
    parts[-1] += " [so]" * get(families.PLACEHOLDERS, {}).get("num_placeholders", 0)
    letters = get(families.LETTERS, {})
    if letters.get("let_relation") == "at least":
        parts[-1] += " " + letters["letter"] * letters["let_frequency"]
    body = join_parts(asked, fill_up(asked, parts))
    if families.POSTSCRIPT in asked:
        body += f" {asked[families.POSTSCRIPT]['postscript_marker']} so"
    if families.TITLE in asked:
        body = f"<<so>>\n{body}"
    if families.ENDING in asked:
        body += f" {asked[families.ENDING]['end_phrase']}"
    if families.TWICE in asked:
        body = f"{body} ****** {body} {body}"
    if families.REPEAT in asked:
        body = f"{asked[families.REPEAT]['prompt_to_repeat']} {body}"
    body = body.lower() if families.LOWER in asked else body
    body = body.upper() if families.UPPER in asked else body
    return f'"{body}"' if families.QUOTED in asked else body


def choose_filler(asked: dict[str, dict[str, Any]]) -> list[str]:
    if families.LANGUAGE in asked:
        return FOREIGN[asked[families.LANGUAGE]["language"]].split()
    letter = asked.get(families.LETTERS, {}).get("letter", "#")
    return [word for word in FILLER if letter not in word]


def split_in_parts(asked: dict[str, dict[str, Any]]) -> list[str]:
    filler = choose_filler(asked)
    count = max(
        [1, asked.get(families.BULLETS, {}).get("num_bullets", 1)]
        + [
            asked.get(name, {}).get("num_paragraphs", 1)
            for name in (families.PARAGRAPHS, families.FIRST_WORD)
        ]
        + [asked.get(families.SECTIONS, {}).get("num_sections", 1)]
    )
    parts = [" ".join(filler[at * 3 : at * 3 + 3]) for at in range(count)]
    if first := asked.get(families.FIRST_WORD):
        parts[first["nth_paragraph"] - 1] = f"{first['first_word']} {parts[0]}"
    marker = asked.get(families.SECTIONS, {}).get("section_spliter")
    labels = [f"{marker} {number}" for number in range(1, count + 1)] if marker else []
    if families.BULLETS in asked:
        bullets = asked[families.BULLETS]["num_bullets"]
        return labels + [f"- {part}" for part in parts[:bullets]]
    return [" ".join(part) for part in zip(labels, parts, strict=True)] if labels else parts


def fill_up(asked: dict[str, dict[str, Any]], parts: list[str]) -> list[str]:
    """As many words as are asked for, and enough of them to tell the language."""
    words = asked.get(families.WORDS, {"relation": "less than", "num_words": 100})
    is_lower = words["relation"] == "at least"
    tells = {families.LANGUAGE, families.UPPER, families.LOWER}.intersection(asked)
    limit = words["num_words"] if is_lower else min(words["num_words"] - 1, 25 if tells else 0)
    filler = choose_filler(asked)
    have = len(re.findall(r"\w+", " ".join(parts)))
    more = [filler[at % len(filler)] for at in range(max(0, limit - have))]
    return [*parts[:-1], " ".join([parts[-1], *more])]


def join_parts(asked: dict[str, dict[str, Any]], parts: list[str]) -> str:
    if families.PARAGRAPHS in asked:
        return " *** ".join(parts)
    if families.FIRST_WORD in asked:
        return "\n\n".join(parts)
    return "\n".join(parts)


@pytest.fixture(scope="module")
def check():
    return ifeval.make_check(IFEVAL)


def follows(check, row: dict[str, Any], answer: str) -> bool:
    return check(Answer("s", "p", row["prompt"], answer, row["columns"]))["prompt_strict"] == 1


def test_every_prompt_can_be_followed(check):
    rows = rows_of("prompts.rows=1500", "prompts.held_out_share=1")
    failed = [
        (text(row), named(row), answer)
        for row in rows
        if not follows(check, row, answer := write_answer(named(row)))
    ]
    assert failed == []


# Answers that break a family, whatever it asks.
BROKEN = {
    families.EXISTENCE: "So.",
    families.FORBIDDEN: lambda given: f"So {given['forbidden_words'][0]} it is.",
    families.LANGUAGE: "This is plainly an answer in English, and in no other language.",
    families.PARAGRAPHS: "one *** two *** three *** four *** five *** six",
    families.FIRST_WORD: "Alas.",
    families.PLACEHOLDERS: "No placeholder.",
    families.POSTSCRIPT: "No note at the end.",
    families.BULLETS: "No list.",
    families.OPTIONS: "Yes.",
    families.HIGHLIGHTS: "Nothing stands out.",
    families.SECTIONS: "All in one.",
    families.JSON: "Not an object.",
    families.TITLE: "No title.",
    families.TWICE: "Once only.",
    families.REPEAT: "Here is my answer.",
    families.ENDING: "Not that ending",
    families.QUOTED: "No quotes.",
    families.UPPER: "Some capital letters.",
    families.LOWER: "Some Capital Letters.",
    families.NO_COMMA: "Well, no.",
}


def break_number(name: str, given: dict[str, Any]) -> str:
    is_lower = "at least" in given.values()
    if name == families.WORDS:
        return "So." if is_lower else "so " * 500
    key = "keyword" if name == families.FREQUENCY else "letter"
    return "%" if is_lower else f"{given[key]} " * 50


def test_a_wrong_answer_fails_in_each_family(check):
    seen = Counter()
    for row in rows_of("prompts.rows=2000", "prompts.constraints=[1]"):
        [(name, given)] = named(row).items()
        wrong = BROKEN.get(name) or break_number(name, given)
        answer = wrong(given) if callable(wrong) else wrong
        assert not follows(check, row, answer), (text(row), given)
        seen[name] += 1
    assert set(seen) == set(CONSTRAINT_FAMILIES) - ifeval.NEED_PUNKT
    assert min(seen.values()) > 10


def test_every_family_s_arguments_are_lm_eval_s():
    checkers = ifeval._load_checkers()
    assert set(checkers) == set(CONSTRAINT_FAMILIES)
    assert {name.split(" ")[0] for name in PHRASES} == set(CONSTRAINT_FAMILIES)
    for row in rows_of("prompts.rows=2000", ALL):
        for name, given in named(row).items():
            checker = checkers[name](name)
            checker.build_description(**given)
            assert set(given) == set(checker.get_instruction_args_keys())
            taken = checker.get_instruction_args() or {}
            for key, value in given.items():
                assert taken[key] == (sorted(value) if isinstance(value, list) else value)


def test_families_that_lm_eval_keeps_apart_never_meet():
    with ifeval.block_download():
        from lm_eval.tasks.ifeval import instructions_registry as registry
    conflicts = registry.conflict_make(registry.INSTRUCTION_CONFLICTS)
    for one in CONSTRAINT_FAMILIES:
        for other in CONSTRAINT_FAMILIES:
            assert go_together(one, other) == go_together(other, one)
            assert not (other in conflicts[one] and go_together(one, other)), (one, other)
    for row in rows_of("prompts.rows=2000", "prompts.constraints=[0,0,1]", ALL):
        names = list(named(row))
        assert len(names) == 3
        assert all(go_together(a, b) for a in names for b in names if a != b)
        assert find_contradiction(names, row["columns"]["kwargs"]) is None


# ── the rows ─────────────────────────────────────────────────────────────────────────────────────


def test_the_first_60_prompts_are_frozen():
    assert hash_json(rows_of()[:30] + rows_of()[-30:])[:16] == FROZEN


def test_a_longer_list_has_all_rows_of_a_shorter_one():
    short, long = rows_of("prompts.rows=1000"), rows_of("prompts.rows=2000")
    assert long[:1000] == short
    assert len({text(row) for row in long}) == 2000
    other = {text(row) for row in rows_of("prompts.rows=1000", "prompts.seed=1")}
    assert len(other & {text(row) for row in short}) < 10


def test_prompts_are_varied_and_read_like_sentences():
    rows = rows_of("prompts.rows=5000", ALL)
    assert len({row["columns"]["topic"] for row in rows}) > 800
    assert len({row["columns"]["task"] for row in rows}) == 16
    for row in rows:
        said = text(row)
        assert not re.search(r"[{}]|\(\||\|| {2}|\.\.|\?\.|,,| ,", said), said
        assert said.count("(") == said.count(")") and said[-1] in '.?!">' + "*", said


def test_numbers_follow_the_length_that_is_asked_for():
    def longest(words: int) -> int:
        rows = rows_of(f"prompts.max_words={words}", ALL)
        lengths = [named(row).get(families.WORDS, {}).get("num_words", 0) for row in rows]
        return max(lengths)

    assert longest(60) == 60 and longest(400) > 350
    parts = [named(row).get(families.FIRST_WORD, {}) for row in rows_of("prompts.max_words=900")]
    assert max(given.get("num_paragraphs", 0) for given in parts) == 8


def test_the_number_of_constraints_follows_its_shares():
    rows = rows_of("prompts.constraints=[0,1,1]", "prompts.rows=2000")
    counts = Counter(len(named(row)) for row in rows)
    assert set(counts) == {2, 3} and 0.6 < counts[3] / counts[2] < 1.4


# ── held-out families ────────────────────────────────────────────────────────────────────────────


def built(folder: Path, *words: str) -> dict[str, list[dict[str, Any]]]:
    out = folder / "out"
    out.mkdir()
    run(config(*words), out)
    parts = {name: Prompts(out / name).read() for name in ("train", "dev", "test")}
    return {name: [json.loads(text) for text in part["columns"]] for name, part in parts.items()}


@pytest.mark.parametrize("share", [0.4, 1])
def test_held_out_families_are_in_dev_and_test_alone(tmp_path, share):
    held_out = config().held_out
    parts = built(tmp_path, f"prompts.held_out_share={share}")
    for name, rows in parts.items():
        for row in rows:
            unseen = [family in held_out for family in row["instruction_id_list"]]
            expected = HELD_OUT if all(unseen) else MIXED if any(unseen) else TRAINED
            assert row["families"] == expected
        shares = Counter(row["families"] for row in rows)
        found = 1 - shares[TRAINED] / len(rows)
        assert found == 0 if name == "train" else abs(found - share) < 0.15, name
    assert (len(parts["dev"]), len(parts["test"])) == (200, 300)
    assert len(parts["train"]) > 2200, "the split wastes few prompts"


def test_without_held_out_families_all_parts_have_the_same_ones(tmp_path):
    parts = built(tmp_path, "prompts.held_out=[]", "prompts.rows=1000")
    assert {row["families"] for rows in parts.values() for row in rows} == {TRAINED}


def test_prompts_that_overlap_with_an_ifeval_file_are_dropped(tmp_path):
    file, out = tmp_path / "ifeval.jsonl", tmp_path / "out"
    copied = next(row for row in rows_of("prompts.rows=800") if len(text(row).split()) > 20)
    line = {"prompt": "Well. " + text(copied), "key": 1, **copied["columns"]}
    file.write_text(json.dumps(line) + "\n")
    out.mkdir()
    run(config("prompts.rows=800", f"prompts.evaluation={{ifeval: {file}}}"), out)
    dropped = pl.read_parquet(out / "dropped.parquet", glob=False)
    reasons = dropped.filter(pl.col("reason") == "overlap with ifeval")["detail"]
    assert any("ifeval " in detail for detail in reasons)
    kept = [Prompts(out / part).read()["prompt"].to_list() for part in ("train", "dev", "test")]
    assert not any(copied["prompt"] == prompt for part in kept for prompt in part)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────

FAULTS = {
    "prompts.held_out=[startend:quotes]": "Did you mean startend:quotation?",
    "prompts.excluded=[7]": "7 is none of IFEval's instructions",
    "prompts.held_out=[startend:quotation,startend:quotation]": "startend:quotation is in the list",
    "prompts.excluded=[startend:quotation]": "startend:quotation is in held_out and in excluded",
    "prompts.constraints=[0,0]": "no number of constraints has a share",
    "prompts.constraints=[1,1,1,1]": "prompts.constraints",
    "prompts.held_out_share=0": "Raise held_out_share, or give prompts.held_out=[]",
    "prompts.max_words=10": "prompts.max_words",
    f"prompts.excluded=[{','.join(CONSTRAINT_FAMILIES)}]": "leave no family to train on",
}


@pytest.mark.parametrize("word", FAULTS)
def test_a_knob_that_cannot_be_is_refused(word):
    words = [word, "prompts.held_out=[]"] if "CONSTRAINT" in word or len(word) > 500 else [word]
    with pytest.raises(UserError) as refusal:
        config(*words)
    assert FAULTS[word] in str(refusal.value)


def test_more_rows_than_can_be_generated_are_refused():
    only = [name for name in CONSTRAINT_FAMILIES if name != families.OPTIONS]
    words = [f"prompts.excluded=[{','.join(only)}]", "prompts.held_out=[]"]
    with pytest.raises(UserError, match="(?s)only about 0 of 3000 .*fewer constraints together"):
        rows_of(*words, "prompts.constraints=[0,1]")


def test_families_that_need_nltk_s_data_are_refused_before_anything_is_built(monkeypatch):
    cfg = composed("sft.model=./m", "prompts=instructions", ALL)
    score = cfg.score.model_copy(update={"scorers": {"ifeval": IFEVAL}})
    monkeypatch.setattr("pipeline.preflight.rows.has_punkt", lambda: False)
    with pytest.raises(UserError) as refusal:
        check_sentence_data(cfg.prompts, [SimpleNamespace(config=score)])
    assert "punkt_tab is not on this machine" in str(refusal.value)
    [words] = re.findall(r"prompts\.excluded=\S+", str(refusal.value))
    check_sentence_data(config(words), [SimpleNamespace(config=score)])
    check_sentence_data(cfg.prompts, [])


W, S = families.WORDS, families.SENTENCES
CONTRADICTIONS = [
    ({W: (300, "at least"), S: (2, "less than")}, "at least 300 words in at most 1 sentence"),
    ({W: (5, "less than"), S: (9, "at least")}, "at most 4 words and for 9"),
    ({W: (1, "less than")}, "less than one of words"),
    ({W: (20, "less than"), families.BULLETS: {"num_bullets": 25}}, "for 25 of"),
    (
        {
            families.EXISTENCE: {"keywords": ["Sun"]},
            families.FORBIDDEN: {"forbidden_words": ["sun"]},
        },
        "requires and forbids the word 'Sun'",
    ),
    (
        {
            families.FREQUENCY: {"keyword": "sun", "frequency": 2, "relation": "at least"},
            families.FORBIDDEN: {"forbidden_words": ["sun"]},
        },
        "requires and forbids the word 'sun'",
    ),
    ({families.UPPER: {}, families.LOWER: {}}, "capital letters alone and for small"),
    ({families.UPPER: {}, families.LANGUAGE: {"language": "de"}}, "the language de"),
    (
        {families.LOWER: {}, families.SECTIONS: {"section_spliter": "Part", "num_sections": 2}},
        "sections marked Part",
    ),
    (
        {families.NO_COMMA: {}, families.REPEAT: {"prompt_to_repeat": "Well, why?"}},
        "forbids commas and requires 'Well, why?'",
    ),
    ({families.QUOTED: {}, families.REPEAT: {"prompt_to_repeat": "Why?"}}, "quotation mark"),
    (
        {
            families.FIRST_WORD: {
                "num_paragraphs": 2,
                "nth_paragraph": 3,
                "first_word": "so",
            }
        },
        "paragraph 3 of 2",
    ),
    (
        {
            families.LETTERS: {"letter": "s", "let_frequency": 3, "let_relation": "less than"},
            families.EXISTENCE: {"keywords": ["sessions"]},
        },
        "at most 2 letters 's', and for words with 4",
    ),
]


def as_columns(asked: dict[str, Any]) -> dict[str, Any]:
    keys = {W: "num_words", S: "num_sentences"}
    given = [
        {keys[name]: value[0], "relation": value[1]} if isinstance(value, tuple) else value
        for name, value in asked.items()
    ]
    return {"instruction_id_list": list(asked), "kwargs": given}


@pytest.mark.parametrize(("asked", "fault"), CONTRADICTIONS, ids=[f for _, f in CONTRADICTIONS])
def test_own_prompts_that_contradict_themselves_are_named_or_skipped(tmp_path, asked, fault):
    file = tmp_path / "prompts.jsonl"
    row = {"prompt": "Why is the sky blue?", **as_columns(asked)}
    reverse = {"prompt": "Why is it?", **as_columns(dict(reversed(asked.items())))}
    good = [{"prompt": f"question {number}"} for number in range(8)]
    file.write_text("\n".join(map(json.dumps, [row, *good, reverse])))
    words = [
        "sft.model=./m",
        "score=length",
        f"prompts.path={file}",
        "prompts.split={dev: 2, test: 3}",
    ]
    with pytest.raises(UserError) as refusal:
        run(composed(*words).prompts, tmp_path)
    assert "line 1 and 1 more: no answer can follow its instruction_id_list" in str(refusal.value)
    assert str(refusal.value).count(fault) == 1, "the same in either order"
    run(composed(*words, "prompts.on_bad_row=skip").prompts, tmp_path)
    assert json.loads((tmp_path / "funnel.json").read_text())["dropped"] == {"bad row": 2}


POSSIBLE = [
    {W: (300, "at least"), S: (9, "less than")},
    {W: (50, "at least"), f"{W}": (80, "less than")},
    {families.EXISTENCE: {"keywords": ["sun"]}, families.FORBIDDEN: {"forbidden_words": ["sunny"]}},
    {families.UPPER: {}, families.LANGUAGE: {"language": "en"}},
    {"mine:own": {"keywords": ["a, b"]}, families.NO_COMMA: {}},
    {families.LETTERS: {"letter": "#", "let_frequency": 4, "let_relation": "at least"}},
]


@pytest.mark.parametrize("asked", POSSIBLE)
def test_what_can_be_followed_is_not_refused(asked):
    columns = as_columns(asked)
    assert find_contradiction(columns["instruction_id_list"], columns["kwargs"]) is None
    for names, given in ((None, None), ("a", "b"), ([W], []), ([W], ["text"])):
        assert find_contradiction(names, given) is None, "columns of another shape"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats()
    | st.sampled_from(["a", "at least"]),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
KEYS = ["keywords", "keyword", "frequency", "relation", "forbidden_words", "letter", "first_word"]
KEYS += [
    "let_frequency",
    "let_relation",
    "num_words",
    "num_sentences",
    "num_paragraphs",
    "language",
]
KEYS += ["nth_paragraph", "section_spliter", "capital_frequency", "prompt_to_repeat", "end_phrase"]


@hypothesis.given(
    st.lists(st.sampled_from(CONSTRAINT_FAMILIES) | VALUES, max_size=4),
    st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5) | VALUES, max_size=4),
)
def test_columns_of_any_other_kind_are_left_to_their_scorer(names, given_arguments):
    fault = find_contradiction(names, given_arguments)
    assert fault is None or isinstance(fault, str)


def test_langdetect_is_sure_of_every_language_asked_for(check):
    assert set(FOREIGN) == set(LANGUAGES)
    for code, sentence in FOREIGN.items():
        columns = {"instruction_id_list": [families.LANGUAGE], "kwargs": [{"language": code}]}
        shuffled = sentence.split()
        random.Random(0).shuffle(shuffled)
        for words in (sentence, " ".join(shuffled)):
            asked = {"prompt": [{"role": "user", "content": "?"}], "columns": columns}
            assert follows(check, asked, words), code
