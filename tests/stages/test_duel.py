"""`duel`: two models' answers before a judge, both orders; killed and taken up again; what the
report makes of it."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import Samples, Verdicts, read_table, write_table
from pipeline.config import DuelConfig
from pipeline.driver import worker
from pipeline.errors import StageError
from pipeline.plan import plan
from pipeline.report.analysis.judges import judge_duel as contested
from pipeline.report.analysis.statistics import BootstrapConfig, adjust_for_length
from pipeline.stages import duel
from tests.stages.test_evaluate import CONFIG, Run, named, scored
from tests.support import evals
from tests.support.house import HOUSE, composed
from tests.support.judges import KEY, fake_judge

AT = "evaluate.duels.j"


@pytest.fixture(scope="module")
def judge():
    with fake_judge() as running:
        yield running


@pytest.fixture(scope="module")
def shipped():
    cfg = composed("recipes=smoke", "+duel@evaluate.duels.j=default", f"{AT}.engine.model=good")
    return cfg.evaluate.duels["j"].model_dump(mode="json")


@pytest.fixture
def config(judge, shipped, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def make(url=judge.url, store="store", model="good", **knobs):
        runtime = {
            **shipped["engine"]["runtime"],
            "base_url": url,
            "api_key_env": "JUDGE_KEY",
            "retries": 1,
        }
        engine = {**shipped["engine"], "model": model, "runtime": runtime}
        verdicts = {"verdicts": tmp_path / store / "verdicts.sqlite"}
        return DuelConfig.model_validate(
            {**shipped, "engine": engine, "runtime": verdicts, **knobs}
        )

    return make


def answered(folder, name, texts):
    """`prompt → its answers`, and a KL draw of each, which is no answer."""
    rows = [
        (prompt, f"{name}/{prompt}/{i}", setting, text, [1], "stop", -1.0, 0)
        for prompt, answers in texts.items()
        for i, (setting, text) in enumerate(
            [*(("answer", text) for text in answers), ("kl", "good " * 9)]
        )
    ]
    write_table(
        folder / name / "samples" / "0.parquet",
        pl.DataFrame(rows[::-1], schema=evals.SAMPLE, orient="row"),
    )
    return Samples(folder / name)


def edges(folder, a, b):
    ids = sorted({*a, *b})
    return {
        "prompts": evals.prompts(folder, ids),
        "a": answered(folder, "a", a),
        "b": answered(folder, "b", b),
    }


A = {"p": ["good good", "good"], "q": ["bad"], "r": ["same"], "s": ["only mine"]}
B = {"p": ["bad", "good good good"], "q": ["good"], "r": ["same"], "t": ["only theirs"]}


def test_each_pair_has_a_row_for_each_order(config, tmp_path):
    table = duel.run(config(), tmp_path / "out", **edges(tmp_path, A, B)).read()
    won = {
        (p, a, o): w
        for p, a, o, w in table.select("prompt_id", "a_id", "order", "winner").iter_rows()
    }
    assert won == {
        **{("p", "a/p/0", order): "a" for order in ("ab", "ba")},
        **{("p", "a/p/1", order): "b" for order in ("ab", "ba")},
        **{("q", "a/q/0", order): "b" for order in ("ab", "ba")},
        **{("r", "a/r/0", order): "tie" for order in ("ab", "ba")},
        ("s", None, None): None,
        ("t", None, None): None,
    }
    absent = table.filter(pl.col("status") == "unanswered")
    assert absent.select("prompt_id", "detail").rows() == [
        ("s", "no answer by b"),
        ("t", "no answer by a"),
    ]
    asked = table.filter((pl.col("status") == "ok") & (pl.col("prompt_id") != "r"))
    assert (
        set(asked["model"]) == {"good-2026-11-01"} and asked["probability"].is_between(0, 1).all()
    )


def test_calling_the_other_one_a_turns_every_verdict_and_pays_nothing(config, judge, tmp_path):
    there = duel.run(config(), tmp_path / "out", **edges(tmp_path, A, B)).read()
    seen = len(judge.seen())
    back = duel.run(config(), tmp_path / "back", **edges(tmp_path / "swapped", B, A)).read()
    assert len(judge.seen()) == seen
    key = ["prompt_id", "a_id", "order"]
    turned = back.filter(pl.col("winner").is_not_null()).select(
        prompt_id="prompt_id",
        a_id=pl.col("b_id").str.replace("b/", "a/"),
        order=pl.col("order").replace({"ab": "ba", "ba": "ab"}),
        winner=pl.col("winner").replace({"a": "b", "b": "a"}),
    )
    wanted = there.filter(pl.col("winner").is_not_null()).select(turned.columns)
    assert turned.sort(key).equals(wanted.sort(key))


def test_replies_without_a_verdict_are_asked_for_again_by_the_same_command(config, judge, tmp_path):
    inputs = edges(tmp_path, A, B)
    first = duel.run(config(), tmp_path / "out", **inputs).read()
    with sqlite3.connect(tmp_path / "store" / "verdicts.sqlite") as file:
        file.execute("UPDATE verdicts SET reply = '3', first = NULL")
    seen = len(judge.seen())
    assert duel.run(config(), tmp_path / "again", **inputs).read().equals(first)
    assert len(judge.seen()) == seen + 6
    duel.run(config(), tmp_path / "third", **inputs)
    assert len(judge.seen()) == seen + 6


def test_failed_verdicts_are_null_and_stop_the_stage_past_the_limit(config, tmp_path):
    inputs = edges(tmp_path, A, B)
    with pytest.raises(
        StageError,
        match=r"6 of 8 verdicts failed \(most often: the server's reply has no choices\)",
    ):
        duel.run(config(model="empty"), tmp_path / "out", **inputs)
    table = duel.run(config(model="empty", max_failed=1.0), tmp_path / "out", **inputs).read()
    failed = table.filter(pl.col("status") == "failed")
    assert (
        failed.height == 6
        and failed["winner"].null_count() == 6 == failed["probability"].null_count()
    )
    assert not (tmp_path / "out" / "failed.parquet").exists()


# ── references and levels ─────────────────────────────────────────────────────────────────────────

REFERENCE = {"reference": "oak elm"}


def with_columns(inputs, columns):
    """The same prompts with columns by prompt."""
    file = inputs["prompts"].path / "prompts.parquet"
    table = read_table(file)
    texts = [json.dumps(columns.get(key, {})) for key in table["prompt_id"]]
    write_table(file, table.with_columns(columns=pl.Series(texts)))
    return inputs


def test_prompts_without_their_reference_are_not_judged_and_counted(config, judge, tmp_path):
    told = {"p": ["an oak, an elm"], "q": ["good good"]}
    inputs = edges(tmp_path, told, {"p": ["good good"], "q": ["bad"]})
    inputs = with_columns(inputs, {"p": REFERENCE})
    seen = len(judge.seen())
    out = tmp_path / "out"
    table = duel.run(config(reference_column="reference"), out, **inputs).read()
    assert len(judge.seen()) == seen + 2
    rows = table.select("prompt_id", "order", "winner", "status", "detail").rows()
    assert rows == [
        ("p", "ab", "a", "ok", ""),
        ("p", "ba", "a", "ok", ""),
        ("q", None, None, "no reference", "no reference in the prompt's column reference"),
    ]
    cost = json.loads((out / "cost.json").read_text())
    assert (cost["verdicts"], cost["failed"], cost["no_reference"]) == (2, 0, 1)
    both = config(reference_column="reference", without_reference="judge")
    table = duel.run(both, tmp_path / "both", **inputs).read()
    assert table["winner"].to_list() == ["a"] * 4 and "weight" not in table.columns
    plain = duel.run(config(), tmp_path / "plain", **inputs).read()
    assert plain.filter(prompt_id="p")["winner"].to_list() == ["b", "b"]


def test_five_levels_have_weights(config, tmp_path):
    a = {"p": ["good good good"], "q": ["good good"], "r": ["good"], "s": ["same"]}
    b = {"p": ["good"], "q": ["good"], "r": ["good x"], "s": ["same"]}
    template = str(HOUSE / "conf" / "score" / "pairwise_5.md")
    five = config(levels=5, template=template)
    table = duel.run(five, tmp_path / "out", **edges(tmp_path, a, b)).read()
    found = table.group_by("prompt_id").agg("winner", "weight").sort("prompt_id").rows()
    assert found == [
        ("p", ["a", "a"], [3.0, 3.0]),
        ("q", ["a", "a"], [1.0, 1.0]),
        ("r", ["tie", "tie"], [1.0, 1.0]),
        ("s", ["tie", "tie"], [1.0, 1.0]),
    ]


def test_levels_choose_their_template():
    words = ["recipes=smoke", "+duel@evaluate.duels.j=default", f"{AT}.engine.model=m"]
    three, five = (composed(*words, f"{AT}.levels={levels}") for levels in (3, 5))
    names = [Path(cfg.evaluate.duels["j"].template).name for cfg in (three, five)]
    assert names == ["pairwise_3.md", "pairwise_5.md"]


def test_a_strong_win_counts_as_three_in_the_win_rate(tmp_path):
    """Two strong wins, a slight loss, and a disagreement, which counts as one: (6 + 0.5) / 8."""
    run = Run(tmp_path)
    run.add("sft", scored(0.5)).add("round-1", scored(0.5))
    from pipeline.report.analysis.eval_results import read_eval

    a, b = (
        read_eval(name, evaluation, frozenset(eval_ids()), "rules")
        for name, evaluation in run.evals.items()
    )
    rows = [("p000", 0, "a", "a"), ("p001", 0, "a", "a"), ("p002", 0, "b", "b")]
    table = verdicts(tmp_path / "duel", [*rows, ("p003", 0, "a", "b")]).read()
    strong = pl.col("prompt_id").is_in(["p000", "p001", "p003"])
    weighted = table.with_columns(weight=pl.when(strong).then(3.0).otherwise(1.0))
    contest = contested("m", a, b, weighted, BootstrapConfig(0.95, 499, 0)).contest
    assert (contest.wins, contest.ties, contest.losses) == (2, 1, 1)
    assert contest.rate.mean == pytest.approx(6.5 / 8)
    assert 0 <= contest.rate.low < contest.rate.mean < contest.rate.high <= 1
    plain = contested("m", a, b, table, BootstrapConfig(0.95, 499, 0)).contest
    assert plain.rate.mean == 2.5 / 4


# ── killed ────────────────────────────────────────────────────────────────────────────────────────

ALONE = """
import json, sys
from pathlib import Path
from pipeline.artifacts import Prompts, Samples
from pipeline.config import DuelConfig
from pipeline.stages import duel
cfg, out, prompts, a, b = json.loads(sys.argv[1]), *map(Path, sys.argv[2:])
sides = {"prompts": Prompts(prompts), "a": Samples(a), "b": Samples(b)}
duel.run(DuelConfig.model_validate(cfg), out, **sides, knob="evaluate.chats.mt.duels.j")
"""


def alone(cfg, out, inputs):
    paths = [str(path) for path in (out, *(inputs[name].path for name in ("prompts", "a", "b")))]
    return subprocess.Popen(
        [sys.executable, "-c", ALONE, cfg.model_dump_json(), *paths],
        cwd=HOUSE,
        env={**os.environ, "JUDGE_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.model  # four processes that import what a worker does
def test_killed_in_the_middle_of_500_verdicts_it_asks_each_once(config, tmp_path):
    """Of 250 pairs in both orders; those in flight at the kill may be asked twice. The key is
    nowhere."""
    ids = [f"p{i:03d}" for i in range(250)]
    inputs = edges(
        tmp_path, {key: [f"good {key}"] for key in ids}, {key: [f"bad {key}"] for key in ids}
    )
    with fake_judge(0.02) as judge:
        cfg = config(judge.url)
        first = alone(cfg, tmp_path / "out", inputs)
        while len(judge.seen()) < 200:
            assert first.poll() is None, first.stdout.read()
            time.sleep(0.02)
        assert KEY not in Path(f"/proc/{first.pid}/cmdline").read_text()
        os.kill(first.pid, signal.SIGKILL)
        said = first.communicate()[0]
        before = judge.counts()
        assert 200 <= len(before) < 500 and not (tmp_path / "out" / "verdicts.parquet").exists()
        second, third = (alone(cfg, tmp_path / name, inputs) for name in ("out", "beside"))
        said += second.communicate()[0] + third.communicate()[0]
        assert (second.returncode, third.returncode) == (0, 0), said
        counts = judge.counts()
    assert len(counts) == 500
    again = [key for key in before if counts[key] > 1]
    assert len(again) <= 16, "only what was in flight is asked again"
    table = read_table(tmp_path / "out" / "verdicts.parquet")
    assert table.height == 500 and set(table["winner"]) == {"a"}
    assert (tmp_path / "out" / "verdicts.parquet").read_bytes() == (
        tmp_path / "beside" / "verdicts.parquet"
    ).read_bytes()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in files) and KEY not in said


@pytest.mark.model
def test_a_denied_key_is_in_no_traceback_and_no_file(config, judge, tmp_path):
    inputs = edges(tmp_path, A, B)
    worker = alone(config(model="denied"), tmp_path / "out", inputs)
    said = worker.communicate()[0]
    assert worker.returncode != 0 and "Traceback" in said
    assert re.search(r"evaluate\.chats\.mt\.duels\.j\.engine\.runtime\.base_url=\S+ HTTP 401", said)
    assert KEY not in said
    assert not any(
        KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )


# ── planned and reported ──────────────────────────────────────────────────────────────────────────


def contests(*words):
    evaluate = plan(
        composed(
            "recipes=smoke", "+duel@evaluate.duels.j=default", f"{AT}.engine.model=good", *words
        )
    )
    return {(new, old): step for new, olds in evaluate.inputs.get("duels", {}).get("j", {}).items()
            for old, step in olds.items()}  # fmt: skip


def test_sft_meets_each_round_and_each_round_the_one_before():
    planned = contests("rounds=3")
    assert list(planned) == [
        ("round-1", "sft"),
        ("round-2", "sft"),
        ("round-2", "round-1"),
        ("round-3", "sft"),
        ("round-3", "round-2"),
    ]
    step = planned["round-2", "round-1"]
    assert {step.inputs["a"].label, step.inputs["b"].label} == {"test round-2", "test round-1"}
    assert step.inputs["a"].label == "test round-2" and step.label == "test round-2 round-1"


def test_the_report_is_given_each_duel_by_its_names():
    evaluate = plan(
        composed("recipes=smoke", "+duel@evaluate.duels.j=default", f"{AT}.engine.model=good")
    )
    flat = {
        name: {"stage": step.stage, "path": name, "part": part}
        for name, step, part in evaluate.edges()
        if name.startswith("duels")
    }
    given = worker.open_inputs(flat)["duels"]["j"]
    assert isinstance(given["round-1"]["sft"], Verdicts)
    assert {new: list(olds) for new, olds in given.items()} == {
        "round-1": ["sft"],
        "round-2": ["sft", "round-1"],
    }


def test_no_duel_is_fought_on_dev():
    assert contests("evaluate.split=dev") == {}


def verdicts(folder, rows):
    """`prompt, index, winner in the order ab, winner in ba`."""
    made = [
        (
            prompt,
            f"a/{prompt}/{i}",
            f"b/{prompt}/{i}",
            order,
            winner,
            None,
            "m",
            "m",
            "ok" if winner else "failed",
            "",
        )
        for prompt, i, *both in rows
        for order, winner in zip(("ab", "ba"), both, strict=True)
    ]
    write_table(folder / "verdicts.parquet", pl.DataFrame(made, schema=duel.VERDICT, orient="row"))
    return Verdicts(folder)


ROWS = [
    ("p000", 0, "a", "a"),  # a win
    ("p001", 0, "b", "b"),  # a loss
    ("p002", 0, "a", "b"),  # a disagreement: a tie
    ("p003", 0, "tie", "tie"),
    ("p004", 0, "a", None),  # failed
    ("p005", 0, "a", "a"),  # two answers: a win and a loss are a tie
    ("p005", 1, "b", "b"),
    ("p006", 0, "a", "a"),
    ("p006", 1, "a", "tie"),  # a win and a half
]


def test_verdicts_stand_in_the_report_by_prompt(tmp_path):
    run = Run(tmp_path)
    run.add("sft", scored(0.5)).add("round-1", scored(0.5))
    fought = {"gpt": {"round-1": {"sft": verdicts(tmp_path / "duel", ROWS)}}}
    parts = {
        "prompts": run.prompts,
        "evals": run.evals,
        "chosen": run.evals["round-1"]["model"],
        "pairs": [],
    }
    from pipeline.stages import evaluate

    evaluate.run(CONFIG, run.out, **parts, duels=fought)
    report = json.loads((run.out / "report.json").read_text())
    row = named(report["duels"], judge="gpt")
    told = {key: row[key] for key in ("a", "b", "wins", "ties", "losses", "failed")}
    assert told == {"a": "round-1", "b": "sft", "wins": 2, "ties": 3, "losses": 1, "failed": 1}
    assert row["win_rate"] == pytest.approx(3.5 / 6) and row["low"] < row["win_rate"] < row["high"]
    assert row["flip_rate"] == pytest.approx((1 + 0.5) / 6) and row["p_value"] == 1.0
    table = read_table(run.out / "verdicts.parquet").filter(pl.col("judge") == "gpt")
    assert table.filter(pl.col("prompt_id") == "p006").select("verdict", "score_a").row(0) == (
        "a",
        0.75,
    )
    orders = dict(table.select("prompt_id", "orders").iter_rows())
    assert (orders["p002"], orders["p006"]) == (["a", "b"], ["a", "a", "a", "tie"])


def test_answers_that_nobody_was_asked_about_are_no_steadiness_of_the_judge(tmp_path):
    run = Run(tmp_path)
    run.add("sft", scored(0.5)).add("round-1", scored(0.5))
    from pipeline.report.analysis.eval_results import read_eval

    a, b = (
        read_eval(name, evaluation, frozenset(eval_ids()), "rules")
        for name, evaluation in run.evals.items()
    )
    table = verdicts(tmp_path / "duel", [("p000", 0, "a", "b"), ("p001", 0, "tie", "tie")]).read()
    equal = table.with_columns(
        detail=pl.when(pl.col("prompt_id") == "p001").then(pl.lit("equal answers"))
    )
    found = contested(
        "m", a, b, equal.with_columns(pl.col("detail").fill_null("")), BootstrapConfig(0.95, 99, 0)
    )
    assert found.flip_rate == 1.0 and found.contest.ties == 2


def eval_ids():
    from tests.stages.test_evaluate import IDS

    return IDS


def test_a_judge_that_likes_length_is_adjusted():
    """Of 200 prompts the longer answer wins nine in ten; a's is longer in three of four."""
    gaps = {f"p{i}": 30.0 if i % 4 else -30.0 for i in range(200)}
    points = {
        key: float((gap > 0) is (i // 4 % 10 != 0)) for i, (key, gap) in enumerate(gaps.items())
    }
    plain = sum(points.values()) / 200
    assert plain > 0.65
    assert adjust_for_length(points, gaps, 0.95).mean == pytest.approx(0.5, abs=0.06)
    assert adjust_for_length(points, dict.fromkeys(points, 5.0), 0.95).mean == pytest.approx(
        plain, abs=0.01
    )
    assert adjust_for_length({"p0": 1.0}, gaps, 0.95) is None
