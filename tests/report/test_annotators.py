"""Human verdicts as a judge of evaluations: joined by answer, whichever side it was shown on."""

import json

import polars as pl
import pytest

from pipeline.artifacts import write_table
from pipeline.commands import label
from pipeline.config.base import Local
from pipeline.config.cross_checks import find_mismatches
from pipeline.errors import UserError
from pipeline.plan import plan
from tests.stages.test_evaluate import CONFIG, IDS, Run, named
from tests.support.evals import answer
from tests.support.house import SMALL, composed, identity_of
from tests.support.house import named as named_steps


def make_answers(model, value, **more):
    """Answers under ids of their model's own, as the sampler gives them."""
    return [answer(key, value(i) if callable(value) else value, sample_id=f"{key}:{model}", **more)
            for i, key in enumerate(IDS)]  # fmt: skip


def write_votes(path, *rows):
    """(prompt's place, models as a and b, verdict, annotator)"""
    known = [
        {"a_id": f"{IDS[at]}:{a}", "b_id": f"{IDS[at]}:{b}", "verdict": verdict, "annotator": who}
        for at, a, b, verdict, who in rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in known))
    return str(path)


def evaluate(run, path):
    return run.evaluate(config=CONFIG.model_copy(update={"labels": {"people": path}}))


@pytest.fixture
def run(tmp_path):
    """By the rules round-1 wins the even prompts and loses the odd ones."""
    made = Run(tmp_path)
    return made.add("sft", make_answers("sft", 0.5)).add(
        "round-1", make_answers("round-1", lambda i: 0.6 - 0.2 * (i % 2))
    )


def test_people_are_a_judge_with_rate_interval_and_p_value(run, tmp_path):
    """The newer answer wins 30, ties 10, loses 10; half of all were shown the other way round."""
    verdicts = ["win"] * 30 + ["tie"] * 10 + ["loss"] * 10
    words = {"win": "a", "tie": "tie", "loss": "b"}
    turned = {"win": "b", "tie": "tie", "loss": "a"}
    rows = [
        (i, "round-1", "sft", words[v], "") if i % 2 else (i, "sft", "round-1", turned[v], "")
        for i, v in enumerate(verdicts)
    ]
    report = evaluate(run, write_votes(tmp_path / "v.jsonl", *rows))
    duel = named(report["duels"], judge="people")
    assert (duel["a"], duel["b"]) == ("round-1", "sft")
    assert (duel["wins"], duel["ties"], duel["losses"], duel["win_rate"]) == (30, 10, 10, 0.7)
    assert duel["low"] > 0.5 and duel["p_holm"] < 0.01
    assert not [row for row in report["missing"] if row["model"] == "people"]
    [row] = report["annotators"]
    assert (row["prompts"], row["annotators"], row["among_themselves"]) == (50, 1, None)
    text = (run.out / "report.html").read_text()
    assert "Judges and annotators" in text and "round-1 against sft" in text


def test_a_judge_that_agrees_with_people_half_the_time_is_told_so(run, tmp_path):
    report = evaluate(
        run, write_votes(tmp_path / "v.jsonl", *((i, "round-1", "sft", "a", "") for i in range(40)))
    )
    [row] = report["annotators"]
    assert row["judges"]["rules"]["agreement"]["mean"] == 0.5
    assert row["judges"]["rules"]["exact"] == 0.5 and row["judges"]["rules"]["failed"] == 0


def test_several_annotators_count_once_a_prompt_and_are_measured_against_each_other(run, tmp_path):
    rows = [
        (i, "round-1", "sft", "a" if who != "c" else "b", who) for i in range(10) for who in "abc"
    ]
    report = evaluate(run, write_votes(tmp_path / "v.jsonl", *rows))
    duel = named(report["duels"], judge="people")
    assert (duel["wins"], duel["losses"]) == (10, 0), "by the mean of three, a prompt is one"
    [row] = report["annotators"]
    assert (row["prompts"], row["annotators"]) == (10, 3)
    assert row["among_themselves"]["agreement"]["mean"] == pytest.approx(1 / 3)


def test_verdicts_that_join_nothing_are_named_and_counted_and_the_rest_stands(run, tmp_path):
    strangers = [(i, "round-1", "stranger", "a", "") for i in range(5)]
    rows = [*((i, "round-1", "sft", "a", "") for i in range(30)), *strangers]
    path = tmp_path / "v.jsonl"
    write_votes(path, *rows)
    with path.open("a") as file:
        file.write(
            json.dumps(
                {"a_id": "p000:sft", "b_id": "p001:round-1", "verdict": "a", "annotator": ""}
            )
            + "\n"
        )
    report = evaluate(run, str(path))
    whats = [row["what"] for row in report["missing"] if row["model"] == "people"]
    assert whats == [
        "5 of 36 verdicts are on answers that no evaluated model gave and are left out:"
        " p000:stranger, p001:stranger, p002:stranger and 2 more",
        "1 of 36 verdicts are on answers to two prompts and are left out:"
        " p000:sft and p001:round-1",
    ]
    assert named(report["duels"], judge="people")["wins"] == 30
    assert "no evaluated model gave" in (run.out / "report.md").read_text()


def test_scores_are_no_contest_and_are_sent_to_the_scorer(run, tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"sample_id": "p000:sft", "score": 3}\n')
    with pytest.raises(
        UserError,
        match=r"evaluate\.labels\.people=.*scores of single answers[\s\S]*evaluate\.score\.scorers",
    ):
        evaluate(run, str(path))


def test_labels_enter_the_evaluation_by_content_and_nothing_else(tmp_path):
    path = write_votes(tmp_path / "v.jsonl", (0, "round-1", "sft", "a", ""))
    cfg = composed(*SMALL)

    def with_labels(**labels):
        return cfg.model_copy(
            update={"evaluate": cfg.evaluate.model_copy(update={"labels": labels})}
        )

    before, after = (
        {n: identity_of(s) for n, s in named_steps(plan(one)).items()}
        for one in (cfg, with_labels(p=Local(path)))
    )
    assert {name for name in before if after[name] != before[name]} == {"evaluate@report"}
    assert any(
        "labels.rules: this evaluation has a judge or scorer of that name" in fault
        for fault in find_mismatches(with_labels(rules=path))
    )


def test_what_label_shows_of_two_models_comes_back_as_their_contest(run, tmp_path):
    """The page's own ids join: both models of the evaluation, sides mixed."""
    story = tmp_path / "story"
    (story / "store").mkdir(parents=True)
    for name in ("sft", "round-1"):
        drawn = run.evals[name]["samples"].read()
        messages = [[{"role": "user", "content": key}] for key in drawn["prompt_id"]]
        text = [f"{answer} of {name}" for answer in drawn["completion"]]
        table = drawn.with_columns(prompt=pl.Series(messages), completion=pl.Series(text))
        write_table(tmp_path / name / "samples" / "0.parquet", table)
        (story / "store" / f"05-sample-test-{name}").symlink_to(tmp_path / name)
    rows, _ = label.choose_pairs(story, {"pairs": "40", "seed": "0", "of": "test-sft,test-round-1"})
    path = tmp_path / "verdicts.jsonl"
    told = [{**row, "verdict": "a" if row["a_id"].endswith("round-1") else "b"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    assert {row["verdict"] for row in told} == {"a", "b"}
    assert named(evaluate(run, str(path))["duels"], judge="people")["wins"] == 40
