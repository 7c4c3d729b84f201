"""`strop compare`: whatever was examined, on common prompts, from what the store holds alone."""

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import read_table, write_json, write_table
from pipeline.commands import compare
from pipeline.errors import UserError
from pipeline.report.render import comparison_page
from tests.stages.test_evaluate import CONFIG, IDS, Run, named, scored
from tests.support import evals
from tests.support.evals import answer

RULES = {"rules": {"kind": "rules", "rule": "playground", "gold": False, "runtime": {"workers": 1}}}
ANSWER = {"n": 1, "temperature": 0.7}


class Finished(Run):
    """A run with the records that its Steps leave, under `runs/NAME`."""

    def __init__(self, folder, name="a", ids=IDS):
        super().__init__(folder / name, ids)
        self.story = folder / "runs" / "smoke" / name
        self.scorers, self.setting = RULES, ANSWER

    def finish(self, chosen="round-1"):
        self.evaluate(chosen=chosen)
        part = {"stage": "prompts", "fingerprint": "aaaaaaaaaaaa/test", "part": "test"}
        inputs = {}
        for name, evaluation in self.evals.items():
            policy = {"policy": source(evaluation["model"])}
            label = f"test {name}"
            drawn = {
                "purpose": "exam",
                "limits": {"prompt": 64},
                "settings": {"answer": self.setting},
            }
            record(evaluation["samples"], label, drawn, {**policy, "prompts": part})
            if "scores" in evaluation:
                record(
                    evaluation["scores"],
                    label,
                    {"scorers": self.scorers},
                    {"samples": source(evaluation["samples"])},
                )
            record(evaluation["logps"], label, {}, {"rows": source(evaluation["samples"])})
            inputs |= {
                f"evals.{name}.{key}": source(artifact) for key, artifact in evaluation.items()
            }
            inputs[f"evals.{name}.metrics.gsm8k"] = {
                "stage": "benchmark",
                "fingerprint": "bbbbbbbbbbbb",
                "part": None,
            }
        final = self.store / "evaluate" / "eeeeeeeeeeee"
        final.parent.mkdir()
        self.out.rename(final)
        write_json(final / "step.json", {
            "label": "report", "config": dict(CONFIG),
            "inputs": {**inputs, "chosen": inputs[f"evals.{chosen}.model"]}
        })  # fmt: skip
        (self.story / "store").mkdir(parents=True)
        (self.story / "store" / "07-evaluate-report").symlink_to(final)
        return str(self.story)


@pytest.mark.parametrize("beside", [(), ("verdicts.parquet", "config.yaml")])
def test_a_report_of_somebody_s_is_not_written_over(tmp_path, beside):
    for name in ("report.md", *beside):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="out=.*report.md"):
        compare.make_folder(tmp_path, [])
    (tmp_path / "report.md").unlink()
    if not beside:
        compare.make_folder(tmp_path, [])


@pytest.mark.parametrize("name", sorted(compare.COMPARISON_FILES))
def test_a_file_of_the_user_s_with_a_name_of_ours_is_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"out=.*{name} in this folder is not from compare"):
        compare.make_folder(tmp_path, [])


def test_a_comparison_is_written_over_by_one_of_the_same_runs(tmp_path):
    for name in compare.COMPARISON_FILES:
        (tmp_path / name).write_text("of an earlier call")
    write_json(tmp_path / "report.json", {"compared": ["a", "b"], "ground": {}})
    compare.make_folder(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match="a comparison of other runs"):
        compare.make_folder(tmp_path, ["a", "c"])


def test_two_comparisons_of_one_second_have_a_folder_each(two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "make_default_out", lambda: tmp_path / "runs/compare/now")
    places = []
    for _ in range(2):
        assert compare.main([*two]) == 0
        places.append(capsys.readouterr().out.splitlines()[-1])
    assert places == [
        str(tmp_path / f"runs/compare/{name}/report.html") for name in ("now", "now-2")
    ]
    assert "out=: expected a value" in refused(capsys, *two, "out=")
    assert "~nosuchuser" in refused(capsys, *two, "out=~nosuchuser/x")


def source(artifact):
    return {"stage": artifact.path.parent.name, "fingerprint": artifact.path.name, "part": None}


def record(artifact, label, config, inputs):
    write_json(artifact.path / "step.json", {"label": label, "config": config, "inputs": inputs})


def refused(capsys, *words):
    assert compare.main([*words]) == 2
    return capsys.readouterr().err


def report_of(folder, *words):
    assert compare.main([*words, f"out={folder / 'compared'}"]) == 0
    return json.loads((folder / "compared" / "report.json").read_text())


KL = [(key, -10.0, -11.0) for key in IDS]


@pytest.fixture
def two(tmp_path):
    """Run b was asked ten prompts less; its round is better by 0.2 on average."""
    a = Finished(tmp_path, "a").add("sft", scored(0.4)).add("round-1", scored(0.6), KL).finish()
    b = Finished(tmp_path, "b", IDS[10:])
    b.add("sft", scored(0.4, IDS[10:])).add(
        "round-1", scored(lambda i: 0.8 + 0.1 * (-1) ** i, IDS[10:], tokens=12), KL[10:]
    )
    return a, b.finish()


