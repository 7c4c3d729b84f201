"""Checks of a checkpoint before its weights are read. A failed check raises a UserError."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Template, Trust
from pipeline.errors import UserError, pluralize
from pipeline.models.bos import REMEDY, starts_with_two_bos
from pipeline.models.chat_template import encode_rendered, render_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PICKLED = ["*.bin", "*.pt", "*.pth"]
PROBE = [{"role": "user", "content": "Who are you?"}]


def check_no_custom_code(folder: Path, name: str, trust: Trust) -> None:
    files = [
        path
        for path in (folder / "config.json", folder / "tokenizer_config.json")
        if path.is_file()
    ]
    own_code = [path.name for path in files if "auto_map" in read_json(path)]
    if own_code and not trust.remote_code:
        raise UserError(
            f"{name}: it brings its own Python code (auto_map in {', '.join(own_code)}),"
            " to run on this machine.\n"
            "  Read that code, then give sft.trust.remote_code=true"
            " (or base.trust.…, reward.trust.…) if you trust it."
        )


def check_weights(folder: Path, name: str, trust: Trust) -> None:
    tensors = sorted(folder.glob("*.safetensors"))
    if not tensors:
        _check_pickled(folder, name, trust)
    for path in folder.glob("*.safetensors.index.json"):
        listed = _list_weight_files(path)
        if missing := sorted(listed - {tensor.name for tensor in tensors}):
            raise UserError(
                f"{name}: {path.name} names {', '.join(missing)}, not there.\n  Download it again."
            )
    for path in tensors:
        _check_opens(path, name)


def _list_weight_files(index: Path) -> set[str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UserError(f"{index}: its weight_map names no files.\n  Download it again.")
    return set(files.values())


def check_classification_head(folder: Path, name: str, trust: Trust) -> None:
    """transformers would fill a missing head at random, with nothing but a warning."""
    head = _list_head_weights(folder, trust)
    stored = _list_stored_tensors(folder)
    if not stored or not (missing := sorted(head - stored)):
        return
    architectures = read_json(folder / "config.json").get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    kind = ", ".join(names) or "its architecture is unknown"
    raise UserError(
        f"{name}: it is not a reward model ({kind}): its weights lack the head that gives the score"
        f" ({missing[0]}), which would be random.\n"
        "  Give a checkpoint that was saved as AutoModelForSequenceClassification,"
        " or train one with reward=train."
    )


def check_causal(folder: Path, name: str) -> None:
    """Refuse a model trained with another head: the language model's head would be random."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    config = read_json(folder / "config.json")
    auto_map = config.get("auto_map")
    if isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map:
        return
    default = KNOWN.get(str(config.get("model_type", "")), "no architecture")
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    architecture = [*names, default][0]
    if architecture not in KNOWN.values():
        raise UserError(
            f"{name}: its config.json says {architecture},"
            " which is not a causal language model that transformers knows.\n"
            "  Give a checkpoint that AutoModelForCausalLM opens, such as a LlamaForCausalLM."
        )


def check_complete(folder: Path, name: str, trust: Trust) -> None:
    """Check that every tensor is in the files, in its shape, without reading any (device meta)."""
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
        _, info = AutoModelForCausalLM.from_pretrained(
            folder, device_map="meta", output_loading_info=True, trust_remote_code=trust.remote_code
        )
    except Exception as error:  # the library runs the checkpoint's values, whatever they are
        raise UserError(
            f"{name}: its weights do not fit its config.json ({first_line(error)}).\n"
            f"  Give the config.json that belongs to these weights, or download both again."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{name}: its weights lack {pluralize(len(missing), 'tensor')} ({missing[0]} is one),"
            " which would be random.\n"
            "  Give a complete checkpoint of a causal language model."
        )


