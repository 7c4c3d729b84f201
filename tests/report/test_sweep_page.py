"""The sweep's page: which point it takes, which are grey, and that no point is missing."""

import re

import pytest

from pipeline.report.render.sweep_page import (
    SweepGrid,
    build_points,
    choose_best,
    draw_heat_map,
    is_dominated,
    render_sweep,
    write_lead,
)


def point(
    number: int, beta: str, rate: str, score: float | None = None, kl: float | None = None
) -> dict:
    words = [f"train.beta={beta}", f"train.learning_rate={rate}", "recipes=sweep_smoke"]
    line = {"point": number, "overrides": words, "status": "failed" if score is None else "done"}
    return (
        line
        if score is None
        else {**line, "split": "dev", "score": score, "kl": kl, "report": "r.html"}
    )


POINTS = [
    point(0, "0.05", "6e-5", 0.56, 0.02),
    point(1, "0.05", "3e-4", 0.62, 0.90),
    point(2, "0.2", "6e-5", 0.55, 0.03),
    point(3, "0.2", "3e-4", 0.60, 0.40),
]


def grid(points=POINTS, budget=None, split="dev") -> SweepGrid:
    return SweepGrid(
        "sweep_smoke", points, split, budget, choose_best(points, budget), "strop run …", None
    )


@pytest.mark.parametrize(("budget", "taken"), [(None, 1), (0.5, 3), (0.02, 0), (0.01, None)])
def test_the_best_point_is_the_highest_score_inside_the_budget(budget, taken):
    best = choose_best(POINTS, budget)
    assert (best and best["point"]) == taken


def test_among_equal_scores_the_one_nearer_to_sft_and_an_unknown_kl_fits_no_budget():
    equal = [
        point(0, "1", "1", 0.6, None),
        point(1, "1", "2", 0.6, 0.5),
        point(2, "1", "3", 0.6, 0.4),
    ]
    assert choose_best(equal, None)["point"] == 2
    assert choose_best(equal[:1], 9.0) is None


def test_a_point_is_dominated_when_another_gives_no_less_for_no_more():
    assert [is_dominated(p, POINTS) for p in POINTS] == [False, False, True, False]
    twins = [point(0, "1", "1", 0.5, 0.1), point(1, "1", "2", 0.5, 0.1)]
    assert [is_dominated(p, twins) for p in twins] == [False, False]


def test_the_page_shows_every_point_failed_ones_too_and_the_command_for_the_best():
    page = render_sweep(grid([*POINTS[:3], point(3, "0.2", "3e-4")]))
    assert "take train.beta=0.05, train.learning_rate=3e-4" in page
    assert page.count("<tr class=chosen>") == 1 and ">failed<" in page
    assert len(re.findall(r'class="heat( best)?"', page)) == 6 and "strop run …" in page
    assert not re.search(r'(src|href)="http', page)


def test_a_third_knob_leaves_each_cell_its_highest_score():
    third = [
        {**p, "overrides": [*p["overrides"], f"seed={seed}"], "score": p["score"] + seed / 100}
        for p in POINTS
        for seed in (1, 2)
    ]
    assert [row[1] for row in draw_heat_map(grid(third), "score", "Score").rows] == [
        "0.570",
        "0.580",
        "0.620",
        "0.640",
    ]


def test_a_sweep_without_a_point_to_take_says_so_and_test_is_no_place_to_choose():
    assert "no point to take within 0.01 nats" in render_sweep(grid(budget=0.01))
    assert "evaluate.split=dev" in render_sweep(grid(split="test"))
    assert "evaluate.split=dev" not in render_sweep(grid())


def test_a_sweep_s_lead_says_what_is_so():
    alone = grid([point(0, "0.05", "1e-5", 0.5)])
    assert (
        write_lead(alone)
        == "It scores 0.500 on dev at an unknown distance from sft, the highest of 1 point."
    )
    tied = grid([point(0, "0.05", "1e-5", 0.5, 1.0), point(1, "0.1", "1e-5", 0.5, 2.0)])
    assert "no lower than any of 2 points" in write_lead(tied) and "the highest" not in write_lead(
        tied
    )
    for budget in (None, 5.0):
        assert (
            write_lead(grid([point(0, "0.05", "1e-5")], budget))
            == "No point has finished with a score: see the logs."
        )


def test_a_best_point_that_is_not_clearly_better_than_sft_is_not_to_be_taken():
    worse = [{**each, "better": "unclear", "sft_score": 0.7} for each in POINTS]
    page = render_sweep(grid(worse))
    assert "is not clearly better than sft" in page and "take train" not in page
    assert "It scores 0.620 (sft 0.700) on dev" in page
    assert "take train" in render_sweep(grid([{**each, "better": "yes"} for each in POINTS]))


def test_points_that_score_the_same_are_counted_in_the_headline():
    equal = [point(n, "1", str(n), 0.6, 0.5) for n in range(3)]
    assert "take train.learning_rate=0; 2 other points scored the same" in render_sweep(grid(equal))


def test_nothing_is_framed_where_no_point_is_best():
    page = render_sweep(grid(budget=0.001))
    assert "framed" not in page and "the best one" not in page


def test_a_sweep_on_test_is_not_sent_to_test_again():
    assert "again, on test" not in render_sweep(grid(split="test"))
    assert "again, on test" in render_sweep(grid())


def with_seeds(line: dict, wider: str) -> dict:
    reaches = {"seeds": 0.02, "prompts": 0.04} if wider == "prompts" else {"seeds": 0.09}
    between = {
        name: {"low": 0.1 - reach, "high": 0.1 + reach, "n": 3}
        for name, reach in ({"prompts": 0.04} | reaches).items()
    }
    gain = {"mean": 0.1, "low": 0.06, "high": 0.14, "between": between, "wider": wider}
    return {**line, "gain": gain}


def test_points_of_several_seeds_have_both_intervals_and_say_which_is_wider():
    points = [with_seeds(POINTS[0], "prompts"), with_seeds(POINTS[1], "seeds"), *POINTS[2:]]
    table = build_points(grid(points))
    assert table.columns[-5:-2] == ["Δ over sft", "between seeds", "between prompts"]
    shown = [[(cell.text, cell.detail) for cell in row[5:7]] for row in table.rows[:3]]
    assert shown[0] == [("±0.020", ""), ("±0.040", "the wider")]
    assert shown[1] == [("±0.090", "the wider"), ("±0.040", "")]
    assert shown[2] == [("–", "")] * 2, "a point with one seed"
    assert "more seeds would narrow this more than more prompts" in write_lead(grid(points))
    assert "between seeds" not in build_points(grid()).columns