def test_two_runs_are_compared_by_what_they_chose_on_common_prompts(two, tmp_path, capsys):
    report = report_of(tmp_path, *two)
    assert report["ground"]["asked"] == 50
    gap = named(report["differences"], model="smoke/b", scorer="rules")
    assert (gap["mean"], gap["n"], gap["against"]) == (pytest.approx(0.2), 50, "smoke/a")
    assert named(report["models"], name="smoke/a")["metrics"]["rules"]["n"] == 50
    assert named(report["models"], name="smoke/b")["tokens"]["mean"] == 12
    assert named(report["models"], name="smoke/b")["kl"]["mean"] == pytest.approx(1.0)
    assert (report["duels"][0]["wins"], report["verdict"]["better"]) == (50, "yes")
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(tmp_path / "compared" / "report.html")
    assert "common to all: 50 prompts (smoke/a 60, smoke/b 50)" in said
    page = (tmp_path / "compared" / "report.html").read_text()
    assert "smoke/b is better than smoke/a" in page and "://" not in page
    assert (
        "This many prompts can detect a difference of 0.040 (smoke/b)" in page
        and "difference of 0.000" not in page
    )
    gaps = [{**gap, "detectable": 0.05}]
    assert "This many prompts can detect a difference of 0.050" in comparison_page._explain_power(
        {**report, "differences": gaps}
    )
    assert "common to all: 50 prompts" in (tmp_path / "compared" / "report.md").read_text()
    assert read_table(tmp_path / "compared" / "answers.parquet").height == 100


def test_its_intervals_are_drawn_as_one_says(two, tmp_path, capsys):
    wide, narrow = (
        report_of(tmp_path, *two, *words) for words in ([], ["level=0.5", "resamples=99"])
    )
    assert (wide["ground"]["level"], narrow["ground"]["level"]) == (0.95, 0.5)
    capsys.readouterr()
    assert "level=95 resamples=9999" in refused(capsys, *two, "level=95")
    assert "seed=-1" in refused(capsys, *two, "seed=-1")
    assert "Did you mean level=?" in refused(capsys, *two, "levl=0.9")
    assert "out=/dev/null/x: cannot be written" in refused(capsys, *two, "out=/dev/null/x")
    assert "compare: could not convert string to float: 'high'" in refused(
        capsys, *two, "level=high"
    )


def test_models_of_a_run_and_of_the_store_may_be_named(two, tmp_path):
    model = (tmp_path / "b" / "store" / "train").glob("*")
    [folder] = model
    words = [
        f"before={two[0]}:sft",
        f"{two[0]}",
        str(folder),
        f"again={folder.name}",
        f"store={tmp_path / 'b' / 'store'}",
    ]
    report = report_of(tmp_path, *words)
    assert [row["name"] for row in report["compared"]] == [
        "before",
        "smoke/a",
        folder.name,
        "again",
    ]
    gaps = [gap["mean"] for gap in report["differences"] if gap["scorer"] == "rules"]
    assert gaps == [pytest.approx(0.2), pytest.approx(0.4), pytest.approx(0.4)]


def test_the_common_scorers_are_compared_and_the_others_named(tmp_path):
    marked = [answer(key, 0.5, others={"length": 1.0, "gold": 2.0}) for key in IDS]
    a, b = Finished(tmp_path, "a").add("sft", marked), Finished(tmp_path, "b").add("sft", marked)
    a.scorers = {**RULES, "length": {"max": 10}, "gold": {"kind": "math"}}
    b.scorers = {"rules": {**RULES["rules"], "runtime": {"workers": 2}}, "length": {"max": 99}}
    report = report_of(tmp_path, a.finish("sft"), b.finish("sft"))
    assert list(report["models"][0]["metrics"]) == ["rules"], (
        "another number of workers is the same scorer"
    )
    said = " ".join(report["ground"]["apart"])
    assert "length has different configs" in said and "gold scored only smoke/a" in said
    assert "gold scored only smoke/a" in (tmp_path / "compared" / "report.html").read_text()


def test_without_a_common_scorer_the_rest_is_still_written(tmp_path):
    a, b = (
        Finished(tmp_path, "a").add("sft", scored(0.5)),
        Finished(tmp_path, "b").add("sft", scored(0.5)),
    )
    b.scorers = {"rules": {"kind": "other"}}
    report = report_of(tmp_path, a.finish("sft"), b.finish("sft"))
    assert (report["differences"], report["verdict"]["better"]) == ([], "unclear")
    assert report["models"][1]["tokens"]["mean"] == 10


def test_prompts_of_one_name_and_another_text_are_not_common(tmp_path, capsys):
    a, b = (
        Finished(tmp_path, "a").add("sft", scored(0.5)),
        Finished(tmp_path, "b").add("sft", scored(0.5)),
    )
    evals.prompts(b.store, IDS, "Do not tell me about {}.")
    said = refused(capsys, a.finish("sft"), b.finish("sft"))
    assert (
        "no prompt in common (smoke/a 60, smoke/b 60)" in said and "Give runs on the same" in said
    )


