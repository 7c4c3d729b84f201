"""DPO and its family by TRL's DPOTrainer, on token ids, without TRL's tokenising.

TRL's own losses, and those of `losses.py`, which read what TRL's pass through the model returned.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from pipeline.config import TrainConfig
from pipeline.training.trainers.base import PretokenizedTrainer
from pipeline.training.trainers.losses import LOSSES, PairBatch

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # the label of tokens outside the loss
COLUMNS = "p_chosen", "margin", "weight"  # of a pair, where the training reads them
# Losses of mean log-probabilities without a reference: their rewards are means too.
MEAN_REWARDS = {"simpo", "orpo"}


@dataclass
class PairArguments(DPOConfig):
    """TRL's arguments, and those of our own losses."""

    own_loss_type: list[str] = field(default_factory=list)
    own_loss_weights: list[float] = field(default_factory=list)
    has_reference: bool = True
    masks_format_tokens: bool = False
    simpo_gamma: float = 0.5
    alpha: float = 0.0
    reward_scale: float = 1.0


Arguments = PairArguments


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's batch with the pairs' own columns. `format_ids` are tokens that no loss sees."""

    format_ids: tuple[int, ...] = ()

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        for name in COLUMNS:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        if self.format_ids:
            is_format = torch.isin(batch["input_ids"], torch.tensor(self.format_ids))
            batch["completion_mask"] = batch["completion_mask"].masked_fill(is_format, 0)
        return batch


class RecordedForward:
    """The policy as TRL's loss calls it, and what it returned.

    `weights`: what the gradient of each pair is multiplied by. The values of the loss stay those
    of pairs without weights, so that trainings can be compared. `reads_prompt`: the output has
    the log-probabilities of prompts too, which TRL does not see.
    """

    def __init__(self, model: Any, weights: torch.Tensor | None, reads_prompt: bool):
        self.model, self.weights, self.reads_prompt = model, weights, reads_prompt

    def __call__(self, *, labels: torch.Tensor, **batch: Any) -> Any:
        seen = labels
        if self.reads_prompt:
            seen = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        self.outputs = outputs = self.model(labels=seen, **batch)
        if self.weights is not None and outputs.log_probs.requires_grad:
            rows = torch.cat([self.weights, self.weights])[:, None]
            outputs.log_probs.register_hook(lambda gradient: gradient * rows)
        if not self.reads_prompt:
            return outputs
        answers = outputs.log_probs.masked_fill(labels[:, 1:] == IGNORED, 0)
        return type(outputs)(**{**outputs, "log_probs": answers})


class PretokenizedDPOTrainer(PretokenizedTrainer, DPOTrainer):
    """Takes the columns `prompt_ids, chosen_ids, rejected_ids`, and `COLUMNS` where given.

    Precomputed reference values come as `ref_chosen_logps, ref_rejected_logps`.
    """

    data_collator: Any
    precompute_ref_logps: bool
    _signature_columns: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        format_ids = list_format_ids(self._tokenizer) if self.args.masks_format_tokens else ()
        self.data_collator = PairCollator(**vars(self.data_collator), format_ids=format_ids)

    def _prepare_dataset(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    def _precompute_ref_logps(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        is_new = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if is_new:
            self._signature_columns += COLUMNS

    @staticmethod
    def count_rows(batch: dict[str, Any]) -> int:
        return batch["input_ids"].shape[0] // 2

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        columns = {name: inputs[name] for name in COLUMNS if name in inputs}
        batch = {name: value for name, value in inputs.items() if name not in COLUMNS}
        names, precomputed = self.args.own_loss_type, self.precompute_ref_logps
        if not self.args.has_reference:
            zero = torch.zeros(self.count_rows(batch), device=batch["input_ids"].device)
            batch |= {"ref_chosen_logps": zero, "ref_rejected_logps": zero}
        elif names and not precomputed:
            values = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            batch |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), values, strict=True))
        forward = RecordedForward(model, columns.get("weight"), "orpo" in names)
        self.precompute_ref_logps = "ref_chosen_logps" in batch
        try:
            loss = super()._compute_loss(forward, batch, return_outputs)
        finally:
            self.precompute_ref_logps = precomputed
        if not names:
            return loss
        pairs = self._describe_pairs(forward.outputs.log_probs, batch, columns)
        if MEAN_REWARDS & {*names}:
            self._log_mean_rewards(pairs)
        for name, weight in zip(names, self.args.own_loss_weights, strict=True):
            loss = loss + weight * LOSSES[name](pairs).mean()
        return loss

    def _describe_pairs(self, logps: Any, batch: Any, columns: dict[str, Any]) -> PairBatch:
        mask = batch["completion_mask"][:, 1:]
        chosen, rejected = (logps * mask).sum(1).chunk(2)
        chosen_length, rejected_length = mask.sum(1).clamp(min=1).chunk(2)
        whole_nll = None
        if "orpo" in self.args.own_loss_type:
            tokens = batch["attention_mask"][: len(chosen), 1:].sum()
            whole_nll = -logps[: len(chosen)].sum() / tokens
        return PairBatch(
            args=self.args,
            chosen=chosen,
            rejected=rejected,
            ref_chosen=batch["ref_chosen_logps"],
            ref_rejected=batch["ref_rejected_logps"],
            chosen_length=chosen_length,
            rejected_length=rejected_length,
            columns=columns,
            whole_nll=whole_nll,
        )

    def _log_mean_rewards(self, pairs: PairBatch) -> None:
        """Replace the rewards that TRL has just logged, which are of sums."""
        chosen, rejected = (
            self.accelerator.gather(self.args.beta * mean.detach())
            for mean in (pairs.mean_chosen, pairs.mean_rejected)
        )
        figures = {
            "chosen": chosen,
            "rejected": rejected,
            "accuracies": (chosen > rejected).float(),
            "margins": chosen - rejected,
        }
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, values in figures.items():
            metrics[f"rewards/{name}"][-1] = values.mean().item()


Trainer = PretokenizedDPOTrainer  # the name that training/build.py asks for


def list_format_ids(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens: of headers, and those that end an answer or a turn."""
    added = tokenizer.added_tokens_decoder
    special = {number for number, token in added.items() if token.special}
    return tuple(sorted(special | {*tokenizer.all_special_ids}))