def check_unquantised(base: Path, adapter: str) -> None:
    """Refuse to merge an adapter into a quantised base, which would round away what it learned."""
    if read_json(base / "config.json").get("quantization_config"):
        raise UserError(
            f"{adapter}: it is an adapter, and its base {base} is quantised:"
            " merging into so few bits loses it.\n"
            f"  Name the unquantised base in {adapter}/adapter_config.json"
            " (base_model_name_or_path)."
        )


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", folder: Path, name: str) -> None:
    config = read_json(folder / "config.json")
    text_config = config.get("text_config")
    inner = text_config.get("vocab_size") if isinstance(text_config, dict) else None
    rows = config.get("vocab_size", inner)
    if isinstance(rows, int) and len(tokenizer) > rows:
        raise UserError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows:"
            " some have no vector.\n"
            "  Give the tokenizer that belongs to it,"
            " or resize it (resize_token_embeddings) and save it again."
        )


def check_template(tokenizer: "PreTrainedTokenizerBase", settings: Template, name: str) -> None:
    if not tokenizer.chat_template:
        raise make_template_error(name)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name}: its tokenizer has no EOS token, so no answer would ever end.\n"
            "  Set eos_token in tokenizer_config.json."
        )
    source = settings.chat_template or name

    def explain(error: Exception) -> UserError:
        return UserError(
            f"{source}: the chat template does not take one user message ({first_line(error)}).\n"
            "  Fix it, or give another as template.chat_template=FILE."
        )

    prompt = render_template(tokenizer, PROBE, settings.kwargs, explain)
    try:
        ids = encode_rendered(tokenizer, prompt)
    except Exception as error:  # of a tokenizer whose files do not belong together
        raise explain(error) from error
    if PROBE[0]["content"] not in prompt:
        raise UserError(
            f"{source}: its prompt leaves out the user's message, so it is not a chat template.\n"
            "  Give a Jinja template that writes the messages as template.chat_template=FILE."
        )
    if starts_with_two_bos(ids, tokenizer.bos_token_id):
        raise UserError(
            f"{source}: a templated prompt begins with two BOS ({tokenizer.bos_token}):"
            f" {tokenizer.convert_ids_to_tokens(ids[:4])}; one was expected.\n"
            f"  {REMEDY}"
        )


def check_template_file(folder: Path, settings: Template, name: str) -> None:
    """Check that there is a template, in any of the files where transformers searches for one."""
    config = folder / "tokenizer_config.json"
    files = "chat_template.jinja", "chat_template.json", "additional_chat_templates"
    has_file = any((folder / file).exists() for file in files)
    if settings.chat_template or not config.is_file() or has_file:
        return
    if not read_json(config).get("chat_template"):
        raise make_template_error(name)


def make_template_error(name: str) -> UserError:
    return UserError(
        f"{name}: its tokenizer has no chat template, so the format of its prompts is unknown.\n"
        "  Give template.chat_template=FILE, a Jinja template;"
        " that of its instruct sibling usually fits."
    )


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({first_line(error)}).\n  Download it again."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object.\n  Download it again.")
    return value


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _list_head_weights(folder: Path, trust: Trust) -> set[str]:
    """The names of a classifier's weights outside its base, without reading any (device meta)."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust.remote_code)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=trust.remote_code
            )
    except Exception as error:  # the library runs the checkpoint's values, whatever they are
        raise UserError(
            f"{folder}: transformers knows no sequence classifier of this kind"
            f" ({first_line(error)}).\n"
            "  Give a checkpoint that opens with AutoModelForSequenceClassification."
        ) from error
    return {
        key
        for key, _ in model.named_parameters()
        if not key.startswith(f"{model.base_model_prefix}.")
    }


def _list_stored_tensors(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def _check_pickled(folder: Path, name: str, trust: Trust) -> None:
    pickled = [path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))]
    pickled = [file for file in pickled if file != "training_args.bin"]
    if not pickled:
        raise UserError(
            f"{name}: it has no weights; *.safetensors was expected.\n  Download it again."
        )
    if not trust.pickled_weights:
        raise UserError(
            f"{name}: it has no *.safetensors, only pickled weights ({', '.join(pickled)}),"
            " which can run code.\n"
            "  Convert them (save_pretrained writes safetensors),"
            " or give sft.trust.pickled_weights=true\n"
            "  (base.trust.…, reward.trust.… for those)."
        )


def _check_opens(path: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # reads the header alone; "pt" would load torch
            return
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{name}: {path.name} does not open ({error}).\n  Download it again."
        ) from error
