"""Prompts: rows in = rows out + dropped with a reason; nothing of dev or test in train; broken
lines by name."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artifacts import Decontamination, Prompts, read_table, write_table
from pipeline.config import FileRows, HubRows, PromptRows
from pipeline.data.decontamination import OverlapCheck, OverlapIndex, hash_ngrams, ngram_table
from pipeline.data.duplicates import normalize_text
from pipeline.data.jsonl import describe_faults
from pipeline.data.prompts import PromptSet, read_prompts
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.stages.prompts import run
from pipeline.step import has_floating_revision, pin_revisions
from tests.support.house import composed, identity_of


def written(folder: Path, lines: list) -> Path:
    path = folder / "prompts.jsonl"
    path.write_bytes(
        b"".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        )
    )
    return path


@cache
def composed_with(*words: str):
    return composed(
        "sft.model=./m", "score=rules", "prompts.path=x", "prompts.split={dev: 2, test: 3}", *words
    ).prompts


def config(path: Path, *words: str):
    return composed_with(*words).model_copy(update={"path": str(path)})


def made(folder: Path, lines: list, *words: str) -> Path:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    run(config(written(folder, lines), *words), out)
    return out


SENTENCE = (
    "please tell me the long story of the red house by the sea"
    " and why number {} was painted on its door"
)


def ids(out: Path, part: str) -> set[str]:
    return set(Prompts(out / part).read()["prompt_id"])


def test_every_row_is_in_one_part(tmp_path):
    out = made(tmp_path, [{"prompt": f"question {i}"} for i in range(20)])
    parts = [ids(out, part) for part in ("train", "dev", "test")]
    assert [len(part) for part in parts] == [15, 2, 3]
    assert len(set.union(*parts)) == 20


def test_the_split_does_not_depend_on_the_file_s_order(tmp_path):
    lines = [{"prompt": f"question {i}"} for i in range(20)]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one, other = made(tmp_path / "a", lines), made(tmp_path / "b", lines[::-1])
    for part in ("train", "dev", "test", "decontamination"):
        file = "ngrams.parquet" if part == "decontamination" else "prompts.parquet"
        assert (one / part / file).read_bytes() == (other / part / file).read_bytes()


def test_duplicates_are_dropped_and_counted(tmp_path):
    lines = [{"prompt": f"question {i}"} for i in range(20)]
    out = made(tmp_path, [*lines, lines[0], lines[7]])
    funnel = json.loads((out / "funnel.json").read_text())
    assert (funnel["in"], funnel["dropped"], sum(funnel["out"].values())) == (
        22,
        {"duplicate": 2},
        20,
    )


def test_train_shares_no_ngram_with_dev_or_test(tmp_path):
    lines = [
        {"prompt": f"{SENTENCE.format(i)}" if i % 3 == 0 else f"a question of its own, number {i}"}
        for i in range(60)
    ]
    out = made(tmp_path, lines, "prompts.decontamination.ngram=8")
    fenced = set(read_table(out / "decontamination" / "ngrams.parquet").rows())
    for message in Prompts(out / "train").read()["prompt"].to_list():
        assert fenced.isdisjoint(hash_ngrams(message[-1]["content"], 8))
    assert len(read_table(out / "dropped.parquet")) > 0


def test_overlap_is_blind_to_case_and_punctuation():
    assert hash_ngrams("Tell me, PLEASE: why?", 4) == hash_ngrams("tell me please why", 4)
    assert hash_ngrams("tell me please why", 4) <= hash_ngrams("so tell me please why it is", 4)
    assert hash_ngrams("tell me", 4).isdisjoint(hash_ngrams("tell me please why it is", 4)), (
        "a short text is itself as a whole"
    )


def test_overlap_is_blind_to_how_letters_are_stored_and_marked():
    expected = hash_ngrams("der große café ist offen", 4)
    assert hash_ngrams("DER GROSSE CAFÉ IST OFFEN", 4) == expected, (
        "capitals of a letter that has none"
    )
    assert hash_ngrams("der große cafe\u0301 ist offen", 4) == expected, "an accent of its own"
    assert hash_ngrams("der gro\u00adße ca\u200bfé ist offen", 4) == expected, (
        "characters that are not seen"
    )
    assert hash_ngrams("_der_ _große_ ｃａｆé ist__offen", 4) == expected, (
        "emphasis and wide letters"
    )


def test_columns_and_system_prompts_travel(tmp_path):
    lines = [
        {"prompt": f"question {i}", "system": "Be brief.", "answer": i, "id": f"q{i}"}
        for i in range(8)
    ]
    out = made(tmp_path, lines)
    train = Prompts(out / "train")
    row = train.read().row(0, named=True)
    assert row["prompt"][0] == {"role": "system", "content": "Be brief."}
    number = int(row["prompt_id"].removeprefix("q"))
    assert train.read_columns()[row["prompt_id"]] == {"answer": number}
    assert row["prompt"][1]["content"] == f"question {number}"


FAULTS = {
    "bad JSON": (b'{"prompt": \n', "not JSON"),
    "missing field": ({"text": "hello"}, "no field 'prompt' (it has: text)"),
    "empty prompt": ({"prompt": " \n"}, "the prompt is empty"),
    "NUL": (b'{"prompt": "a\\u0000b"}\n', "holds a NUL character"),
    "lone surrogate": (b'{"prompt": "a\\ud800b"}\n', "half of a surrogate pair"),
    "10 MB line": (b'{"prompt": "' + b"x" * 10_000_000 + b'"}\n', "longer than 1048576 bytes"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}\n', "not UTF-8 at byte"),
    "an array": ([1, 2], "a JSON list, expected an object"),
    "last turn not the user's": (
        {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "the last message is not the user's",
    ),
    "duplicate id": (
        {"prompt": "another", "id": "q1"},
        "id 'q1' is on an earlier line already",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_line_is_named_or_skipped_and_kept(tmp_path, name):
    line, fault = FAULTS[name]
    good = [{"prompt": f"question {i}", "id": f"q{i}"} for i in range(10)]
    with pytest.raises(UserError) as refusal:
        made(tmp_path, [*good, line, {"prompt": "the last", "id": "z"}])
    assert "line 11: " in str(refusal.value) and fault in str(refusal.value)
    assert "on_bad_row=skip" in str(refusal.value)
    assert len(str(refusal.value)) < 2000

    out = made(
        tmp_path, [*good, line, {"prompt": "the last", "id": "z"}], "prompts.on_bad_row=skip"
    )
    funnel = json.loads((out / "funnel.json").read_text())
    assert (funnel["in"], funnel["dropped"], sum(funnel["out"].values())) == (
        12,
        {"bad row": 1},
        11,
    )
    dropped = read_table(out / "dropped.parquet").row(0, named=True)
    assert dropped["prompt_id"] == "line 11" and fault in dropped["detail"]


def test_a_byte_order_mark_is_named(tmp_path):
    with pytest.raises(UserError, match="line 1: starts with a byte order mark"):
        made(tmp_path, [b'\xef\xbb\xbf{"prompt": "hello"}\n', {"prompt": "x"}])


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "a", "id": {"nr": 1}}, "id is {'nr': 1}; expected a text or a whole number"),
        ({"prompt": "a", "id": 1.5}, "id is 1.5"),
        ({"prompt": "a", "id": ""}, "id is ''"),
        ({"prompt": None}, "'prompt' is neither text nor a list of messages"),
        ({"prompt": "a", "system": 3}, "'system' is not text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_column_and_no_id_can_be_is_named(tmp_path, row, fault):
    assert fault in taken(tmp_path, [row, {"prompt": "good"}], "skip").bad[0][1]


def test_too_few_prompts_are_refused_with_the_counts(tmp_path):
    questions = [{"prompt": f"question {i}"} for i in range(6)]
    with pytest.raises(UserError, match="there are 5; dev 2 and test 3 leave nothing to train on"):
        made(tmp_path, questions[:5])
    with pytest.raises(
        UserError, match=r"duplicate 1\) too few are left for train: train 0 \(wanted 1\), dev 2"
    ):
        made(tmp_path, [*questions[:5], {"prompt": "Question 0!"}])


def test_a_file_without_prompts_and_one_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="holds no prompt"):
        made(tmp_path, [])
    with pytest.raises(UserError, match="cannot be read"):
        run(config(tmp_path / "none.jsonl"), tmp_path)


# ── shapes and places ─────────────────────────────────────────────────────────────────────────────


def taken(folder: Path, lines: list, on_bad_row: str = "fail", **columns: str) -> PromptSet:
    source = FileRows(kind="file", path=str(written(folder, lines)))
    return read_prompts(
        PromptRows(source=source, shape="auto", columns=columns), "prompts", on_bad_row
    )


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [turn("user", "Name a river.")]
TALK = [*ASKED, turn("assistant", "The Po."), turn("user", "Another.")]
SHAPES: dict[str, tuple[Any, list[dict[str, str]], dict[str, Any]]] = {
    "text": (
        {"prompt": "Name a river.", "instruction_id_list": ["a:b"], "kwargs": [{}, {"n": 2}]},
        ASKED,
        {"instruction_id_list": ["a:b"], "kwargs": [{}, {"n": 2}]},
    ),
    "messages as prompt": ({"prompt": TALK}, TALK, {}),
    "messages that end with an answer": (
        {"messages": [*TALK, turn("assistant", "The Arno.")]},
        TALK,
        {"answer": "The Arno."},
    ),
    "messages that end with the user": ({"messages": TALK}, TALK, {}),
    "alpaca": (
        {"instruction": "Name a river.", "input": "", "output": "The Po."},
        ASKED,
        {"output": "The Po."},
    ),
    "alpaca with input": (
        {"instruction": "Translate.", "input": "il fiume"},
        [turn("user", "Translate.\n\nil fiume")],
        {},
    ),
    "self-instruct": (
        {"id": "t1", "instruction": "Translate.", "instances": [{"input": "il fiume"}]},
        [turn("user", "Translate.\n\nil fiume")],
        {"instances": [{"input": "il fiume"}]},
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": "Name a river."},
                {"from": "gpt", "value": "The Po."},
            ]
        },
        ASKED,
        {"answer": "The Po."},
    ),
    "sharegpt with system": (
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "Name a river."}]},
        [turn("system", "Be brief."), *ASKED],
        {},
    ),
    "mt-bench": (
        {"turns": ["Name a river.", "Another."], "category": "lists"},
        ASKED,
        {"turns": ["Name a river.", "Another."], "category": "lists"},
    ),
    "gsm8k": ({"question": "Name a river.", "answer": "The Po."}, ASKED, {"answer": "The Po."}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_becomes_messages_and_the_columns_left_over(tmp_path, name):
    row, messages, columns = SHAPES[name]
    made = taken(tmp_path, [row]).rows.row(0, named=True)
    assert (made["prompt"], json.loads(made["columns"])) == (messages, columns)


def test_columns_are_renamed_by_the_user_s_map(tmp_path):
    made = taken(
        tmp_path, [{"frage": "Name a river.", "nr": 7, "art": "x"}], prompt="frage", id="nr"
    ).rows.row(0)
    assert made[:3] == ("7", ASKED, '{"art": "x"}')
    with pytest.raises(UserError, match="no column fragen. Did you mean frage"):
        taken(tmp_path, [{"frage": "Name a river."}], prompt="fragen")
    with pytest.raises(UserError, match=r"it has: frage\) .*Give prompts.columns={prompt: …}"):
        taken(tmp_path, [{"frage": "Name a river."}])


def test_a_fault_of_every_row_is_one_line_with_their_number(tmp_path):
    rows = [{"frage": f"Name river {n}."} for n in range(40)]
    with pytest.raises(UserError) as refusal:
        taken(tmp_path, [*rows, {"fragen": " "}, "torn"], prompt="fragen")
    head, first, *others = str(refusal.value).splitlines()
    assert head.endswith("42 of 42 rows cannot be used:")
    assert first == "  line 1 and 39 more: no column fragen. Did you mean frage? Known: frage"
    assert [line.partition(":")[0].strip() for line in others[:2]] == ["line 41", "line 42"]
    assert others[2].startswith("  That is every row: fix them, or say by prompts.shape and")


def test_only_the_first_kinds_of_faults_are_listed():
    bad = [(f"line {n}", f"fault {n % 12}") for n in range(24)]
    lines = describe_faults(bad).splitlines()
    assert len(lines) == 11 and lines[0] == "  line 0 and 1 more: fault 0"
    assert lines[-1] == "  … and 2 other faults"


def test_a_row_of_several_prompts_and_an_unknown_speaker_are_named(tmp_path):
    with pytest.raises(UserError, match="'instances' holds 2; write one row for each"):
        taken(
            tmp_path, [{"instruction": "Translate.", "instances": [{"input": "a"}, {"input": "b"}]}]
        )
    with pytest.raises(UserError, match="a turn is from bird. Known: system, human"):
        taken(tmp_path, [{"conversations": [{"from": "bird", "value": "a"}]}])


def test_the_same_prompts_from_every_kind_of_file(tmp_path):
    from datasets import Dataset

    rows = [{"prompt": f"line one\nof question {i}, please", "answer": str(i)} for i in range(9)]
    table = pl.DataFrame(rows)
    (tmp_path / "shards").mkdir()
    (
        table.head(4).write_parquet(tmp_path / "shards" / "a.parquet"),
        table[4:].write_ndjson(tmp_path / "shards/b.jsonl"),
    )
    table.write_parquet(tmp_path / "one.parquet"), table.write_csv(tmp_path / "one.csv")
    (tmp_path / "one.json").write_text(json.dumps(rows))
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))

    whole = taken(tmp_path, rows).rows
    for name in ("shards", "one.parquet", "one.csv", "one.json", "saved"):
        source = FileRows(kind="file", path=str(tmp_path / name))
        assert read_prompts(
            PromptRows(source=source, shape="auto", columns={}), "prompts"
        ).rows.equals(whole), name


def test_a_hub_dataset_is_read_like_a_file_and_a_folder_of_splits_is_refused(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = [{"prompt": f"question {i}", "answer": i} for i in range(3)]
    (tmp_path / "owner").mkdir()
    pl.DataFrame(rows).write_parquet(
        tmp_path / "owner" / "train.parquet"
    )  # `datasets` takes a folder for a repository
    hub = HubRows(
        kind="hub", dataset=str(tmp_path / "owner"), revision=None, subset=None, split="train"
    )
    got = read_prompts(PromptRows(source=hub, shape="auto", columns={}), "prompts").rows
    assert got.equals(taken(tmp_path, rows).rows)
    with pytest.raises(
        UserError, match="owner cannot be read .*\n  Check its name, subset and split"
    ):
        read_prompts(
            PromptRows(source=hub.model_copy(update={"split": "x"}), shape="auto", columns={}),
            "prompts",
        )

    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(str(tmp_path / "splits"))
    source = FileRows(kind="file", path=str(tmp_path / "splits"))
    with pytest.raises(UserError, match="it holds train. Give one of them, such as .*splits/train"):
        read_prompts(PromptRows(source=source, shape="auto", columns={}), "prompts")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('prompt,answer\n"a,1\n', "cannot be read as CSV"),
        ("prompt,answer\na,b,c\n", "line 2: 3 cells under 2 columns"),
        ("prompt,prompt\na,b\n", "has to name each column once"),
        ("\ufeffprompt\na\n", "byte order mark"),
        ("", "holds no prompt"),
    ],
)
def test_a_broken_csv_is_named(tmp_path, text, fault):
    (tmp_path / "rows.csv").write_text(text)
    source = FileRows(kind="file", path=str(tmp_path / "rows.csv"))
    with pytest.raises(UserError, match=fault):
        read_prompts(PromptRows(source=source, shape="auto", columns={}), "prompts")


# ── what must not be trained on ───────────────────────────────────────────────────────────────────

EXAM = (
    "Write a letter to the mayor of a small harbour town, and explain in three paragraphs why"
    " the old lighthouse"
    " should be kept open for visitors through the winter."
)
DISGUISES = {
    "copied": EXAM,
    "re-cased": EXAM.upper(),
    "re-punctuated": EXAM.replace(",", " —").replace(" ", "  ").replace(".", "!?"),
    "embedded": "You are a helpful writer of letters."
    f" Here is your task: {EXAM} Answer in English, please.",
    "a part of it": " ".join(EXAM.split()[4:24]),
}
INNOCENT = (
    "Write a letter to the mayor of a small harbour town about the lighthouse,"
    " asking her to repaint its door."
)
SHORT = "Tell me a joke."
BRIEF = "Explain why the tides rise and fall each day."  # nine words, fewer than the n-gram
BRIEFS = {
    "brief": BRIEF.upper(),
    "brief embedded": f"Answer as a pirate would: {BRIEF} Mind your language!",
    "brief at the end of a long one": "word " * 30
    + "explain: why the tides rise, and fall each day",
}
NEAR_BRIEF = (
    "Explain why the tides rise and fall each night, and what the moon has to do with that."
)


@pytest.fixture(scope="module")
def examined(tmp_path_factory) -> Path:
    """Prompts that hold an evaluation prompt in every disguise, sorted beside that evaluation
    set."""
    folder = tmp_path_factory.mktemp("examined")
    exam = folder / "exam.jsonl"
    turns = {
        81: [EXAM, "Why?"],
        82: [SHORT],
        83: ["Name a lake.", "Why?"],
        84: [BRIEF, "And why at night?"],
    }
    rows = [{"question_id": number, "turns": asked} for number, asked in turns.items()]
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows))
    planted = [{"prompt": text, "id": name} for name, text in (DISGUISES | BRIEFS).items()]
    kept = [
        {"prompt": INNOCENT, "id": "innocent"},
        {"prompt": f"{SHORT} One about cats.", "id": "longer"},
    ]
    kept += [{"prompt": NEAR_BRIEF, "id": "near brief"}]
    talk = [turn("user", "Name a river."), turn("assistant", "The Po."), turn("user", "Why?")]
    short = [
        {"prompt": "tell me A JOKE!", "id": "short"},
        {"prompt": "name a lake", "id": "opening"},
    ]
    rest = [*short, {"prompt": talk, "id": "talk"}]
    others = [{"prompt": f"question {i}", "id": f"q{i}"} for i in range(20)]
    words = (
        f"prompts.evaluation={{mt_bench: {{source: {{kind: file, path: {exam}}},"
        " shape: turns, columns:"
    )
    made(
        folder,
        [*planted, *kept, *rest, *others],
        f"{words} {{id: question_id, turns: turns}}}}}}",
        "prompts.near_duplicate_threshold=null",
    )
    return folder / "out"


def test_an_evaluation_prompt_is_found_in_every_disguise_and_named(examined):
    dropped = {row["prompt_id"]: row for row in read_table(examined / "dropped.parquet").to_dicts()}
    gone = {name for name, row in dropped.items() if row["reason"] == "overlap with mt_bench"}
    repeats = {
        name for name, row in dropped.items() if row["reason"] == "duplicate"
    }  # of the disguises themselves
    assert gone | repeats == {*DISGUISES, *BRIEFS, "short", "opening"} and len(repeats) == 2
    shared = " ".join(EXAM.lower().replace(",", "").replace(".", "").split())
    for name in gone - {*BRIEFS, "short", "opening"}:
        of, _, words = dropped[name]["detail"].partition(": ")
        assert of == "mt_bench 81" and words in shared and len(words.split()) >= 13
    assert dropped["embedded"]["detail"] == f"mt_bench 81: {shared}"
    assert dropped["short"]["detail"] == "mt_bench 82: tell me a joke"
    assert dropped["opening"]["detail"] == "mt_bench 83: name a lake"
    whole = "mt_bench 84: explain why the tides rise and fall each day"
    assert {dropped[name]["detail"] for name in BRIEFS} == {whole}


def test_a_prompt_on_the_same_topic_and_a_later_turn_alone_are_innocent(examined):
    everywhere = set().union(*(ids(examined, part) for part in ("train", "dev", "test")))
    assert {"innocent", "longer", "talk", "near brief"} <= everywhere


def test_the_fence_keeps_evaluation_sets_from_other_training_data(examined):
    check = OverlapCheck(Decontamination(examined / "decontamination"), 13)
    assert (
        check.overlaps(f"First this. {EXAM}")
        and check.overlaps(SHORT)
        and not check.overlaps(INNOCENT)
    )
    assert all(map(check.overlaps, BRIEFS.values())) and not check.overlaps(NEAR_BRIEF)


def test_a_character_of_a_script_without_spaces_is_a_word():
    sentence = "请给小镇的镇长写一封信说明灯塔为什么应该开放"
    assert hash_ngrams(sentence, 13) <= hash_ngrams(f"任务如下{sentence}谢谢", 13)
    assert len(hash_ngrams("two words", 13)) == len(hash_ngrams("请给小镇", 13)) == 1


def test_test_prompts_from_a_file_of_their_own(tmp_path):
    (tmp_path / "exam.jsonl").write_text(
        json.dumps({"prompt": EXAM}) + "\n" + json.dumps({"prompt": EXAM}) + "\n"
    )
    lines = [{"prompt": f"question {i}", "id": i} for i in range(9)] + [
        {"prompt": DISGUISES["embedded"], "id": "bad"}
    ]
    out = made(tmp_path, lines, f"prompts.split.test={tmp_path / 'exam.jsonl'}")
    assert Prompts(out / "test").read()["prompt"].to_list() == [[turn("user", EXAM)]]
    funnel = json.loads((out / "funnel.json").read_text())
    assert funnel["in"] == 12 and funnel["dropped"] == {"duplicate": 1, "overlap with test": 1}
    assert funnel["out"] == {"train": 7, "dev": 2, "test": 1}


def test_what_is_wrong_with_several_files_is_said_at_once(tmp_path):
    good = written(tmp_path, [{"prompt": f"question {i}"} for i in range(20)])
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
    (tmp_path / "listed.json").write_text('{"prompt": "a"}')
    sets = (
        f"prompts.split.test={tmp_path}/torn.jsonl",
        f"prompts.evaluation={{mt: {tmp_path}/listed.json}}",
    )
    with pytest.raises(UserError) as refusal:
        run(config(good, *sets), tmp_path / "out")
    assert "listed.json: expected a JSON list" in str(refusal.value)
    assert "torn.jsonl: 1 of 2 rows cannot be used:\n  line 2: " in str(refusal.value)


def test_an_empty_test_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"prompts.split.test=0: Input should be greater than 0"):
        composed("sft.model=./m", "score=rules", "prompts.path=p.jsonl", "prompts.split.test=0")
    (tmp_path / "exam.jsonl").write_text("")
    with pytest.raises(UserError, match="exam.jsonl: holds no prompt"):
        made(
            tmp_path,
            [{"prompt": f"question {i}"} for i in range(9)],
            f"prompts.split.test={tmp_path / 'exam.jsonl'}",
        )


def test_a_changed_evaluation_set_is_another_identity_and_a_hub_one_floats(tmp_path):
    def fingerprint(text: str) -> str:
        (tmp_path / "exam.jsonl").write_text(text)
        given = [
            "sft.model=hub/model",
            f"sft.revision={'0' * 40}",
            "score=rules",
            "prompts.path=README.md",
        ]
        return identity_of(
            plan(composed(*given, f"prompts.evaluation={{exam: {tmp_path / 'exam.jsonl'}}}"))
        )

    assert fingerprint('{"prompt": "a"}') != fingerprint('{"prompt": "b"}')

    hub = "{kind: hub, dataset: owner/name, revision: null, subset: null, split: test}"
    words = f"prompts.evaluation={{exam: {{source: {hub}, shape: auto, columns: {{}}}}}}"
    cfg = composed("sft.model=./m", "score=rules", "prompts.path=p.jsonl", words)
    first = plan(cfg).ancestors()[0]
    assert first.stage == "prompts" and has_floating_revision(first)
    fixed = pin_revisions(cfg, lambda name, revision: {"datasets/owner/name": "a" * 40}[name])
    assert not has_floating_revision(plan(fixed).ancestors()[0])


# ── what repeats ──────────────────────────────────────────────────────────────────────────────────


def test_prompts_that_differ_in_case_punctuation_or_space_are_one():
    assert normalize_text("Tell me:  WHY?\n") == normalize_text("tell me why") and normalize_text(
        "?!"
    ) == "?!" != normalize_text("??")
    assert normalize_text("a ca\u200bfe\u0301?") == normalize_text("a café"), (
        "nor in how a letter is stored, nor in what is not seen"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [("3 - 5", "3 + 5"), ("3*5", "3 5"), ("x / y", "x y"), ("3.5", "35"), ("-2", "2")],
)
def test_arithmetic_is_no_punctuation(one, other):
    assert normalize_text(f"What is {one}?") != normalize_text(f"What is {other}?")


def test_different_tasks_below_the_threshold_all_stay(tmp_path):
    """Tasks on 25 of 30 word triples are 0.833 alike: below prompts.near_duplicate_threshold=0.9,
    by count and not by estimate."""
    tasks = [" ".join(f"w{task}x{at}" for at in range(27)) for task in range(600)]
    lines = [{"prompt": f"{text}{more}"} for text in tasks for more in ("", " v1 v2 v3 v4 v5")]
    out = made(tmp_path, lines, "prompts.split={dev: 10, test: 10}")
    assert "near duplicate" not in json.loads((out / "funnel.json").read_text())["dropped"]


def test_near_duplicates_are_named_and_another_system_prompt_is_another_prompt(tmp_path):
    long = " ".join(f"word{i}" for i in range(80))
    lines = [
        {"prompt": long, "id": "one"},
        {"prompt": f"{long} end", "id": "two"},
        {"prompt": " ".join(long.split()[::-1]), "id": "back"},
    ]
    system = [
        {"prompt": "question 1", "system": "Be brief.", "id": "brief"},
        {"prompt": "?!", "id": "a"},
    ]
    lines += [
        *system,
        {"prompt": "😀", "id": "b"},
        *({"prompt": f"question {i}", "id": i} for i in range(9)),
    ]
    out = made(tmp_path, lines)
    rows = (
        read_table(out / "dropped.parquet")
        .filter(pl.col("reason") != "overlap with test")
        .to_dicts()
    )
    assert [(row["reason"], row["detail"]) for row in rows] == [
        ("near duplicate", "nearly the same words as one")
    ]
    made(tmp_path, lines, "prompts.near_duplicate_threshold=null")
    assert "near duplicate" not in json.loads((out / "funnel.json").read_text())["dropped"]


def test_caps_keep_so_many_of_each_category_whatever_the_order(tmp_path):
    lines = [{"prompt": f"question {i}", "id": i, "category": "ab"[i % 2]} for i in range(30)] + [
        {"prompt": "bare"}
    ]
    out = made(tmp_path, lines, "prompts.caps={column: category, max: 6}")
    first = set().union(*(ids(out, part) for part in ("train", "dev", "test")))
    assert len(first) == 13 and json.loads((out / "funnel.json").read_text())["dropped"] == {
        "over the cap": 18
    }
    made(tmp_path, lines[::-1], "prompts.caps={column: category, max: 6}")
    assert set().union(*(ids(out, part) for part in ("train", "dev", "test"))) == first
    with pytest.raises(
        UserError, match="caps.column=categorie: no row has this column. Did you mean category"
    ):
        made(tmp_path, lines, "prompts.caps={column: categorie, max: 6}")
    with pytest.raises(
        UserError, match="caps.column=category: no row has this column. They have none but"
    ):
        made(
            tmp_path,
            [{"prompt": f"say {i} things"} for i in range(20)],
            "prompts.caps={column: category, max: 6}",
        )


WORDS = st.lists(st.sampled_from("ab"), min_size=1, max_size=14).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(asked=st.lists(WORDS, min_size=1, max_size=3), text=WORDS, ngram=st.sampled_from([3, 5, 10]))
def test_prompts_and_every_other_stage_agree_on_what_overlaps(tmp_path_factory, asked, text, ngram):
    index = OverlapIndex(ngram)
    for number, prompt in enumerate(asked):
        index.add("set", str(number), [prompt])
    folder = tmp_path_factory.mktemp("decontamination")
    write_table(folder / "ngrams.parquet", ngram_table(index.ngrams))
    assert (index.find([text]) is not None) == OverlapCheck(
        Decontamination(folder), ngram
    ).overlaps(text)


# ── what the demonstrations have answered ─────────────────────────────────────────────────────────


def demonstrated(folder: Path, *conversations: list[str], **more: Any) -> str:
    """A file of demonstrations, and the words that give it: turns of the user and of the model."""
    file = folder / "demonstrations.jsonl"
    roles = ["user", "assistant"] * 9
    rows = [
        {"messages": [turn(role, text) for role, text in zip(roles, texts, strict=False)], **more}
        for texts in conversations
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"prompts.demonstrations={{kind: jsonl, path: {file}, on_bad_row: fail}}"


EXCLUDE = "prompts.exclude=[demonstrations]"


def test_training_prompts_that_were_demonstrated_are_dropped_and_counted(tmp_path):
    asked = [
        "question 1",  # equal
        "QUESTION 2!",  # up to case and punctuation
        "question 3",  # the first turn of a longer conversation
        "question 40 and more words",  # shares words alone
        "what is 3 - 5?",  # not the sum that was demonstrated
    ]
    fillers = [f"another prompt {i}" for i in range(15)]
    given = demonstrated(
        tmp_path,
        ["question 1", "x"],
        ["Question 2", "x"],
        ["question 3", "x", "question 40", "y"],
        ["what is 3 + 5?", "8"],
    )
    out = made(tmp_path, [{"prompt": text} for text in [*asked, *fillers]], EXCLUDE, given)
    held = ids(out, "dev") | ids(out, "test")
    dropped = read_table(out / "dropped.parquet")
    named = taken(tmp_path, [{"prompt": text} for text in asked[:3]]).rows["prompt_id"]
    wanted = {name: f"demonstration {at}" for at, name in enumerate(named, 1) if name not in held}
    assert wanted and dict(dropped.select("prompt_id", "detail").rows()) == wanted
    funnel = json.loads((out / "funnel.json").read_text())
    assert funnel["dropped"] == {"in the demonstrations": len(wanted)}
    assert funnel["in"] == 20 == sum(funnel["out"].values()) + len(wanted)


def test_dev_and_test_are_those_of_a_run_that_excludes_nothing(tmp_path):
    lines = [{"prompt": f"question {i}"} for i in range(20)]
    given = demonstrated(tmp_path, *([f"question {i}", "x"] for i in range(0, 20, 2)))
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    plain, fewer = made(tmp_path / "a", lines), made(tmp_path / "b", lines, EXCLUDE, given)
    for part in ("dev", "test"):
        file = f"{part}/prompts.parquet"
        assert (plain / file).read_bytes() == (fewer / file).read_bytes()
    assert ids(fewer, "train") < ids(plain, "train")


def test_no_training_prompt_left_is_refused_with_the_reason(tmp_path):
    lines = [{"prompt": f"question {i}"} for i in range(8)]
    given = demonstrated(tmp_path, *([f"question {i}", "x"] for i in range(8)))
    with pytest.raises(UserError, match=r"in the demonstrations 3\) too few are left for train"):
        made(tmp_path, lines, EXCLUDE, given)


def test_the_demonstrations_of_sft_are_excluded_by_name_and_unknown_names_refused(tmp_path):
    given = "sft=train", "base=tiny", "score=rules", "prompts.path=x", EXCLUDE
    file = tmp_path / "rows.jsonl"
    words = *given, "demonstrations@sft.data=jsonl", f"sft.data.path={file}"
    assert composed(*words).prompts.demonstrations == composed(*words).sft.data
    assert composed(*given).prompts.demonstrations.kind == "playground"
    with pytest.raises(UserError, match="this run trains no sft"):
        composed_with(EXCLUDE)
    with pytest.raises(UserError, match="prompts.exclude.*demonstrations"):
        composed(*given, "prompts.exclude=[demos]")


def test_only_a_plan_that_excludes_reads_demonstrations_for_its_prompts(tmp_path):
    def of(*words: str) -> str:
        (tmp_path / "x").write_text("")
        given = "sft=train", "base=tiny", "score=rules", f"prompts.path={tmp_path / 'x'}"
        steps = plan(composed(*given, *words)).ancestors()
        return identity_of(next(step for step in steps if step.stage == "prompts"))

    assert of() == of("sft.data.rows=50") == of("prompts.exclude=[]")
    assert of() != of(EXCLUDE) != of(EXCLUDE, "sft.data.rows=50")
