"""Estimates how many tokens are still to be sampled, from finished and unfinished completions.

Finished completions alone mislead, because the short ones end first. So this is a life table, as
demographers make it of lives that are not over: for each bin of a completion's length, how many of
those that reached it ended there.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

BINS = 32  # of equal width, up to the limit of tokens
PRIOR_COMPLETIONS = 4  # weight of the general rate in each bin, so that a few do not decide alone


def find_bin(tokens: int, limit: int) -> int:
    return min(BINS - 1, max(tokens - 1, 0) * BINS // limit)


class LengthEstimate:
    """All counts are by the bin of a completion's length.

    `ended` counts completions that ended by themselves, `unfinished` those still being sampled.
    """

    def __init__(
        self, limit: int, ended: Mapping[int, int], truncated: int, unfinished: Mapping[int, int]
    ):
        self._width = limit / BINS
        self._unfinished = unfinished
        self.ended_count = sum(ended.values())
        exposure = self._measure_exposure(ended, truncated)
        rate = self._measure_general_rate(ended, exposure)
        # Per token, the chance to end in each bin, shrunk towards the general rate.
        prior = PRIOR_COMPLETIONS * self._width
        hazards = [(ended.get(at, 0) + rate * prior) / (exposure[at] + prior) for at in range(BINS)]
        survival = [math.exp(-self._width * hazard) for hazard in hazards]
        # Expected tokens to come, for a completion at the start of each bin. Within a bin the
        # tokens are the mean of survival at its two ends (trapezoid rule) times its width.
        self._expected = [0.0] * (BINS + 1)
        for at in reversed(range(BINS)):
            within = self._width * (1 + survival[at]) / 2
            self._expected[at] = within + survival[at] * self._expected[at + 1]

    def _measure_exposure(self, ended: Mapping[int, int], truncated: int) -> list[float]:
        """Tokens sampled in each bin. A completion that stays in a bin counts as half its width."""
        exposure, beyond = [0.0] * BINS, truncated  # `beyond`: completions past the bin
        for at in reversed(range(BINS)):
            here = ended.get(at, 0) + self._unfinished.get(at, 0)
            exposure[at] = (beyond + here / 2) * self._width
            beyond += here
        return exposure

    def _measure_general_rate(self, ended: Mapping[int, int], exposure: list[float]) -> float:
        """Ends per token in the upper half of the bins reached, which resembles the rest most."""
        highest = max((at for at in range(BINS) if exposure[at]), default=0)
        upper_half = range(highest // 2, highest + 1)
        tokens = sum(exposure[at] for at in upper_half)
        return sum(ended.get(at, 0) for at in upper_half) / tokens if tokens else 0.0

    def estimate_remaining(self, waiting: int) -> float:
        """Tokens of the unfinished completions, each in the middle of its bin, and the waiting."""
        middles = [(here + there) / 2 for here, there in pairwise(self._expected)]
        unfinished = sum(count * middles[at] for at, count in self._unfinished.items())
        return unfinished + waiting * self._expected[0]
