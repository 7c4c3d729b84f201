"""The keys of TRL's command line (`trl dpo --config FILE`), and of alignment-handbook, its cousin.

Neither has a key for the trainer, which is the name of the script. A loss may give it away.
"""

import re
from typing import Any

from pipeline.commands.convert.objective import OLD_NAMES, TRAINERS, Objective, name_objective
from pipeline.commands.convert.recipe import Recipe
from pipeline.commands.convert.rows import PreferenceSource, is_local
from pipeline.commands.convert.source import Source, show
from pipeline.commands.convert.tools import (
    ONLINE_INSTEAD,
    SFT_INSTEAD,
    TRANSFORMERS_DEFAULTS,
    TRANSFORMERS_DONE,
    TRANSFORMERS_LOST,
    TRANSFORMERS_NAMES,
    Tool,
    Training,
    refuse_other_training,
)
from pipeline.errors import UserError

METHODS = ("dpo", "kto", "orpo", "cpo")
# Keys that one trainer's config has.
TRAINER_KEYS: dict[str, tuple[str, ...]] = {
    "kto": ("desirable_weight", "undesirable_weight"),
    "cpo": ("cpo_alpha", "simpo_gamma"),
    "dpo": ("rpo_alpha", "use_weighting", "ld_alpha", "sync_ref_model", "reference_free",
            "precompute_ref_log_probs", "f_divergence_type", "loss_weights"),
}  # fmt: skip
SFT_KEYS = (
    "packing", "max_seq_length", "dataset_text_field", "completion_only_loss",
    "assistant_only_loss", "dataset_kwargs",
)  # fmt: skip
ONLINE_KEYS = ("num_generations", "reward_funcs", "reward_model_path", "use_vllm", "kl_coef")
DEFAULT_LOSS = {"dpo": "sigmoid", "kto": "kto", "orpo": "orpo", "cpo": "sigmoid"}
# Handbook recipes name their evaluation rows by the split.
TEST_WORDS = ("test", "eval", "valid", "dev")


def read_training(source: Source, recipe: Recipe) -> Training:
    trainer = _find_trainer(source)
    losses = source.texts("loss") or [DEFAULT_LOSS[trainer]]
    bits = 4 if source.flag("load_4_bits") else 8 if source.flag("load_8_bits") else None
    is_lora = source.flag("use_peft")
    if bits and not is_lora:
        effect = "Would have loaded the model in fewer bits. It needs use_peft: true here."
        recipe.lose(f"load_in_{bits}bit", "true", effect)
    origin = f"method={source.method}" if source.method else source.key("loss")
    objective = name_objective(source, trainer, losses, origin)
    _note_method(source, recipe, objective)
    return Training(
        objective,
        is_lora,
        "use_peft",
        bits if is_lora else None,
        _read_rows(source, recipe),
        source.texts("trackers"),
    )


def _find_trainer(source: Source) -> str:
    """`method=`, or what the keys give away. What remains unclear is asked, never guessed."""
    if found := [key for key in ONLINE_KEYS if source.has(key)]:
        raise refuse_other_training(source, found[0], "by rewards, online", ONLINE_INSTEAD)
    if found := [key for key in SFT_KEYS if source.has(key)]:
        raise refuse_other_training(source, found[0], "SFT", SFT_INSTEAD)
    if source.method:
        return source.method
    losses = [OLD_NAMES.get(loss, loss) for loss in source.texts("loss")]
    if losses and losses[0] in TRAINERS:
        return TRAINERS[losses[0]]
    for trainer, keys in TRAINER_KEYS.items():
        if any(source.has(key) for key in keys):
            return trainer
    named = _find_method_in_names(source)
    if named:
        raise _ask_method(source, f"its names say {named}, and no key says which trainer it is for")
    if not (losses or source.has("beta")):
        raise _ask_method(source, "it has neither beta nor loss_type, so it may train anything")
    return "dpo"


