"""Run a batch as one row without padding, for attention that tells rows apart by their positions.

Flash attention does: where positions start again at 0, another row begins, which does not see the
one before. The loss sees TRL's batch, equal to rounding.
"""

from typing import Any

import torch
from torch.nn.functional import pad

from pipeline.training.trainers.length_grouping import Rows
from pipeline.training.trainers.shared_prompt import IGNORED, Place, restore_batch


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
        self.is_token = attention_mask.bool()
        self.lengths = [int(self.is_token.sum())]

    def forward(self, forward: Any, passes: list[Rows]) -> Any:
        rows, columns = (each[None] for each in self.is_token.nonzero(as_tuple=True))
        # Each token predicts the next one of its row, and a row's last token none.
        labels = pad(self.labels[:, 1:], (0, 1), value=IGNORED)
        output = forward(
            input_ids=self.input_ids[rows, columns],
            attention_mask=None,
            position_ids=columns,
            shift_labels=labels[rows, columns],
            **self.kwargs,
        )
        width = self.input_ids.shape[1] - 1
        place = Place(rows, columns, columns < width)
        return restore_batch([output], [place], (len(self.input_ids), width))
