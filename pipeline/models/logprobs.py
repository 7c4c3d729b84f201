"""Log-probabilities of given token ids under a model.

This is the one computation behind `reference` and the evaluations within training.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.models.batching import batch_by_length

if TYPE_CHECKING:
    import torch

Ids = list[int]
OnBatch = Callable[[int, int], None]  # receives the rows and tokens of each finished batch


def compute_logps(
    module: Any,
    prompts: list[Ids],
    completions: list[Ids],
    batch_tokens: int,
    on_batch: OnBatch | None = None,
) -> list[float]:
    """The sum over each completion's tokens given its prompt, whatever shares its batch."""
    batches = batch_rows(prompts, completions, batch_tokens)
    logps = compute_logps_by_row(module, prompts, completions, batches, on_batch)
    return [logps[at] for at in range(len(prompts))]


def batch_rows(prompts: list[Ids], completions: list[Ids], batch_tokens: int) -> list[list[int]]:
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    return list(batch_by_length(lengths, batch_tokens))


def compute_logps_by_row(
    module: Any,
    prompts: list[Ids],
    completions: list[Ids],
    batches: list[list[int]],
    on_batch: OnBatch | None,
) -> dict[int, float]:
    """By the row's position."""
    logps: dict[int, float] = {}
    for batch in batches:
        values = _sum_logps(module, [prompts[i] for i in batch], [completions[i] for i in batch])
        logps |= dict(zip(batch, values, strict=True))
        if on_batch:
            on_batch(len(batch), sum(len(prompts[i]) + len(completions[i]) for i in batch))
    return logps


def _sum_logps(module: Any, prompts: list[Ids], completions: list[Ids]) -> list[float]:
    import torch

    rows = [p + c for p, c in zip(prompts, completions, strict=True)]
    width, first = max(map(len, rows)), min(map(len, prompts)) - 1
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    ids, mask = ids.to(module.device), mask.to(module.device)
    with torch.no_grad():
        # Only from the last token of the shortest prompt on: the logits take most of the memory.
        logits = module(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=width - first
        ).logits
        # The logits at a position predict the next token.
        spans = [
            (len(p) - 1, len(p) + len(c) - 1) for p, c in zip(prompts, completions, strict=True)
        ]
        return [
            _sum_row(logits[at, start - first : end - first], ids[at, start + 1 : end + 1])
            for at, (start, end) in enumerate(spans)
        ]


def _sum_row(logits: "torch.Tensor", targets: "torch.Tensor") -> float:
    """Row by row, so that the float32 copy is never larger than one completion's logits."""
    picked = logits.float().log_softmax(-1).gather(-1, targets[:, None])
    return picked.double().sum().item()
