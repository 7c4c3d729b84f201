"""What a tool is: its keys, its defaults, and what it does that Strop does not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.commands.convert.objective import Objective
from pipeline.commands.convert.recipe import Recipe
from pipeline.commands.convert.rows import PreferenceSource
from pipeline.commands.convert.source import Source
from pipeline.errors import UserError

Names = Mapping[str, tuple[str, ...]]

# By transformers and TRL, for the tools whose keys are theirs.
TRANSFORMERS_NAMES: Names = {
    "model": ("model_name_or_path",),
    "revision": ("model_revision",),
    "remote_code": ("trust_remote_code",),
    "beta": ("beta",),
    "rate": ("learning_rate",),
    "epochs": ("num_train_epochs",),
    "micro_batch": ("per_device_train_batch_size",),
    "accumulation": ("gradient_accumulation_steps",),
    "scheduler": ("lr_scheduler_type",),
    "scheduler_kwargs": ("lr_scheduler_kwargs",),
    "warmup_share": ("warmup_ratio",),
    "warmup_steps": ("warmup_steps",),
    "clip": ("max_grad_norm",),
    "optimizer": ("optim",),
    "eval_every": ("eval_steps",),
    "save_every": ("save_steps",),
    "by_length": ("group_by_length",),
    "adapter_alpha": ("lora_alpha",),
    "dropout": ("lora_dropout",),
    "trackers": ("report_to",),
    "tracker_name": ("run_name",),
    "tracker_project": ("project",),
}
# Of transformers' TrainingArguments, where they are not Strop's.
TRANSFORMERS_DEFAULTS: Mapping[str, Any] = {
    "epochs": 3,
    "scheduler": "linear",
    "warmup_share": 0.0,
    "micro_batch": 8,
    "accumulation": 1,
    "clip": 1.0,
    "weight_decay": 0.0,
}
ATTENTION = (
    "Would have chosen the attention kernel, which changes the result by rounding alone. Here"
    " transformers chooses; to choose: train.attention=flash_attention_2"
)
# Keys of transformers that several tools take, with what they would have done.
TRANSFORMERS_LOST = {
    "tf32": "Would have multiplied float32 matrices in TF32, on GPUs that have it. In bfloat16 few"
    " are left; to have it: train.args.tf32=true",
    "attn_implementation": ATTENTION,
    "use_flash_attention_2": ATTENTION,
    "use_liger_kernel": "Would have computed the loss with Liger's kernels, which save memory;"
    " to have them: pip install liger-kernel, and train.args.use_liger_kernel=true",
    "torch_compile": "Would have compiled the model, which is faster; to have it:"
    " train.args.torch_compile=true",
    "deepspeed": "Would have sharded the training by DeepSpeed. Here train.runtime.launch=zero2 or"
    " zero3 does, with several GPUs; the result is the same.",
    "fsdp": "Would have sharded the weights. Here train.runtime.launch=fsdp2 does, with several"
    " GPUs; the result is the same.",
    "fsdp_config": "Belongs to fsdp: see there.",
    "max_steps": "Would have ended the training after so many steps. Here train.epochs does, which"
    " may be a fraction.",
    "chat_template": "Would have formatted the messages. Here the checkpoint's own template does;"
    " for another write it to a file: template.chat_template=FILE",
    "tokenizer_name_or_path": "Would have taken another tokenizer. Here it is the checkpoint's.",
    "padding_free": "Would have left out padding; TRL switches it off for DPO.",
    "lora_modules_to_save": "Would have trained these layers in full, such as embeddings. Here"
    " adapters hold low-rank matrices alone, since vLLM samples from no others.",
    "hub_model_revision": "Would have named the branch to upload to. A run uploads nothing.",
    "load_best_model_at_end": "Would have kept the best checkpoint. Here train.guards.stop_on=loss"
    " does, and ends the training early.",
    "early_stopping_patience": "Would have ended the training after so many evaluations without a"
    " better one: train.guards.stop_on=loss train.guards.patience=N",
    "metric_for_best_model": "Would have chosen the best checkpoint: train.guards.stop_on=loss,"
    " accuracy, margin or score.",
    "ddp_timeout": "Seconds that one process waits for the others; nothing else depends on it.",
    "neat_packing": "Would have put several rows into one sequence.",
    "packing": "Would have put several rows into one sequence.",
    "resume_from_checkpoint": "Would have continued from this checkpoint. Here the same command"
    " resumes by itself; it cannot start from another tool's checkpoint.",
}
# Keys of transformers that need no counterpart, with what Strop does.
TRANSFORMERS_DONE = {
    "output_dir": "The store decides where a model is saved; runs/ links to it.",
    "overwrite_output_dir": "Nothing is overwritten: another training has another folder.",
    "logging_steps": "Every step is in metrics.jsonl.",
    "logging_strategy": "Every step is in metrics.jsonl.",
    "logging_first_step": "Every step is in metrics.jsonl.",
    "log_level": "A run prints one line for each step; the rest is in logs/.",
    "do_train": "A run trains.",
    "do_eval": "Dev pairs are evaluated each train.eval_every steps.",
    "eval_strategy": "Dev pairs are evaluated each train.eval_every steps.",
    "evaluation_strategy": "Dev pairs are evaluated each train.eval_every steps.",
    "eval_on_start": "Dev pairs are evaluated before the first step.",
    "per_device_eval_batch_size": "As many rows as fit.",
    "save_strategy": "Checkpoints are for resuming, each train.runtime.save_every steps.",
    "save_total_limit": "The newest complete checkpoint is kept until the training ends.",
    "save_only_model": "A checkpoint holds all that resuming needs.",
    "push_to_hub": "A run uploads nothing.",
    "hub_model_id": "A run uploads nothing.",
    "hub_strategy": "A run uploads nothing.",
    "hub_private_repo": "A run uploads nothing.",
    "hub_token": "A run uploads nothing.",
    "remove_unused_columns": "The trainer gets the columns that it reads.",
    "gradient_checkpointing_kwargs": "How activations are recomputed does not change the result.",
    "dataset_num_proc": "Rows are read once, and kept in the store.",
    "preprocessing_num_workers": "Rows are read once, and kept in the store.",
    "dataloader_num_workers": "Token ids are ready before the training starts.",
    "dataloader_pin_memory": "Token ids are ready before the training starts.",
    "overwrite_cache": "Steps are cached by content.",
    "truncation_mode": "Nothing is cut: a pair over the limits is dropped and counted.",
    "include_tokens_per_second": "Throughput is in the ledger.",
    "plot_loss": "Each training draws curves.png.",
}


@dataclass(frozen=True)
class Training:
    """What a tool's file trains, by Strop's words."""

    objective: Objective
    is_lora: bool
    adapter_key: str  # the key that says so
    bits: int | None  # of the base under an adapter
    rows: list[PreferenceSource]
    trackers: list[str]


@dataclass(frozen=True)
class Tool:
    name: str  # as its users write it
    marks: tuple[str, ...]  # keys of this tool alone, by which a file is recognised
    names: Names  # Strop's word → the tool's keys for it, the newest first
    defaults: Mapping[str, Any]  # by Strop's word, where it is not Strop's default
    lost: Mapping[str, str]  # keys without a counterpart → what they would have done
    done: Mapping[str, str]  # keys that need none → what Strop does
    has_trl_keys: bool  # whether every field of TRL's configs is a key
    read: Callable[[Source, Recipe], Training]


def refuse_other_training(source: Source, key: str, trains: str, instead: str) -> UserError:
    return UserError(
        f"{source.path}: {key}: this file trains {trains}. strop convert reads preference"
        f" trainings (DPO, IPO, KTO, ORPO, SimPO, CPO).\n  {instead}"
    )


SFT_INSTEAD = (
    "Strop trains SFT within a run: base=checkpoint base.model=MODEL sft=train"
    " demonstrations@sft.data=jsonl sft.data.path=FILE; or train it with that tool and give its"
    " model as sft.model."
)
REWARD_INSTEAD = "Strop trains reward models within a run: reward=train (conf/reward/train.yaml)."
ONLINE_INSTEAD = (
    "Strop goes another way: it samples, scores and trains on pairs, in rounds. Begin with"
    " strop plan sft.model=MODEL prompts.path=FILE rounds=2"
)
