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
    """Stoppers for a batch of transformers' generate: a stopping criterion that ends the rows which may end."""

    def __init__(self, text: Text, batch: list[Request], width: int):
        self.width = width
        self.stoppers = [Stopper(text, request.stop) if request.stop else None for request in batch]

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor", **_: object) -> "torch.Tensor":
        import torch

        drawn = input_ids[:, self.width :].tolist()
        done = [s is not None and s.sees(row) for s, row in zip(self.stoppers, drawn, strict=True)]
        return torch.tensor(done, device=input_ids.device)
