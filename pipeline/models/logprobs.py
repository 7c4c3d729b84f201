"""Log-probabilities of given token ids under a model: the one computation behind `refer` and every look at a policy."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.models.batching import by_length

if TYPE_CHECKING:
    import torch

Ids = list[int]
OnBatch = Callable[[int, int], None]  # hears rows and tokens of each batch that is done


def completion_logps(
    module: Any,
    prompts: list[Ids],
    completions: list[Ids],
    batch_tokens: int,
    on_batch: OnBatch | None = None,
) -> list[float]:
    """The sum over each completion's tokens given its prompt; a result does not depend on what shared its batch."""
    found = logps_by_row(
        module, prompts, completions, batch_rows(prompts, completions, batch_tokens), on_batch
    )
    return [found[at] for at in range(len(prompts))]


def batch_rows(prompts: list[Ids], completions: list[Ids], batch_tokens: int) -> list[list[int]]:
    return list(
        by_length(
            [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], batch_tokens
        )
    )


def logps_by_row(
    module: Any,
    prompts: list[Ids],
    completions: list[Ids],
    batches: list[list[int]],
    on_batch: OnBatch | None,
) -> dict[int, float]:
    """By the row's position."""
    found: dict[int, float] = {}
    for batch in batches:
        values = _forward(module, [prompts[i] for i in batch], [completions[i] for i in batch])
        found |= dict(zip(batch, values, strict=True))
        if on_batch:
            on_batch(len(batch), sum(len(prompts[i]) + len(completions[i]) for i in batch))
    return found


def _forward(module: Any, prompts: list[Ids], completions: list[Ids]) -> list[float]:
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
        # Only from the last token of the shortest prompt on: the vocabulary is what costs memory.
        logits = module(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=width - first
        ).logits
        spans = [
            (len(p) - 1, len(p) + len(c) - 1) for p, c in zip(prompts, completions, strict=True)
        ]
        return [
            _sum(logits[at, start - first : end - first], ids[at, start + 1 : end + 1])
            for at, (start, end) in enumerate(spans)
        ]


def _sum(logits: "torch.Tensor", targets: "torch.Tensor") -> float:
    """Row by row, so that the float32 copy is never larger than one completion's logits."""
    picked = logits.float().log_softmax(-1).gather(-1, targets[:, None])
    return picked.double().sum().item()
