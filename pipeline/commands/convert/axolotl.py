"""axolotl's keys: https://docs.axolotl.ai/docs/config-reference.html"""

from collections.abc import Mapping
from typing import Any

from pipeline.commands.convert.objective import name_objective
from pipeline.commands.convert.recipe import Recipe
from pipeline.commands.convert.rows import (
    UNREAD_TURNS,
    PreferenceSource,
    is_local,
    name_shape,
    name_turns,
)
from pipeline.commands.convert.source import Source, show
from pipeline.commands.convert.tools import (
    ATTENTION,
    ONLINE_INSTEAD,
    REWARD_INSTEAD,
    SFT_INSTEAD,
    TRANSFORMERS_DONE,
    TRANSFORMERS_LOST,
    TRANSFORMERS_NAMES,
    Tool,
    Training,
    refuse_other_training,
)
from pipeline.errors import UserError, suggest

# `rl` → trainer and loss.
METHODS = {
    "dpo": ("dpo", "sigmoid"),
    "ipo": ("dpo", "ipo"),
    "kto": ("kto", "kto"),
    "orpo": ("orpo", "orpo"),
    "simpo": ("cpo", "simpo"),
}
ONLINE = ("grpo", "gdpo", "ebft", "ppo", "rloo")
# What follows the template in `type: chatml.intel`, of pairs → the shape of the rows.
PAIR_SHAPES: dict[str, str | dict[str, str]] = {
    "argilla": "argilla",
    "intel": "intel",
    "argilla_chat": "trl",
    "ultra": "trl",
    "prompt_pairs": "trl",
    "chat_template": "trl",
    "icr": {"prompt": "input", "chosen": "chosen", "rejected": "rejected"},
}
LABELLED = {"completion": "completion", "label": "label"}
# The same for KTO, whose rows are single answers.
ANSWER_SHAPES: dict[str, str | dict[str, str]] = {
    "argilla": {"prompt": "instruction", **LABELLED},
    "intel": {"prompt": "question", **LABELLED},
    "ultra": "unpaired",
    "prompt_pairs": "unpaired",
}
SIDES = "chosen", "rejected"


def read_training(source: Source, recipe: Recipe) -> Training:
    method = source.text("rl")
    if method in ONLINE:
        raise refuse_other_training(source, f"rl: {method}", "by rewards, online", ONLINE_INSTEAD)
    if source.value("reward_model") or source.value("process_reward_model"):
        raise refuse_other_training(source, "reward_model", "a reward model", REWARD_INSTEAD)
    if method is None:
        raise refuse_other_training(source, "no key rl", "SFT", SFT_INSTEAD)
    if method not in METHODS:
        raise UserError(f"{source.path}: rl: {method}: unknown. {suggest(method, [*METHODS])}")
    trainer, loss = METHODS[method]
    adapter = source.text("adapter")
    bits = 4 if source.flag("load_4_bits") else 8 if source.flag("load_8_bits") else None
    if adapter not in (None, "lora", "qlora"):
        effect = "Would have trained this adapter; here every weight is trained."
        recipe.lose("adapter", adapter, effect)
    is_lora = adapter in ("lora", "qlora")
    if bits and not is_lora:
        recipe.lose(f"load_in_{bits}bit", "true", "Nothing: it needs an adapter.")
    return Training(
        name_objective(source, trainer, [loss], "rl"),
        is_lora,
        "adapter",
        bits if is_lora else None,
        _read_rows(source, recipe, is_unpaired=trainer == "kto"),
        _list_trackers(source),
    )


def _list_trackers(source: Source) -> list[str]:
    has_project = source.has("tracker_project")
    trackers = {
        "wandb": source.flag("use_wandb") or has_project,
        "tensorboard": source.flag("use_tensorboard"),
        "mlflow": source.flag("use_mlflow") or source.value("mlflow_experiment_name"),
        "comet": source.flag("use_comet"),
    }
    return [name for name, is_used in trackers.items() if is_used]


