"""Run a batch as one row without padding. The loss sees TRL's batch, equal to rounding.

Flash attention tells the rows of it apart by their positions: where these start again at 0, another
row begins, which does not see the one before. On a CPU the segments are named, and two answers may
continue one prompt.
"""

from typing import Any

import torch

from pipeline.training.trainers.length_grouping import Rows
from pipeline.training.trainers.segment_attention import Segment
from pipeline.training.trainers.shared_prompt import Place, find_prompts, restore_batch


class PackedRows:
    """TRL's batch, padded at its rows' ends."""

    def __init__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        **kwargs: Any,
    ):
        self.input_ids, self.labels, self.kwargs = input_ids, labels, kwargs
        # But for the last of each row, which predicts nothing.
        self.is_token = attention_mask[:, 1:] != 0
        self.order = torch.arange(len(input_ids), device=input_ids.device)

    @property
    def lengths(self) -> list[int]:
        return [int(self.is_token.sum())]

    def forward(self, forward: Any, passes: list[Rows]) -> Any:
        rows, columns = (each[None] for each in self.is_token[self.order].nonzero(as_tuple=True))
        rows = self.order[rows]
        output = forward(
            input_ids=self.input_ids[rows, columns],
            position_ids=columns,
            shift_labels=self.labels[rows, columns + 1],
            **self.tell_apart(),
            **self.kwargs,
        )
        place = Place(rows, columns, torch.ones_like(rows, dtype=torch.bool))
        return restore_batch([output], [place], tuple(self.is_token.shape))

    def tell_apart(self) -> dict[str, Any]:
        """What tells the model which tokens see each other."""
        return {"attention_mask": None}


class SegmentedRows(PackedRows):
    """Each row is a segment; or each pair is its prompt and two answers, with `shares_prompts`.

    The last token of a shared prompt begins both answers, since it predicts the first of each.
    """

    def __init__(self, *, shares_prompts: bool = False, **batch: Any):
        super().__init__(**batch)
        counts = self.is_token.sum(1).tolist()
        self.segments = [Segment(count) for count in counts]
        if not shares_prompts:
            return
        pairs = len(counts) // 2
        self.order = self.order.view(2, pairs).T.flatten()
        self.segments = []
        for pair, prompt in enumerate((find_prompts(self.labels) - 1).tolist()):
            self.is_token[pairs + pair, :prompt] = False
            answers = counts[pair] - prompt, counts[pairs + pair] - prompt
            first = len(self.segments)
            self.segments += [Segment(prompt), *(Segment(count, first) for count in answers)]

    def tell_apart(self) -> dict[str, Any]:
        # A mask of four dimensions is passed on as it is. A model that drops the segments refuses
        # this one, which `RowPacking` finds before the first step.
        return {"attention_mask": self.input_ids.new_zeros(1, 1, 1, 1), "segments": self.segments}
