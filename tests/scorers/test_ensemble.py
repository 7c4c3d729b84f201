"""Ensembles: members compared within a prompt, gates, and a missing score that is never made up."""

import json

import polars as pl
import pytest

from pipeline.artifacts import Prompts, Samples, write_table
from pipeline.config import EnsembleScorer, FunctionScorer, ScoreConfig
from pipeline.errors import UserError
from pipeline.pairing.label_noise import add_signs
from pipeline.scorers import Answer, Score
from pipeline.scorers.ensemble import combine_scores
from pipeline.stages.score import run
from tests.stages.test_pair import SAMPLE
from tests.stages.test_score import sample_row
from tests.support.house import SMALL, composed


def combine_members(scores: dict[str, list[float | None]], **knobs) -> dict[str, Score]:
    """The ensemble of members whose scores of answers 0, 1, 2 … to one prompt are given."""
    gates = knobs.get("gates", {})
    weights = knobs.get("weights", {name: 1.0 for name in scores if name not in gates})
    cfg = EnsembleScorer(
        kind="ensemble",
        weights=weights,
        combine=knobs.get("combine", "mean_rank"),
        gates=gates,
        gold=False,
    )
    count = len(next(iter(scores.values())))
    answers = [Answer(str(i), "p", [], "", {}) for i in range(count)]
    scores = {
        name: {
            str(i): Score(str(i), value, detail=knobs.get("detail", ""))
            for i, value in enumerate(values)
        }
        for name, values in scores.items()
    }
    return {row.sample_id: row for row in combine_scores(cfg, answers, scores)}


def values(scores: dict[str, Score]) -> list[float | None]:
    return [row.score for row in scores.values()]


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean_rank", [1 / 2, (1 + 1 / 6) / 2, (1 / 2 + 1 / 6) / 2, (1 / 2 + 2 / 3) / 2]),
        ("majority", [3 / 6, 4 / 6, 1 / 6, 4 / 6]),  # 1 beats 2, 3 beats 2, the rest are draws
        ("min", [0.0, 1.0, 1.0, 1.5]),
    ],
)
def test_members_are_combined_by_rank_vote_or_minimum(combine, expected):
    found = values(
        combine_members({"a": [0.0, 90.0, 5.0, 5.0], "b": [9.0, 1.0, 1.0, 1.5]}, combine=combine)
    )
    assert found == pytest.approx(expected)


def test_weights_and_units_z_scores_know_the_prompt_s_spread():
    scores = {"a": [1.0, 2.0, 3.0], "b": [300.0, 200.0, 100.0], "flat": [7.0, 7.0, 7.0]}
    assert values(combine_members(scores, combine="mean_z")) == pytest.approx([0, 0, 0])
    heavier = values(combine_members(scores, combine="mean_z", weights={"a": 3.0, "b": 1.0}))
    assert heavier == pytest.approx([-(1.5**0.5) / 2, 0, 1.5**0.5 / 2])
    assert values(combine_members({"a": [4.0]}, combine="mean_z")) == [0] and values(
        combine_members({"a": [4.0]})
    ) == [0.5]


@pytest.mark.parametrize("combine", ["mean_rank", "mean_z", "majority", "min"])
def test_who_fails_a_gate_stands_below_all_who_pass(combine):
    found = combine_members(
        {"a": [9.0, 1.0, 5.0], "safe": [0.0, 1.0, 0.5]}, combine=combine, gates={"safe": 0.5}
    )
    assert found["0"].score < found["1"].score < found["2"].score
    assert json.loads(found["0"].detail)["gates"] == ["safe"] and "gates" not in found["1"].detail
    alone = combine_members({"a": [1.0, 5.0]}, combine=combine)
    assert [found["1"].score, found["2"].score] == values(alone)
    assert set(
        values(
            combine_members(
                {"a": [9.0, 1.0], "safe": [0.0, 0.0]}, combine=combine, gates={"safe": 0.5}
            )
        )
    ) == {-1.0}


