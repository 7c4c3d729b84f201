"""Run a batch through the model in passes of rows of similar length: padding is not computed.

The loss sees the batch that TRL sampled and padded: every row, in its place, equal to rounding.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

# What one more pass costs, in tokens: kernels this small do not fill a device.
PASS_COST = 128
Rows = list[int]


@contextmanager
def group_by_length(*modules: Any) -> Iterator[None]:
    """Group the rows below a wrapper such as DDP's: it exchanges buffers once per pass it sees."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_patch_forward(module))
        yield


@contextmanager
def _patch_forward(module: Any) -> Iterator[None]:
    forward, own = module.forward, vars(module).get("forward")
    module.forward = lambda *args, **kwargs: _forward_in_groups(forward, *args, **kwargs)
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def plan_passes(lengths: list[int]) -> list[Rows]:
    """The cheapest grouping of the rows, shortest first.

    A pass costs its rows times the longest of them, plus `PASS_COST`.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    # cheapest[end] is the least cost of the first `end` rows; cuts[end] is where their last pass
    # starts.
    cheapest, cuts = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        costs = [cheapest[start] + PASS_COST + (end - start) * longest for start in range(end)]
        cheapest.append(min(costs))
        cuts.append(costs.index(cheapest[-1]))
    groups, end = [], len(order)
    while end:
        groups.append(order[cuts[end] : end])
        end = cuts[end]
    return groups


def _forward_in_groups(
    forward: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any
) -> Any:
    lengths = attention_mask.sum(1).tolist()
    groups = plan_passes(lengths)
    # A mixture of experts balances its load over the whole batch, so it is not grouped.
    if len(groups) == 1 or kwargs.get("output_router_logits"):
        return forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    if not attention_mask.gather(1, attention_mask.sum(1, keepdim=True) - 1).all():
        raise ValueError(
            "group_by_length cuts what follows a row, and this batch is not padded there"
        )
    rowwise = {"input_ids": input_ids, "attention_mask": attention_mask}
    rowwise |= {
        name: value
        for name, value in kwargs.items()
        if isinstance(value, torch.Tensor) and value.shape == input_ids.shape
    }
    outputs, widths = [], []
    for rows in groups:
        widths.append(lengths[rows[-1]])
        cut = {name: tensor[rows, : widths[-1]] for name, tensor in rowwise.items()}
        outputs.append(forward(**{**kwargs, **cut}))
    return _join_outputs(outputs, groups, widths, input_ids.shape[1])


def _join_outputs(outputs: list[Any], groups: list[Rows], widths: list[int], width: int) -> Any:
    """One output for all rows. What a pass returns once, and not per row, is left out."""
    fields = {}
    for name, first in outputs[0].items():
        if isinstance(first, torch.Tensor) and first.dim() > 1:
            padding = width - widths[0]
            parts = (output[name] for output in outputs)
            fields[name] = ScatterRows.apply(groups, first.shape[1] + padding, *parts)
    return type(outputs[0])(**fields)


class ScatterRows(torch.autograd.Function):
    """Put the passes' rows back into one batch, with zeros where it is padded.

    It makes one copy: logits are too large to have twice.
    """

    @staticmethod
    def forward(ctx: Any, groups: list[Rows], width: int, *parts: torch.Tensor) -> torch.Tensor:
        ctx.groups, ctx.widths = groups, [part.shape[1] for part in parts]
        batch = parts[0].new_zeros((sum(map(len, groups)), width, *parts[0].shape[2:]))
        for rows, part in zip(groups, parts, strict=True):
            batch[rows, : part.shape[1]] = part
        return batch

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        parts = [gradient[rows, :width] for rows, width in zip(ctx.groups, ctx.widths, strict=True)]
        return None, None, *parts
