"""Several judges as one: agreement, majority and mean, and the result without each of them."""

import json

import polars as pl
import pytest

from pipeline.artifacts import write_table
from pipeline.config.cross_checks import find_mismatches
from pipeline.report.analysis.agreement import fleiss_kappa
from pipeline.report.analysis.eval_results import read_eval
from pipeline.report.analysis.statistics import BootstrapConfig
from pipeline.report.analysis.style import list_style_gaps
from pipeline.stages import evaluate
from tests.report.test_chats import Chat
from tests.stages.test_duel import verdicts
from tests.stages.test_evaluate import CONFIG, IDS, Run, add_step, named, scored
from tests.support.evals import answer
from tests.support.house import composed

BOOTSTRAP = BootstrapConfig(0.95, 499, 0)
FIRST = 40  # of the prompts have verdicts


def duels_of(folder, won, ids=IDS):
    """`won`: by judge, on how many of the first prompts round-1 wins; it loses the others."""
    made = {}
    for judge, wins in won.items():
        sides = ["a"] * wins + ["b"] * (FIRST - wins)
        rows = [(key, 0, side, side) for key, side in zip(ids[:FIRST], sides, strict=True)]
        made[judge] = {"round-1": {"sft": verdicts(folder / judge, rows)}}
    return made


def report_of(run, duels, **changes):
    parts = {"prompts": run.prompts, "evals": run.evals, "pairs": run.pairs, "duels": duels}
    config = CONFIG.model_copy(update=changes)
    evaluate.run(config, run.out, chosen=run.evals["round-1"]["model"], **parts)
    return json.loads((run.out / "report.json").read_text())


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path).add("sft", scored(0.5)).add("round-1", scored(0.7))


def test_fleiss_kappa_by_hand():
    """Agreement 1, 1/3, 1, 0; shares 6, 1 and 5 of 12 verdicts."""
    votes = [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.5, 1.0, 0.0)]
    chance = (6**2 + 1 + 5**2) / 12**2
    assert fleiss_kappa(votes) == pytest.approx((7 / 12 - chance) / (1 - chance))
    assert fleiss_kappa([(1.0, 1.0), (1.0, 1.0)]) is None
    assert fleiss_kappa([(1.0,), (0.0,)]) is None is fleiss_kappa([])


@pytest.mark.parametrize("combine", ["majority", "mean"])
def test_the_panel_and_the_panel_without_each_judge(run, tmp_path, combine):
    """One finds all better, one none, one 25 of 40: two of three go with the last."""
    duels = duels_of(tmp_path, {"kind": 40, "fair": 25, "harsh": 0})
    report = report_of(run, duels, panel=combine)
    row = named(report["duels"], judge="panel")
    assert (row["wins"], row["losses"], row["win_rate"]) == (25, 15, 0.625)
    [panel] = report["panels"]
    told = {key: panel[key] for key in ("panel", "combine", "a", "b", "judges", "prompts")}
    assert told == {
        "panel": "panel",
        "combine": combine,
        "a": "round-1",
        "b": "sft",
        "judges": ["kind", "fair", "harsh"],
        "prompts": 40,
    }
    rest = {each["judge"]: each for each in panel["without"]}
    assert rest["kind"]["mean"] == pytest.approx(25 * 0.5 / 40)  # a split is a tie
    assert rest["harsh"]["mean"] == pytest.approx((25 + 15 * 0.5) / 40)
    verdict = {name: each["verdict"] for name, each in rest.items()}
    assert verdict == {"kind": "worse", "fair": "unclear", "harsh": "better"}
    assert panel["verdict"] == "unclear"
    assert len(panel["pairs"]) == 3 and panel["kappa"] < 0
    both = named(panel["pairs"], judges=["kind", "fair"])
    assert both["exact"] == 25 / 40
    for name in ("report.html", "report.md"):
        page = (run.out / name).read_text()
        assert "Panels" in page and f"{combine} of kind, fair, harsh" in page
    assert "another verdict than the panel" in (run.out / "report.md").read_text()