def test_a_missing_member_or_gate_leaves_no_score_and_the_others_their_order():
    found = combine_members({"a": [1.0, 2.0, 3.0], "b": [1.0, None, 3.0]})
    assert values(found) == [0.0, None, 1.0] and found["1"].detail == "no score by b"
    assert values(combine_members({"a": [1.0, 2.0], "safe": [None, 1.0]}, gates={"safe": 0.5})) == [
        None,
        0.5,
    ]


def test_disagreement_is_kept_by_prompt_and_flips_of_members_are_passed_on():
    def read_detail(a, b):
        return json.loads(
            combine_members({"a": a, "b": b}, detail='{"flip_rate": 0.25}')["0"].detail
        )

    assert read_detail([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]) == {
        "disagreement": 0.0,
        "flip_rate": 0.25,
    }
    assert read_detail([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])["disagreement"] == 1.0
    assert read_detail([1.0, 2.0], [1.0, 1.0])["disagreement"] == 0.5


# ── in the stage ────────────────────────────────────────────────────────────────────────────────


def length(completions, **columns):
    return [float(len(c[0]["content"])) for c in completions]


def first_letter(completions, **columns):
    return [
        None if c[0]["content"].startswith("z") else -float(ord(c[0]["content"][0]))
        for c in completions
    ]


def member(name: str) -> FunctionScorer:
    return FunctionScorer.model_validate(
        {
            "kind": "function",
            "function": f"tests.scorers.test_ensemble.{name}",
            "gold": False,
            "runtime": {"timeout": 60},
        }
    )


def test_members_keep_their_rows_and_pairs_see_them_disagree(tmp_path):
    texts = {"p": ["b", "aaa", "cc"], "q": ["zz", "a", "bb"]}
    rows = [
        sample_row(p, f"{p}-{i}", text) for p, some in texts.items() for i, text in enumerate(some)
    ]
    write_table(tmp_path / "s" / "samples" / "0.parquet", pl.DataFrame(rows, schema=SAMPLE))
    write_table(
        tmp_path / "p" / "prompts.parquet",
        pl.DataFrame([{"prompt_id": p, "prompt": [], "columns": "{}"} for p in texts]),
    )
    ensemble = EnsembleScorer(
        kind="ensemble",
        weights={"length": 1.0, "letter": 1.0},
        combine="mean_rank",
        gates={},
        gold=False,
    )
    cfg = ScoreConfig(
        scorers={"both": ensemble, "length": member("length"), "letter": member("first_letter")},
        max_failed=0.0,
        runtime={"workers": 1},
    )
    table = run(
        cfg, tmp_path / "out", samples=Samples(tmp_path / "s"), prompts=Prompts(tmp_path / "p")
    ).read()
    assert table.group_by("scorer").len().sort("scorer").rows() == [
        ("both", 6),
        ("length", 6),
        ("letter", 6),
    ]
    both = dict(table.filter(pl.col("scorer") == "both").select("sample_id", "score").rows())
    assert both == {"p-0": 0.25, "p-1": 1.0, "p-2": 0.25, "q-0": None, "q-1": 0.5, "q-2": 0.5}
    assert table.filter(pl.col("status") == "abstained")["sample_id"].to_list() == ["q-0", "q-0"]
    pairs = pl.DataFrame({"chosen_id": ["p-1", "q-1"], "rejected_id": ["p-0", "q-2"]})
    assert add_signs(pairs, table, "both")["disagreement"].to_list() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["score.scorers.all.weights={rulez: 1}"],
            "rulez is not a single scorer of this block. Did you mean rules",
        ),
        (["score.scorers.all.weights={all: 1}"], "all is not a single scorer of this block"),
        (
            ["score.scorers.all.weights={rules: 2}", "score.scorers.all.combine=min"],
            "Give each member the weight 1",
        ),
        (
            ["score.scorers.all.weights={rules: 1}", "evaluate.scorer=all", "evaluate.split=dev"],
            "cannot tell models apart",
        ),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        composed(*SMALL, "+scorer@score.scorers.all=ensemble", *words)
