"""How many tokens are still to be drawn, judged by all tokens so far: those of unfinished completions count too.

Finished completions alone mislead: the short ones end first. So it is a life table, as it is made of lives that are not
over: in each stretch of a completion's length, how many of those that came so far ended there.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

BINS = 32  # stretches of equal width, up to the limit of tokens
CAUTION = 4  # completions' worth of the general rate that each stretch is given, so that a few do not decide alone


def bin_of(tokens: int, limit: int) -> int:
    return min(BINS - 1, max(tokens - 1, 0) * BINS // limit)


class Lengths:
    """`ended`: completions that ended by themselves, by the bin of their length; `under_way`: those not finished."""

    def __init__(
        self, limit: int, ended: Mapping[int, int], truncated: int, under_way: Mapping[int, int]
    ):
        self._width = limit / BINS
        self._under_way = under_way
        self.ended = sum(ended.values())
        drawn, beyond = (
            [0.0] * BINS,
            truncated,
        )  # tokens in each stretch; completions that came further
        for at in reversed(range(BINS)):
            here = ended.get(at, 0) + under_way.get(at, 0)
            drawn[at] = (beyond + here / 2) * self._width
            beyond += here
        reached = max((at for at in range(BINS) if drawn[at]), default=0)
        later = range(
            reached // 2, reached + 1
        )  # how completions end further on is best told by the longer ones
        tokens = sum(drawn[at] for at in later)
        rate = sum(ended.get(at, 0) for at in later) / tokens if tokens else 0.0
        known = CAUTION * self._width
        ends = [
            (ended.get(at, 0) + rate * known) / (drawn[at] + known) for at in range(BINS)
        ]  # for each token
        survives = [math.exp(-self._width * each) for each in ends]
        self._from = [0.0] * (
            BINS + 1
        )  # tokens that one which came to this stretch has still to come
        for at in reversed(range(BINS)):
            self._from[at] = (
                self._width * (1 + survives[at]) / 2 + survives[at] * self._from[at + 1]
            )

    def left(self, waiting: int) -> float:
        """Tokens of those under way, each in the middle of its stretch, and of those that are not yet begun."""
        middles = [(here + there) / 2 for here, there in pairwise(self._from)]
        return (
            sum(count * middles[at] for at, count in self._under_way.items())
            + waiting * self._from[0]
        )
