"""Which keys of `train.args` reach the trainer and mean something there: judged before anything heavy, without TRL.

`trl_fields.json` holds the locked TRL's config fields and the flags that it accepts and ignores.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import suggest

CONFIG_CLASS = {"dpo": "DPOConfig", "cpo": "CPOConfig", "orpo": "ORPOConfig", "kto": "KTOConfig"}

DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
LOSSES = {
    "dpo": (*DPO_LOSSES, "cdpo"),  # cdpo is ours: TRL dropped the smoothing of sigmoid
    "cpo": ("sigmoid", "hinge", "ipo", "simpo"),
    "orpo": ("orpo",),
    "kto": ("kto", "apo_zero_unpaired"),
}
SMOOTHED = {
    "dpo": ("cdpo", "robust", "exo_pair", "aot", "aot_unpaired"),
    "cpo": ("sigmoid", "simpo"),
}
LOGPS = {"dpo": ("ready", "live"), "kto": ("live",), "cpo": ("none",), "orpo": ("none",)}
# What a loss says of a row depends on the rows beside it: they are sorted, or averaged over their tokens.
COUPLED = {"dpo": ("aot", "aot_unpaired", "sft"), "cpo": (), "orpo": ("orpo",), "kto": ("kto",)}

# What older guides name and the installed TRL no longer has: what to use now.
GONE_LOSSES = {
    "kto": "KTO is a trainer of its own: use train=kto",
    "kto_pair": "KTO is a trainer of its own: use train=kto",
    "bco": "use train=bco_pair",
    "simpo": "SimPO has no reference: use train=simpo",
    "cpo": "CPO has no reference: use train=cpo",
    "alphapo": "use train=simpo train.args.alpha=0.25",
    "orpo": "ORPO is a trainer of its own: use train=orpo",
    "aot_pair": "use train=aot",
    "rpo": "use train=rpo",
    "apo_zero_unpaired": "it learns from thumbs: use train=apo_zero_unpaired",
}
GONE_ARGS = {
    "max_prompt_length": "a prompt is never cut: limits.prompt drops longer ones, and counts them",
    "max_target_length": "use limits.completion",
    "reference_free": "use train=simpo or train=cpo, which need no reference",
    "force_use_ref_model": "use train.logps=live and reference=sft|previous|init",
    "ref_model_init_kwargs": "the reference is loaded as the policy is",
    "model_adapter_name": "a Model has at most one adapter",
    "ref_adapter_name": "use reference=sft|previous|init",
    "rpo_alpha": "use train=rpo, and train.loss_weights=[1,ALPHA]",
    "label_pad_token_id": "what is learned follows from lengths, not from a label",
    "is_encoder_decoder": "the pipeline trains causal models",
    "tools": "put them into the prompt's template: template.kwargs",
    "base_model_attribute_name": "TRL finds it by itself",
    "warmup_ratio": "use train.warmup, a share of the steps",
    "evaluation_strategy": "use train.eval_every",
    "group_by_length": "use train.runtime.by_length, which computes no padding and leaves the draw as it is",
}

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
    "max_completion_length": "use limits.completion; nothing is cut here",
    "is_encoder_decoder": "the pipeline trains causal models",
    "generate_during_eval": "the exam shows what the model answers",
    "padding_value": "the tokenizer's own is used",
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
    "report_to": "use tracker=wandb or tensorboard; every step is in metrics.jsonl all the same",
    "run_name": "use tracker.name",
    "project": "use tracker.project",
    "remove_unused_columns": "the stage hands over the trainer's own columns",
    "push_to_hub": "nothing is uploaded by a run",
    "deepspeed": "use train.runtime.processes and train.runtime.launch",
    "fsdp": "use train.runtime.processes and train.runtime.launch",
    "fsdp_config": "use train.runtime.processes and train.runtime.launch",
    "parallelism_config": "use train.runtime.processes and train.runtime.launch",
}  # fmt: skip

# Read by TRL and without effect here, where model and token ids arrive ready.
WITHOUT_EFFECT = {
    "trust_remote_code": "the model is loaded by the stage: use trust.remote_code where the checkpoint comes in",
    "dataset_num_proc": "token ids come ready from the sampler",
    "truncation_mode": "nothing is cut: a pair longer than train.max_length is refused",
    "pad_token": "the tokenizer's own is used",
    "length_column_name": "use train.runtime.by_length, which computes no padding and leaves the draw as it is",
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "trackio shows no training here: use tracker=wandb or tensorboard",
    ),
    "precompute_ref_batch_size": "reference values come from refer: use refer.runtime.batch_tokens",
}


@cache
def _trl_fields() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("trl_fields.json").read_text())


def check_args(
    trainer: str,
    args: Mapping[str, Any],
    loss: list[str],
    logps: str,
    dropout: float = 0,
    adapter: str = "full",
) -> None:
    """Every reason why the trainer would refuse, ignore or contradict these, in one ValueError."""
    faults = [
        *_unknown_losses(trainer, loss),
        *_unusable_keys(trainer, args),
        *_keys_without_their_loss(trainer, args, loss),
        *_keys_against_the_reference(trainer, args, logps, adapter),
        *_other_draws(args),
    ]
    if dropout and args.get("disable_dropout", True):
        faults.append(
            "adapter.dropout is switched off by TRL; add args.disable_dropout=false to have it"
        )
    if faults:
        raise ValueError("\n  ".join(faults))


def looks_at_rows_together(trainer: str, args: Mapping[str, Any], loss: list[str]) -> bool:
    """Whether the rows that share a forward pass change the loss: their number is then part of what is trained."""
    return bool(set(loss) & set(COUPLED[trainer])) or (
        trainer == "cpo" and args.get("cpo_alpha", 1.0) != 0
    )


def _unknown_losses(trainer: str, loss: list[str]) -> Iterator[str]:
    known = LOSSES[trainer]
    if trainer != "dpo" and len(loss) > 1:
        yield f"loss: {trainer} takes one loss, not {len(loss)}; DPO's can be mixed"
    for name in loss:
        if name not in known and name in GONE_LOSSES:
            yield f"loss: {name} is no loss of TRL's {CONFIG_CLASS[trainer]}: {GONE_LOSSES[name]}"
        elif name not in known:
            yield f"loss: {name} is no loss of the installed TRL. {suggest(name, list(known))}"


def _unusable_keys(trainer: str, args: Mapping[str, Any]) -> Iterator[str]:
    known = _trl_fields()[CONFIG_CLASS[trainer]]
    ignored = {**known["ignored"], **WITHOUT_EFFECT}
    free = [name for name in known["fields"] if name not in SET_HERE and name not in ignored]
    for key in args:
        if key in GONE_ARGS and key not in known["fields"]:
            yield f"args.{key} is gone from TRL's {CONFIG_CLASS[trainer]}: {GONE_ARGS[key]}"
        elif key in SET_HERE or key.startswith("hub_"):
            yield f"args.{key} is set by the stage: {SET_HERE.get(key, 'nothing is uploaded by a run')}"
        elif key not in known["fields"]:
            yield f"args.{key} is no field of TRL's {CONFIG_CLASS[trainer]}. {suggest(key, free)}"
        elif key in ignored:
            yield f"args.{key} would be ignored: {ignored[key]}"


def _keys_without_their_loss(
    trainer: str, args: Mapping[str, Any], loss: list[str]
) -> Iterator[str]:
    yield from _smoothing(trainer, args, loss)
    needs = {
        "discopop_tau": "discopop" in loss,
        "simpo_gamma": "simpo" in loss,
        "f_alpha_divergence_coef": args.get("f_divergence_type") == "alpha_divergence",
        "ref_model_mixup_alpha": bool(args.get("sync_ref_model")),
        "ref_model_sync_steps": bool(args.get("sync_ref_model")),
    }
    wanted = {
        "discopop_tau": "loss=[discopop]",
        "simpo_gamma": "loss=[simpo]",
        "f_alpha_divergence_coef": "args.f_divergence_type=alpha_divergence",
        "ref_model_mixup_alpha": "args.sync_ref_model=true",
        "ref_model_sync_steps": "args.sync_ref_model=true",
    }
    for key, fits in needs.items():
        if key in args and not fits:
            yield f"args.{key} would be ignored without {wanted[key]}"


def _smoothing(trainer: str, args: Mapping[str, Any], loss: list[str]) -> Iterator[str]:
    smoothing, readers = args.get("label_smoothing"), SMOOTHED.get(trainer, ())
    if smoothing is not None and not set(loss) & set(readers):
        instead = (
            ": use train=cdpo" if "sigmoid" in loss else f": it is read by {', '.join(readers)}"
        )
        yield f"args.label_smoothing would be ignored by {', '.join(loss)}{instead}"
    if smoothing is not None and not 0 <= smoothing < 0.5:
        yield f"args.label_smoothing={smoothing}: the share of wrong labels, from 0 to below 0.5"
    if "exo_pair" in loss and not smoothing:
        yield "loss exo_pair needs args.label_smoothing above 0 (its paper uses 0.001)"


def _other_draws(args: Mapping[str, Any]) -> Iterator[str]:
    if (strategy := args.get("train_sampling_strategy")) in ("group_by_length", "batch_rebalance"):
        yield (
            f"args.train_sampling_strategy={strategy} reads one length of a row, and a pair has two: use "
            f"runtime.by_length=true, which computes no padding and leaves the draw as it is"
        )


def _keys_against_the_reference(
    trainer: str, args: Mapping[str, Any], logps: str, adapter: str
) -> Iterator[str]:
    """Reference values made by `refer` are plain sums under one fixed model."""
    if logps not in LOGPS[trainer]:
        why = {"none": "it needs a reference", "ready": "refer has no values for it"}.get(
            logps, "it has no reference"
        )
        yield f"logps={logps}: not with trainer {trainer}, {why}. Give logps={LOGPS[trainer][0]}"
    for key in ("ld_alpha", "sync_ref_model"):
        if args.get(key) not in (None, False) and logps == "ready":
            yield f"args.{key} changes the reference's values as training goes: use logps=live"
    if args.get("sync_ref_model") and adapter != "full":
        yield f"args.sync_ref_model moves a whole reference model, and adapter={adapter} has none: use adapter=full"
