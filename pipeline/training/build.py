"""From a config to what trains it: the policy, the reference that TRL asks, one of four TRL trainers on ready ids."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, get_scheduler, set_seed

from pipeline.artifacts import Model, write_table
from pipeline.config import FullAdapter, TrainConfig
from pipeline.errors import StageError, UserError
from pipeline.models import loading
from pipeline.training.distributed.sharded import KnownHead
from pipeline.training.monitoring.callbacks import (
    CheckpointLedger,
    FiniteGuard,
    MetricsLog,
    ProgressLine,
)
from pipeline.training.monitoring.guards import Guards
from pipeline.training.monitoring.reference_check import StartCheck
from pipeline.training.monitoring.trackers import Tracked
from pipeline.training.trainers.arguments import arguments
from pipeline.training.trainers.rehearsal import rehearsal_of

if TYPE_CHECKING:
    import polars as pl
    from datasets import Dataset

PARTS = "train", "dev"  # the pairs; beside them lie demonstrations to rehearse


def trainer_kind(name: str) -> Any:
    """The room of a TRL trainer class: `Trainer`, `Arguments` and `settings` of it alone."""
    match name:
        case "dpo":
            from pipeline.training.trainers import dpo

            return dpo
        case "cpo":
            from pipeline.training.trainers import cpo

            return cpo
        case "orpo":
            from pipeline.training.trainers import orpo

            return orpo
        case "kto":
            from pipeline.training.trainers import kto

            return kto
    raise ValueError(name)


def load_policy(cfg: TrainConfig, init: Model) -> Any:
    """What is trained. Mixed precision keeps full weights in float32: a step of 5e-7 is nothing in bfloat16."""
    set_seed(cfg.seed)
    if isinstance(cfg.adapter, FullAdapter):
        return loading.load_merged(init)
    return loading.load_with_adapter(init, cfg.adapter, cfg.dtype)


def trainer_for(
    cfg: TrainConfig,
    policy: Any,
    init: Model,
    reference: Model | None,
    rows: "dict[str, pl.DataFrame]",
    out: Path,
    guards: Guards,
) -> tuple[Any, CheckpointLedger]:
    ledger = CheckpointLedger(out / "scratch" / "checkpoints")
    weights = {
        name: weight.data for name, weight in policy.named_parameters() if weight.requires_grad
    }
    asked = {} if reference is None else {"ref_model": _reference(cfg, policy, init, reference)}
    # What is loaded once these stand comes in shares under ZeRO-3, and no adapter can be merged into those.
    args = _arguments(cfg, ledger.folder, evaluates=rows["dev"].height > 0)
    data = _datasets(args, rows, out / "scratch")
    start = StartCheck(cfg, rows, init, reference)
    trainer = trainer_kind(cfg.trainer).Trainer(
        model=policy,
        **asked,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data.get("dev"),
        processing_class=_tokenizer(init),
        callbacks=[KnownHead(), start, *_callbacks(cfg, out, ledger, guards)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.by_length, trainer.rehearsal = cfg.runtime.by_length, rehearsal_of(cfg, rows)
    for each in (start, guards):
        each.watch(trainer)
    _only_wanted_adapters(policy)
    _in_their_own_precision(policy, weights)
    return trainer, ledger


def _tokenizer(init: Model) -> Any:
    """ORPOTrainer pads with the tokenizer's mark; what is padded is masked, so any mark does."""
    tokenizer = loading.load_tokenizer(init)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _callbacks(cfg: TrainConfig, out: Path, ledger: CheckpointLedger, guards: Guards) -> list[Any]:
    """In this order: what is no number reaches no file, what is looked at comes after what the trainer itself logs."""
    written, shown = MetricsLog(out / "metrics.jsonl"), Tracked(cfg.runtime.tracker, out)
    return [FiniteGuard(), written, ledger, ProgressLine("train", out), guards, shown]


