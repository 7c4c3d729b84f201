"""Checks `train.args`: which keys the TRL trainer reads and uses. Needs no TRL, so it runs first.

`trl_fields.json` lists the locked TRL's config fields, and those that it accepts and ignores.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import suggest

CONFIG_CLASS = {"dpo": "DPOConfig", "kto": "KTOConfig", "grpo": "GRPOConfig", "rloo": "RLOOConfig"}
ONLINE = ("grpo", "rloo")  # these sample and score answers during training

DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
# Ours, in training/trainers/losses.py. cdpo is composed of TRL's: it dropped label smoothing from
# sigmoid.
OWN_LOSSES = ("soft_sigmoid", "soft_ipo", "sppo", "reward_aware", "simpo", "orpo")
LOSSES = {
    "dpo": (*DPO_LOSSES, "cdpo", *OWN_LOSSES),
    "kto": ("kto", "apo_zero_unpaired"),
    "grpo": ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "rloo": ("rloo",),
}
# The column of the pairs that a loss reads.
LOSS_COLUMNS = {
    "soft_sigmoid": "p_chosen",
    "soft_ipo": "p_chosen",
    "sppo": "p_chosen",
    "reward_aware": "margin",
}
SMOOTHED_LOSSES = {"dpo": ("cdpo", "robust", "exo_pair", "aot", "aot_unpaired", "simpo")}
# Arguments of our own losses, which TRL's config does not have.
OWN_ARGS = {"simpo_gamma": "simpo", "alpha": "simpo", "reward_scale": "reward_aware"}
LOGPS_BY_TRAINER = {
    "dpo": ("precomputed", "online", "none"),
    "kto": ("online",),
    **dict.fromkeys(ONLINE, ("online", "none")),
}
# These have no reference; the others of the second line mean something without one.
FREE_LOSSES = ("simpo", "orpo")
LOSSES_WITHOUT_REFERENCE = (*FREE_LOSSES, "sft", "sigmoid", "cdpo", "hinge", "ipo", "sigmoid_norm")
# Losses of a row that depend on the other rows: these sort rows, or average over their tokens.
COUPLED_LOSSES = {
    "dpo": ("aot", "aot_unpaired", "sft", "orpo"),
    "kto": ("kto",),
    "grpo": ("bnpo",),
    "rloo": (),
}

# In older guides but not in the installed TRL: what to use instead.
REMOVED_LOSSES = {
    "kto": "KTO is a separate trainer: use {}=kto",
    "kto_pair": "KTO is a separate trainer: use {}=kto",
    "bco": "use {}=bco_pair",
    "cpo": "use {}=cpo",
    "alphapo": "use {}=simpo {args.alpha}=0.25",
    "aot_pair": "use {}=aot",
    "rpo": "use {}=rpo",
    "apo_zero_unpaired": "it learns from unpaired answers: use {}=apo_zero_unpaired",
}
REMOVED_ARGS = {
    "max_prompt_length": "prompts are never cut: limits.prompt drops longer ones and counts them",
    "max_target_length": "use limits.completion",
    "max_completion_length": "use limits.completion; training cuts nothing",
    "generate_during_eval": "use {guards.prompts}, the dev prompts that are answered",
    "padding_value": "the tokenizer's own is used",
    "reference_free": "use {}=simpo or {}=cpo, which need no reference",
    "force_use_ref_model": "use {reference_logps}=online and reference.model=sft|previous|init",
    "ref_model_init_kwargs": "the reference is loaded like the policy",
    "model_adapter_name": "a model has at most one adapter",
    "ref_adapter_name": "use reference.model=sft|previous|init",
    "rpo_alpha": "use {}=rpo, and {loss_weights}=[1,ALPHA]",
    "cpo_alpha": "use {}=cpo, or {loss}=[simpo,sft], and {loss_weights}=[1,ALPHA]",
    "label_pad_token_id": "lengths, not labels, decide which tokens are trained",
    "is_encoder_decoder": "the pipeline trains causal models",
    "tools": "pass them to the chat template: template.kwargs",
    "base_model_attribute_name": "TRL finds it itself",
    "warmup_ratio": "use {warmup}, a share of the steps",
    "evaluation_strategy": "use {eval_every}",
    "group_by_length": "use {runtime.by_length}: it computes no padding and keeps the batches",
}

# TRL's DPOTrainer and KTOTrainer sum an answer's log-probability in one process, before the loss.
NO_CONTEXT_PARALLEL = (
    "TRL's preference trainers read whole rows, and lose what context parallelism (ring or Ulysses)"
    " gives to other processes; for long rows use {gradient_checkpointing}=true,"
    " {attention}, {args.activation_offloading}=true, and {runtime.launch}=fsdp2 or"
    " zero3"
)

# Set by the stage: what to use instead.
SET_BY_STAGE = {
    "output_dir": "the store decides where a model is saved",
    "beta": "use {beta}",
    "loss_type": "use {loss}",
    "loss_weights": "use {loss_weights}",
    "learning_rate": "use {learning_rate}",
    "num_train_epochs": "use {epochs}",
    "max_steps": "use {epochs}, which may be a fraction",
    "per_device_train_batch_size": "use {batch} (pairs per step) and {runtime.micro_batch}",
    "per_device_eval_batch_size": "use {runtime.micro_batch}",
    "gradient_accumulation_steps": "it follows from {batch} and {runtime.micro_batch}",
    "auto_find_batch_size": "use {runtime.micro_batch}",
    "lr_scheduler_type": "use {scheduler}",
    "warmup_steps": "use {warmup}, a share of the steps",
    "weight_decay": "use {weight_decay}",
    "max_grad_norm": "use {clip}",
    "max_length": "use {max_length}",
    "seed": "use {seed}",
    "data_seed": "use {seed}",
    "bf16": "use {dtype}",
    "fp16": "use {dtype}",
    "gradient_checkpointing": "use {gradient_checkpointing}",
    "use_cpu": "the stage uses a GPU where there is one",
    "precompute_ref_log_probs": "use {reference_logps}",
    "eval_strategy": "use {eval_every}",
    "eval_steps": "use {eval_every}",
    "save_strategy": "use {runtime.save_every}",
    "save_steps": "use {runtime.save_every}",
    "save_total_limit": "the newest complete checkpoint is kept until the training ends",
    "save_only_model": "a checkpoint without its optimizer resumes as another training",
    "load_best_model_at_end": "checkpoints are for resuming; use {guards.stop_on}",
    "resume_from_checkpoint": "run the same command again: it resumes by itself",
    "ignore_data_skip": "a resumed training would see different pairs",
    "logging_strategy": "every step is in metrics.jsonl",
    "logging_steps": "every step is in metrics.jsonl",
    "logging_nan_inf_filter": "a loss that is not finite stops the training",
    "disable_tqdm": "the stage shows its own progress",
    "report_to": "use tracker=wandb or tensorboard; metrics.jsonl has every step in any case",
    "run_name": "use tracker.name",
    "project": "use tracker.project",
    "remove_unused_columns": "the stage passes exactly the trainer's columns",
    "push_to_hub": "a run uploads nothing",
    "deepspeed": "use {runtime.processes} and {runtime.launch}",
    "fsdp": "use {runtime.processes} and {runtime.launch}",
    "fsdp_config": "use {runtime.processes} and {runtime.launch}",
    "parallelism_config": NO_CONTEXT_PARALLEL,
}  # fmt: skip

# The same, of trainers that sample and score.
SET_ONLINE = {
    "num_generations": "use sample.settings.NAME.n",
    "num_generations_eval": "use {guards.prompts}, the dev prompts that are answered",
    "max_completion_length": "use limits.completion",
    "temperature": "use sample.settings.NAME.temperature",
    "top_p": "use sample.settings.NAME.top_p",
    "min_p": "use sample.settings.NAME.min_p",
    "chat_template_kwargs": "use template.kwargs",
    "reward_weights": "there is one reward, pair.scorer: an ensemble weighs several scorers",
    "shuffle_dataset": "prompts come in the order of their hashes, so that a run resumes",
    "steps_per_generation": "use {args.generation_batch_size}, in answers",
    "use_vllm": "use backend=vllm or transformers",
    "sync_ref_model": "the reference is reference.model, and stays",
    "log_completions": "answers.jsonl has the answers to dev prompts",
}

# Read by TRL but without effect here, where the trainer gets a loaded model and token ids.
IGNORED_ARGS = {
    "trust_remote_code": "the stage loads the model: use the checkpoint's trust.remote_code",
    "dataset_num_proc": "token ids come ready from the sampler",
    "truncation_mode": "nothing is cut: a pair longer than {max_length} is refused",
    "pad_token": "the tokenizer's own is used",
    "length_column_name": ("use {runtime.by_length}: it computes no padding and keeps the batches"),
    **dict.fromkeys(
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "trackio is not supported: use tracker=wandb or tensorboard",
    ),
    "precompute_ref_batch_size": "use reference.runtime.batch_tokens",
}


@cache
def load_trl_fields() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("trl_fields.json").read_text())


def check_args(
    trainer: str,
    args: Mapping[str, Any],
    loss: list[str],
    logps: str,
    dropout: float = 0,
    adapter: str = "full",
) -> None:
    """Raise one ValueError that lists all that the trainer would refuse, ignore or contradict."""
    faults = [
        *_find_unknown_losses(trainer, loss),
        *_find_unusable_keys(trainer, args),
        *_find_keys_without_loss(trainer, args, loss),
        *_check_reference(trainer, loss, logps),
        *_check_reference_keys(args, logps, adapter),
        *_check_sampling_strategy(args),
    ]
    if dropout and args.get("disable_dropout", True):
        faults.append(
            "adapter.dropout is switched off by TRL; add args.disable_dropout=false to use it"
        )
    if faults:
        raise ValueError("\n  ".join(faults))


def couples_rows(trainer: str, loss: list[str]) -> bool:
    """Whether the rows that share a forward pass change the loss, so that their number matters."""
    return bool(set(loss) & set(COUPLED_LOSSES[trainer]))


def _find_unknown_losses(trainer: str, loss: list[str]) -> Iterator[str]:
    known = LOSSES[trainer]
    if trainer != "dpo" and len(loss) > 1:
        yield f"loss: {trainer} takes one loss, not {len(loss)}; DPO's can be mixed"
    for name in loss:
        if name not in known and name in REMOVED_LOSSES:
            owner = f"TRL's {CONFIG_CLASS[trainer]}"
            yield f"loss: {name} is not a loss of {owner}: {REMOVED_LOSSES[name]}"
        elif name not in known:
            yield f"loss: {name} is not a loss of the installed TRL. {suggest(name, list(known))}"


def _find_unusable_keys(trainer: str, args: Mapping[str, Any]) -> Iterator[str]:
    owner = f"TRL's {CONFIG_CLASS[trainer]}"
    known = load_trl_fields()[CONFIG_CLASS[trainer]]
    ignored = {**known["ignored"], **IGNORED_ARGS}
    own = OWN_ARGS if trainer == "dpo" else {}
    fields = [*known["fields"], *own]
    set_by_stage = {**SET_BY_STAGE, **(SET_ONLINE if trainer in ONLINE else {})}
    free = [name for name in fields if name not in set_by_stage and name not in ignored]
    for key, value in args.items():
        if key in own:
            if isinstance(value, bool) or not isinstance(value, int | float):
                yield f"args.{key}={value}: expected a number"
        elif key in REMOVED_ARGS and key not in known["fields"]:
            yield f"args.{key} is gone from {owner}: {REMOVED_ARGS[key]}"
        elif key in set_by_stage or key.startswith("hub_"):
            instead = set_by_stage.get(key, "a run uploads nothing")
            yield f"args.{key} is set by the stage: {instead}"
        elif key not in known["fields"]:
            yield f"args.{key} is not a field of {owner}. {suggest(key, free)}"
        elif key in ignored:
            yield f"args.{key} would be ignored: {ignored[key]}"


def _find_keys_without_loss(
    trainer: str, args: Mapping[str, Any], loss: list[str]
) -> Iterator[str]:
    yield from _check_smoothing(trainer, args, loss)
    needs = {
        "discopop_tau": "discopop" in loss,
        **{key: name in loss for key, name in OWN_ARGS.items()},
        "f_alpha_divergence_coef": args.get("f_divergence_type") == "alpha_divergence",
        "ref_model_mixup_alpha": bool(args.get("sync_ref_model")),
        "ref_model_sync_steps": bool(args.get("sync_ref_model")),
    }
    wanted = {
        "discopop_tau": "loss=[discopop]",
        **{key: f"loss=[{name}]" for key, name in OWN_ARGS.items()},
        "f_alpha_divergence_coef": "args.f_divergence_type=alpha_divergence",
        "ref_model_mixup_alpha": "args.sync_ref_model=true",
        "ref_model_sync_steps": "args.sync_ref_model=true",
    }
    for key, fits in needs.items():
        if key in args and not fits:
            yield f"args.{key} would be ignored without {wanted[key]}"
    for name in (name for name in loss if name in OWN_LOSSES):
        for key in ("ld_alpha", "f_divergence_type", "use_weighting"):
            if args.get(key) not in (None, False, "reverse_kl"):
                yield f"args.{key} would be ignored by {name}, which is not TRL's"


def _check_smoothing(trainer: str, args: Mapping[str, Any], loss: list[str]) -> Iterator[str]:
    smoothing, readers = args.get("label_smoothing"), SMOOTHED_LOSSES.get(trainer, ())
    if smoothing is not None and not set(loss) & set(readers):
        instead = "use {}=cdpo" if "sigmoid" in loss else f"{', '.join(readers)} read it"
        yield f"args.label_smoothing would be ignored by {', '.join(loss)}: {instead}"
    if smoothing is not None and not 0 <= smoothing < 0.5:
        yield f"args.label_smoothing={smoothing}: the share of wrong labels, from 0 to below 0.5"
    if "exo_pair" in loss and not smoothing:
        yield "loss exo_pair needs args.label_smoothing above 0 (its paper uses 0.001)"


def _check_sampling_strategy(args: Mapping[str, Any]) -> Iterator[str]:
    if (strategy := args.get("train_sampling_strategy")) in ("group_by_length", "batch_rebalance"):
        yield (
            f"args.train_sampling_strategy={strategy} reads one length of a row, and a pair has"
            " two: use runtime.by_length=true, which computes no padding and keeps the batches"
        )


def _check_reference(trainer: str, loss: list[str], logps: str) -> Iterator[str]:
    """Whether trainer and losses have a reference, and from where."""
    if logps not in LOGPS_BY_TRAINER[trainer]:
        why = {
            "none": "it needs a reference",
            "precomputed": "the stage reference has no values for it",
        }[logps]
        yield (
            f"reference_logps={logps} does not fit the trainer {trainer}: {why}."
            f" Give reference_logps={LOGPS_BY_TRAINER[trainer][0]}"
        )
    elif logps == "none" and trainer not in ONLINE:
        for name in (name for name in loss if name not in LOSSES_WITHOUT_REFERENCE):
            yield (
                f"reference_logps=none does not fit {name}: it needs a reference."
                " Give reference_logps=precomputed"
            )
    elif free := [name for name in loss if name in FREE_LOSSES]:
        yield (
            f"reference_logps={logps} does not fit {free[0]}: it has no reference."
            " Give reference_logps=none"
        )


def _check_reference_keys(args: Mapping[str, Any], logps: str, adapter: str) -> Iterator[str]:
    """Precomputed reference values (`reference`) are plain sums under one fixed model."""
    for key in ("ld_alpha", "sync_ref_model"):
        if args.get(key) not in (None, False) and logps != "online":
            yield (
                f"args.{key} changes the reference's values during training:"
                " use reference_logps=online"
            )
    if args.get("sync_ref_model") and adapter != "full":
        yield (
            f"args.sync_ref_model updates a separate reference model, and adapter={adapter} has"
            " none: use adapter=full"
        )
