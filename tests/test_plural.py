"""Counts in words: one is singular."""

import pytest

from pipeline.errors import pluralize

SAID = "0 rows", "1 row", "2 rows", "1 process", "3 processes"


@pytest.mark.parametrize("said", SAID)
def test_a_count_and_its_noun_agree(said):
    count, noun = said.split()
    assert pluralize(int(count), {"rows": "row", "processes": "process"}.get(noun, noun)) == said


def test_figures_that_are_read_have_commas():
    assert (pluralize(12000, "pair"), pluralize(12000, "pair", grouped=True)) == (
        "12000 pairs",
        "12,000 pairs",
    )
