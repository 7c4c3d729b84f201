"""Run both answers to a prompt through the model in one row: the prompt is computed once.

A row is the prompt and the chosen answer, then the prompt's last token again and the rejected
answer. A mask hides the chosen answer from what follows it, and positions continue from the prompt:
each token sees what it sees in a separate row. The loss sees TRL's batch, equal to rounding.
"""

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.training.trainers.length_grouping import Rows

IGNORED = -100  # the label of tokens outside the answers


@dataclass(frozen=True)
class Place:
    """Where each token of a pass is in TRL's batch. `is_real` is false for padding."""

    rows: torch.Tensor
    columns: torch.Tensor
    is_real: torch.Tensor


class SharedRows:
    """The pairs of TRL's batch: its first half are the chosen answers, its second the rejected.

    `by_blocks`: for flex attention, which computes no block of the mask that is hidden as a whole.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        by_blocks: bool = False,
        **kwargs: Any,
    ):
        self.input_ids, self.labels, self.kwargs = input_ids, labels, kwargs
        self.by_blocks = by_blocks
        chosen, rejected = attention_mask.sum(1).chunk(2)
        self.prompt = find_prompts(labels)
        # The rejected branch takes the place of the chosen answer's last token, which predicts
        # nothing.
        self.fork = chosen - 1
        self.length = self.fork + rejected - self.prompt
        self.lengths: list[int] = self.length.tolist()

    def forward(self, forward: Any, passes: list[Rows]) -> Any:
        outputs, places = [], []
        for rows in passes:
            pairs = torch.tensor(rows, device=self.fork.device)[:, None]
            place = self._locate_tokens(pairs, self.lengths[rows[-1]])
            mask = self._hide_branches(pairs, self.lengths[rows[-1]])
            outputs.append(forward(**self._take_tokens(place), attention_mask=mask, **self.kwargs))
            places.append(place)
        return restore_batch(outputs, places, (len(self.input_ids), self.input_ids.shape[1] - 1))

    def _locate_tokens(self, pairs: torch.Tensor, width: int) -> Place:
        at = torch.arange(width, device=pairs.device)
        is_rejected = at >= self.fork[pairs]
        # The branch starts at the prompt's last token, which predicts the answer's first.
        columns = at - is_rejected * (self.fork - self.prompt + 1)[pairs]
        rows = pairs + is_rejected * len(self.fork)
        # Padding may point beyond the batch. No token is in its last column.
        last = self.input_ids.shape[1] - 2
        return Place(rows, columns.clamp(max=last), at < self.length[pairs])

    def _take_tokens(self, place: Place) -> dict[str, Any]:
        labels = self.labels[place.rows, place.columns + 1]
        return {
            "input_ids": self.input_ids[place.rows, place.columns],
            "position_ids": place.columns,
            "shift_labels": labels.masked_fill(~place.is_real, IGNORED),
        }

    def _hide_branches(self, pairs: torch.Tensor, width: int) -> Any:
        """Which keys a query sees: in blocks for flex attention, else one by one.

        Padding sees the rejected branch, because a query that sees nothing would give NaN.
        """
        prompt, fork = self.prompt[pairs[:, 0]], self.fork[pairs[:, 0]]

        def sees(pair: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            begin, end = prompt[pair] - 1, fork[pair]
            return (key <= query) & ((key < begin) | (query < end) | (key >= end))

        if self.by_blocks:
            from torch.nn.attention.flex_attention import create_block_mask

            size = len(pairs), None, width, width
            return create_block_mask(sees, *size, device=pairs.device)
        at = torch.arange(width, device=pairs.device)
        pair = torch.arange(len(pairs), device=pairs.device)[:, None, None, None]
        return sees(pair, None, at[:, None], at)


def find_prompts(labels: torch.Tensor) -> torch.Tensor:
    """The tokens of each pair's prompt: no label is of these."""
    chosen, _ = labels.chunk(2)
    return (chosen != IGNORED).int().argmax(1)


def restore_batch(outputs: list[Any], places: list[Place], shape: tuple[int, int]) -> Any:
    """Values in TRL's batch. What a pass returns once, and not per token, is left out."""
    rows = torch.cat([place.rows[place.is_real] for place in places])
    columns = torch.cat([place.columns[place.is_real] for place in places])
    fields = {}
    for name, first in outputs[0].items():
        if isinstance(first, torch.Tensor) and first.dim() > 1:
            pairs = zip(outputs, places, strict=True)
            values = torch.cat([output[name][place.is_real] for output, place in pairs])
            fields[name] = first.new_zeros(shape).index_put((rows, columns), values)
    return type(outputs[0])(**fields)
