"""bench/pairing.py: both of its sides make the same pairs, of one model and of a pool."""

import pytest

from bench import pairing


@pytest.mark.parametrize("models", [1, 4])
def test_both_sides_make_the_same_pairs(models):
    samples, scores = pairing.make_rows(500, models)
    ours, dropped = pairing.pair_ours(samples, scores)
    rows, marks = samples.rows(), scores.select("sample_id", "score").rows()
    plain, plain_dropped = pairing.pair_plain(rows, marks)
    own = ours.select("chosen_id", "rejected_id", "margin").rows()
    assert len(own) > 100 and dropped == plain_dropped
    assert pairing.hash_result(own, dropped) == pairing.hash_result(plain, plain_dropped)
