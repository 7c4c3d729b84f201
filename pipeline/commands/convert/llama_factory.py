"""LLaMA-Factory's keys: its hparams/, and its data/dataset_info.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.commands.convert.objective import name_objective
from pipeline.commands.convert.recipe import Recipe
from pipeline.commands.convert.rows import (
    UNREAD_TURNS,
    PreferenceSource,
    name_shape,
    name_turns,
)
from pipeline.commands.convert.source import Source, read_file, show
from pipeline.commands.convert.tools import (
    ATTENTION,
    ONLINE_INSTEAD,
    REWARD_INSTEAD,
    SFT_INSTEAD,
    TRANSFORMERS_DEFAULTS,
    TRANSFORMERS_DONE,
    TRANSFORMERS_LOST,
    TRANSFORMERS_NAMES,
    Tool,
    Training,
    refuse_other_training,
)
from pipeline.errors import UserError, suggest

STAGES = {
    "sft": ("SFT", SFT_INSTEAD),
    "pt": ("a language model on plain text", SFT_INSTEAD),
    "rm": ("a reward model", REWARD_INSTEAD),
    "ppo": ("by rewards, online (PPO)", ONLINE_INSTEAD),
}
# Preferences that LLaMA-Factory's own dataset_info.json names.
RANKED = {"ranking": True, "formatting": "sharegpt", "columns": {"messages": "conversations"}}
MESSAGES = {"role_tag": "role", "content_tag": "content"}
MESSAGES |= {"user_tag": "user", "assistant_tag": "assistant"}
BUILT_IN: dict[str, dict[str, Any]] = {
    "dpo_en_demo": {"file_name": "dpo_en_demo.json", **RANKED},
    "dpo_zh_demo": {"file_name": "dpo_zh_demo.json", **RANKED},
    "dpo_mix_en": {"hf_hub_url": "llamafactory/DPO-En-Zh-20k", "subset": "en", **RANKED},
    "dpo_mix_zh": {"hf_hub_url": "llamafactory/DPO-En-Zh-20k", "subset": "zh", **RANKED},
    "coig_p": {"hf_hub_url": "m-a-p/COIG-P", **RANKED},
    "ultrafeedback": {
        "hf_hub_url": "llamafactory/ultrafeedback_binarized",
        "ranking": True,
        "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
    },
    "orca_pairs": {
        "hf_hub_url": "Intel/orca_dpo_pairs",
        "ranking": True,
        "columns": {"prompt": "question", "chosen": "chosen", "rejected": "rejected"},
    },
    "kto_en_demo": {
        "file_name": "kto_en_demo.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": MESSAGES,
    },
    "kto_mix_en": {
        "hf_hub_url": "argilla/kto-mix-15k",
        "formatting": "sharegpt",
        "columns": {"messages": "completion", "kto_tag": "label"},
        "tags": MESSAGES,
    },
    "ultrafeedback_kto": {
        "hf_hub_url": "argilla/ultrafeedback-binarized-preferences-cleaned-kto",
        "columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"},
    },
}
# A key of `tags` → its default, and our name of the role.
SPEAKER_TAGS = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "system_tag": ("system", "system"),
}


def read_training(source: Source, recipe: Recipe) -> Training:
    stage = source.text("stage") or "sft"
    if stage in STAGES:
        raise refuse_other_training(source, f"stage: {stage}", *STAGES[stage])
    if stage not in ("dpo", "kto"):
        raise UserError(
            f"{source.path}: stage: {stage}: unknown. {suggest(stage, ['dpo', 'kto', *STAGES])}"
        )
    loss = "kto" if stage == "kto" else source.text("loss") or "sigmoid"
    kind = source.text("finetuning_type") or "lora"
    if kind not in ("lora", "full"):
        effect = {
            "freeze": "Would have trained the last layers alone; here every weight is trained.",
            "oft": "Would have trained orthogonal matrices; here every weight is trained.",
        }
        recipe.lose("finetuning_type", kind, effect.get(kind, "Here every weight is trained."))
    return Training(
        name_objective(
            source, stage, [loss], "stage, pref_loss" if source.has("loss") else "stage"
        ),
        kind == "lora",
        "finetuning_type",
        _read_bits(source, recipe) if kind == "lora" else None,
        _read_rows(source, recipe),
        source.texts("trackers"),
    )


def _read_bits(source: Source, recipe: Recipe) -> int | None:
    bits = source.count("load_4_bits")
    if bits not in (None, 4, 8):
        effect = "Would have kept the base in so many bits; here it is 4, 8 or none."
        recipe.lose("quantization_bit", show(bits), effect)
        return None
    return bits


def _read_rows(source: Source, recipe: Recipe) -> list[PreferenceSource]:
    names = source.texts("dataset")
    if not names:
        raise source.refuse("dataset", "the name of a data set")
    folder = Path(source.text("dataset_dir") or "data")
    for name in source.texts("eval_dataset"):
        effect = "Would have been its evaluation rows; here dev pairs are held out (pair.dev)."
        recipe.lose("eval_dataset", name, effect)
    table = _read_table(source.path, folder)
    entries = {name: table.get(name, {}) for name in names}
    for name, entry in entries.items():
        if not _is_entry(entry):
            raise UserError(
                f"{folder}/dataset_info.json: {name}: expected a block of keys, and columns and"
                " tags as such."
            )
    return [_read_data_set(name, folder, entry) for name, entry in entries.items()]


def _is_entry(entry: object) -> bool:
    blocks = ("columns", "tags")
    return isinstance(entry, dict) and all(isinstance(entry.get(key, {}), dict) for key in blocks)


def _read_table(file: Path, folder: Path) -> dict[str, Any]:
    """dataset_info.json, where the training file or the working directory has its folder."""
    for place in (folder, file.parent / folder):
        if (table := place / "dataset_info.json").is_file():
            return {**BUILT_IN, **read_file(table)}
    return BUILT_IN


def _read_data_set(name: str, folder: Path, entry: dict[str, Any]) -> PreferenceSource:
    hub, columns = entry.get("hf_hub_url"), entry.get("columns") or {}
    place = hub or str(folder / entry.get("file_name", f"{name}.json"))
    shape: str = "auto"
    named: Mapping[str, str] = {}
    unread = None
    if entry.get("formatting") == "sharegpt":
        if turns := _name_turns(entry.get("tags") or {}):
            shape, named = name_shape(_rename_turns(turns, columns))
        else:
            unread = UNREAD_TURNS
    elif columns:
        shape, named = "columns", _rename_columns(columns)
    elif not entry:
        unread = (
            "dataset_info.json, which says where these rows are, was not found. Convert again in"
            " LLaMA-Factory's folder, or correct offline.source.path and prompts.path."
        )
    return PreferenceSource(
        place,
        "dataset",
        is_local=hub is None,
        split=entry.get("split") or "train",
        subset=entry.get("subset"),
        shape=shape,
        columns=named,
        unread=unread,
    )


def _rename_columns(columns: dict[str, str]) -> dict[str, str]:
    """Strop's names → the file's. Without a map LLaMA-Factory takes its own names."""
    prompt = {"prompt": columns.get("prompt", "instruction")}
    if "kto_tag" in columns:
        answer = columns.get("response", "output")
        return {**prompt, "completion": answer, "label": columns["kto_tag"]}
    return {**prompt, **{side: columns.get(side, side) for side in ("chosen", "rejected")}}


def _name_turns(tags: dict[str, str]) -> str | None:
    speakers = {str(tags.get(key, name)): role for key, (name, role) in SPEAKER_TAGS.items()}
    return name_turns(tags.get("role_tag", "from"), tags.get("content_tag", "value"), speakers)


def _rename_turns(turns: str, columns: dict[str, str]) -> dict[str, str]:
    """The same of sharegpt's rows. `turns`: Strop's name for the column of all turns."""
    system = {"system": columns["system"]} if "system" in columns else {}
    asked = {turns: columns.get("messages", "conversations"), **system}
    if "kto_tag" in columns:
        return {**asked, "label": columns["kto_tag"]}
    return {**asked, **{side: columns.get(side, side) for side in ("chosen", "rejected")}}


TOOL = Tool(
    name="LLaMA-Factory",
    marks=("stage", "finetuning_type", "cutoff_len", "template", "pref_beta", "pref_loss",
           "lora_rank", "lora_target", "dataset_dir"),
    names={
        **TRANSFORMERS_NAMES,
        "beta": ("pref_beta",),
        "loss": ("pref_loss",),
        "imitation": ("pref_ftx",),
        "smoothing": ("dpo_label_smoothing",),
        "desirable_weight": ("kto_chosen_weight",),
        "undesirable_weight": ("kto_rejected_weight",),
        "length": ("cutoff_len",),
        "held_out": ("val_size",),
        "rows_of_round": ("max_samples",),
        "rank": ("lora_rank",),
        "targets": ("lora_target",),
        "rank_stabilized": ("use_rslora",),
        "dora": ("use_dora",),
        "load_4_bits": ("quantization_bit",),
        "load_8_bits": ("quantization_bit",),
        "double": ("double_quantization",),
        "bits_kind": ("quantization_type",),
        "no_checkpointing": ("disable_gradient_checkpointing",),
        "router_aux_loss_coef": ("moe_aux_loss_coef",),
    },
    defaults={
        **TRANSFORMERS_DEFAULTS,
        "beta": 0.1,
        "rate": 5e-5,
        "simpo_gamma": 0.5,
        "cpo_alpha": 0.0,
        "length": 2048,
        "rank": 8,
        "targets": "all",
        "double": True,
    },
    lost={
        **TRANSFORMERS_LOST,
        "template": "Would have formatted the messages by a template of LLaMA-Factory. Here the"
        " checkpoint's own chat template does; for another: template.chat_template=FILE",
        "adapter_name_or_path": "Would have continued this adapter. Here give it as sft.model: an"
        " adapter is merged into its base, and a new one is trained on it.",
        "ref_model": "Would have been the reference. Here it is reference.model=sft, previous or"
        " init: a model of the run.",
        "ref_model_adapters": "Belongs to ref_model: see there.",
        "ref_model_quantization_bit": "Belongs to ref_model: see there.",
        "pref_bco_weight": "Would have added BCO's loss with this weight:"
        " train.loss=[sigmoid,bco_pair] train.loss_weights=[1,WEIGHT]",
        "additional_target": "Would have trained these layers in full, such as embeddings. Here"
        " adapters hold low-rank matrices alone, since vLLM samples from no others.",
        "loraplus_lr_ratio": "Would have trained one of the two matrices at a higher rate.",
        "pissa_init": "Would have chosen the adapter's first weights; here one matrix is zero.",
        "freeze_trainable_layers": "Would have trained so many layers alone.",
        "use_galore": "Would have projected gradients to save memory: adapter=lora"
        " saves more.",
        "use_badam": "Would have trained layers in turn to save memory:"
        " adapter=lora saves more.",
        "use_unsloth": "Would have trained with Unsloth's kernels.",
        "enable_liger_kernel": "Would have used Liger's kernels, which save memory; to have them:"
        " pip install liger-kernel, and train.args.use_liger_kernel=true",
        "flash_attn": ATTENTION,
        "rope_scaling": "Would have stretched the context; here the checkpoint's config does.",
        "streaming": "Would have read rows as they come; here they are read once.",
        "mix_strategy": "Would have interleaved data sets; a run reads one source here.",
        "interleave_probs": "Belongs to mix_strategy: see there.",
        "upcast_layernorm": "Would have kept layer norms in float32.",
        "mask_history": "Nothing: a preference trains the last answer alone.",
        "train_on_prompt": "Nothing: a preference trains the last answer alone.",
        "use_swanlab": "Would have sent the curves to SwanLab; Strop has wandb and tensorboard.",
    },
    done={
        **TRANSFORMERS_DONE,
        "tokenized_path": "Prepared rows are in the store, by their content.",
        "preprocessing_batch_size": "Rows are read once, and kept in the store.",
        "cache_dir": "The hub's cache is HF_HOME.",
        "compute_accuracy": "The dev pairs' accuracy is in metrics.jsonl.",
        "low_cpu_mem_usage": "Models are loaded that way.",
    },
    has_trl_keys=True,
    read=read_training,
)  # fmt: skip
