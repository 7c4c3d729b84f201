"""DPO by TRL on token ids that are ready: TRL's trainer, its losses and its config, and none of its tokenising."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, set_seed
from trl import DPOConfig, DPOTrainer

from pipeline.artifacts import Model, write_table
from pipeline.config import FullAdapter, TrainConfig
from pipeline.errors import Broken, Refusal
from pipeline.training import models
from pipeline.training.arguments import arguments
from pipeline.training.callbacks import CheckpointLedger, FiniteGuard, MetricsLog, ProgressLine

if TYPE_CHECKING:
    import polars as pl
    from datasets import Dataset


class ReadyDPOTrainer(DPOTrainer):
    """Takes `prompt_ids, chosen_ids, rejected_ids` (and `ref_chosen_logps, ref_rejected_logps`) as they are."""

    def _prepare_dataset(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    def _precompute_ref_logps(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one with paths and dates into every checkpoint."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._mean_pairs = sum(_pairs(batch) for batch in batches) / max(len(batches), 1)
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Every pair of an optimizer step weighs the same, however `micro_batch` splits the step."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss * (_pairs(inputs) / self._mean_pairs) if model.training else loss


def _pairs(batch: dict[str, Any]) -> int:
    return batch["input_ids"].shape[0] // 2


def load_policy(cfg: TrainConfig, init: Model) -> Any:
    """What is trained. Mixed precision keeps full weights in float32: a step of 5e-7 is nothing in bfloat16."""
    set_seed(cfg.seed)
    if isinstance(cfg.adapter, FullAdapter):
        return models.load_merged(init)
    return models.load_adapted(init, cfg.adapter, cfg.dtype)


def trainer_for(
    cfg: TrainConfig, policy: Any, init: Model, reference: Model, rows: "dict[str, pl.DataFrame]", out: Path
) -> tuple[ReadyDPOTrainer, CheckpointLedger]:
    scratch = out / "scratch"
    data = {part: _dataset(table, part, scratch) for part, table in rows.items() if table.height}
    ledger = CheckpointLedger(scratch / "checkpoints")
    trainer = ReadyDPOTrainer(
        model=policy,
        ref_model=_reference(cfg, policy, init, reference),
        args=_arguments(cfg, scratch / "checkpoints", evaluates="dev" in data),
        train_dataset=data["train"],
        eval_dataset=data.get("dev"),
        processing_class=models.load_tokenizer(init),
        callbacks=[FiniteGuard(), MetricsLog(out / "metrics.jsonl"), ledger, ProgressLine("train")],
    )
    trainer.remove_callback(PrinterCallback)
    _only_wanted_adapters(policy)
    if (processes := trainer.args.world_size) != 1 or trainer.args.n_gpu > 1:
        raise Refusal(f"train runs in one process on one device, and a launcher started {processes}: start it without.")
    return trainer, ledger


def _dataset(table: "pl.DataFrame", part: str, scratch: Path) -> "Dataset":
    """From files, as TRL needs it, and equal to what was written."""
    import datasets
    import polars as pl

    datasets.disable_progress_bars()
    file = scratch / "pairs" / f"{part}.parquet"
    write_table(file, table)
    data = datasets.load_dataset("parquet", data_files=str(file), cache_dir=str(scratch / "cache"), split="train")
    if not pl.DataFrame(data.data.table).equals(table):
        raise Broken(
            f"train: the {part} pairs changed on their way to the trainer ({file}). Remove {scratch} and run again."
        )
    return data


def _reference(cfg: TrainConfig, policy: Any, init: Model, reference: Model) -> Any:
    """The module that TRL asks as it goes; none when its values are ready, or when the policy without adapter is it."""
    if cfg.logps != "live":
        return None
    bare = reference.adapter is None and models.base_name(init) == models.base_name(reference)
    if bare and hasattr(policy, "peft_config"):
        return None
    dtype = torch.float32 if isinstance(cfg.adapter, FullAdapter) else getattr(torch, cfg.dtype)
    return models.load_merged(reference).to(dtype).requires_grad_(False)


def _only_wanted_adapters(policy: Any) -> None:
    """TRL copies a PeftModel's adapter as reference `ref`. Here the reference is ready, a module, or the bare base."""
    if "ref" in getattr(policy, "peft_config", {}):
        policy.delete_adapter("ref")


def _arguments(cfg: TrainConfig, folder: Path, evaluates: bool) -> DPOConfig:
    try:
        return DPOConfig(**_fixed(cfg, folder, evaluates), **cfg.args)
    except (ValueError, TypeError) as error:
        raise Refusal(f"train: TRL does not take these settings: {error}") from error


def _fixed(cfg: TrainConfig, checkpoints: Path, evaluates: bool) -> dict[str, Any]:
    return {
        **arguments(cfg, checkpoints),
        "loss_type": list(cfg.loss),
        "loss_weights": cfg.loss_weights,
        "beta": cfg.beta,
        "precompute_ref_log_probs": cfg.logps == "ready",
        "max_length": cfg.max_length,
        "per_device_eval_batch_size": cfg.runtime.micro_batch,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": cfg.eval_every,
    }
