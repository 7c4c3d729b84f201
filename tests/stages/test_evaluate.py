"""`evaluate` on finished evals: what stands in the report and its tables, and what may be
missing."""

import json
import random
import subprocess
import sys

import polars as pl
import pytest

from pipeline.artifacts import read_table, write_json, write_table
from pipeline.config import ReportConfig
from pipeline.errors import StageError, UserError
from pipeline.report.analysis.statistics import adjust_holm
from pipeline.stages import evaluate
from tests.support import evals
from tests.support.evals import answer, make_eval, model

CONFIG = ReportConfig(
    scorer="rules",
    slices=[],
    labels={},
    panel=None,
    level=0.95,
    resamples=499,
    seed=1,
    training="rules",
    gold=[],
    retention={},
    expect=None,
)
IDS = [f"p{i:03d}" for i in range(60)]
STAGE = {"base": "base", "sft": "sft", "round-1": "train", "round-2": "train"}
AGAIN = {"control": "sft", "best-of-4": "sft", "prompted": "sft", "rival": "base"}
LOG = [
    {"step": 1, "loss": 0.69, "rewards/margins": 0.0, "rewards/accuracies": 0.0},
    {"step": 2, "loss": 0.5, "rewards/margins": 0.8, "rewards/accuracies": 0.9},
    {"step": 2, "eval_loss": 0.6, "eval_rewards/margins": 0.4, "eval_rewards/accuracies": 0.7},
    {"step": 2, "epoch": 1.0},
]


class Run:
    """A finished run in a folder; its parts may be bent before it is evaluated."""

    def __init__(self, folder, ids=IDS):
        self.store, self.out = folder / "store", folder / "out"
        self.out.mkdir(parents=True)
        self.prompts = evals.prompts(self.store, ids)
        self.evals, self.pairs, self.replicates = {}, [], {}

    def add(self, name, answers, kl=(), without=(), log=()):
        of = model(self.store, {**STAGE, **AGAIN}[name], f"{len(self.evals):012x}", log)
        self.evals[name] = make_eval(of, answers, kl, without)
        return self

    def repeat(self, name, answers, kl=()):
        """The last round by another seed."""
        of = model(self.store, "train", f"{100 + len(self.replicates):012x}")
        self.replicates[name] = make_eval(of, answers, kl)
        return self

    def evaluate(self, chosen="round-1", config=CONFIG):
        of = (
            self.evals[chosen]["model"]
            if chosen in self.evals
            else model(self.store, "train", "f" * 12)
        )
        parts = {"prompts": self.prompts, "evals": self.evals, "chosen": of, "pairs": self.pairs}
        parts |= {"replicates": self.replicates} if self.replicates else {}
        evaluate.run(config, self.out, **parts)
        return json.loads((self.out / "report.json").read_text())


def scored(value, ids=IDS, **more):
    """One answer to every prompt: `value` is a number, or made from the prompt's place."""
    return [
        answer(key, value(i) if callable(value) else value, **more) for i, key in enumerate(ids)
    ]


