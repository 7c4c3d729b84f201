"""What a checkpoint is refused for before anything heavy is read: each check passes silently or raises a UserError."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Template, Trust
from pipeline.errors import UserError, pluralize
from pipeline.models.bos import REMEDY, is_doubled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PICKLED = ["*.bin", "*.pt", "*.pth"]
PROBE = [{"role": "user", "content": "Who are you?"}]


def no_own_code(folder: Path, name: str, trust: Trust) -> None:
    files = [
        path
        for path in (folder / "config.json", folder / "tokenizer_config.json")
        if path.is_file()
    ]
    own_code = [path.name for path in files if "auto_map" in read_json(path)]
    if own_code and not trust.remote_code:
        raise UserError(
            f"{name}: it brings Python code of its own (auto_map in {', '.join(own_code)}), to run on this machine.\n"
            f"  Read that code, then give sft.trust.remote_code=true (or base.trust.…, reward.trust.…) if you trust it."
        )


def weights(folder: Path, name: str, trust: Trust) -> None:
    tensors = sorted(folder.glob("*.safetensors"))
    if not tensors:
        _only_pickled(folder, name, trust)
    for path in folder.glob("*.safetensors.index.json"):
        if missing := sorted(
            set(read_json(path)["weight_map"].values()) - {tensor.name for tensor in tensors}
        ):
            raise UserError(
                f"{name}: {path.name} names {', '.join(missing)}, not there.\n  Download it again."
            )
    for path in tensors:
        _whole(path, name)


def classification_head(folder: Path, name: str, trust: Trust) -> None:
    """transformers would make up a head that is not there and say so in a warning alone."""
    head = _head(folder, trust)
    stored = _stored_tensors(folder)
    if not stored or not (missing := sorted(head - stored)):
        return
    kind = ", ".join(
        read_json(folder / "config.json").get("architectures") or ["its kind is not said"]
    )
    raise UserError(
        f"{name}: it is no reward model ({kind}): its weights lack the head that gives the score ({missing[0]}), "
        f"which would be random.\n"
        f"  Give a checkpoint that was saved as AutoModelForSequenceClassification, or train one with reward=train."
    )


def causal(folder: Path, name: str) -> None:
    """The head that its weights were trained with: another one would be random."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    config = read_json(folder / "config.json")
    if "AutoModelForCausalLM" in config.get("auto_map", {}):
        return
    named = config.get("architectures") or [
        KNOWN.get(config.get("model_type", ""), "no architecture")
    ]
    if named[0] not in KNOWN.values():
        raise UserError(
            f"{name}: its config.json says {named[0]}, which is no causal language model that transformers knows.\n"
            f"  Give a checkpoint that AutoModelForCausalLM opens, such as one of a LlamaForCausalLM."
        )


def complete(folder: Path, name: str, trust: Trust) -> None:
    """Every tensor that the model has is in its files, in its shape: opened without storage, nothing is read."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not list(folder.glob("*.safetensors")) or "quantization_config" in read_json(
        folder / "config.json"
    ):
        return
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        _, found = AutoModelForCausalLM.from_pretrained(
            folder, device_map="meta", output_loading_info=True, trust_remote_code=trust.remote_code
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{name}: its weights do not fit its config.json ({first_line(error)}).\n"
            f"  Give the config.json that belongs to these weights, or download both again."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{name}: its weights lack {pluralize(len(missing), 'tensor')} ({missing[0]} is one), which would be random.\n"
            f"  Give a checkpoint of a causal language model that is whole."
        )


def unquantised(base: Path, adapter: str) -> None:
    """Before an adapter is merged: weights of a few bits would round away what it learned."""
    if read_json(base / "config.json").get("quantization_config"):
        raise UserError(
            f"{adapter}: it is an adapter, and its base {base} is quantised: merging into so few bits loses it.\n"
            f"  Name the unquantised base in {adapter}/adapter_config.json (base_model_name_or_path)."
        )


def vocabulary(tokenizer: "PreTrainedTokenizerBase", folder: Path, name: str) -> None:
    config = read_json(folder / "config.json")
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if rows is not None and len(tokenizer) > rows:
        raise UserError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows: some have no vector.\n"
            f"  Give the tokenizer that belongs to it, or resize it (resize_token_embeddings) and save it again."
        )


def template(tokenizer: "PreTrainedTokenizerBase", given: Template, name: str) -> None:
    if not tokenizer.chat_template:
        raise _no_template(name)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name}: its tokenizer has no EOS token, so no answer would ever end.\n"
            f"  Set eos_token in tokenizer_config.json."
        )
    try:
        shown = tokenizer.apply_chat_template(
            PROBE, tokenize=False, add_generation_prompt=True, **given.kwargs
        )
    except Exception as error:  # it is the checkpoint's own code, and may raise whatever it likes
        raise UserError(
            f"{given.chat_template or name}: the chat template does not take one user message ({first_line(error)}).\n"
            f"  Mend it, or give another as template.chat_template=FILE."
        ) from error
    ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
    if is_doubled(ids, tokenizer.bos_token_id):
        raise UserError(
            f"{given.chat_template or name}: a templated prompt begins with two BOS ({tokenizer.bos_token}): "
            f"{tokenizer.convert_ids_to_tokens(ids[:4])}; one was expected.\n  {REMEDY}"
        )


def template_file(folder: Path, given: Template, name: str) -> None:
    """Whether there is a template at all, told by the places where transformers looks for one."""
    told = folder / "tokenizer_config.json"
    files = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
    if given.chat_template or not told.is_file() or any((folder / file).exists() for file in files):
        return
    if not read_json(told).get("chat_template"):
        raise _no_template(name)


def _no_template(name: str) -> UserError:
    return UserError(
        f"{name}: its tokenizer has no chat template, so it is unknown how this model is to be asked.\n"
        f"  Give template.chat_template=FILE, a Jinja template; that of its instruct sibling mostly fits."
    )


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({first_line(error)}).\n  Download it again."
        ) from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _head(folder: Path, trust: Trust) -> set[str]:
    """The names of what a classifier of this kind has beyond its base; nothing is read or filled in for that."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust.remote_code)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=trust.remote_code
            )
    except ValueError as error:
        raise UserError(
            f"{folder}: transformers knows no sequence classifier of this kind ({first_line(error)}).\n"
            f"  Give a checkpoint that opens with AutoModelForSequenceClassification."
        ) from error
    return {
        key
        for key, _ in model.named_parameters()
        if not key.startswith(f"{model.base_model_prefix}.")
    }


def _stored_tensors(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def _only_pickled(folder: Path, name: str, trust: Trust) -> None:
    pickled = [path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))]
    pickled = [file for file in pickled if file != "training_args.bin"]
    if not pickled:
        raise UserError(
            f"{name}: it has no weights; *.safetensors was expected.\n  Download it again."
        )
    if not trust.pickled_weights:
        raise UserError(
            f"{name}: it has no *.safetensors, only pickled weights ({', '.join(pickled)}), which can run code.\n"
            f"  Convert them (save_pretrained writes safetensors), or give sft.trust.pickled_weights=true\n"
            f"  (base.trust.…, reward.trust.… for those)."
        )


def _whole(path: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # its header alone; "pt" would load torch for that
            return
    except SafetensorError as error:
        raise UserError(
            f"{name}: {path.name} does not open ({error}).\n  Download it again."
        ) from error
