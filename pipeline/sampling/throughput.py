"""The progress line of sampling, joined over all workers.

It shows progress, speed, time left, the share of truncated completions and a server's price.
"""

import time
from collections import Counter, deque
from collections.abc import Mapping

from pipeline.config import Prices
from pipeline.progress import Progress, format_clock
from pipeline.resources.worker_pool import Figures
from pipeline.sampling.lengths import BINS, LengthEstimate, find_bin

# Known while a Step is sampled, and from all workers. The phase `load` is of the stage's own
# process, and known at its end.
ENGINE = "engine_start_seconds"
# Prefixes of figures, followed by the bin of a completion's length so far.
ENDED_BIN, UNFINISHED_BIN = "ended-", "under-way-"
UNFINISHED_TOKENS = "under_way_tokens"  # of completions that are not finished
# A shard begins with reading its prompts and ends with few requests: a rate over less than a
# shard tells nothing of the rest. In seconds; or the last fifth of the time, if that is longer.
SPEED_WINDOW = 300.0
FIRST_ESTIMATE = 30.0  # seconds, in which an engine may have read prompts alone


def price_tokens(prices: Prices | None, totals: Mapping[str, float]) -> Figures:
    """The price of all that a server has read and written, kept or not. Empty without prices."""
    if prices is None:
        return {}
    paid = prices.input * totals["billed_prompt_tokens"] + prices.output * totals["billed_tokens"]
    return {"money": paid / 1e6}


class ThroughputMeter:
    """`earlier` has the totals of earlier attempts: they count as done, but not in the speed."""

    def __init__(
        self,
        earlier: dict[str, int],
        prompts: int,
        completions: int,
        limit: int,
        prices: Prices | None = None,
    ):
        self._prompt_count, self._completion_count, self._limit = prompts, completions, limit
        self._earlier_tokens, self._prices = earlier["tokens"], prices
        self._sums: Counter[str] = Counter(earlier)
        self._by_bin: dict[str, Counter[int]] = {ENDED_BIN: Counter(), UNFINISHED_BIN: Counter()}
        if ended := earlier["completions"] - earlier["truncated"]:
            # Only the mean of their lengths is known.
            mean = (earlier["tokens"] - earlier["truncated"] * limit) // ended
            self._by_bin[ENDED_BIN][find_bin(mean, limit)] = ended
        self._progress: Progress | None = None
        self._started = time.monotonic()
        self._history: deque[tuple[float, float]] = deque()  # time, and tokens by then
        self._engine_seconds = 0.0

    def update(self, figures: Figures) -> None:
        """A worker's engine has started, or the worker has sampled this much more."""
        if ENGINE in figures:
            self._engine_seconds = max(self._engine_seconds, figures[ENGINE])
            if self._progress is None:
                self._started = time.monotonic()
                self._progress = Progress("sample", self._prompt_count, "prompts")
                self._progress.resume_at(self._sums["prompts"])
            return
        news = {name: int(figure) for name, figure in figures.items()}
        for prefix, counts in self._by_bin.items():
            for at in range(BINS):
                if (name := f"{prefix}{at}") in news:
                    counts[at] += news.pop(name)
        done = min(news.get("prompts", 0), self._prompt_count - self._sums["prompts"])
        self._sums.update(news | {"prompts": done})
        self._show_progress(done)

    def _show_progress(self, done: int) -> None:
        if self._progress is None:
            return
        completions = max(self._sums["completions"], 1)
        facts = {
            "speed": f"{self._measure_speed():.0f} tok/s",
            "length": f"{self._sums['tokens'] / completions:.0f} tokens",
            "truncated": f"{self._sums['truncated'] / completions:.0%}",
        }
        if unfinished := sum(self._by_bin[UNFINISHED_BIN].values()):
            facts["under way"] = f"{unfinished} with {self._sums[UNFINISHED_TOKENS]} tokens"
        if failed := self._sums["failed"]:
            facts["failed"] = str(failed)
        for name, paid in price_tokens(self._prices, self._sums).items():
            if paid:
                facts[name] = f"{paid:.2f}"
        self._progress.time_left = self._estimate_time_left()
        self._progress.advance(done, **facts)

    def _estimate_time_left(self) -> str | None:
        """By tokens, at the recent speed. `at most` while no completion has ended by itself."""
        now, tokens = time.monotonic(), self._count_tokens()
        if tokens:
            self._history.append((now, tokens))
        window = max(SPEED_WINDOW, (now - self._started) / 5)
        while len(self._history) > 2 and now - self._history[1][0] > window:
            self._history.popleft()
        since, before = self._history[0] if len(self._history) > 1 else (self._started, 0.0)
        recent = tokens - before
        if recent <= 0 or now - self._started < FIRST_ESTIMATE:
            return None
        unfinished = self._by_bin[UNFINISHED_BIN]
        finished = self._sums["completions"] + self._sums["failed"]
        estimate = LengthEstimate(
            self._limit, self._by_bin[ENDED_BIN], self._sums["truncated"], unfinished
        )
        waiting = max(0, self._completion_count - finished - sum(unfinished.values()))
        left = format_clock(estimate.estimate_remaining(waiting) * (now - since) / recent)
        return left if estimate.ended_count else f"at most {left}"

    def _count_tokens(self) -> int:
        """Tokens of this attempt, those of unfinished completions included."""
        return self._sums["tokens"] + self._sums[UNFINISHED_TOKENS] - self._earlier_tokens

    def _measure_speed(self) -> float:
        return self._count_tokens() / max(time.monotonic() - self._started, 0.001)

    def measure_cost(self) -> Figures:
        """Of this attempt alone, from the start of the first engine."""
        seconds = max(time.monotonic() - self._started, 0.001)
        speed = (self._sums["tokens"] - self._earlier_tokens) / seconds
        return {ENGINE: round(self._engine_seconds, 2), "tokens_per_second": round(speed, 1)}
