"""Prompts: rows in = rows out + dropped with a reason; nothing of dev or test in train; broken lines by name."""

import json
from pathlib import Path

import pytest

from pipeline.artifacts import Prompts, read_table
from pipeline.errors import Refusal
from pipeline.sources.fence import grams
from pipeline.stages.prompts import run
from tests.house import composed


def written(folder: Path, lines: list) -> Path:
    path = folder / "prompts.jsonl"
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return path


def config(path: Path, *words: str):
    return composed("sft.model=./m", f"prompts.path={path}", "prompts.split={dev: 2, test: 3}", *words).prompts


def made(folder: Path, lines: list, *words: str) -> Path:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    run(config(written(folder, lines), *words), out)
    return out


SENTENCE = "please tell me the long story of the red house by the sea and why number {} was painted on its door"


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
    for part in ("train", "dev", "test", "fence"):
        file = "ngrams.parquet" if part == "fence" else "prompts.parquet"
        assert (one / part / file).read_bytes() == (other / part / file).read_bytes()


def test_duplicates_are_dropped_and_counted(tmp_path):
    lines = [{"prompt": f"question {i}"} for i in range(20)]
    out = made(tmp_path, [*lines, lines[0], lines[7]])
    funnel = json.loads((out / "funnel.json").read_text())
    assert (funnel["in"], funnel["dropped"], sum(funnel["out"].values())) == (22, {"duplicate": 2}, 20)


def test_train_shares_no_ngram_with_dev_or_test(tmp_path):
    lines = [
        {"prompt": f"{SENTENCE.format(i)}" if i % 3 == 0 else f"a question of its own, number {i}"} for i in range(60)
    ]
    out = made(tmp_path, lines, "prompts.fence.ngram=8")
    fenced = set(read_table(out / "fence" / "ngrams.parquet")["gram"])
    for message in Prompts(out / "train").read()["prompt"].to_list():
        assert fenced.isdisjoint(grams(message[-1]["content"], 8))
    assert len(read_table(out / "dropped.parquet")) > 0


def test_overlap_is_blind_to_case_and_punctuation():
    assert grams("Tell me, PLEASE: why?", 4) == grams("tell me please why", 4)
    assert grams("tell me please why", 4) <= grams("so tell me please why it is", 4)
    assert grams("tell me", 4).isdisjoint(grams("tell me please why it is", 4)), "a short text is itself as a whole"


def test_columns_and_system_prompts_travel(tmp_path):
    lines = [{"prompt": f"question {i}", "system": "Be brief.", "answer": i, "id": f"q{i}"} for i in range(8)]
    out = made(tmp_path, lines)
    train = Prompts(out / "train")
    row = train.read().row(0, named=True)
    assert row["prompt"][0] == {"role": "system", "content": "Be brief."}
    number = int(row["prompt_id"].removeprefix("q"))
    assert train.columns()[row["prompt_id"]] == {"answer": number}
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
    "duplicate id": ({"prompt": "another", "id": "q1"}, "id 'q1' stands on an earlier line already"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_line_is_named_or_skipped_and_kept(tmp_path, name):
    line, fault = FAULTS[name]
    good = [{"prompt": f"question {i}", "id": f"q{i}"} for i in range(10)]
    with pytest.raises(Refusal) as refusal:
        made(tmp_path, [*good, line, {"prompt": "the last", "id": "z"}])
    assert "line 11: " in str(refusal.value) and fault in str(refusal.value)
    assert "on_bad_row=skip" in str(refusal.value)
    assert len(str(refusal.value)) < 2000

    out = made(tmp_path, [*good, line, {"prompt": "the last", "id": "z"}], "prompts.on_bad_row=skip")
    funnel = json.loads((out / "funnel.json").read_text())
    assert (funnel["in"], funnel["dropped"], sum(funnel["out"].values())) == (12, {"bad row": 1}, 11)
    dropped = read_table(out / "dropped.parquet").row(0, named=True)
    assert dropped["prompt_id"] == "line 11" and fault in dropped["detail"]


def test_a_byte_order_mark_is_named(tmp_path):
    with pytest.raises(Refusal, match="line 1: starts with a byte order mark"):
        made(tmp_path, [b'\xef\xbb\xbf{"prompt": "hello"}\n', {"prompt": "x"}])


def test_too_few_prompts_are_refused_with_the_counts(tmp_path):
    questions = [{"prompt": f"question {i}"} for i in range(6)]
    with pytest.raises(Refusal, match="there are 5; dev 2 and test 3 leave nothing to train on"):
        made(tmp_path, questions[:5])
    with pytest.raises(Refusal, match=r"duplicate 1\) too few are left for train: train 0 \(wanted 1\), dev 2"):
        made(tmp_path, [*questions[:5], {"prompt": "Question 0!"}])


def test_a_file_without_prompts_and_one_that_is_not_there(tmp_path):
    with pytest.raises(Refusal, match="holds no prompt"):
        made(tmp_path, [])
    with pytest.raises(Refusal, match="cannot be read"):
        run(config(tmp_path / "none.jsonl"), tmp_path)