def _datasets(args: Any, rows: "dict[str, pl.DataFrame]", scratch: Path) -> "dict[str, Dataset]":
    with args.main_process_first(desc="pairs"):  # the others read what the first one made of them
        return {part: _dataset(rows[part], part, scratch) for part in PARTS if rows[part].height}


def _dataset(table: "pl.DataFrame", part: str, scratch: Path) -> "Dataset":
    """From files, as TRL needs it, and equal to what was written."""
    import datasets
    import polars as pl

    datasets.disable_progress_bars()
    file = scratch / "pairs" / f"{part}.parquet"
    if int(os.environ.get("RANK", 0)) == 0:
        write_table(file, table)
    data = datasets.load_dataset(
        "parquet", data_files=str(file), cache_dir=str(scratch / "cache"), split="train"
    )
    if not pl.DataFrame(data.data.table).equals(table):
        raise StageError(
            f"train: the {part} pairs changed on their way to the trainer ({file}). Remove {scratch} and run again."
        )
    return data


def _reference(cfg: TrainConfig, policy: Any, init: Model, reference: Model) -> Any:
    """The module that TRL asks as it goes; none when its values are ready, or when the policy without adapter is it."""
    if cfg.logps != "live" or loading.is_bare_base(policy, init, reference):
        return None
    if (
        not isinstance(cfg.adapter, FullAdapter)
        and cfg.adapter.quantization
        and not reference.adapter
    ):
        return loading.load(reference, cfg.dtype, cfg.adapter.quantization)
    dtype = torch.float32 if isinstance(cfg.adapter, FullAdapter) else getattr(torch, cfg.dtype)
    return loading.load_merged(reference).to(dtype).requires_grad_(False)


def _only_wanted_adapters(policy: Any) -> None:
    """TRL copies a PeftModel's adapter as reference `ref`. Here the reference is ready, a module, or the bare base."""
    if "ref" in getattr(policy, "peft_config", {}):
        policy.delete_adapter("ref")


def _in_their_own_precision(policy: Any, weights: dict[str, torch.Tensor]) -> None:
    """TRL rounds an adapter on a quantised base to bfloat16, where steps of its learning rate vanish."""
    for name, weight in policy.named_parameters():
        if name in weights and weight.dtype != weights[name].dtype:
            weight.data = weights[name].to(weight.device)


def _arguments(cfg: TrainConfig, folder: Path, evaluates: bool) -> Any:
    kind = trainer_kind(cfg.trainer)
    try:
        args = kind.Arguments(**settings(cfg, folder, evaluates), **cfg.args)
        _try_scheduler(args)
    except (ValueError, TypeError) as error:
        raise UserError(f"train: TRL does not take these settings: {error}") from error
    return args


def _try_scheduler(args: Any) -> None:
    """It is made when training begins, and what it does not know would end there in a traceback."""
    nothing = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    get_scheduler(
        args.lr_scheduler_type, nothing, 0, 1, scheduler_specific_kwargs=args.lr_scheduler_kwargs
    )


def settings(cfg: TrainConfig, checkpoints: Path, evaluates: bool) -> dict[str, Any]:
    return {
        **arguments(cfg, checkpoints),
        **trainer_kind(cfg.trainer).settings(cfg),
        **_paged(cfg),
        **_moving_reference(cfg),
        "beta": cfg.beta,
        "max_length": cfg.max_length,
        "per_device_eval_batch_size": cfg.runtime.micro_batch,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": cfg.eval_every,
    }


def _paged(cfg: TrainConfig) -> dict[str, Any]:
    """QLoRA's optimizer state moves to the host when a long batch needs the memory; it computes as AdamW does."""
    paged = cfg.adapter.kind == "qlora" and torch.cuda.is_available() and "optim" not in cfg.args
    return {"optim": "paged_adamw_32bit"} if paged else {}


def _moving_reference(cfg: TrainConfig) -> dict[str, Any]:
    """A checkpoint does not hold a reference that moves: a killed training starts again instead of going on wrongly."""
    return {"save_strategy": "no"} if cfg.args.get("sync_ref_model") else {}
