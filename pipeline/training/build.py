"""From a config to its trainer: the policy, the reference, and one of TRL's trainers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, get_scheduler, set_seed
from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK

from pipeline.artifacts import Model, Prompts, write_table
from pipeline.config import FullAdapter, OnlineTraining, TrainConfig
from pipeline.config.trl_args import ONLINE
from pipeline.errors import StageError, UserError
from pipeline.models import loading
from pipeline.training.distributed.sharded import HeadRegistration
from pipeline.training.monitoring.callbacks import (
    CheckpointLedger,
    FiniteGuard,
    MetricsLog,
    ProgressLine,
)
from pipeline.training.monitoring.expert_load import ExpertLoad
from pipeline.training.monitoring.guards import Guards
from pipeline.training.monitoring.reference_check import StartCheck
from pipeline.training.monitoring.sampler_check import SamplerCheck
from pipeline.training.monitoring.trackers import TrackerCallback
from pipeline.training.prompt_sharing import PromptSharing
from pipeline.training.row_packing import RowPacking
from pipeline.training.trainers.arguments import common_arguments
from pipeline.training.trainers.rehearsal import build_rehearsal

if TYPE_CHECKING:
    import polars as pl
    from datasets import Dataset

    from pipeline.training.trainers.rewards import Rewards

TRANSFORMERS_NAMES = {"flex": "flex_attention"}  # of attention, where they differ from ours
PARTS = "train", "dev"  # of the pairs or prompts; the demonstrations to rehearse are a third table
SAMPLED = "sampled"  # and answers with the sampler's log-probabilities a fourth


def _skip_vllm() -> None:
    """TRL imports vLLM with its online trainers, which takes seconds, also where it is not used."""
    if not torch.cuda.is_available():
        utils: Any = import_module("trl.import_utils")
        utils.is_vllm_available = lambda min_version=None: False


def import_trainer(name: str) -> Any:
    """The module of one TRL trainer class, with its `Trainer`, `Arguments` and `loss_arguments`."""
    if name in ONLINE:
        _skip_vllm()
    match name:
        case "dpo":
            from pipeline.training.trainers import dpo

            return dpo
        case "kto":
            from pipeline.training.trainers import kto

            return kto
        case "grpo":
            from pipeline.training.trainers import grpo

            return grpo
        case "rloo":
            from pipeline.training.trainers import rloo

            return rloo
    raise ValueError(name)


def load_policy(cfg: TrainConfig, init: Model) -> Any:
    """The model to train. Full weights stay in float32: a step of 5e-7 would vanish in bfloat16."""
    set_seed(cfg.seed)
    if isinstance(cfg.adapter, FullAdapter):
        policy = loading.load_merged(init)
    else:
        policy = loading.load_with_adapter(init, cfg.adapter, cfg.dtype)
    return set_attention(policy, cfg)


def set_attention(module: Any, cfg: TrainConfig) -> Any:
    """Refuse what transformers has not for this model, and what it would replace by another."""
    attention, knob = cfg.attention, f"{cfg.knob}.attention"
    if attention == "auto":
        return module
    name = TRANSFORMERS_NAMES.get(attention, attention)
    try:
        module.set_attn_implementation(name)
    except Exception as error:  # also what downloading a kernel raises
        raise UserError(f"{knob}={attention}: {error}\n  Give {knob}=auto.") from error
    used = module.config.get_text_config()._attn_implementation
    if used not in (name, FLASH_ATTN_KERNEL_FALLBACK.get(name)):
        raise UserError(
            f"{knob}={attention}: transformers would compute this model's attention by"
            f" {used}.\n  Give {knob}=auto."
        )
    return module


@contextmanager
def open_rewards(
    cfg: TrainConfig, init: Model, prompts: Prompts | None, reward: Model | None
) -> "Iterator[Rewards | None]":
    """What scores the answers of online training; None for training on pairs."""
    if not isinstance(cfg, OnlineTraining):
        yield None
        return
    from pipeline.training.trainers.rewards import Rewards

    assert prompts, "the plan gives online training its prompts"
    rewards = Rewards(cfg, init, prompts, reward)
    try:
        yield rewards
    finally:
        rewards.close()


def build_trainer(
    cfg: TrainConfig,
    policy: Any,
    init: Model,
    reference: Model | None,
    rows: "dict[str, pl.DataFrame]",
    out: Path,
    guards: Guards,
    rewards: "Rewards | None" = None,
) -> tuple[Any, CheckpointLedger]:
    ledger = CheckpointLedger(out / "scratch" / "checkpoints")
    weights = {
        name: weight.data for name, weight in policy.named_parameters() if weight.requires_grad
    }
    # Load the reference before making the arguments. These switch ZeRO-3 on: whatever is loaded
    # afterwards is sharded, and an adapter cannot be merged into sharded weights.
    ref_model = {}
    if reference is not None:
        ref_model["ref_model"] = _load_reference(cfg, policy, init, reference)
    args = _make_arguments(cfg, ledger.folder, evaluates=rows["dev"].height > 0)
    data = _make_datasets(args, rows, out / "scratch")
    online: dict[str, Any] = {}
    if rewards:
        online = {
            "reward_funcs": [rewards],
            "stop_ids": rewards.tokenizer.stop_ids,
            "kl_beta": cfg.beta if cfg.reference_logps == "online" else 0.0,
        }
    packing, sharing = RowPacking(cfg, rows), PromptSharing(cfg, rows, out)
    start, load = StartCheck(cfg, rows, init, reference), ExpertLoad()
    sampler = SamplerCheck(cfg, rows.get(SAMPLED), out)
    trainer = import_trainer(cfg.trainer).Trainer(
        model=policy,
        **ref_model,
        **online,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data.get("dev"),
        processing_class=loading.load_tokenizer(init),
        callbacks=[
            *(HeadRegistration(), packing, sharing, start, sampler, load),
            *_make_callbacks(cfg, out, ledger, guards),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.by_length, trainer.rehearsal = cfg.runtime.by_length, build_rehearsal(cfg, rows)
    for callback in (packing, sharing, start, sampler, load, guards):
        callback.attach(trainer)
    _remove_copied_adapter(policy)
    _restore_precision(policy, weights)
    return trainer, ledger


def _make_callbacks(
    cfg: TrainConfig, out: Path, ledger: CheckpointLedger, guards: Guards
) -> list[Any]:
    """Order matters: FiniteGuard comes before anything that writes, the guards after the log."""
    log, tracker = MetricsLog(out / "metrics.jsonl"), TrackerCallback(cfg.runtime.tracker, out)
    return [FiniteGuard(), log, ledger, ProgressLine("train", out), guards, tracker]


def _make_datasets(
    args: Any, rows: "dict[str, pl.DataFrame]", scratch: Path
) -> "dict[str, Dataset]":
    parts = [part for part in PARTS if rows[part].height]
    with args.main_process_first(desc="pairs"):  # the others read what the first one has cached
        return {part: _make_dataset(rows[part], part, scratch) for part in parts}


def _make_dataset(table: "pl.DataFrame", part: str, scratch: Path) -> "Dataset":
    """Load the table from a file, as TRL needs it, and check that it is unchanged."""
    import datasets
    import polars as pl
    from datasets.data_files import DataFilesList

    datasets.disable_progress_bars()
    file = scratch / "pairs" / f"{part}.parquet"
    if int(os.environ.get("RANK", 0)) == 0:
        write_table(file, table)
    # A list that is ready: a path would be a pattern, and a folder's name may have `[` in it.
    files = DataFilesList([str(file)], origin_metadata=[(str(file.stat().st_mtime_ns),)])
    data = datasets.load_dataset(
        "parquet", data_files={"train": files}, cache_dir=str(scratch / "cache"), split="train"
    )
    if not pl.DataFrame(data.data.table).equals(table):
        raise StageError(
            f"train: the {part} pairs changed on their way to the trainer ({file}).\n"
            f"  Remove {scratch} and run the same command again."
        )
    return data


def _load_reference(cfg: TrainConfig, policy: Any, init: Model, reference: Model) -> Any:
    """The reference model for TRL to compute values with during training.

    None where the values are precomputed, or where the policy without its adapter is the reference.
    """
    if cfg.reference_logps != "online" or loading.is_bare_base(policy, init, reference):
        return None
    quantization = None if isinstance(cfg.adapter, FullAdapter) else cfg.adapter.quantization
    if quantization and not reference.adapter:
        module = loading.load(reference, cfg.dtype, quantization)
    else:
        dtype = torch.float32 if isinstance(cfg.adapter, FullAdapter) else getattr(torch, cfg.dtype)
        module = loading.load_merged(reference).to(dtype).requires_grad_(False)
    return set_attention(module, cfg)


def _remove_copied_adapter(policy: Any) -> None:
    """Drop the copy `ref` that TRL makes of a PeftModel's adapter to serve as reference.

    Here the reference is precomputed, a separate model, or the base without an adapter.
    """
    if "ref" in getattr(policy, "peft_config", {}):
        policy.delete_adapter("ref")


def _restore_precision(policy: Any, weights: dict[str, torch.Tensor]) -> None:
    """Undo TRL's cast of an adapter on a quantised base to bfloat16, where small steps vanish."""
    for name, weight in policy.named_parameters():
        if name in weights and weight.dtype != weights[name].dtype:
            weight.data = weights[name].to(weight.device)


