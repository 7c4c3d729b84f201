"""When a completion that is still being drawn may end: a stop string stands in it.

It saves tokens and decides nothing. Whoever asked cuts before the string, from the same tokens as without it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.backends import Request, Text

if TYPE_CHECKING:
    import torch

EVERY = 16  # tokens between two looks


class Stopper:
    """One completion's stop strings, looked for among the tokens that came since the last look."""

    def __init__(self, text: Text, stops: Sequence[str]):
        self.text, self.stops = text, stops
        self.overlap = 4 * max(map(len, stops))  # a character may take four tokens
        self.looked = 0

    def sees(self, ids: list[int]) -> bool:
        """The beginning of a tail may read otherwise than within the whole, so the whole has the last word."""
        if len(ids) - self.looked < EVERY:
            return False
        tail, self.looked = ids[max(0, self.looked - self.overlap) :], len(ids)
        return self._in(tail) and self._in(ids)

    def _in(self, ids: list[int]) -> bool:
        words = self.text.read(ids)
        return any(stop in words for stop in self.stops)


class EndOfRows:
    """Stoppers for a batch of transformers' generate: a stopping criterion, and `at`, how long each ended row was."""

    def __init__(self, text: Text, batch: list[Request], width: int):
        self.width = width
        self.at: list[int | None] = [None] * len(batch)
        self._stoppers = {
            row: Stopper(text, request.stop) for row, request in enumerate(batch) if request.stop
        }

    def __bool__(self) -> bool:
        return bool(self._stoppers)

    def __call__(
        self, input_ids: "torch.Tensor", scores: "torch.Tensor", **_: object
    ) -> "torch.Tensor":
        import torch

        for row, stopper in self._stoppers.items():
            drawn = input_ids[row, self.width :].tolist()
            if self.at[row] is None and stopper.sees(drawn):
                self.at[row] = len(drawn)
        return torch.tensor([at is not None for at in self.at], device=input_ids.device)
