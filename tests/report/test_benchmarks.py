"""Benchmarks in the report: paired by question, unavailable with the reason, and retention."""

import polars as pl
import pytest

from pipeline.artifacts import UNAVAILABLE_FILE, Metrics, write_json, write_table, write_text
from pipeline.report.analysis.benchmarks import (
    apply_retention,
    check_retention,
    describe_benchmarks,
)
from pipeline.report.analysis.statistics import BootstrapConfig
from pipeline.report.analysis.verdict import VerdictBasis
from tests.stages.test_evaluate import CONFIG, Run, named, scored

DRAW = BootstrapConfig(0.95, 499, 1)
QUESTION = VerdictBasis("test", 300, "rules", 0.95, "round-1")
MARK, SUM = "acc,none", "f1,none"  # the second is not a mean over questions
ROWS = {
    "task": pl.String,
    "doc_id": pl.Int64,
    "doc": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
}


def write_metrics(folder, values, higher=True, doc="d{}"):
    """One benchmark of one model, whose questions were answered so; None: why it is absent."""
    if isinstance(values, str):
        write_text(folder / UNAVAILABLE_FILE, values + "\n")
        return Metrics(folder)
    rows = [("quiz", i, doc.format(i), MARK, float(value)) for i, value in enumerate(values)]
    rows += [("quiz", i, doc.format(i), SUM, None) for i, _ in enumerate(values)]
    write_table(folder / "items.parquet", pl.DataFrame(rows, schema=ROWS, orient="row").reverse())
    told = {"stderr": 0.01, "n": len(values), "higher_is_better": higher}
    figures = [
        {"task": "quiz", "metric": name, "value": sum(values) / len(values), **told}
        for name in (MARK, SUM)
    ]
    figures += [{"task": "quiz_part", "metric": MARK, "value": 1.0, **told}]
    write_json(
        folder / "metrics.json", {"task": "quiz", "chief": figures[0], "cut": 3, "figures": figures}
    )
    return Metrics(folder)


def make_evals(folder, **values):
    return {
        name.replace("_", "-"): {"metrics": {"quiz": write_metrics(folder / name, of)}}
        for name, of in values.items()
    }


def check_loss(limits, sft, later, folder, **more):
    found = {
        "sft": write_metrics(folder / "sft", sft, **more),
        "round-1": write_metrics(folder / "later", later, **more),
    }
    rows = describe_benchmarks(
        {name: {"metrics": {"quiz": each}} for name, each in found.items()}, DRAW
    )
    return check_retention(limits, QUESTION, rows, [])


def test_each_figure_of_the_benchmark_is_paired_question_by_question(tmp_path):
    rows = describe_benchmarks(make_evals(tmp_path, sft=[1, 0] * 50, round_1=[1, 1] * 50), DRAW)
    assert [(row["model"], row["metric"], row["chief"]) for row in rows] == [
        ("sft", MARK, True), ("sft", SUM, False), ("round-1", MARK, True), ("round-1", SUM, False)
    ]  # fmt: skip
    assert rows[0]["gain"] is None and rows[3]["gain"] is None
    gain = rows[2]["gain"]
    assert gain["mean"] == 0.5 and 0.38 < gain["low"] < 0.42 and 0.58 < gain["high"] < 0.62
    assert (gain["n"], gain["missing"], gain["p_holm"]) == (100, 0, gain["p_value"])


def test_a_question_that_changed_between_two_models_is_no_pair(tmp_path):
    other = write_metrics(tmp_path / "later", [1] * 40, doc="changed{}")
    found = make_evals(tmp_path, sft=[1] * 40)
    rows = describe_benchmarks({**found, "round-1": {"metrics": {"quiz": other}}}, DRAW)
    assert rows[2]["gain"] == {**rows[2]["gain"], "n": 0, "missing": 80, "mean": None}


def test_a_question_that_only_one_model_has_a_figure_for_is_counted_as_missing(tmp_path):
    found = make_evals(tmp_path, sft=[1] * 40, round_1=[1] * 39 + [0])
    unweighed = pl.when(pl.col("doc_id") < 39).then("value")
    items = found["round-1"]["metrics"]["quiz"].read_items().with_columns(value=unweighed)
    write_table(tmp_path / "round_1" / "items.parquet", items)
    gain = describe_benchmarks(found, DRAW)[2]["gain"]
    assert (gain["n"], gain["missing"], gain["mean"]) == (39, 1, 0)


