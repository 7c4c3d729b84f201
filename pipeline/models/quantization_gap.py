"""How far a policy on a quantised base is from what is sampled in its place, on completions that were drawn."""

from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Model
from pipeline.models import loading

if TYPE_CHECKING:
    import polars as pl
    import torch

ROWS = 32  # completions: a thousand tokens and more


def per_token(
    policy: Model, served: Model, rows: "pl.DataFrame", trained_in: str, served_in: str
) -> float:
    """The mean over tokens of |Δ log p| in nats, between the policy as it was trained and as it is sampled."""
    asked = rows.head(ROWS).select("prompt_token_ids", "token_ids").rows()
    as_trained = _logps(loading.load(policy, trained_in), asked)
    return (as_trained - _logps(loading.load(served, served_in), asked)).abs().mean().item()


def _logps(module: Any, rows: list[tuple[list[int], list[int]]]) -> "torch.Tensor":
    """Of every token of every completion, one sequence at a time."""
    import torch

    found = []
    if (
        module.device.type != loading.device().type
    ):  # what is quantised lies there, and may not be moved
        module = module.to(loading.device())
    with torch.inference_mode():
        for prompt, completion in rows:
            ids = torch.tensor([prompt + completion], device=module.device)
            logits = module(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            found.append(logits.gather(1, ids[0, len(prompt) :, None]).squeeze(1).cpu())
    return torch.cat(found)
