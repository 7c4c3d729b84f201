"""The arguments that every TRL trainer gets: optimisation, checkpoints, silence."""

import os
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Optimization


def common_arguments(cfg: Optimization, checkpoints: Path) -> dict[str, Any]:
    rows_per_pass = cfg.runtime.micro_batch * int(os.environ.get("WORLD_SIZE", 1))
    return {
        "output_dir": str(checkpoints),
        "learning_rate": cfg.learning_rate,
        "num_train_epochs": cfg.epochs,
        "per_device_train_batch_size": cfg.runtime.micro_batch,
        "gradient_accumulation_steps": cfg.batch // rows_per_pass,
        "lr_scheduler_type": cfg.scheduler,
        "warmup_steps": cfg.warmup,  # below 1 it is a share of the steps
        "weight_decay": cfg.weight_decay,
        "max_grad_norm": cfg.clip,
        "seed": cfg.seed,
        "bf16": cfg.dtype == "bfloat16",
        "gradient_checkpointing": cfg.gradient_checkpointing,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "steps",
        "save_steps": cfg.runtime.save_every,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # FiniteGuard has to see a loss that is NaN or infinite
        "disable_tqdm": True,
        "report_to": "none",
    }
