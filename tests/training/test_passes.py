"""Which rows share a pass: the cheapest cut, and as many passes in each process."""

import random
from itertools import combinations, pairwise

import pytest

from pipeline.training.trainers import passes
from pipeline.training.trainers.passes import Arrangement, merge_passes, plan_passes


def cost(cut: list[list[int]], lengths: list[int]) -> int:
    return sum(passes.PASS_COST + len(rows) * max(lengths[row] for row in rows) for rows in cut)


def test_every_row_goes_through_once_and_no_other_cut_is_cheaper():
    draw = random.Random(0)
    for _ in range(20):
        lengths = [draw.randint(2, 300) for _ in range(8)]
        cut = plan_passes(lengths)
        assert sorted(row for rows in cut for row in rows) == list(range(8))
        order = sorted(range(8), key=lengths.__getitem__)
        cuts = [(0, *at, 8) for count in range(8) for at in combinations(range(1, 8), count)]
        others = [[order[a:b] for a, b in pairwise(at)] for at in cuts]
        assert cost(cut, lengths) == min(cost(other, lengths) for other in others)


def test_rows_alike_share_one_pass_and_a_long_one_goes_alone():
    assert len(plan_passes([60, 61, 62, 60])) == 1
    assert plan_passes([60, 61, 500, 60])[0] == [2]


def test_passes_are_merged_where_that_adds_least_padding_and_end_with_their_longest_row():
    lengths = [500, 300, 290, 100]
    cut = [[0], [1], [2], [3]]
    assert merge_passes(cut, lengths, 4) == cut
    assert merge_passes(cut, lengths, 3) == [[0], [2, 1], [3]]
    assert merge_passes(cut, lengths, 2) == [[0], [3, 2, 1]]
    assert merge_passes(cut, lengths, 1) == [[3, 2, 1, 0]]


class Layout:
    def __init__(self, *lengths: int):
        self.lengths = list(lengths)


def arrange(**changes) -> Arrangement:
    usual = {
        "hidden": 64,
        "attention": "sdpa",
        "by_length": True,
        "shares_prompts": True,
        "sharded": False,
    }
    return Arrangement(**{**usual, **changes})


@pytest.mark.parametrize("by_length", [True, False])
def test_two_answers_share_a_row_where_the_prompt_is_long(by_length):
    arrangement = arrange(by_length=by_length)
    long, short = (Layout(300, 300), Layout(400)), (Layout(110, 110), Layout(210))
    assert arrangement.choose(*long)[0] is long[1]
    assert arrangement.choose(*short)[0] is short[0]  # attention grows with a row's square
    assert arrange(hidden=4096).choose(*short)[0] is short[1]  # where that counts for little


def test_with_sharded_weights_every_process_runs_as_many_passes_as_the_one_with_the_fewest(
    monkeypatch,
):
    monkeypatch.setattr(passes, "find_least", lambda number: min(number, 2))
    lengths = Layout(9000, 5000, 4900, 100)
    assert len(arrange().choose(lengths)[1]) == 3
    assert arrange(sharded=True).choose(lengths)[1] == [[0], [3, 2, 1]]
    assert arrange(sharded=True, by_length=False).choose(lengths)[1] == [[3, 2, 1, 0]]
