"""A batch goes through the model in passes of rows alike in length, so that padding is not computed.

The loss sees the very batch that TRL drew and padded: every row, in its place, with its values to rounding.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

PASS = 128  # one more pass costs as much as computing so many tokens: its kernels are too small to fill a device
Rows = list[int]


@contextmanager
def rows_by_length(*modules: Any) -> Iterator[None]:
    """Inside a wrapper such as DDP's, which exchanges buffers at each of its own passes and has to count one."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_cut(module))
        yield


@contextmanager
def _cut(module: Any) -> Iterator[None]:
    whole, own = module.forward, vars(module).get("forward")
    module.forward = lambda *args, **kwargs: _forward(whole, *args, **kwargs)
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def passes(lengths: list[int]) -> list[Rows]:
    """The cheapest cut of the rows, shortest first: a pass costs its rows at their longest, and `PASS` itself."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    cheapest, cuts = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        costs = [cheapest[start] + PASS + (end - start) * longest for start in range(end)]
        cheapest.append(min(costs))
        cuts.append(costs.index(cheapest[-1]))
    found, end = [], len(order)
    while end:
        found.append(order[cuts[end] : end])
        end = cuts[end]
    return found


def _forward(
    whole: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **given: Any
) -> Any:
    lengths = attention_mask.sum(1).tolist()
    groups = passes(lengths)
    if len(groups) == 1 or given.get(
        "output_router_logits"
    ):  # experts are balanced over the whole batch
        return whole(input_ids=input_ids, attention_mask=attention_mask, **given)
    if not attention_mask.gather(1, attention_mask.sum(1, keepdim=True) - 1).all():
        raise ValueError(
            "rows_by_length cuts what follows a row, and this batch is not padded there"
        )
    rowwise = {"input_ids": input_ids, "attention_mask": attention_mask}
    rowwise |= {
        k: v for k, v in given.items() if isinstance(v, torch.Tensor) and v.shape == input_ids.shape
    }
    outputs = [
        whole(
            **{
                **given,
                **{name: tensor[rows, : lengths[rows[-1]]] for name, tensor in rowwise.items()},
            }
        )
        for rows in groups
    ]
    return _joined(outputs, groups, [lengths[rows[-1]] for rows in groups], input_ids.shape[1])


def _joined(outputs: list[Any], groups: list[Rows], widths: list[int], width: int) -> Any:
    """One output for all rows; what is a figure of a pass and not of a row is left out."""
    fields = {}
    for name, first in outputs[0].items():
        if isinstance(first, torch.Tensor) and first.dim() > 1:
            beyond = width - widths[0]
            fields[name] = InTheirPlaces.apply(
                groups, first.shape[1] + beyond, *(one[name] for one in outputs)
            )
    return type(outputs[0])(**fields)


class InTheirPlaces(torch.autograd.Function):
    """Parts of a batch put back into it, and zeros beyond them: one copy, which logits are too large to have twice."""

    @staticmethod
    def forward(ctx: Any, groups: list[Rows], width: int, *parts: torch.Tensor) -> torch.Tensor:
        ctx.groups, ctx.widths = groups, [part.shape[1] for part in parts]
        together = parts[0].new_zeros((sum(map(len, groups)), width, *parts[0].shape[2:]))
        for rows, part in zip(groups, parts, strict=True):
            together[rows, : part.shape[1]] = part
        return together

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        parts = [gradient[rows, :width] for rows, width in zip(ctx.groups, ctx.widths, strict=True)]
        return None, None, *parts