def named(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def whole(run):
    """Four models, two rounds: nothing is missing."""
    rng = random.Random(0)
    for index, name in enumerate(STAGE):
        kinds = [
            {"open": float(rng.random() < 0.3 + 0.2 * index)} if i % 2 else {}
            for i in range(len(IDS))
        ]
        answers = [
            answer(key, rng.random() + 0.3 * index, kinds=kind)
            for key, kind in zip(IDS, kinds, strict=True)
        ]
        kl = [(key, -20.0 + index * rng.random(), -20.0) for key in IDS]
        run.add(name, answers, kl, log=LOG if name.startswith("round") else ())
    run.pairs = [evals.pairs(run.store, "1" * 12), evals.pairs(run.store, "2" * 12)]
    steps = [
        ("sample", 1, 10.0, {"tokens": 500}),
        ("sample", "test sft", 30.0, {"tokens": 1500}),
        ("pair", 1, 1.0, {}),
    ]
    for stage, label, seconds, cost in steps:
        add_step(run, stage, label, cost, {}, seconds)
    return run


def add_step(run, stage, label, cost, config, seconds=1.0):
    """An ancestor of the report, as its manifest tells."""
    listing = run.out / "step.json"
    ancestors = json.loads(listing.read_text())["ancestors"] if listing.exists() else []
    folder = run.store / stage / f"{len(ancestors):012d}"
    write_json(
        folder / "manifest.json", {"files": [], "seconds": seconds, "cost": cost, "config": config}
    )
    ancestors.append(
        {"stage": stage, "label": label, "fingerprint": folder.name, "path": str(folder)}
    )
    write_json(listing, {"ancestors": ancestors})
    return folder


# ── the contract ──────────────────────────────────────────────────────────────────────────────────


def test_report_json_has_the_contracts_keys(run):
    report = whole(run).evaluate(chosen="round-2")
    contract = {"setup", "models", "duels", "benchmarks", "funnel", "training", "cost", "verdict"}
    contract |= {"expected"}
    doubts = {"slices", "control", "proxy", "ceiling", "annotators", "chats", "retention", "gates"}
    doubts |= {"panels"}
    assert (
        set(report)
        == contract | {"evaluation", "differences", "missing", "changes", "distributions"} | doubts
    )
    assert [each["name"] for each in report["models"]] == list(STAGE)
    for each in report["models"]:
        habits = {"reasoning", "distinct", "refusals", "markdown", "opening", "other_language"}
        assert (
            set(each)
            == {"name", "fingerprint", "metrics", "tokens", "truncated", "repetition", "kl"}
            | habits
        )
        assert set(each["metrics"]) == {"rules", "rules/open"}
        assert set(each["metrics"]["rules"]) == {"mean", "low", "high", "n", "failed"}
        assert set(each["tokens"]) == {"mean", "low", "high"}
        assert set(each["kl"]) == {"mean", "low", "high", "n", "why"}
    for duel in report["duels"]:
        figures = {"wins", "ties", "losses", "win_rate", "low", "high", "p_value"}
        adjusted = {
            f"{name}_adjusted{end}" for name in ("length", "style") for end in ("", "_low", "_high")
        }
        assert set(duel) == figures | adjusted | {
            "a",
            "b",
            "judge",
            "flip_rate",
            "failed",
            "p_holm",
        }
    for gap in report["differences"]:
        figures = {
            "mean",
            "low",
            "high",
            "n",
            "missing",
            "detectable",
            "p_value",
            "p_holm",
            "better",
            "same",
            "worse",
        }
        assert set(gap) == figures | {"model", "scorer", "against"}
    assert set(report["verdict"]) == {"better", "why"}
    assert report["benchmarks"] == report["missing"] == []


def test_each_round_meets_sft_and_the_round_before(run):
    report = whole(run).evaluate(chosen="round-2")
    fought = [(duel["a"], duel["b"]) for duel in report["duels"]]
    assert fought == [("round-1", "sft"), ("round-2", "sft"), ("round-2", "round-1")]


def test_training_and_funnel_come_round_by_round(run):
    report = whole(run).evaluate()
    assert [each["round"] for each in report["training"]] == ["round-1", "round-2"]
    first = report["training"][0]
    assert (first["steps"], first["loss"], first["margin"], first["accuracy"]) == (2, 0.5, 0.8, 0.9)
    assert [point["step"] for point in first["curve"]] == [1, 2]
    assert first["dev"] == [{"step": 2, "loss": 0.6, "margin": 0.4, "accuracy": 0.7}]
    assert [(each["round"], each["pairs"]) for each in report["funnel"]["pairs"]] == [
        (1, 367),
        (2, 367),
    ]


def test_what_was_lost_before_the_pairs_is_in_the_funnel_with_its_reasons(run):
    """Rounds come first, by wave; an evaluation's samples were pruned, so that its counts are all
    that is known."""
    story = {
        "in": 130,
        "dropped": {"near duplicate": 7, "overlap with test": 3},
        "out": {"train": 60, "test": 60},
    }
    prompts = add_step(run, "prompts", 0, {}, {})
    write_json(prompts / "funnel.json", story)
    cost = {
        "prompts": 60,
        "completions": 200,
        "tokens": 1000,
        "truncated": 20,
        "stopped_by_string": 4,
    }
    exam_cost = {**cost, "dropped": 2, "reasoning_tokens": 400, "quantization_difference": 0.02}
    add_step(run, "sample", "test round-1", exam_cost, {"wave": 0})
    add_step(run, "sample", 1, {"prompts": 0, "completions": 0, "tokens": 0}, {"wave": 1})
    first = add_step(run, "sample", 1, {**cost, "dropped": 3, "failed": 1}, {"wave": 0})
    write_table(
        first / "dropped.parquet",
        pl.DataFrame({"reason": ["prompt_too_long"] * 2 + ["context_too_short"]}),
    )
    write_table(first / "failed.parquet", pl.DataFrame({"reason": ["HTTP 500"]}))
    funnel = run.add("sft", scored(0.5)).add("round-1", scored(0.6)).evaluate()["funnel"]

    assert funnel["prompts"] == story
    assert [(draw["label"], draw["wave"]) for draw in funnel["samples"]] == [
        (1, 0),
        (1, 1),
        ("test round-1", 0),
    ]
    whole, wave, examined = funnel["samples"]
    assert whole["dropped"] == {"context_too_short": 1, "prompt_too_long": 2} and whole[
        "failed"
    ] == {"HTTP 500": 1}
    assert (
        whole["prompts"],
        whole["completions"],
        whole["truncated"],
        whole["stopped_by_string"],
    ) == (60, 200, 20, 4)
    assert (whole["tokens"], whole["reasoning_tokens"], whole["quantization_difference"]) == (
        5.0,
        None,
        None,
    )
    assert (wave["prompts"], wave["tokens"]) == (0, None)
    assert (examined["reasoning_tokens"], examined["quantization_difference"]) == (2.0, 0.02)
    assert examined["dropped"] == {"reasons no longer kept": 2}


def test_reasoning_is_told_apart_from_the_answer(run):
    report = (
        run.add("sft", scored(0.5))
        .add("round-1", scored(0.6, tokens=30, reasoning_tokens=20))
        .evaluate()
    )
    assert [(m["tokens"]["mean"], m["reasoning"]["mean"]) for m in report["models"]] == [
        (10, 0),
        (10, 20),
    ]


def test_cost_sums_the_ancestors_by_stage(run):
    cost = whole(run).evaluate()["cost"]
    assert [row["stage"] for row in cost] == ["sample", "pair"]
    assert (cost[0]["seconds"], cost[0]["tokens"], cost[0]["tokens_per_second"]) == (
        40.0,
        2000,
        50.0,
    )
    assert [(step["label"], step["seconds"]) for step in cost[0]["steps"]] == [
        ("1", 10.0),
        ("test sft", 30.0),
    ]
    assert (cost[1]["tokens"], cost[1]["tokens_per_second"]) == (None, None)


def test_tokens_a_second_are_those_of_sampling_and_the_phases_are_summed(run):
    phases = {"start": 0.5, "load": 4.0, "work": 6.0, "write": 1.0, "wait": 0.5}
    figures = {"tokens": 600, "tokens_per_second": 100.0, "phases": phases, "models_opened": 1}
    add_step(run, "sample", 1, figures, {}, seconds=12.0)
    add_step(run, "sample", "test sft", figures, {}, seconds=12.0)
    add_step(run, "train", 1, {"tokens": 900}, {}, seconds=9.0)
    drawn, trained = run.add("sft", scored(0.5)).add("round-1", scored(0.6)).evaluate()["cost"]
    assert (drawn["seconds"], drawn["tokens_per_second"]) == (24.0, 100.0)
    assert drawn["phases"] == {name: 2 * seconds for name, seconds in phases.items()}
    assert drawn["models_opened"] == 2
    assert (trained["phases"], trained["models_opened"]) == (None, None)
    assert trained["tokens_per_second"] == 100.0


def test_without_the_list_of_ancestors_there_is_no_cost(run):
    report = run.add("sft", scored(0.5)).add("round-1", scored(0.6)).evaluate()
    assert report["cost"] == []


def test_the_head_names_model_prompts_training_and_command(run):
    whole(run)
    training = {"trainer": "dpo", "loss": ["sigmoid", "sft"], "adapter": {"kind": "qlora"}}
    configs = {
        ("prompts", 0): {"kind": "file", "path": "data/asked.jsonl"},
        ("sft", 0): {"kind": "checkpoint", "model": "./mine"},
        ("train", 1): {**training, "beta": 0.3, "learning_rate": 1e-6},
        ("train", 2): {**training, "beta": 0.3, "learning_rate": 1e-6},
    }
    for (stage, label), config in configs.items():
        add_step(run, stage, label, {}, config)
    listing = run.out / "step.json"
    command = "strop run sft.model=./mine rounds=2"
    step = {**json.loads(listing.read_text()), "command": f"{command} until=evaluate@report"}
    write_json(listing, step)
    report = run.evaluate(chosen="round-2")
    assert report["setup"] == {
        "model": "./mine",
        "prompts": "data/asked.jsonl",
        "objective": "dpo (sigmoid + sft), QLoRA",
        "beta": 0.3,
        "learning_rate": 1e-6,
        "rounds": 2,
        "command": command,
    }
    page, text = ((run.out / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert all(words in page for words in ("./mine", "data/asked.jsonl", command, "QLoRA", "1e-06"))
    assert f"    {command}\n" in text and "- β: 0.3\n" in text


def test_a_model_trained_here_is_named_by_its_base(run):
    whole(run)
    for stage, config in {
        "prompts": {"kind": "hub", "dataset": "owner/asked"},
        "base": {"kind": "checkpoint", "model": "owner/base"},
        "sft": {"kind": "train"},
    }.items():
        add_step(run, stage, 0, {}, config)
    setup = run.evaluate()["setup"]
    assert (setup["model"], setup["prompts"]) == ("trained here from owner/base", "owner/asked")
    assert setup["rounds"] == 0


def test_the_same_exams_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        whole(Run(tmp_path / name)).evaluate(chosen="round-2")
    for file in ("report.json", "report.md", "report.html", "answers.parquet", "verdicts.parquet"):
        assert (tmp_path / "one/out" / file).read_bytes() == (
            tmp_path / "two/out" / file
        ).read_bytes()


def test_it_loads_no_model():
    code = (
        "import sys, pipeline.stages.evaluate;"
        " print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ── the figures ───────────────────────────────────────────────────────────────────────────────────


def test_several_answers_to_a_prompt_are_averaged_first(run):
    """p000 alone was answered three times: it still weighs as one prompt."""
    many = [answer("p000", 1.0, index=i, tokens=30) for i in range(3)] + scored(0.0, IDS[1:])
    report = run.add("sft", many).add("round-1", scored(0.0)).evaluate()
    sft = report["models"][0]
    assert sft["metrics"]["rules"]["mean"] == pytest.approx(1 / 60)
    assert sft["metrics"]["rules"]["n"] == 60
    assert sft["tokens"]["mean"] == pytest.approx((30 + 59 * 10) / 60)
    duel = report["duels"][0]
    assert (duel["wins"], duel["ties"], duel["losses"]) == (0, 59, 1)


def test_a_failed_score_is_left_out_and_counted_and_no_tie(run):
    half = scored(lambda i: None if i < 20 else 0.8)
    report = run.add("sft", scored(0.5)).add("round-1", half).evaluate()
    metric = report["models"][1]["metrics"]["rules"]
    assert (metric["mean"], metric["n"], metric["failed"]) == (pytest.approx(0.8), 40, 20)
    gap = named(report["differences"], model="round-1", scorer="rules")
    assert (gap["mean"], gap["n"], gap["missing"]) == (pytest.approx(0.3), 40, 20)
    duel = report["duels"][0]
    assert (duel["wins"], duel["ties"], duel["losses"], duel["failed"]) == (40, 0, 0, 20)
    answers = read_table(run.out / "answers.parquet").filter(pl.col("model") == "round-1")
    assert answers["score"].null_count() == 20


def test_one_failed_score_of_two_leaves_the_other(run):
    answers = [answer("p000", None, index=0), answer("p000", 0.4, index=1), *scored(0.4, IDS[1:])]
    metric = run.add("sft", answers).evaluate(chosen="sft")["models"][0]["metrics"]["rules"]
    assert (metric["mean"], metric["n"], metric["failed"]) == (pytest.approx(0.4), 60, 1)


def test_answers_on_which_a_scorer_abstained_did_not_fail(run):
    """People marked the answers to some prompts alone; one of their marks could not be read."""
    silent = [answer(key, None, abstained=True) for key in IDS[41:]]
    answers = [
        *scored(0.5, IDS[:39]),
        answer(IDS[39], None),
        answer(IDS[40], None, abstained=True),
        *silent,
    ]
    report = (
        run.add("sft", answers).add("round-1", [*answers, answer(IDS[40], 0.5, index=1)]).evaluate()
    )
    assert [model["metrics"]["rules"]["failed"] for model in report["models"]] == [1, 1]
    assert [model["metrics"]["rules"]["n"] for model in report["models"]] == [39, 40]
    gap = named(report["differences"], model="round-1", scorer="rules")
    assert (gap["n"], gap["missing"], report["duels"][0]["failed"]) == (
        39,
        2,
        2,
    )  # p039 in both, p040 in one


def test_models_are_joined_by_prompt_whatever_the_order_of_rows(run):
    """Each model's answers lie in an order of their own; the true difference on every prompt is
    0.1."""
    order = random.Random(5)
    sft, better = scored(lambda i: i / 60), scored(lambda i: i / 60 + 0.1)
    report = (
        run.add("sft", order.sample(sft, 60)).add("round-1", order.sample(better, 60)).evaluate()
    )
    gap = named(report["differences"], model="round-1", scorer="rules")
    assert (gap["low"], gap["mean"], gap["high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert report["duels"][0]["wins"] == 60
    answers = read_table(run.out / "answers.parquet")
    assert answers["prompt_id"].unique(maintain_order=True).to_list() == IDS
    assert answers.filter(pl.col("prompt_id") == "p007")["score"].to_list() == pytest.approx(
        [7 / 60, 7 / 60 + 0.1]
    )


def test_prompts_that_one_model_did_not_answer_are_missing_from_the_difference(run):
    report = run.add("sft", scored(0.5)).add("round-1", scored(0.6, IDS[:40])).evaluate()
    gap = named(report["differences"], model="round-1", scorer="rules")
    assert (gap["n"], gap["missing"]) == (40, 20)
    assert named(report["missing"], model="round-1", what="it has no answer to 20 of 60 prompts")


def test_a_kind_counts_only_prompts_to_which_it_applies(run):
    kinds = [
        answer(key, 0.5, kinds={"open": float(i < 15)} if i < 20 else {})
        for i, key in enumerate(IDS)
    ]
    report = run.add("sft", kinds).add("round-1", kinds).evaluate()
    metric = report["models"][0]["metrics"]["rules/open"]
    assert (metric["mean"], metric["n"], metric["failed"]) == (0.75, 20, 0)
    gap = named(report["differences"], scorer="rules/open")
    assert (gap["n"], gap["missing"]) == (20, 0)


def test_kl_is_the_mean_log_ratio_on_own_samples(run):
    kl = [(key, -10.0, -10.0 - i) for i, key in enumerate(IDS)]
    report = run.add("sft", scored(0.5)).add("round-1", scored(0.6), kl).evaluate()
    found = report["models"][1]["kl"]
    assert (found["mean"], found["n"]) == (pytest.approx(59 / 2), 60)
    assert found["low"] < 59 / 2 < found["high"]


def test_samples_for_kl_are_no_answers(run):
    kl = [(key, -10.0, -11.0) for key in IDS]
    report = run.add("sft", scored(0.5), kl).add("round-1", scored(0.6), kl).evaluate()
    assert report["models"][0]["metrics"]["rules"]["n"] == 60
    assert "Freely." not in read_table(run.out / "answers.parquet")["completion"].to_list()


def test_truncation_and_length_come_from_the_answers(run):
    cut = [
        answer(key, 0.5, tokens=64 if i < 6 else 10, finish_reason="length" if i < 6 else "stop")
        for i, key in enumerate(IDS)
    ]
    sft = run.add("sft", cut).evaluate(chosen="sft")["models"][0]
    assert sft["truncated"] == pytest.approx(0.1)
    assert sft["tokens"]["mean"] == pytest.approx((6 * 64 + 54 * 10) / 60)


def test_verdicts_say_who_won_each_prompt(run):
    run.add("sft", scored(0.5)).add("round-1", scored(lambda i: [0.2, 0.5, 0.9][i % 3])).evaluate()
    table = read_table(run.out / "verdicts.parquet")
    assert table.columns == [
        "prompt_id",
        "a",
        "b",
        "judge",
        "verdict",
        "orders",
        "score_a",
        "score_b",
    ]
    row = table.filter(pl.col("prompt_id") == "p001").row(0)
    assert row == ("p001", "round-1", "sft", "rules", "tie", [], 0.5, 0.5)
    assert dict(table["verdict"].value_counts().iter_rows()) == {"a": 20, "tie": 20, "b": 20}


def test_a_better_model_is_called_better(run):
    rng = random.Random(4)
    report = (
        run.add("sft", scored(lambda i: rng.random()))
        .add("round-1", scored(lambda i: rng.random() + 0.4))
        .evaluate()
    )
    assert report["verdict"]["better"] == "yes"
    assert report["verdict"]["why"] in (run.out / "report.md").read_text()
    assert "round-1 is better than sft." in (run.out / "report.html").read_text()


# ── how they write ────────────────────────────────────────────────────────────────────────────────


def test_habits_are_shares_by_prompt_and_leave_thinking_out(run):
    texts = [
        "I'm sorry, but no.",
        "<think>I cannot know.</think>Sure, here it is.",
        "# Title\nwords",
        "Sure, here we go.",
    ]
    sft = [
        answer(key, 0.5, texts[i % 4], tokens=30, reasoning_tokens=10 * (i % 4 == 1))
        for i, key in enumerate(IDS)
    ]
    found = run.add("sft", sft).evaluate(chosen="sft")["models"][0]
    assert (found["refusals"], found["markdown"]) == (0.25, 0.25)
    assert found["opening"] == {"text": "i'm sorry but", "share": 0.25}
    assert (found["tokens"]["mean"], found["reasoning"]["mean"]) == (
        pytest.approx(27.5),
        pytest.approx(2.5),
    )
    assert found["distinct"]["1"] == pytest.approx(12 / (15 * (4 + 4 + 2 + 4)))
    assert found["other_language"] == {"share": None, "n": 0}


def test_habits_of_the_chosen_model_are_held_against_sft_s(run):
    """Its answers are longer on every prompt, and cut on two in sixty: the first is a change, the
    second is none."""
    longer = [
        answer(key, 0.5, tokens=15, finish_reason="length" if i < 2 else "stop")
        for i, key in enumerate(IDS)
    ]
    report = run.add("sft", scored(0.5)).add("round-1", longer).evaluate()
    rows = {row["habit"]: row for row in report["changes"]}
    assert (rows["tokens"]["mean"], rows["tokens"]["n"]) == (5.0, 60) and rows["tokens"][
        "p_holm"
    ] < 0.05
    assert rows["truncated"]["mean"] == pytest.approx(2 / 60) and rows["truncated"]["p_holm"] > 0.05
    assert rows["other_language"]["n"] == 0 and rows["other_language"]["p_holm"] is None


def test_distributions_count_every_prompt_once_between_common_edges(run):
    run.add("sft", scored(lambda i: i % 3 / 2)).add("round-1", scored(1.0, tokens=30))
    found = {each["what"]: each for each in run.evaluate()["distributions"]}
    scores, tokens = found["score"], found["tokens"]
    assert (scores["edges"][0], scores["edges"][-1]) == (0.0, 1.0)
    assert (
        scores["prompts"]["sft"][0] == scores["prompts"]["sft"][-1] == 20
        and scores["prompts"]["round-1"][-1] == 60
    )
    for each in (scores, tokens):
        assert all(
            sum(counts) == 60 and len(counts) == len(each["edges"]) - 1
            for counts in each["prompts"].values()
        )


def test_an_answer_in_another_language_than_its_prompt_is_counted(tmp_path):
    run = Run(tmp_path)
    run.prompts = evals.prompts(
        run.store, IDS, "Please describe the old lighthouse by the sea, number {}, in two lines."
    )
    english = (
        "The old lighthouse stands above the grey sea"
        " and has done so for more than two hundred years."
    )
    german = (
        "Der alte Leuchtturm steht über dem grauen Meer"
        " und tut das schon seit mehr als zweihundert Jahren."
    )
    sft = [answer(key, 0.5, german if i < 15 else english) for i, key in enumerate(IDS)]
    assert run.add("sft", sft).evaluate(chosen="sft")["models"][0]["other_language"] == {
        "share": 0.25,
        "n": 60,
    }


def test_slices_are_over_their_own_prompts(tmp_path):
    run = Run(tmp_path)
    kinds = [
        json.dumps({"category": "code"} if i < 20 else {"category": "prose"} if i < 50 else {})
        for i in range(60)
    ]
    table = run.prompts.read().with_columns(columns=pl.Series(kinds))
    write_table(run.prompts.path / "prompts.parquet", table)
    run.add("sft", scored(0.5)).add(
        "round-1", scored(lambda i: 0.9 if i < 20 else 0.5 - i % 2 / 10)
    )
    report = run.evaluate(config=CONFIG.model_copy(update={"slices": ["category"]}))
    own = [row for row in report["slices"] if row["model"] == "round-1"]
    assert [(row["value"], row["prompts"], row["n"]) for row in own] == [
        ("prose", 30, 30),
        ("code", 20, 20),
        ("–", 10, 10),
    ]
    assert named(own, value="code")["gain"]["mean"] == pytest.approx(0.4)
    assert named(own, value="code")["gain"]["p_holm"] == pytest.approx(
        3 * named(own, value="code")["gain"]["p_value"]
    )
    assert "category: prose" in (run.out / "report.md").read_text()
    with pytest.raises(
        UserError, match=r"no prompt has the column categry.*Did you mean category\?"
    ):
        run.evaluate(config=CONFIG.model_copy(update={"slices": ["categry"]}))


# ── what the figures are held against ─────────────────────────────────────────────────────────────


def test_a_family_is_one_scorer_s_models(run):
    report = whole(run).evaluate(chosen="round-2")
    own = [gap for gap in report["differences"] if gap["scorer"] == "rules"]
    assert [gap["model"] for gap in own] == ["base", "round-1", "round-2"]
    *others, primary = own
    assert primary["p_holm"] == primary["p_value"], "planned beforehand"
    assert [gap["p_holm"] for gap in others] == adjust_holm([gap["p_value"] for gap in others])
    assert any(gap["p_holm"] > gap["p_value"] for gap in others)


def again(run, control):
    """SFT, one round, and SFT again: as often above SFT as below it, but for what the control
    adds."""
    run.add("sft", scored(lambda i: i / 60)).add("round-1", scored(lambda i: i / 60 + 0.1))
    return run.add("control", scored(lambda i: i / 60 + 0.1 * (-1) ** i + control))


def test_sft_drawn_again_is_a_row_and_says_that_the_machinery_holds(run):
    report = again(run, 0.0).evaluate()
    assert report["control"]["stable"] is True and report["control"]["tests"] == 2
    assert [model["name"] for model in report["models"]] == ["sft", "round-1", "control"]
    assert named(report["differences"], model="control")["p_value"] > 0.05
    assert named(report["duels"], a="control", b="sft")
    assert report["control"]["why"] in (run.out / "report.md").read_text()
    assert not [
        row for row in report["missing"] if row["model"] == "control" and "KL" in row["what"]
    ]
    assert named(report["models"], name="control")["kl"]["why"] == "sft's own answers"


def test_a_control_that_differs_is_said_at_the_top(run):
    report = again(run, 0.5).evaluate()
    assert report["control"]["stable"] is False
    for file in ("report.md", "report.html"):
        assert "The pipeline or the scorer is unstable" in (run.out / file).read_text()


def golden(run, gold):
    rng = random.Random(0)
    for name, gain in (("sft", 0.0), ("round-1", 1.0)):
        run.add(
            name,
            [
                answer(key, rng.random() + gain, others={"gold": rng.random() + gold * gain})
                for key in IDS
            ],
        )
    return run.evaluate(config=CONFIG.model_copy(update={"gold": ["gold"]}))


def test_a_proxy_that_rose_alone_is_no_yes(run):
    report = golden(run, 0.0)
    assert report["proxy"]["over_optimised"] is True
    [row] = report["proxy"]["rounds"]
    assert row["proxy"]["low"] > 0.5 and row["gold"]["low"] < 0 < row["gold"]["high"]
    assert (
        report["verdict"]["better"] == "unclear"
        and "It learned to please rules" in report["verdict"]["why"]
    )
    assert "round-1 learned to please rules" in (run.out / "report.html").read_text()


def test_a_gold_score_that_follows_leaves_the_yes(run):
    report = golden(run, 1.0)
    assert (report["proxy"]["over_optimised"], report["verdict"]["better"]) == (False, "yes")


def test_the_best_of_n_are_the_answers_that_were_marked_and_the_ceiling(run):
    rng = random.Random(0)
    noise = [rng.random() / 10 for _ in IDS]
    run.add("sft", scored(0.5)).add("round-1", scored(lambda i: 0.6 + noise[i]))
    run.add(
        "best-of-4",
        [answer(key, 0.7 + 2 * noise[i], index=j) for i, key in enumerate(IDS) for j in range(4)],
    )
    scores = run.evals["best-of-4"]["scores"].path / "scores" / "0.parquet"
    write_table(scores, read_table(scores).filter(pl.col("sample_id").str.ends_with("/2")))
    report = run.evaluate()
    assert (
        read_table(run.out / "answers.parquet").filter(pl.col("model") == "best-of-4").height == 60
    )
    assert named(report["models"], name="best-of-4")["metrics"]["rules"]["failed"] == 0
    mean = sum(noise) / 60
    assert report["ceiling"]["share"] == pytest.approx((0.1 + mean) / (0.2 + 2 * mean))


def test_where_sft_is_chosen_it_is_not_held_against_itself(run):
    for name, score in {"sft": 0.5, "round-1": 0.5, "best-of-4": 0.9}.items():
        run.add(name, [answer(key, score, kinds={"lower": score}) for key in IDS])
    run.evaluate("sft", CONFIG.model_copy(update={"slices": ["category"]}))
    told = (run.out / "report.md").read_text()
    assert "best-of-4 gains +0.400 over sft: this much can be gained." in told
    assert "| slice | prompts | sft |\n" in told and "Δ sft" not in told


# ── what may be missing ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "lacking", [["scores"], ["logps"], ["samples"], ["samples", "scores", "logps"]]
)
def test_the_report_is_written_although_one_model_lacks_something(run, lacking):
    kl = [(key, -10.0, -11.0) for key in IDS]
    run.add("sft", scored(0.5), kl).add("round-1", scored(0.6), kl, without=lacking).add(
        "round-2", scored(0.9), kl
    )
    report = run.evaluate(chosen="round-2")
    assert {row["model"] for row in report["missing"]} == {"round-1"}
    assert named(report["models"], name="round-2")["metrics"]["rules"]["mean"] == pytest.approx(0.9)
    assert report["verdict"]["better"] == "yes"
    for file in ("report.md", "report.html"):
        assert report["missing"][0]["what"].split(":")[0] in (run.out / file).read_text()


def test_the_chosen_model_without_scores_is_unclear(run):
    report = run.add("sft", scored(0.5)).add("round-1", scored(0.6), without=["scores"]).evaluate()
    assert report["verdict"]["better"] == "unclear"
    assert report["models"][1]["metrics"] == {}


def test_no_model_with_scores_at_all_still_gives_a_report(run):
    report = run.add("sft", [], without=["scores"]).add("round-1", []).evaluate()
    assert report["verdict"]["better"] == "unclear"
    assert (run.out / "report.html").exists()


def test_kl_without_log_probabilities_is_null_and_says_why(run):
    report = run.add("sft", scored(0.5)).add("round-1", scored(0.6), without=["logps"]).evaluate()
    reason = "the evaluation has no samples of the setting kl"
    assert report["models"][1]["kl"] == {
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
        "why": reason,
    }
    assert any(row["model"] == "round-1" and "KL" in row["what"] for row in report["missing"])


def test_samples_without_a_log_probability_are_counted(run):
    kl = [(key, -10.0, None if i < 5 else -12.0) for i, key in enumerate(IDS)]
    report = run.add("sft", scored(0.5)).add("round-1", scored(0.6), kl).evaluate()
    assert (report["models"][1]["kl"]["mean"], report["models"][1]["kl"]["n"]) == (
        pytest.approx(2.0),
        55,
    )
    assert any("5 of 60 samples" in row["what"] for row in report["missing"])


@pytest.mark.parametrize("of", ["sft", "round-1"])
def test_where_one_of_the_two_answered_nothing_the_verdict_and_the_page_say_so(run, of):
    answers = {"sft": scored(0.5), "round-1": scored(0.9), of: []}
    report = run.add("sft", answers["sft"]).add("round-1", answers["round-1"]).evaluate()
    assert report["verdict"]["better"] == "unclear"
    assert "for both round-1 and sft: see what is missing" in report["verdict"]["why"]
    assert named(
        report["missing"],
        model=of,
        what="it gave no answers, so it has no scores, lengths or examples",
    )
    assert "it gave no answers" in (run.out / "report.html").read_text()


def test_a_model_whose_answers_are_empty_is_named(run):
    mute = [answer(key, 0.0, text=" " if i else "Yes.") for i, key in enumerate(IDS)]
    report = run.add("sft", scored(0.5)).add("round-1", mute).evaluate()
    assert named(
        report["missing"],
        model="round-1",
        what="empty: 59 of its 60 answers, scored like any other",
    )
    assert [row["what"] for row in report["missing"] if row["model"] == "sft"] == []


def test_scores_missing_for_some_prompts_of_one_model_are_counted_and_the_rest_compared(run):
    run.add("sft", scored(0.5)).add("round-1", scored(lambda i: None if i < 15 else 0.9))
    report = run.evaluate()
    gap = named(report["differences"], model="round-1")
    assert (gap["n"], gap["missing"], report["verdict"]["better"]) == (45, 15, "yes")
    assert "15 without score" in (run.out / "report.md").read_text()


def test_twenty_prompts_are_too_few_for_a_verdict(tmp_path):
    run = Run(tmp_path, IDS[:20])
    report = run.add("sft", scored(0.1, IDS[:20])).add("round-1", scored(0.9, IDS[:20])).evaluate()
    assert report["verdict"]["better"] == "unclear"
    assert "20 test prompts are too few" in report["verdict"]["why"]


def test_a_chosen_model_that_was_not_examined_is_unclear(run):
    report = (
        run.add("sft", scored(0.1)).add("round-1", scored(0.9)).evaluate(chosen="somebody else")
    )
    assert (report["evaluation"]["chosen"], report["verdict"]["better"]) == (None, "unclear")


def test_sft_alone_is_a_report_too(run):
    report = run.add("sft", scored(0.5)).evaluate(chosen="sft")
    assert (report["duels"], report["differences"], report["verdict"]["better"]) == ([], [], "no")


# ── refused ───────────────────────────────────────────────────────────────────────────────────────


def test_a_scorer_that_marked_nothing_is_refused_with_the_known_ones(run):
    run.add("sft", scored(0.5))
    with pytest.raises(UserError, match=r"evaluate\.scorer=rule .*Did you mean rules\?"):
        run.evaluate(chosen="sft", config=CONFIG.model_copy(update={"scorer": "rule"}))


def test_answers_to_other_prompts_stop_the_evaluation(run):
    run.add("sft", scored(0.5, ["stranger"]))
    with pytest.raises(StageError, match="stranger"):
        run.evaluate(chosen="sft")


def test_a_score_that_is_no_number_stops_the_evaluation(run):
    run.add("sft", scored(lambda i: float("nan") if i == 3 else 0.5))
    with pytest.raises(StageError, match="not a finite number"):
        run.evaluate(chosen="sft")


def test_two_scores_for_one_answer_stop_the_evaluation(run):
    run.add("sft", [*scored(0.5), answer("p000", 0.9)])
    with pytest.raises(StageError, match="two scores"):
        run.evaluate(chosen="sft")


def test_where_sft_was_chosen_the_last_round_s_unchanged_weights_are_said(run):
    whole(run)
    write_json(run.evals["round-2"]["model"].path / "training.json", {"unchanged": True})
    assert (
        "The round-2 model’s weights are byte for byte those"
        in run.evaluate(chosen="sft")["verdict"]["why"]
    )
    assert "weights are byte for byte those" not in run.evaluate(chosen="round-1")["verdict"]["why"]


# ── seeds as replicates ───────────────────────────────────────────────────────────────────────────


def by_three_seeds(run, *lifts, spread=0.4, kl=(-1.0, -1.5, -2.0), worth=0.0):
    """SFT and round 1 by three seeds: each gains its lift and a chance of its own at a prompt.

    `worth`: how far prompts differ in what they are worth to all seeds.
    """
    rng, prompts = random.Random(3), random.Random(4)
    base = [rng.random() for _ in IDS]
    worths = [worth * (prompts.random() - 0.5) for _ in IDS]
    run.add("sft", scored(lambda i: base[i]))
    for place, (lift, logp) in enumerate(zip(lifts, kl, strict=True)):
        values = [
            value + lift + gain + spread * (rng.random() - 0.5)
            for value, gain in zip(base, worths, strict=True)
        ]
        answers = scored(values.__getitem__)
        far = [(key, 0.0, logp) for key in IDS]
        if place:
            run.repeat(f"round-1-seed-{42 + place}", answers, far)
        else:
            run.add("round-1", answers, far)
    return run


def test_scores_and_kl_of_the_last_round_are_means_over_its_seeds(run):
    report = by_three_seeds(run, 0.2, 0.3, 0.4).evaluate()
    rows = report["replicates"]
    assert [row["model"] for row in rows] == ["round-1", "round-1-seed-43", "round-1-seed-44"]
    last = named(report["models"], name="round-1")
    assert last["metrics"]["rules"]["mean"] == pytest.approx(sum(r["score"] for r in rows) / 3)
    assert (last["kl"]["mean"], [row["kl"] for row in rows]) == (1.5, [1.0, 1.5, 2.0])
    gap = named(report["differences"], model="round-1")
    assert gap["mean"] == pytest.approx(sum(row["gain"] for row in rows) / 3)
    assert gap["between"]["seeds"]["n"] == 3 and gap["between"]["prompts"]["n"] == 60
    assert gap["wider"] == "seeds" and gap["low"] == gap["between"]["seeds"]["low"]
    assert [each["name"] for each in report["models"]] == ["sft", "round-1"], "no row of its own"


def test_a_gain_that_the_seeds_do_not_share_is_unclear_although_one_seed_is_sure(run):
    report = by_three_seeds(run, 0.4, 0.0, -0.1).evaluate()
    assert report["replicates"][0]["low"] > 0
    assert report["verdict"]["better"] == "unclear"
    assert "more seeds would narrow this more than more prompts" in report["verdict"]["why"]
    assert "Give more seeds (seeds=6)" in report["verdict"]["why"]
    page = (run.out / "report.html").read_text()
    assert "round-1-seed-44" in page and "Between 3 seeds ±" in page
    assert "| mean |" in (run.out / "report.md").read_text()


def test_where_prompts_vary_more_the_advice_is_more_prompts(run):
    report = by_three_seeds(run, 0.01, 0.012, 0.008, spread=0.02, worth=1.0).evaluate()
    assert named(report["differences"], model="round-1")["wider"] == "prompts"
    assert "Give more prompts (prompts.split.test)" in report["verdict"]["why"]


def test_one_seed_leaves_no_trace_in_the_report(tmp_path):
    alone = by_three_seeds(Run(tmp_path / "one"), 0.2, kl=(-1.0,)).evaluate()
    assert "replicates" not in alone and "between" not in alone["differences"][0]
    assert "seeds" not in (tmp_path / "one" / "out" / "report.md").read_text()


def test_prompts_that_one_seed_lacks_are_left_out_of_the_mean(run):
    by_three_seeds(run, 0.2, 0.3, 0.4)
    run.replicates["round-1-seed-44"] = make_eval(
        run.replicates["round-1-seed-44"]["model"], scored(0.5, IDS[:40])
    )
    report = run.evaluate()
    gap = named(report["differences"], model="round-1")
    assert (gap["n"], gap["missing"]) == (40, 20)
    assert any(row["model"] == "round-1-seed-44" for row in report["missing"]), "its KL is unknown"


def test_a_seed_without_scores_leaves_the_first_seed_s(run):
    by_three_seeds(run, 0.2, 0.3, 0.4)
    of = run.replicates["round-1-seed-44"]["model"]
    run.replicates["round-1-seed-44"] = make_eval(of, scored(0.5), without=("scores",))
    report = run.evaluate()
    gap = named(report["differences"], model="round-1")
    assert "between" not in gap and gap["mean"] == report["replicates"][0]["gain"]
    assert (report["replicates"][2]["score"], report["replicates"][2]["n"]) == (None, 0)