@pytest.mark.parametrize(
    ("limit", "later", "state"),
    [
        (0.1, [1, 0] * 100, "kept"),
        (0.1, [1, 1] * 100, "kept"),
        (0.1, [0, 0] * 100, "lost"),
        (0.45, [0, 0] * 100, "perhaps"),  # fell by a half, 0.43 to 0.57
        (0.6, [0, 0] * 100, "kept"),
        (0.1, [0, 0] * 10, "unknown"),  # too few questions
    ],
)
def test_what_may_not_be_lost_is_decided_by_the_interval_of_the_paired_difference(
    tmp_path, limit, later, state
):
    [row] = check_loss({"quiz": limit}, [1, 0] * (len(later) // 2), later, tmp_path)
    assert (row["name"], row["limit"], row["state"]) == ("quiz", limit, state)


def test_where_lower_is_better_a_rise_is_the_loss(tmp_path):
    [row] = check_loss({"quiz": 0.1}, [0, 0] * 50, [1, 0] * 50, tmp_path, higher=False)
    assert (row["state"], row["change"]["mean"]) == ("lost", 0.5)


def test_a_scorer_may_not_be_lost_either():
    gap = {"model": "round-1", "scorer": "short", "mean": -0.3, "low": -0.4, "high": -0.2, "n": 300}
    [row] = check_retention({"short": 0.1}, QUESTION, [], [gap])
    assert row["state"] == "lost"
    [row] = check_retention({"short": 0.1}, QUESTION, [], [])
    assert (row["state"], row["change"]) == ("unknown", None)


def test_a_certain_loss_is_a_no_and_an_unknown_one_no_yes():
    yes, no = {"better": "yes", "why": "It is."}, {"better": "no", "why": "It is not."}
    lost, perhaps, unknown, kept = (
        {"state": s, "why": f"A {s} thing."} for s in ("lost", "perhaps", "unknown", "kept")
    )
    assert apply_retention(yes, [kept], "round-2") == yes
    verdict = apply_retention(yes, [kept, lost], "round-2")
    assert (
        verdict["better"] == "no"
        and "But A lost thing. Take an earlier round, lower train" in verdict["why"]
    )
    assert (
        "But A lost thing. Lower train.learning_rate"
        in apply_retention(yes, [lost], "round-1")["why"]
    ), "there is none before it"
    assert apply_retention(yes, [perhaps], "round-1") == {
        "better": "yes",
        "why": "It is. A perhaps thing.",
    }
    assert (
        apply_retention(yes, [unknown], "round-1")["better"] == "unclear"
        and apply_retention(no, [unknown], "round-1")["better"] == "no"
    )


def test_an_absent_benchmark_is_named_with_its_reason_and_the_report_is_whole(tmp_path):
    run = Run(tmp_path)
    run.add("sft", scored(0.2)).add("round-1", scored(lambda i: 0.5 + i % 3 / 10))
    for name in run.evals:
        folder = tmp_path / name
        there, gone = (
            write_metrics(folder / "quiz", [1, 0] * 50),
            write_metrics(folder / "arc", "No <network>.\n  Connect."),
        )
        run.evals[name]["metrics"] = {"quiz": there, "arc": gone}
    report = run.evaluate(
        config=CONFIG.model_copy(update={"retention": {"arc": 0.1, "quiz": 0.2, "rules": 0.0}})
    )
    assert {"model": "sft, round-1", "what": "No <network>. Connect."} in report["missing"]
    assert named(report["benchmarks"], benchmark="arc", model="sft")["absent"].startswith(
        "No <network>"
    )
    assert [row["state"] for row in report["retention"]] == ["unknown", "kept", "kept"]
    assert (
        report["verdict"]["better"] == "unclear"
        and "the benchmark is unavailable" in report["verdict"]["why"]
    )
    page, card = ((run.out / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "No &lt;network&gt;" in page and ">unavailable<" in page and ">Retention</h2>" in page
    assert "round-1 scores better than sft; whether arc was kept is not known." in page
    assert "## Benchmarks" in card and "| quiz | acc,none | 100 (3 requests cut to fit) |" in card


def test_a_model_that_lost_something_does_not_stand_as_better(tmp_path):
    run = Run(tmp_path)
    run.add("sft", scored(0.2)).add("round-1", scored(lambda i: 0.5 + i % 3 / 10))
    run.evals["sft"]["metrics"] = {"quiz": write_metrics(tmp_path / "a", [1] * 60)}
    run.evals["round-1"]["metrics"] = {"quiz": write_metrics(tmp_path / "b", [0, 1] * 30)}
    report = run.evaluate(config=CONFIG.model_copy(update={"retention": {"quiz": 0.1}}))
    assert report["verdict"]["better"] == "no" and "quiz was lost" in report["verdict"]["why"]
    assert "round-1 lost quiz." in (run.out / "report.html").read_text()