def _find_method_in_names(source: Source) -> str | None:
    """Another method than DPO in the file's path or in the names that it gives its model."""
    names = [source.path.as_posix()]
    names += [str(source.keys.get(key)) for key in ("output_dir", "hub_model_id", "run_name")]
    found = re.findall(r"(?<![a-z])(kto|orpo|simpo|cpo)(?![a-z])", " ".join(names).lower())
    return found[0] if found else None


def _ask_method(source: Source, why: str) -> UserError:
    return UserError(
        f"{source.path}: {why}.\n"
        f"  Give method={', '.join(METHODS[:-1])} or {METHODS[-1]}: the trainer whose script reads"
        " this file."
    )


def _note_method(source: Source, recipe: Recipe, objective: Objective) -> None:
    if not source.method and objective.trainer == "dpo":
        recipe.head.append(
            "The file does not name its trainer, which is the script's name: read as DPO. For"
            " another convert it again with method=kto, orpo or cpo."
        )


def _read_rows(source: Source, recipe: Recipe) -> list[PreferenceSource]:
    if source.has("dataset_mixer"):
        return _read_mixer(source, recipe)
    mixture = source.value("dataset_mixture")
    blocks: Any = mixture.get("datasets") if isinstance(mixture, dict) else source.value("datasets")
    if isinstance(mixture, dict):
        if (size := mixture.get("test_split_size")) is not None:
            source.keys = {**source.keys, "test_split_size": size}
        if (seed := mixture.get("seed")) is not None:
            effect = "Would have shuffled the mixture; here prompts.seed does."
            recipe.lose("dataset_mixture.seed", show(seed), effect)
    if blocks:
        return _read_blocks(source, recipe, blocks)
    name = source.text("dataset_name")
    if name is None:
        raise source.refuse("dataset_name", "the name of a data set")
    return [
        PreferenceSource(
            name,
            "dataset_name",
            is_local(name),
            split=source.text("dataset_train_split") or "train",
            split_key="dataset_train_split",
            subset=source.text("dataset_config"),
            test_split=source.text("dataset_test_split"),
            test_key="dataset_test_split",
        )
    ]


def _read_mixer(source: Source, recipe: Recipe) -> list[PreferenceSource]:
    """`{name: share}`, and one list of splits for all."""
    mixer = source.value("dataset_mixer")
    if not isinstance(mixer, dict) or not mixer:
        raise source.refuse("dataset_mixer", "names of data sets, each with its share")
    splits = source.texts("dataset_splits") or ["train", "test"]
    configs = source.texts("dataset_configs")
    train = [split for split in splits if not _is_test(split)] or splits[:1]
    test = next((split for split in splits if _is_test(split)), None)
    if source.keys.get("dataset_splits") is None:
        test = None
    rows = []
    for number, (name, share) in enumerate(mixer.items()):
        _note_share(recipe, "dataset_mixer", str(name), share)
        subset = configs[number] if number < len(configs) else None
        rows += [
            PreferenceSource(
                str(name),
                "dataset_mixer",
                is_local(str(name)),
                split,
                "dataset_splits",
                subset,
                test_split=test,
                test_key="dataset_splits",
            )
            for split in train
        ]
    return rows


def _is_test(split: str) -> bool:
    return any(word in split for word in TEST_WORDS)


def _note_share(recipe: Recipe, key: str, name: str, share: object) -> None:
    if share not in (None, 1, 1.0):
        recipe.lose(
            key,
            f"{name}: {show(share)}",
            "Would have taken this share of its rows. Here pair.mix.per_round=N takes N rows.",
        )