def _make_arguments(cfg: TrainConfig, folder: Path, evaluates: bool) -> Any:
    kind = import_trainer(cfg.trainer)
    try:
        args = kind.Arguments(**trainer_arguments(cfg, folder, evaluates), **cfg.args)
        _check_scheduler(args)
    except (ValueError, TypeError) as error:
        raise UserError(f"train: TRL does not take these settings: {error}") from error
    return args


def _check_scheduler(args: Any) -> None:
    """Build a scheduler now: unknown arguments would end the training's start in a traceback."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    kwargs = args.lr_scheduler_kwargs
    get_scheduler(args.lr_scheduler_type, optimizer, 0, 1, scheduler_specific_kwargs=kwargs)


def trainer_arguments(cfg: TrainConfig, checkpoints: Path, evaluates: bool) -> dict[str, Any]:
    return {
        **common_arguments(cfg, checkpoints),
        **import_trainer(cfg.trainer).loss_arguments(cfg),
        **_optimizer_arguments(cfg),
        **_save_arguments(cfg),
        "per_device_eval_batch_size": cfg.runtime.micro_batch,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": cfg.eval_every,
    }


def _optimizer_arguments(cfg: TrainConfig) -> dict[str, Any]:
    """For QLoRA, AdamW that moves its state to the host when a long batch needs the memory."""
    paged = cfg.adapter.kind == "qlora" and torch.cuda.is_available() and "optim" not in cfg.args
    return {"optim": "paged_adamw_32bit"} if paged else {}


def _save_arguments(cfg: TrainConfig) -> dict[str, Any]:
    """No checkpoints where the reference moves: they do not hold it.

    A killed training then starts again instead of resuming with a wrong reference.
    """
    return {"save_strategy": "no"} if cfg.args.get("sync_ref_model") else {}