def _read_rows(source: Source, recipe: Recipe, is_unpaired: bool) -> list[PreferenceSource]:
    blocks = source.blocks("datasets")
    if not blocks or not all(isinstance(block.get("path"), str) for block in blocks):
        raise source.refuse("datasets", "a list of data sets, each with its path")
    rows = [_read_block(recipe, block, is_unpaired) for block in blocks]
    for block in source.blocks("test_datasets"):
        effect = "Would have been its evaluation rows; here dev pairs are held out (pair.dev)."
        recipe.lose("test_datasets", show(block.get("path")), effect)
    return rows


def _read_block(recipe: Recipe, block: dict[str, Any], is_unpaired: bool) -> PreferenceSource:
    place, files = block["path"], block.get("data_files")
    if place in ("json", "parquet", "csv") and files:
        place = files if isinstance(files, str) else str(files[0])
        others = [] if isinstance(files, str) else files[1:]
        for other in others:
            recipe.lose("datasets.data_files", show(other), "A run reads one file here.")
    elif files:
        effect = "Would have read these files of the data set alone; here all of its split."
        recipe.lose("datasets.data_files", show(files), effect)
    shape, columns = _read_shape(recipe, block, is_unpaired)
    known = {"path", "type", "split", "name", "revision", "data_files", "ds_type"}
    known |= {key for key in block if key.startswith(("field_", "message_", "roles"))}
    for key in block.keys() - known:
        if block[key] not in (None, False):
            effect = "Would have changed how these rows are read."
            recipe.lose(f"datasets.{key}", show(block[key]), effect)
    unread = None
    if str(block.get("type")).endswith("nectar"):
        unread = (
            "Strop does not read rows of this shape. Write them as {prompt, chosen, rejected},"
            " and give offline=file offline.source.path=FILE prompts=file prompts.path=FILE."
        )
    elif str(block.get("type")).endswith("default") and not _name_turns(block):
        unread = UNREAD_TURNS
    return PreferenceSource(
        place,
        "datasets.path",
        is_local(place) or "ds_type" in block,
        split=str(block.get("split") or "train"),
        subset=_to_text(block.get("name")),
        revision=_to_text(block.get("revision")),
        shape=shape,
        columns=columns,
        has_prompt=not str(block.get("type")).endswith(".argilla_chat"),
        unread=unread,
    )


