"""Run a batch through the model in passes of rows of similar length: padding is not computed.

The loss sees the batch that TRL sampled and padded: every row, in its place, equal to rounding.
"""

from typing import Any

import torch

Rows = list[int]  # of one pass, the longest last


class SeparateRows:
    """TRL's batch as it is: each answer with its prompt is a row."""

    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any):
        self.lengths: list[int] = attention_mask.sum(1).tolist()
        self.batch = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}

    def forward(self, forward: Any, passes: list[Rows]) -> Any:
        if len(passes) == 1:
            return forward(**self.batch)
        mask = self.batch["attention_mask"]
        if not mask.gather(1, mask.sum(1, keepdim=True) - 1).all():
            raise ValueError(
                "by_length cuts what follows a row, and this batch is not padded there"
            )
        rowwise = {
            name: value
            for name, value in self.batch.items()
            if isinstance(value, torch.Tensor) and value.shape == mask.shape
        }
        outputs, widths = [], []
        for rows in passes:
            widths.append(self.lengths[rows[-1]])
            cut = {name: tensor[rows, : widths[-1]] for name, tensor in rowwise.items()}
            outputs.append(forward(**{**self.batch, **cut}))
        return _join_outputs(outputs, passes, widths, mask.shape[1])


def _join_outputs(outputs: list[Any], passes: list[Rows], widths: list[int], width: int) -> Any:
    """One output for all rows. What a pass returns once, and not per row, is left out."""
    fields = {}
    for name, first in outputs[0].items():
        if isinstance(first, torch.Tensor) and first.dim() > 1:
            padding = width - widths[0]
            parts = (output[name] for output in outputs)
            fields[name] = ScatterRows.apply(passes, first.shape[1] + padding, *parts)
    return type(outputs[0])(**fields)


class ScatterRows(torch.autograd.Function):
    """Put the passes' rows back into one batch, with zeros where it is padded.

    It makes one copy: logits are too large to have twice.
    """

    @staticmethod
    def forward(ctx: Any, passes: list[Rows], width: int, *parts: torch.Tensor) -> torch.Tensor:
        ctx.passes, ctx.widths = passes, [part.shape[1] for part in parts]
        batch = parts[0].new_zeros((sum(map(len, passes)), width, *parts[0].shape[2:]))
        for rows, part in zip(passes, parts, strict=True):
            batch[rows, : part.shape[1]] = part
        return batch

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        parts = [gradient[rows, :width] for rows, width in zip(ctx.passes, ctx.widths, strict=True)]
        return None, None, *parts