@pytest.mark.parametrize(
    ("combine", "counts", "rate"),
    [("mean", (20, 10, 10), 35 / 60), ("majority", (10, 20, 10), 0.5)],
)
def test_a_strong_verdict_counts_as_three_in_a_mean_and_as_one_vote_in_a_majority(
    run, tmp_path, combine, counts, rate
):
    """Ten prompts each, of a judge with five levels and one with three: A≫B and b, b and a, B≫A
    and b, a and a. Weighted points 3/4, 1/2, 0, 1; weights 2, 1, 2, 1."""
    sides = {"five": "abba", "three": "baba"}
    duels = {}
    for judge, winners in sides.items():
        rows = [(key, 0, *[winners[place // 10]] * 2) for place, key in enumerate(IDS[:FIRST])]
        made = verdicts(tmp_path / judge, rows)
        if judge == "five":
            table = made.read()
            strong = pl.col("prompt_id").is_in([*IDS[:10], *IDS[20:30]])
            weighted = table.with_columns(weight=pl.when(strong).then(3.0).otherwise(1.0))
            write_table(made.path / "verdicts.parquet", weighted)
        duels[judge] = {"round-1": {"sft": made}}
    report = report_of(run, duels, panel=combine)
    row = named(report["duels"], judge="panel")
    assert (row["wins"], row["ties"], row["losses"]) == counts
    assert row["win_rate"] == pytest.approx(rate)
    [panel] = report["panels"]
    rest = {each["judge"]: each["mean"] for each in panel["without"]}
    assert rest == {"five": pytest.approx(20 / 40), "three": pytest.approx(40 / 80)}


def test_judges_who_agree_have_a_kappa_of_one_and_hang_on_none(run, tmp_path):
    report = report_of(run, duels_of(tmp_path, dict.fromkeys("xyz", 32)), panel="majority")
    [panel] = report["panels"]
    assert panel["kappa"] == 1 and {each["kappa"] for each in panel["pairs"]} == {1}
    assert {each["verdict"] for each in panel["without"]} == {"better"} == {panel["verdict"]}


def test_a_missing_verdict_is_never_made_up(run, tmp_path):
    duels = duels_of(tmp_path, {"x": 40, "y": 40})
    rows = [(key, 0, "a", "a" if place else None) for place, key in enumerate(IDS[:FIRST])]
    duels["z"] = {"round-1": {"sft": verdicts(tmp_path / "z", rows)}}
    report = report_of(run, duels, panel="majority")
    row = named(report["duels"], judge="panel")
    assert (row["wins"], row["failed"]) == (39, 1)


def test_there_is_no_panel_of_one_judge_nor_unless_it_is_asked_for(run, tmp_path):
    one, two = ({"x": 40}, {"x": 40, "y": 40})
    assert report_of(run, duels_of(tmp_path, one), panel="mean")["panels"] == []
    assert report_of(run, duels_of(tmp_path, two))["panels"] == []
    assert "Panels" not in (run.out / "report.md").read_text()


def test_a_chat_benchmark_has_its_panel(tmp_path):
    run = Chat(tmp_path).talk("sft", 0.6, 0.6).talk("round-1", 0.5, 0.5)
    keys = run.questions.read()["prompt_id"].to_list()
    chats = {
        "mt": {
            "prompts": run.questions,
            "evals": run.asked,
            "duels": duels_of(tmp_path, {"x": 40, "y": 30}, keys),
        }
    }
    parts = {"prompts": run.prompts, "evals": run.evals, "pairs": [], "chats": chats}
    config = CONFIG.model_copy(update={"panel": "mean"})
    evaluate.run(config, run.out, chosen=run.evals["round-1"]["model"], **parts)
    report = json.loads((run.out / "report.json").read_text())
    [panel] = report["chats"]["mt"]["panels"]
    assert (panel["prompts"], report["panels"]) == (40, [])
    assert named(report["chats"]["mt"]["duels"], judge="panel")["ties"] == 10
    assert "mt: panels" in (run.out / "report.md").read_text()


# ── an ensemble of the evaluation's scorers ─────────────────────────────────────────────────────


def rated(gain, ids=IDS):
    """Two judges of five levels and their mean: one likes the new model, the other does not."""
    rows = []
    for place, key in enumerate(ids):
        kind, harsh = 3.0 + gain + place % 2 / 4, 3.0 - gain / 2 + place % 3 / 4
        others = {"kind": kind, "harsh": harsh, "both": (kind + harsh) / 2}
        rows.append(answer(key, 0.5, others=others))
    return rows


@pytest.mark.parametrize("combine", ["mean", "majority"])
def test_an_ensemble_is_a_panel_too(tmp_path, combine):
    run = Run(tmp_path).add("sft", rated(0.0)).add("round-1", rated(1.0))
    ensemble = {"kind": "ensemble", "combine": combine, "weights": {"kind": 1.0, "harsh": 1.0}}
    add_step(run, "score", "test sft", {}, {"scorers": {"both": ensemble, "kind": {}}})
    [panel] = report_of(run, {})["panels"]
    told = panel["panel"], panel["combine"], panel["a"], panel["judges"], panel["even"]
    assert told == ("both", combine, "round-1", ["kind", "harsh"], 0.0)
    assert panel["mean"] == pytest.approx(0.25) and panel["verdict"] == "better"
    rest = {each["judge"]: (each["mean"], each["verdict"]) for each in panel["without"]}
    if combine == "mean":
        assert rest["harsh"] == (pytest.approx(1.0), "better")
        assert rest["kind"] == (pytest.approx(-0.5), "worse")
    else:
        assert set(rest.values()) == {(None, None)}
    assert panel["kappa"] == pytest.approx(-1.0)


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


def test_a_panel_has_two_judges_and_a_name_of_its_own():
    def faults(*words):
        at = "evaluate.duels"
        duels = [
            word
            for name in words
            for word in (f"+duel@{at}.{name}=default", f"{at}.{name}.engine.model=m")
        ]
        cfg = composed("recipes=smoke", *duels)
        panel = cfg.model_copy(
            update={"evaluate": cfg.evaluate.model_copy(update={"panel": "majority"})}
        )
        return [fault for fault in find_mismatches(panel) if "evaluate.panel" in fault]

    assert faults("x", "y") == []
    assert "at least two judges" in faults("x")[0]
    assert "is named panel already" in faults("x", "panel")[0]


# ── style ───────────────────────────────────────────────────────────────────────────────────────

FANCY = "# A title\n\n- **bold** one\n- two\n1. three\n\n```\n# no title\n- no item\n```\n__too__"


def read_pair(run):
    return [
        read_eval(name, evaluation, frozenset(IDS), "rules")
        for name, evaluation in run.evals.items()
    ]


def test_what_style_counts(tmp_path):
    run = Run(tmp_path).add("sft", [answer(key, 0.5, "Plain.", tokens=10) for key in IDS])
    run.add("round-1", [answer(key, 0.5, FANCY, tokens=30) for key in IDS])
    sft, new = read_pair(run)
    length, headers, lists, bold = (
        gap["p000"] for gap in list_style_gaps(new.answers, sft.answers)
    )
    assert length == pytest.approx((30 - 10) / 40)
    for gap, count in ((headers, 1), (lists, 3), (bold, 2)):
        assert gap == pytest.approx((count / 30) / (count / 30 + 1))
    back = [gap["p000"] for gap in list_style_gaps(sft.answers, new.answers)]
    assert back == pytest.approx([-length, -headers, -lists, -bold])


def test_a_judge_of_headers_is_adjusted_in_the_report(tmp_path):
    """Verdicts follow the headers in nine of ten, and round-1 has more in 40 of 60 prompts."""
    plain, headed = "One.\nTwo.", "# One\nTwo."
    run = Run(tmp_path)
    texts = [(headed, plain) if place % 3 else (plain, headed) for place in range(60)]
    run.add("sft", [answer(key, 0.5, text[1]) for key, text in zip(IDS, texts, strict=True)])
    run.add("round-1", [answer(key, 0.5, text[0]) for key, text in zip(IDS, texts, strict=True)])
    rows = []
    for place, (key, text) in enumerate(zip(IDS, texts, strict=True)):
        likes_a = (text[0] == headed) is (place // 3 % 10 != 0)
        rows.append((key, 0, *["a" if likes_a else "b"] * 2))
    duels = {"x": {"round-1": {"sft": verdicts(tmp_path / "x", rows)}}}
    row = named(report_of(run, duels)["duels"], judge="x")
    assert row["win_rate"] > 0.6 and row["length_adjusted"] == pytest.approx(
        row["win_rate"], abs=0.02
    )
    assert row["style_adjusted_low"] < 0.5 < row["style_adjusted_high"]
    assert row["style_adjusted"] == pytest.approx(0.5, abs=0.05)
    assert "style-adjusted" in (run.out / "report.md").read_text()