def _read_blocks(source: Source, recipe: Recipe, blocks: object) -> list[PreferenceSource]:
    key = "dataset_mixture.datasets" if source.has("dataset_mixture") else "datasets"
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise UserError(f"{source.path}: {key}: expected a list of data sets, each with its name.")
    rows = []
    for block in blocks:
        name = block.get("id") or block.get("path")
        if not isinstance(name, str):
            raise UserError(f"{source.path}: {key}: a data set has no name (id or path).")
        _note_share(recipe, key, name, block.get("weight", block.get("fraction")))
        if files := block.get("data_files"):
            effect = "Would have read these files of it alone; here all of its split."
            recipe.lose(f"{key}.data_files", show(files), effect)
        split, subset = block.get("split") or "train", block.get("config") or block.get("name")
        rows.append(PreferenceSource(name, key, is_local(name), str(split), key, _to_text(subset)))
    return rows


def _to_text(value: object) -> str | None:
    return None if value is None else str(value)


NAMES = {
    **TRANSFORMERS_NAMES,
    "loss": ("loss_type",),
    "smoothing": ("label_smoothing",),
    "imitation": ("rpo_alpha",),
    "precompute": ("precompute_ref_log_probs",),
    "length": ("max_length",),
    "prompt_length": ("max_prompt_length",),
    "completion_length": ("max_completion_length", "max_target_length"),
    "held_out": ("test_split_size",),
    "rank": ("lora_r",),
    "targets": ("lora_target_modules",),
    "rank_stabilized": ("use_rslora",),
    "dora": ("use_dora",),
    "load_4_bits": ("load_in_4bit",),
    "load_8_bits": ("load_in_8bit",),
    "double": ("use_bnb_nested_quant",),
    "bits_kind": ("bnb_4bit_quant_type",),
    "weights_dtype": ("dtype", "torch_dtype"),
}
DEFAULTS = {
    **TRANSFORMERS_DEFAULTS,
    "beta": 0.1,
    "rate": 1e-6,
    "simpo_gamma": 0.5,
    "cpo_alpha": 1.0,
    "ref_model_sync_steps": 512,
    "length": 1024,
    "rank": 16,
    "adapter_alpha": 32,
    "dropout": 0.05,
    "double": False,
}
LOST = {
    **TRANSFORMERS_LOST,
    "bnb_4bit_quant_storage": "Would have stored 4-bit weights in this type, for FSDP.",
    "lora_target_parameters": "Would have trained parameters that are not linear layers.",
    "dataset_streaming": "Would have read rows as they come; here they are read once.",
    "ref_model_init_kwargs": "Would have loaded the reference in its own way; here it is loaded"
    " as the policy is.",
    "generate_during_eval": "Would have sampled answers at each evaluation; the guards do"
    " (train.guards.prompts).",
    "model_init_kwargs": "Would have changed how the model is loaded.",
    "eos_token": "Would have changed the end of an answer; here it is the checkpoint's.",
    "auto_insert_empty_system_msg": "Would have put an empty system turn before each prompt; the"
    " chat template decides.",
    "model_code_revision": "Would have chosen the commit of the checkpoint's own code.",
    "base_model_revision": "Would have chosen the commit of an adapter's base.",
    "truncation_side": "Would have cut prompts at this side; here none is cut.",
}
DONE = {
    **TRANSFORMERS_DONE,
    "lora_task_type": "Preferences train a causal model.",
    "max_prompt_length": "limits.prompt drops longer prompts and counts them.",
    "ignore_bias_buffers": "For old models with buffers of that type.",
}
TRL = Tool(
    name="TRL",
    marks=("dataset_train_split", "dataset_test_split", "dataset_config", "dataset_streaming",
           "dataset_name", "model_name_or_path", "per_device_train_batch_size", "loss_type",
           "use_peft"),
    names=NAMES,
    defaults={**DEFAULTS, "gradient_checkpointing": True},
    lost=LOST,
    done=DONE,
    has_trl_keys=True,
    read=read_training,
)  # fmt: skip
HANDBOOK = Tool(
    name="alignment-handbook",
    marks=("dataset_mixer", "dataset_mixture", "dataset_splits", "dataset_configs"),
    names=NAMES,
    defaults={**DEFAULTS, "gradient_checkpointing": False},
    lost=LOST,
    done=DONE,
    has_trl_keys=True,
    read=read_training,
)
