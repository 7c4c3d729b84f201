"""How TRL's batch goes through the model: which rows it is made of, and which share a pass.

TRL's losses call the model once per batch. Within `arrange_rows` such a call becomes the passes
that cost least.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from pipeline.training.distributed.collectives import find_least
from pipeline.training.trainers.length_grouping import Rows, SeparateRows
from pipeline.training.trainers.packed_rows import PackedRows, SegmentedRows
from pipeline.training.trainers.segment_attention import SEGMENTS
from pipeline.training.trainers.shared_prompt import SharedRows

FLEX = "flex_attention"  # transformers' name
# What one more pass costs, in tokens: kernels this small do not fill a device.
PASS_COST = 128
# With sharded weights each pass gathers all of them, for as long as some thousand tokens take.
SHARDED_PASS_COST = 2048


class Layout(Protocol):
    @property
    def lengths(self) -> list[int]:
        """Of its rows."""
        ...

    def forward(self, forward: Any, passes: list[Rows]) -> Any: ...


@dataclass(frozen=True)
class Arrangement:
    """`hidden`: the model's width. `attention`: its kind, by transformers' name or ours."""

    hidden: int
    attention: str
    by_length: bool  # rows of similar length share a pass; else all do
    shares_prompts: bool  # two answers may share a row
    sharded: bool  # processes gather each other's weights: all run equally many passes
    packs: bool = False  # all rows are one, without padding

    @property
    def pass_cost(self) -> int:
        return SHARDED_PASS_COST if self.sharded else PASS_COST

    def make_layouts(self, **batch: Any) -> list[Layout]:
        """Those to choose from."""
        if self.packs and not self.shares_prompts:
            return [SegmentedRows(**batch) if self.attention == SEGMENTS else PackedRows(**batch)]
        separate = [] if self.packs else [SeparateRows(**batch)]
        shared = [choose_shared_layout(self.attention)(**batch)] if self.shares_prompts else []
        return [*separate, *shared]

    def choose(self, *layouts: Layout) -> tuple[Layout, list[Rows]]:
        """The layout that costs least, and its passes."""
        plans = [(layout, self._plan(layout.lengths)) for layout in layouts]
        layout, passes = min(plans, key=lambda plan: self._sum_costs(plan[0].lengths, plan[1]))
        if self.sharded and self.by_length:
            passes = merge_passes(passes, layout.lengths, find_least(len(passes)))
        return layout, passes

    def _plan(self, lengths: list[int]) -> list[Rows]:
        if self.by_length:
            return plan_passes(lengths, self.pass_cost)
        return plan_one_pass(lengths)

    def _sum_costs(self, lengths: list[int], passes: list[Rows]) -> float:
        costs = [len(rows) * estimate_cost(lengths[rows[-1]], self.hidden) for rows in passes]
        return self.pass_cost * len(passes) + sum(costs)


@contextmanager
def arrange_rows(modules: list[Any], arrangement: Arrangement) -> Iterator[None]:
    """Arrange them below a wrapper such as DDP's: it exchanges buffers once per pass it sees."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(_patch_forward(module, partial(_forward_cheapest, arrangement)))
        yield


def choose_shared_layout(attention: str) -> Callable[..., Layout]:
    if attention == SEGMENTS:
        return partial(SegmentedRows, shares_prompts=True)
    return partial(SharedRows, by_blocks=attention == FLEX)


def use_layout(make_layout: Callable[..., Layout], module: Any) -> AbstractContextManager[None]:
    """Whatever it costs."""
    return _patch_forward(module, partial(_forward_as, make_layout))


@contextmanager
def _patch_forward(module: Any, run: Callable[..., Any]) -> Iterator[None]:
    """Within this the module calls `run`, with its own forward as the first argument."""
    forward, own = module.forward, vars(module).get("forward")
    module.forward = partial(run, forward)
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _forward_cheapest(
    arrangement: Arrangement,
    forward: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    **kwargs: Any,
) -> Any:
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
    # A mixture of experts balances its load over the whole batch, as TRL made it.
    if kwargs.get("output_router_logits"):
        return forward(**batch)
    layout, passes = arrangement.choose(*arrangement.make_layouts(**batch))
    return layout.forward(forward, passes)


def _forward_as(make_layout: Callable[..., Layout], forward: Any, **batch: Any) -> Any:
    layout = make_layout(**batch)
    return layout.forward(forward, plan_one_pass(layout.lengths))


def estimate_cost(length: Any, hidden: float) -> Any:
    """Of a row, in tokens of a row so short that attention takes no time; or of a column of rows.

    A block's linear layers take about 24·hidden² operations for a token, and its attention
    4·hidden for each token of the row, since a kernel computes what a mask hides, at two thirds of
    their speed. Memory grows less with the row than this does: what costs less also needs less.
    """
    return length * (1 + length / (4 * hidden))


def plan_one_pass(lengths: list[int]) -> list[Rows]:
    return [sorted(range(len(lengths)), key=lengths.__getitem__)]


def plan_passes(lengths: list[int], pass_cost: int = PASS_COST) -> list[Rows]:
    """The cheapest grouping of the rows, the pass of the longest first.

    A pass costs its rows times the longest of them, plus `pass_cost`.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    # cheapest[end] is the least cost of the first `end` rows; cuts[end] is where their last pass
    # starts.
    cheapest, cuts = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        costs = [cheapest[start] + pass_cost + (end - start) * longest for start in range(end)]
        cheapest.append(min(costs))
        cuts.append(costs.index(cheapest[-1]))
    passes, end = [], len(order)
    while end:
        passes.append(order[cuts[end] : end])
        end = cuts[end]
    return passes


def merge_passes(passes: list[Rows], lengths: list[int], count: int) -> list[Rows]:
    """`count` of them: neighbours that cost least together become one. `passes`: longest first."""
    passes = list(passes)

    def added_padding(at: int) -> int:
        longer, shorter = passes[at], passes[at + 1]
        return len(shorter) * (lengths[longer[-1]] - lengths[shorter[-1]])

    while len(passes) > count:
        at = min(range(len(passes) - 1), key=added_padding)
        passes[at : at + 2] = [passes[at + 1] + passes[at]]
    return passes
