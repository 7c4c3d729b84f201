"""What a person watching a draw sees, joined over all hands: how far, how fast, how long, how often cut short, and
what a server asks for it."""

import time
from collections import Counter, deque
from collections.abc import Mapping

from pipeline.config import Prices
from pipeline.progress import Progress, format_clock
from pipeline.resources.worker_pool import Figures
from pipeline.sampling.lengths import BINS, Lengths, bin_of

ENGINE = "engine_start_seconds"
ENDED, UNDER_WAY = "ended-", "under-way-"  # with the bin of a completion's length so far
DRAWN_SO_FAR = "under_way_tokens"  # of completions that are not finished
LATE = 30.0  # seconds over which the speed of late is taken, or the last fifth of the time


def money(prices: Prices | None, totals: Mapping[str, float]) -> Figures:
    """For all that a server has read and written, also what was not kept; nothing where nobody is paid."""
    if prices is None:
        return {}
    paid = prices.input * totals["billed_prompt_tokens"] + prices.output * totals["billed_tokens"]
    return {"money": paid / 1e6}


class Meter:
    """`found` is what an earlier attempt left: it counts as done, and not in the speed."""

    def __init__(
        self,
        found: dict[str, int],
        prompts: int,
        completions: int,
        limit: int,
        prices: Prices | None = None,
    ):
        self._prompts, self._wanted, self._limit = prompts, completions, limit
        self._found, self._prices = found["tokens"], prices
        self._sums: Counter[str] = Counter(found)
        self._by_bin: dict[str, Counter[int]] = {ENDED: Counter(), UNDER_WAY: Counter()}
        if (
            ended := found["completions"] - found["truncated"]
        ):  # their mean is all that is known of them
            mean = (found["tokens"] - found["truncated"] * limit) // ended
            self._by_bin[ENDED][bin_of(mean, limit)] = ended
        self._progress: Progress | None = None
        self._started = time.monotonic()
        self._drawn: deque[tuple[float, float]] = deque()  # when, and how many tokens by then
        self._engine = 0.0

    def hear(self, figures: Figures) -> None:
        """A hand's engine has started, or it has drawn this much more."""
        if ENGINE in figures:
            self._engine = max(self._engine, figures[ENGINE])
            if self._progress is None:
                self._started = time.monotonic()
                self._progress = Progress("sample", self._prompts, "prompts")
                self._progress.resume_at(self._sums["prompts"])
        else:
            news = {name: int(figure) for name, figure in figures.items()}
            for name, counts in self._by_bin.items():
                counts.update(
                    {at: news.pop(key) for at in range(BINS) if (key := f"{name}{at}") in news}
                )
            done = min(news.get("prompts", 0), self._prompts - self._sums["prompts"])
            self._sums.update(news | {"prompts": done})
            self._show(done)

    def _show(self, done: int) -> None:
        if self._progress is not None:
            completions = max(self._sums["completions"], 1)
            under_way, drawing = self._sums[DRAWN_SO_FAR], sum(self._by_bin[UNDER_WAY].values())
            facts = {
                "speed": f"{self._speed():.0f} tok/s",
                "length": f"{self._sums['tokens'] / completions:.0f} tokens",
                "truncated": f"{self._sums['truncated'] / completions:.0%}",
            }
            if drawing:
                facts["under way"] = f"{drawing} with {under_way} tokens"
            if failed := self._sums["failed"]:
                facts["failed"] = str(failed)
            facts |= {
                name: f"{paid:.2f}"
                for name, paid in money(self._prices, self._sums).items()
                if paid
            }
            self._progress.time_left = self._left()
            self._progress.advance(done, **facts)

    def _left(self) -> str | None:
        """By tokens, at the speed of late. Where not one completion has ended by itself, by the limit: at most."""
        now, drawn = time.monotonic(), self._sums["tokens"] + self._sums[DRAWN_SO_FAR] - self._found
        if drawn:
            self._drawn.append((now, drawn))
        while len(self._drawn) > 2 and now - self._drawn[1][0] > max(
            LATE, (now - self._started) / 5
        ):
            self._drawn.popleft()
        since, before = self._drawn[0] if len(self._drawn) > 1 else (self._started, 0.0)
        came = drawn - before
        if came <= 0:
            return None
        finished = self._sums["completions"] + self._sums["failed"]
        lengths = Lengths(
            self._limit, self._by_bin[ENDED], self._sums["truncated"], self._by_bin[UNDER_WAY]
        )
        waiting = max(0, self._wanted - finished - sum(self._by_bin[UNDER_WAY].values()))
        left = format_clock(lengths.left(waiting) * (now - since) / came)
        return left if lengths.ended else f"at most {left}"

    def _speed(self) -> float:
        drawn = self._sums["tokens"] + self._sums[DRAWN_SO_FAR] - self._found
        return drawn / max(time.monotonic() - self._started, 0.001)

    def cost(self) -> Figures:
        """Of this attempt alone, from the moment that an engine stood."""
        speed = (self._sums["tokens"] - self._found) / max(time.monotonic() - self._started, 0.001)
        return {ENGINE: round(self._engine, 2), "tokens_per_second": round(speed, 1)}