def test_draws_by_other_settings_and_few_prompts_are_said(tmp_path):
    ids = IDS[:20]
    a, b = (
        Finished(tmp_path, "a").add("sft", scored(0.5)),
        Finished(tmp_path, "b", ids).add("sft", scored(0.9, ids)),
    )
    b.setting = {"n": 1, "temperature": 1.0}
    report = report_of(tmp_path, a.finish("sft"), b.finish("sft"))
    assert any("temperature 1.0 against 0.7" in text for text in report["ground"]["apart"])
    assert (
        report["verdict"]["better"] == "unclear" and "20 common prompts" in report["verdict"]["why"]
    )


def test_a_model_without_answers_or_scores_is_named_and_the_rest_written(tmp_path):
    a = Finished(tmp_path, "a").add("sft", scored(0.5)).add("round-1", [])
    b = Finished(tmp_path, "b").add("sft", scored(0.5), without=["scores"])
    report = report_of(
        tmp_path, f"sft={(first := a.finish())}:sft", f"mute={first}", b.finish("sft")
    )
    assert {row["model"] for row in report["missing"]} >= {"mute", "smoke/b"}
    assert (tmp_path / "compared" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}"], "needs 2 or more of"),
        (["{a}", "{a}"], "two of them have this name"),
        (["{a}:sfd", "{b}"], "no such row. Did you mean sft?"),
        (["{a}", "nowhere"], "neither a run nor a model"),
    ],
)
def test_what_cannot_be_compared_is_refused(two, capsys, words, said):
    assert said in refused(capsys, *(word.format(a=two[0], b=two[1]) for word in words))


def test_pruned_answers_are_refused(two, tmp_path, capsys):
    for step in (tmp_path / "a" / "store" / "sample").glob("*/step.json"):
        step.unlink()
    assert "were pruned" in refused(capsys, *two)


def fight(run):
    """sft was a: it won ten prompts in both orders, and lost all others but five order flips."""
    rows = [
        (key, f"{key}/0", f"{key}/0", order, winner, "ok", "")
        for i, key in enumerate(IDS)
        for order, winner in (("ab", "a" if i < 15 else "b"), ("ba", "a" if i < 10 else "b"))
    ]
    names = ("prompt_id", "a_id", "b_id", "order", "winner", "status", "detail")
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(probability=pl.lit(0.5))
    fought = run.store / "duel" / "dddddddddddd"
    write_table(fought / "verdicts.parquet", table)
    sides = {"a": source(run.evals["sft"]["samples"]), "b": source(run.evals["round-1"]["samples"])}
    write_json(fought / "step.json", {"config": {"engine": {"model": "judge-7"}}, "inputs": sides})


def test_what_a_judge_said_of_these_very_answers_counts_whichever_was_a(tmp_path):
    a = Finished(tmp_path, "a").add("sft", scored(0.4)).add("round-1", scored(0.6))
    fight(a)
    story = a.finish()
    duel = named(report_of(tmp_path, f"sft={story}:sft", f"new={story}")["duels"], judge="judge-7")
    assert (duel["a"], duel["wins"], duel["ties"], duel["losses"]) == ("new", 45, 5, 10)
    assert duel["flip_rate"] == pytest.approx(5 / 60)


@pytest.mark.parametrize("moved", [(), ("round-1",)], ids=["of another store", "one of each"])
@pytest.mark.parametrize("by", ["run", "fingerprint"])
def test_a_duel_in_the_own_store_of_models_in_another_counts(tmp_path, moved, by):
    """A run with store=[mine,team] adds a judge, and at most a model, to what the team has."""
    run = Finished(tmp_path, "team").add("sft", scored(0.4)).add("round-1", scored(0.6))
    fight(run)
    story, mine, team = run.finish(), tmp_path / "mine", run.store
    parts = [Path("duel/dddddddddddd"), Path("evaluate/eeeeeeeeeeee")]
    evaluations = [artifact for name in moved for artifact in run.evals[name].values()]
    for part in [*parts, *(artifact.path.relative_to(team) for artifact in evaluations)]:
        (mine / part).parent.mkdir(parents=True, exist_ok=True)
        (team / part).rename(mine / part)
    write_json(team / "prompts" / "aaaaaaaaaaaa" / "step.json", {})
    write_json(mine / ".strop-store", {"others": [str(team)]})
    link = run.story / "store" / "07-evaluate-report"
    link.unlink()
    link.symlink_to(mine / parts[1])
    words = [f"old={story}:sft", f"new={story}"]
    if by == "fingerprint":
        models = [run.evals[name]["model"].path.name for name in ("sft", "round-1")]
        words = [f"old={models[0]}", f"new={models[1]}", f"store={mine}"]
    report = report_of(tmp_path, *words)
    duel = named(report["duels"], judge="judge-7")
    assert (duel["a"], duel["wins"], duel["ties"], duel["losses"]) == ("new", 45, 5, 10)
    assert named(report["differences"], model="new", scorer="rules")["mean"] == pytest.approx(0.2)
