"""What every TRL trainer is told alike: the optimisation, checkpoints, and silence; an objective adds its own."""

import os
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Optimization


def arguments(cfg: Optimization, checkpoints: Path) -> dict[str, Any]:
    return {
        "output_dir": str(checkpoints),
        "learning_rate": cfg.learning_rate,
        "num_train_epochs": cfg.epochs,
        "per_device_train_batch_size": cfg.runtime.micro_batch,
        "gradient_accumulation_steps": cfg.batch
        // (cfg.runtime.micro_batch * int(os.environ.get("WORLD_SIZE", 1))),
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
        "logging_nan_inf_filter": False,  # a loss that is no number has to be seen
        "disable_tqdm": True,
        "report_to": "none",
    }