def loss_arguments(cfg: TrainConfig) -> dict[str, Any]:
    terms = list(_list_terms(cfg))
    own = [(name, weight) for name, weight in terms if name in LOSSES]
    trl = [(name, weight) for name, weight in terms if name not in LOSSES]
    return {
        "loss_type": [name for name, _ in trl],
        "loss_weights": [weight for _, weight in trl],
        "own_loss_type": [name for name, _ in own],
        "own_loss_weights": [weight for _, weight in own],
        "beta": cfg.beta,
        "max_length": cfg.max_length,
        # Without a reference its values are given as 0.
        "precompute_ref_log_probs": cfg.reference_logps != "online",
        "has_reference": cfg.reference_logps != "none",
        "masks_format_tokens": cfg.mask.format_tokens,
    }


def _list_terms(cfg: TrainConfig) -> Iterator[tuple[str, float]]:
    """The losses with their weights, under TRL's names or those of `losses.py`.

    TRL's sigmoid loss has lost its label smoothing, so cDPO is composed of two losses.
    With s = −log σ(βΔ) and f = −log σ(−βΔ):
        cDPO         = (1−ε)s + εf
        TRL's robust = ((1−ε)s − εf) / (1−2ε)
    so cDPO = 2(1−ε) · sigmoid − (1−2ε) · robust, exactly.
    """
    for name, weight in zip(cfg.loss, cfg.loss_weights or [1.0] * len(cfg.loss), strict=True):
        if name == "cdpo":
            epsilon = cfg.args.get("label_smoothing", 0.0)
            assert isinstance(epsilon, float | int)
            yield "sigmoid", weight * 2 * (1 - epsilon)
            yield "robust", -weight * (1 - 2 * epsilon)
        else:
            yield name, weight
