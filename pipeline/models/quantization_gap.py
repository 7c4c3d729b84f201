"""How far a policy on a quantised base is from the merged model that is sampled in its place."""

from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Model
from pipeline.models import loading

if TYPE_CHECKING:
    import polars as pl
    import torch

ROWS = 32  # completions: a thousand tokens or more


def measure_gap(
    policy: Model, served: Model, rows: "pl.DataFrame", trained_in: str, served_in: str
) -> float:
    """The mean over tokens of |Δ log p| in nats, between the policy as trained and as sampled."""
    sampled = rows.head(ROWS).select("prompt_token_ids", "token_ids").rows()
    trained_logps = _compute_token_logps(loading.load(policy, trained_in), sampled)
    served_logps = _compute_token_logps(loading.load(served, served_in), sampled)
    return (trained_logps - served_logps).abs().mean().item()


def _compute_token_logps(module: Any, rows: list[tuple[list[int], list[int]]]) -> "torch.Tensor":
    """For every token of every completion, one sequence at a time."""
    import torch

    logps = []
    # A quantised module is on the device already, and must not be moved.
    if module.device.type != loading.choose_device().type:
        module = module.to(loading.choose_device())
    with torch.inference_mode():
        for prompt, completion in rows:
            ids = torch.tensor([prompt + completion], device=module.device)
            logits = module(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            logps.append(logits.gather(1, ids[0, len(prompt) :, None]).squeeze(1).cpu())
    return torch.cat(logps)
