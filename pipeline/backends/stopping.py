"""End an unfinished completion early once it contains a stop string.

This saves tokens and decides nothing: the caller cuts before the string, from the same tokens that
it would get without this.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.backends import ChatTokenizer, CompletionRequest

if TYPE_CHECKING:
    import torch

CHECK_EVERY = 16  # tokens


class StopStringDetector:
    """Searches one completion for its stop strings, each time in its new tokens alone."""

    def __init__(self, tokenizer: ChatTokenizer, stops: Sequence[str]):
        self.tokenizer, self.stops = tokenizer, stops
        self.overlap = 4 * max(map(len, stops))  # a character may take four tokens
        self.checked = 0  # tokens searched so far

    def finds_stop(self, ids: list[int]) -> bool:
        """The start of a tail may decode differently than within the whole: the whole decides."""
        if len(ids) - self.checked < CHECK_EVERY:
            return False
        tail, self.checked = ids[max(0, self.checked - self.overlap) :], len(ids)
        return self._contains_stop(tail) and self._contains_stop(ids)

    def _contains_stop(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode_raw(ids)
        return any(stop in text for stop in self.stops)


class StopStringCriteria:
    """A stopping criterion for a batch of transformers' generate.

    `end_lengths` has each row's length in tokens when its stop string was found.
    """

    def __init__(self, tokenizer: ChatTokenizer, batch: list[CompletionRequest], width: int):
        self.width = width
        self.end_lengths: list[int | None] = [None] * len(batch)
        self._detectors = {
            row: StopStringDetector(tokenizer, request.stop)
            for row, request in enumerate(batch)
            if request.stop
        }

    def __bool__(self) -> bool:
        return bool(self._detectors)

    def __call__(
        self, input_ids: "torch.Tensor", scores: "torch.Tensor", **_: object
    ) -> "torch.Tensor":
        import torch

        for row, detector in self._detectors.items():
            ids = input_ids[row, self.width :].tolist()
            if self.end_lengths[row] is None and detector.finds_stop(ids):
                self.end_lengths[row] = len(ids)
        stopped = [length is not None for length in self.end_lengths]
        return torch.tensor(stopped, device=input_ids.device)
