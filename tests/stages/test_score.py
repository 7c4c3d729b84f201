"""Scores: a rule that raises costs one null score, counted; past the limit the stage fails."""

import polars as pl
import pytest

from pipeline.artifacts import Prompts, Samples, Scores, write_table
from pipeline.errors import StageError
from pipeline.scorers import Score, rules
from pipeline.stages.score import ShardAnswers, run, start_shards
from tests.stages.test_pair import SAMPLE
from tests.support.house import composed


def sample_row(prompt: str, name: str, text: str) -> dict:
    messages = [{"role": "user", "content": f"about {prompt}"}]
    ids = {"prompt_token_ids": [1, *prompt.encode()], "token_ids": [*text.encode(), 2]}
    told = {"prompt_id": prompt, "sample_id": name, "prompt": messages, "completion": text}
    return {**told, **ids, "finish_reason": "stop", "setting": "draw"}


@pytest.fixture
def drawn(tmp_path):
    """Ten prompts, one answer each and one KL draw, in two shards; the prompts in another order."""
    names = [f"p{i}" for i in range(10)]
    for shard in range(2):
        rows = [sample_row(p, f"{p}-answer", f"answer to {p}") for p in names[shard::2]]
        rows += [{**sample_row(p, f"{p}-kl", "drift"), "setting": "kl"} for p in names[shard::2]]
        write_table(
            tmp_path / "sample" / "samples" / f"{shard:05d}.parquet",
            pl.DataFrame(rows, schema=SAMPLE),
        )
    table = pl.DataFrame(
        [
            {"prompt_id": p, "prompt": [], "columns": f'{{"wanted": "answer to {p}"}}'}
            for p in names[::-1]
        ]
    )
    write_table(tmp_path / "prompts" / "prompts.parquet", table)
    return Samples(tmp_path / "sample"), Prompts(tmp_path / "prompts")


def scored(out, drawn, rule, monkeypatch, *words, knob="score"):
    monkeypatch.setitem(rules.RULES, "playground", rule)
    samples, prompts = drawn
    return run(
        composed("recipes=smoke", *words).score, out, samples=samples, prompts=prompts, knob=knob
    ).read()


def test_answers_meet_their_own_prompt_s_columns_and_kl_draws_are_left_out(
    tmp_path, drawn, monkeypatch
):
    table = scored(
        tmp_path,
        drawn,
        lambda text, columns: {"": float(text == columns["wanted"]), "half": 0.5},
        monkeypatch,
    )
    assert sorted(table["sample_id"].unique()) == [f"p{i}-answer" for i in range(10)]
    assert set(table.filter(pl.col("scorer") == "rules")["score"]) == {1.0}
    assert set(table.filter(pl.col("scorer") == "rules/half")["score"]) == {0.5}


def failing(text, columns):
    if "p3" in text:
        raise KeyError("no such constraint")
    return {"": 1.0}


def test_a_rule_that_raises_costs_one_null_score(tmp_path, drawn, monkeypatch):
    table = scored(tmp_path, drawn, failing, monkeypatch, "score.max_failed=0.1")
    failed = table.filter(pl.col("status") == "failed").row(0, named=True)
    assert (
        failed["sample_id"] == "p3-answer"
        and failed["score"] is None
        and "no such constraint" in failed["detail"]
    )
    assert table.filter(pl.col("score") == 1.0).height == 9


def test_the_limit_is_each_scorer_s_own(tmp_path, drawn, monkeypatch):
    """Scores of another scorer, which never fails, do not make room for failed ones."""
    beside = "+scorer@score.scorers.size=length", "+scorer@evaluate.score.scorers.size=length"
    with pytest.raises(StageError, match=r"1 of 10 scores by rules failed"):
        scored(tmp_path, drawn, failing, monkeypatch, *beside, "score.max_failed=0.05")