def _to_block(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _to_text(value: object) -> str | None:
    return None if value is None else str(value)


def _read_shape(
    recipe: Recipe, block: dict[str, Any], is_unpaired: bool
) -> tuple[str, Mapping[str, str]]:
    """The shape and, for `columns`, Strop's names → the file's."""
    kind = block.get("type")
    fields = kind if isinstance(kind, dict) else block
    for key in ("prompt_format", "chosen_format", "rejected_format", "completion_format"):
        if isinstance(kind, dict) and (form := kind.get(key)) not in (None, f"{{{key[:-7]}}}"):
            effect = "Would have wrapped the text in it; here the chat template does."
            recipe.lose(f"datasets.type.{key}", show(form), effect)
    if isinstance(kind, dict):
        names = ("prompt", *(LABELLED if is_unpaired else ("chosen", "rejected")))
        return "columns", {name: str(fields.get(f"field_{name}") or name) for name in names}
    template, _, rows = str(kind or "").rpartition(".")
    if template not in ("", "chat_template", "orpo"):
        recipe.lose(
            "datasets.type",
            str(kind),
            f"Would have written the turns by axolotl's {template} template; here the checkpoint's"
            " own chat template does.",
        )
    if rows == "default":
        keys = {_name_turns(block) or "messages": "messages", **{name: name for name in SIDES}}
        return name_shape(
            {ours: str(block.get(f"field_{key}") or key) for ours, key in keys.items()}
        )
    shape = (ANSWER_SHAPES if is_unpaired else PAIR_SHAPES).get(rows, "auto")
    return ("columns", shape) if isinstance(shape, dict) else (shape, {})


def _name_turns(block: dict[str, Any]) -> str | None:
    """By the keys of a turn, and the names of who speaks: {user: [human], assistant: [gpt]}."""
    keys, roles = (_to_block(block.get(key)) for key in ("message_property_mappings", "roles"))
    role, content = (
        str(keys.get(name) or block.get(f"message_field_{name}") or name)
        for name in ("role", "content")
    )
    speakers = {
        str(theirs): ours
        for ours, names in roles.items()
        for theirs in (names if isinstance(names, list) else [names])
    }
    return name_turns(role, content, speakers)


KERNELS = "Would have computed this with other kernels; the result is the same up to rounding."
BATCHES = "Would have changed how rows are put into batches of SFT; a preference is one row."

TOOL = Tool(
    name="axolotl",
    marks=("base_model", "micro_batch_size", "sequence_len", "rl", "num_epochs", "rl_beta",
           "dpo_beta", "val_set_size", "dataset_prepared_path", "lora_target_linear"),
    names={
        **TRANSFORMERS_NAMES,
        "model": ("base_model",),
        "revision": ("revision_of_model",),
        "beta": ("rl_beta", "dpo_beta", "orpo_alpha"),
        "smoothing": ("dpo_label_smoothing",),
        "imitation": ("rpo_alpha",),
        "use_weighting": ("dpo_use_weighting",),
        "precompute": ("precompute_ref_log_probs",),
        "desirable_weight": ("kto_desirable_weight",),
        "undesirable_weight": ("kto_undesirable_weight",),
        "loss": ("rl",),
        "epochs": ("num_epochs",),
        "micro_batch": ("micro_batch_size",),
        "batch_of_device": ("batch_size",),
        "scheduler": ("lr_scheduler",),
        "optimizer": ("optimizer",),
        "length": ("sequence_len",),
        "prompt_length": ("max_prompt_len",),
        "held_out": ("val_set_size",),
        "rank": ("lora_r",),
        "targets": ("lora_target_modules",),
        "all_linear": ("lora_target_linear",),
        "rank_stabilized": ("peft_use_rslora",),
        "dora": ("peft_use_dora",),
        "load_4_bits": ("load_in_4bit",),
        "load_8_bits": ("load_in_8bit",),
        "pure_bf16": ("bfloat16",),
        "trackers": ("wandb_project",),
        "tracker_project": ("wandb_project",),
        "tracker_entity": ("wandb_entity",),
        "tracker_name": ("wandb_name",),
        "tracker_mode": ("wandb_mode",),
        "neftune_noise_alpha": ("neftune_noise_alpha", "noisy_embedding_alpha"),
    },
    defaults={
        "beta": 0.1,
        "simpo_gamma": 0.5,
        "cpo_alpha": 1.0,
        "epochs": 1,
        "scheduler": "cosine",
        "warmup_share": 0.03,
        "micro_batch": 1,
        "accumulation": 1,
        "clip": 1.0,
        "weight_decay": 0.0,
        "length": 512,
        "gradient_checkpointing": False,
        "adapter_alpha": 8,
        "double": True,
    },
    lost={
        **TRANSFORMERS_LOST,
        "lora_model_dir": "Would have continued this adapter. Here give it as sft.model: an"
        " adapter is merged into its base, and a new one is trained on it.",
        "lora_target_parameters": "Would have trained parameters that are not linear layers.",
        "peft_layers_to_transform": "Would have put the adapter into these layers alone.",
        "peft_init_lora_weights": "Would have chosen the adapter's first weights; here B is zero.",
        "loraplus_lr_ratio": "Would have trained one of the two matrices at a higher rate.",
        "relora": "Would have merged and restarted the adapter during training.",
        "special_tokens": "Would have changed the tokenizer's special tokens; here they are the"
        " checkpoint's.",
        "tokens": "Would have added tokens to the tokenizer; here it is the checkpoint's.",
        "chat_template_jinja": "Would have formatted the messages; write it to a file and give"
        " template.chat_template=FILE",
        "default_system_message": "Would have put this system turn before each prompt.",
        "sample_packing": BATCHES,
        "eval_sample_packing": BATCHES,
        "pad_to_sequence_len": "Would have padded each row to the full length, to keep memory"
        " even; here rows are padded to the longest of their batch.",
        "train_on_inputs": "Would have trained the prompt's tokens too; preferences do not.",
        "flash_attention": ATTENTION,
        "xformers_attention": KERNELS,
        "sdp_attention": KERNELS,
        "flex_attention": ATTENTION,
        "lora_mlp_kernel": KERNELS,
        "lora_qkv_kernel": KERNELS,
        "lora_o_kernel": KERNELS,
        "plugins": "Would have loaded extensions of axolotl.",
        "evals_per_epoch": "Would have evaluated so many times an epoch; here every"
        " train.eval_every=50 steps.",
        "saves_per_epoch": "Would have saved so many checkpoints an epoch; here there is one every"
        " train.runtime.save_every=100 steps, to resume from.",
        "wandb_run_id": "Would have named the W&B run to continue. Here an interrupted training"
        " continues its own.",
        "wandb_watch": "Would have logged gradients and weights to W&B.",
        "wandb_log_model": "Would have uploaded the model to W&B. A run uploads nothing.",
        "dpo_generate_during_eval": "Would have sampled answers at each evaluation; the guards do"
        " (train.guards.prompts).",
        "loss_watchdog_threshold": "Would have stopped at a loss above this. A loss that is not"
        " finite stops a training here; for KL see train.guards.kl_budget.",
        "loss_watchdog_patience": "Belongs to loss_watchdog_threshold: see there.",
        "unfrozen_parameters": "Would have trained these parameters alone; here all are trained.",
        "lr_groups": "Would have given groups of layers another rate.",
        "embedding_lr": "Would have given the embeddings another rate.",
        "cosine_min_lr_ratio": "Would have kept the rate above this share; cosine ends at zero.",
        "cosine_constant_lr_ratio": "Would have kept the rate constant at the end.",
        "dataset_exact_deduplication": "Would have dropped repeated rows; here"
        " pair.filters.repeats=true does.",
        "trl": "Belongs to online training.",
        "vllm": "Belongs to online training.",
        "peft": "Would have configured the quantisation of the base.",
        "bnb_config_kwargs": "Would have configured the quantisation of the base.",
        "gptq": "Would have trained on a GPTQ base, which is not supported.",
        "fp8": "Would have computed in 8 bits, which is not supported.",
        "eval_table_size": "Would have sent sampled answers to the tracker; the report has them.",
        "eval_max_new_tokens": "Would have limited those answers: train.guards.tokens.",
        "resize_token_embeddings_to_32x": "Would have grown the vocabulary to a multiple of 32.",
        "model_type": "Would have named the class of the model; here its config does.",
    },
    done={
        **TRANSFORMERS_DONE,
        "tokenizer_type": "The checkpoint names its tokenizer.",
        "base_model_config": "The checkpoint has its config.",
        "tokenizer_config": "The checkpoint has its tokenizer.",
        "is_llama_derived_model": "The checkpoint's config says what it is.",
        "dataset_prepared_path": "Prepared rows are in the store, by their content.",
        "dataset_processes": "Rows are read once, and kept in the store.",
        "shuffle_merged_datasets": "Rows are shuffled by train.seed.",
        "eval_batch_size": "As many rows as fit.",
        "saves_total_limit": "The newest complete checkpoint is kept until the training ends.",
        "auto_resume_from_checkpoints": "The same command resumes.",
        "save_safetensors": "Models are written as safetensors.",
        "strict": "Every key of a recipe is checked.",
        "wandb_mode": "tracker.mode says so.",
    },
    has_trl_keys=False,
    read=read_training,
)  # fmt: skip
