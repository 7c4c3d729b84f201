"""What a person watching a draw sees, joined over all hands: how far, how fast, how long, how often cut short, and
what a server asks for it."""

import time
from collections import Counter
from collections.abc import Mapping

from pipeline.config import Prices
from pipeline.crew import Figures
from pipeline.progress import Progress

ENGINE = "engine_start_seconds"


def money(prices: Prices | None, totals: Mapping[str, float]) -> Figures:
    """For all that a server has read and written, also what was not kept; nothing where nobody is paid."""
    if prices is None:
        return {}
    paid = prices.input * totals["billed_prompt_tokens"] + prices.output * totals["billed_tokens"]
    return {"money": paid / 1e6}


class Meter:
    """`found` is what an earlier attempt left: it counts as done, and not in the speed."""

    def __init__(self, found: dict[str, int], prompts: int, prices: Prices | None = None):
        self._prompts, self._found, self._prices = prompts, found["tokens"], prices
        self._sums: Counter[str] = Counter(found)
        self._progress: Progress | None = None
        self._started = time.monotonic()
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
            done = min(int(figures["prompts"]), self._prompts - self._sums["prompts"])
            self._sums.update({name: int(figure) for name, figure in figures.items()} | {"prompts": done})
            self._show(done)

    def _show(self, done: int) -> None:
        if self._progress is not None:
            completions = max(self._sums["completions"], 1)
            failed = {"failed": str(count)} if (count := self._sums["failed"]) else {}
            paid = {name: f"{figure:.2f}" for name, figure in money(self._prices, self._sums).items() if figure}
            facts = {
                "speed": f"{self._speed():.0f} tok/s",
                "length": f"{self._sums['tokens'] / completions:.0f} tokens",
                "truncated": f"{self._sums['truncated'] / completions:.0%}",
                **failed,
                **paid,
            }
            self._progress.advance(done, **facts)

    def _speed(self) -> float:
        return (self._sums["tokens"] - self._found) / max(time.monotonic() - self._started, 0.001)

    def cost(self) -> Figures:
        """Of this attempt alone, from the moment that an engine stood."""
        return {ENGINE: round(self._engine, 2), "tokens_per_second": round(self._speed(), 1)}