def test_past_the_limit_the_stage_fails_and_names_the_file(tmp_path, drawn, monkeypatch):
    said = (
        r"1 of 10 scores by rules failed \(most often: KeyError"
        r".*limit is evaluate.dev_score.max_failed=0.05"
    )
    with pytest.raises(StageError, match=said):
        scored(
            tmp_path,
            drawn,
            failing,
            monkeypatch,
            "score.max_failed=0.05",
            knob="evaluate.dev_score",
        )
    assert pl.read_parquet(tmp_path / "failed.parquet")["sample_id"].to_list() == ["p3-answer"]


def test_a_rule_s_nan_is_a_failed_score(tmp_path, drawn, monkeypatch):
    with pytest.raises(StageError, match="10 of 10 scores by rules failed"):
        scored(tmp_path, drawn, lambda text, columns: {"": float("nan")}, monkeypatch)


def test_marked_shards_are_not_marked_again(tmp_path, drawn, monkeypatch):
    scored(tmp_path, drawn, lambda text, columns: {"": 1.0}, monkeypatch)
    (tmp_path / "scores" / "00001.parquet").unlink()
    table = scored(tmp_path, drawn, lambda text, columns: {"": 0.0}, monkeypatch)
    assert table["score"].value_counts(sort=True)["count"].to_list() == [5, 5]


class Waiting:
    """Begins with a shard when it is told of it, as processes do."""

    def __init__(self):
        self.told = []

    def score(self, answers):
        self.told.append([answer.sample_id for answer in answers])
        return iter([Score(answer.sample_id, 1.0) for answer in answers])

    def close(self):
        pass


def test_a_shard_is_handed_over_once_the_next_one_has_begun(drawn):
    scorer, shards = Waiting(), ["00000.parquet", "00001.parquet"]
    coming = start_shards(shards, ShardAnswers(*drawn, None), {"rules": scorer})
    shard, answers, marks = next(coming)
    assert shard == shards[0] and len(scorer.told) == 2
    assert (
        [answer.sample_id for answer in answers]
        == [mark.sample_id for mark in marks["rules"]]
        == scorer.told[0]
    )
    assert [shard for shard, _, _ in coming] == shards[1:] and len(scorer.told) == 2


def test_only_each_prompt_s_best_answer_is_shown_to_the_scorers(tmp_path, monkeypatch):
    """Four prompts of three answers: the second is best but where its score failed, equal ones go
    by sample id."""
    rows = [sample_row(f"p{p}", f"p{p}-{i}", f"answer {i}") for p in range(4) for i in range(3)]
    write_table(tmp_path / "sample" / "samples" / "0.parquet", pl.DataFrame(rows, schema=SAMPLE))
    table = pl.DataFrame([{"prompt_id": f"p{p}", "prompt": [], "columns": "{}"} for p in range(4)])
    write_table(tmp_path / "prompts" / "prompts.parquet", table)
    marks = {
        "p0": [0.1, 0.9, 0.2],
        "p1": [0.3, None, 0.2],
        "p2": [0.5, 0.5, 0.1],
        "p3": [None, None, None],
    }
    known = [
        (f"{p}-{i}", p, "train", score)
        for p, scores in marks.items()
        for i, score in enumerate(scores)
    ]
    known += [(f"{p}-{i}", p, "other", float(i)) for p in marks for i in range(3)]
    schema = {
        "sample_id": pl.String,
        "prompt_id": pl.String,
        "scorer": pl.String,
        "score": pl.Float64,
    }
    write_table(
        tmp_path / "best" / "scores" / "0.parquet", pl.DataFrame(known, schema=schema, orient="row")
    )
    shown = []
    monkeypatch.setitem(
        rules.RULES, "playground", lambda text, columns: shown.append(text) or {"": 1.0}
    )
    cfg = composed("recipes=smoke").score.for_best_answers("train")
    parts = {"samples": Samples(tmp_path / "sample"), "prompts": Prompts(tmp_path / "prompts")}
    found = run(cfg, tmp_path / "out", **parts, best=Scores(tmp_path / "best")).read()
    assert sorted(found["sample_id"]) == ["p0-1", "p1-0", "p2-0"]
    assert sorted(shown) == ["answer 0", "answer 0", "answer 1"]
