"""How evenly a mixture of experts uses its experts, as its router's balancing loss sees them."""

import math
from typing import Any

import torch
from transformers import TrainerCallback


class ExpertLoad(TrainerCallback):
    """Adds two figures to each step's metrics, for models whose balancing loss is on.

    `expert_load/max`: tokens of the busiest expert of any layer, 1 if all have equally many.
    `expert_load/entropy`: the layers' mean, from 0 (one expert gets every token) to 1 (all even).
    """

    def attach(self, trainer: Any) -> None:
        self.trainer = trainer
        self._counts: torch.Tensor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.aux_loss_enabled:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            whole = model.get_base_model() if hasattr(model, "peft_config") else model
            self._chosen = whole.config.get_text_config().num_experts_per_tok
            whole.base_model.register_forward_hook(self._count_tokens, with_kwargs=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._counts is None:
            return
        counts = self.trainer.accelerator.reduce(self._counts, "sum")
        self._counts = None
        for name, value in describe_load(counts).items():
            self.trainer._metrics["train"][f"expert_load/{name}"].append(value)

    def _count_tokens(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        logits = getattr(output, "router_logits", None)
        # Neither an evaluation nor a reference's pass.
        if logits and torch.is_grad_enabled():
            is_token = kwargs["attention_mask"].flatten()
            counts = torch.stack([count_tokens(each, is_token, self._chosen) for each in logits])
            self._counts = counts if self._counts is None else self._counts + counts


def count_tokens(logits: torch.Tensor, is_token: torch.Tensor, chosen: int) -> torch.Tensor:
    """Tokens of each expert of a layer. `chosen`: experts of each token."""
    experts = logits.detach().flatten(0, -2).topk(chosen).indices
    weights = is_token.to(experts.device, torch.float32)[:, None].expand_as(experts)
    empty = weights.new_zeros(logits.shape[-1])
    return empty.scatter_add_(0, experts.flatten(), weights.flatten())


def describe_load(counts: torch.Tensor) -> dict[str, float]:
    """`counts`: a row for each layer."""
    shares, experts = counts / counts.sum(1, keepdim=True), counts.shape[1]
    entropy = torch.special.entr(shares).sum(1).mean() / math.log(experts)
    return {"max": float(shares.max() * experts), "entropy": float(entropy)}
