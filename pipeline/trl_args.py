"""Which keys of `train.args` reach the trainer and mean something there: judged before anything heavy, without TRL.

`trl_fields.json` holds the locked TRL's config fields and the flags that it accepts and ignores.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import nearest

CONFIG_CLASS = {"dpo": "DPOConfig"}

DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")

# Set by the stage itself: what to use instead.
SET_HERE = {
    "output_dir": "the store decides where a model lies",
    "beta": "use train.beta",
    "loss_type": "use train.loss",
    "loss_weights": "use train.loss_weights",
    "learning_rate": "use train.learning_rate",
    "num_train_epochs": "use train.epochs",
    "max_steps": "use train.epochs, which may be a fraction",
    "per_device_train_batch_size": "use train.batch (pairs per step) and train.runtime.micro_batch",
    "per_device_eval_batch_size": "use train.runtime.micro_batch",
    "gradient_accumulation_steps": "it follows from train.batch and train.runtime.micro_batch",
    "auto_find_batch_size": "use train.runtime.micro_batch",
    "lr_scheduler_type": "use train.scheduler",
    "warmup_steps": "use train.warmup, a share of the steps",
    "weight_decay": "use train.weight_decay",
    "max_grad_norm": "use train.clip",
    "max_length": "use train.max_length",
    "seed": "use train.seed",
    "data_seed": "use train.seed",
    "bf16": "use train.dtype",
    "fp16": "use train.dtype",
    "gradient_checkpointing": "use train.gradient_checkpointing",
    "use_cpu": "the stage takes a GPU where there is one",
    "precompute_ref_log_probs": "use train.logps",
    "eval_strategy": "use train.eval_every",
    "eval_steps": "use train.eval_every",
    "save_strategy": "use train.runtime.save_every",
    "save_steps": "use train.runtime.save_every",
    "save_total_limit": "the newest whole checkpoint is kept, and removed with the training's end",
    "save_only_model": "a checkpoint without its optimizer resumes as another training",
    "load_best_model_at_end": "checkpoints are for resuming; the last step's model is published",
    "resume_from_checkpoint": "run the same command again: it resumes by itself",
    "ignore_data_skip": "a resumed training would see other pairs",
    "logging_strategy": "every step is in metrics.jsonl",
    "logging_steps": "every step is in metrics.jsonl",
    "logging_nan_inf_filter": "a loss that is not finite stops the training",
    "disable_tqdm": "the stage shows its own progress",
    "report_to": "every step is in metrics.jsonl",
    "remove_unused_columns": "the stage hands over the trainer's own columns",
    "push_to_hub": "nothing is uploaded by a run",
    "deepspeed": "training runs in one process",
    "fsdp": "training runs in one process",
    "fsdp_config": "training runs in one process",
    "parallelism_config": "training runs in one process",
}  # fmt: skip

# Read by TRL and without effect here, where model and token ids arrive ready.
WITHOUT_EFFECT = {
    "trust_remote_code": "the model is loaded by the stage: use trust.remote_code where the checkpoint comes in",
    "dataset_num_proc": "token ids come ready from the sampler",
    "truncation_mode": "nothing is cut: a pair longer than train.max_length is refused",
    "pad_token": "the tokenizer's own is used",
    "precompute_ref_batch_size": "reference values come from refer: use refer.runtime.batch_tokens",
}


@cache
def _trl_fields() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("trl_fields.json").read_text())


def check_args(trainer: str, args: Mapping[str, Any], loss: list[str], logps: str, dropout: float = 0) -> None:
    """Every reason why the trainer would refuse, ignore or contradict these, in one ValueError."""
    faults = [
        *_unknown_losses(loss),
        *_unusable_keys(trainer, args),
        *_keys_without_their_loss(args, loss),
        *_keys_against_ready_values(args, logps),
    ]
    if dropout and args.get("disable_dropout", True):
        faults.append("adapter.dropout is switched off by TRL; add args.disable_dropout=false to have it")
    if faults:
        raise ValueError("\n  ".join(faults))


def _unknown_losses(loss: list[str]) -> Iterator[str]:
    for name in loss:
        if name not in DPO_LOSSES:
            yield f"loss: {name} is no loss of the installed TRL. {nearest(name, list(DPO_LOSSES))}"


def _unusable_keys(trainer: str, args: Mapping[str, Any]) -> Iterator[str]:
    known = _trl_fields()[CONFIG_CLASS[trainer]]
    ignored = {**known["ignored"], **WITHOUT_EFFECT}
    free = [name for name in known["fields"] if name not in SET_HERE and name not in ignored]
    for key in args:
        if key in SET_HERE or key.startswith("hub_"):
            yield f"args.{key} is set by the stage: {SET_HERE.get(key, 'nothing is uploaded by a run')}"
        elif key not in known["fields"]:
            yield f"args.{key} is no field of TRL's {CONFIG_CLASS[trainer]}. {nearest(key, free)}"
        elif key in ignored:
            yield f"args.{key} would be ignored: {ignored[key]}"


def _keys_without_their_loss(args: Mapping[str, Any], loss: list[str]) -> Iterator[str]:
    if "label_smoothing" in args and not set(loss) & set(SMOOTHED):
        yield f"args.label_smoothing would be ignored by {', '.join(loss)}: it is read by {', '.join(SMOOTHED)}"
    if "exo_pair" in loss and not args.get("label_smoothing"):
        yield "loss exo_pair needs args.label_smoothing above 0 (its paper uses 0.001)"
    needs = {
        "discopop_tau": "discopop" in loss,
        "f_alpha_divergence_coef": args.get("f_divergence_type") == "alpha_divergence",
        "ref_model_mixup_alpha": bool(args.get("sync_ref_model")),
        "ref_model_sync_steps": bool(args.get("sync_ref_model")),
    }
    wanted = {
        "discopop_tau": "loss=[discopop]",
        "f_alpha_divergence_coef": "args.f_divergence_type=alpha_divergence",
        "ref_model_mixup_alpha": "args.sync_ref_model=true",
        "ref_model_sync_steps": "args.sync_ref_model=true",
    }
    for key, fits in needs.items():
        if key in args and not fits:
            yield f"args.{key} would be ignored without {wanted[key]}"


def _keys_against_ready_values(args: Mapping[str, Any], logps: str) -> Iterator[str]:
    """Reference values made by `refer` are plain sums under one fixed model."""
    for key in ("ld_alpha", "sync_ref_model"):
        if args.get(key) not in (None, False) and logps == "ready":
            yield f"args.{key} changes the reference's values as training goes: use logps=live"
