"""What a checkpoint is refused for before anything heavy is read: each check passes silently or raises a Refusal."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Template, Trust
from pipeline.errors import Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PICKLED = ["*.bin", "*.pt", "*.pth"]
PROBE = [{"role": "user", "content": "Who are you?"}]


def no_own_code(folder: Path, name: str, trust: Trust) -> None:
    files = [path for path in (folder / "config.json", folder / "tokenizer_config.json") if path.is_file()]
    own_code = [path.name for path in files if "auto_map" in read_json(path)]
    if own_code and not trust.remote_code:
        raise Refusal(
            f"{name}: it brings Python code of its own (auto_map in {', '.join(own_code)}), to run on this machine.\n"
            f"  Read that code, then give sft.trust.remote_code=true (base.trust.… for a base) if you trust it."
        )


def weights(folder: Path, name: str, trust: Trust) -> None:
    tensors = sorted(folder.glob("*.safetensors"))
    if not tensors:
        _only_pickled(folder, name, trust)
    for path in folder.glob("*.safetensors.index.json"):
        if missing := sorted(set(read_json(path)["weight_map"].values()) - {tensor.name for tensor in tensors}):
            raise Refusal(f"{name}: {path.name} names {', '.join(missing)}, not there.\n  Download it again.")
    for path in tensors:
        _whole(path, name)


def unquantised(base: Path, adapter: str) -> None:
    """Before an adapter is merged: weights of a few bits would round away what it learned."""
    if read_json(base / "config.json").get("quantization_config"):
        raise Refusal(
            f"{adapter}: it is an adapter, and its base {base} is quantised: merging into so few bits loses it.\n"
            f"  Name the unquantised base in {adapter}/adapter_config.json (base_model_name_or_path)."
        )


def vocabulary(tokenizer: "PreTrainedTokenizerBase", folder: Path, name: str) -> None:
    config = read_json(folder / "config.json")
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if rows is not None and len(tokenizer) > rows:
        raise Refusal(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, its embedding {rows} rows: some have no vector.\n"
            f"  Give the tokenizer that belongs to it, or resize it (resize_token_embeddings) and save it again."
        )


def template(tokenizer: "PreTrainedTokenizerBase", given: Template, name: str) -> None:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise Refusal(
            f"{name}: its tokenizer has no chat template, so it is unknown how this model is to be asked.\n"
            f"  Give template.chat_template=FILE, a Jinja template; that of its instruct sibling mostly fits."
        )
    if tokenizer.eos_token_id is None:
        raise Refusal(
            f"{name}: its tokenizer has no EOS token, so no answer would ever end.\n"
            f"  Set eos_token in tokenizer_config.json."
        )
    try:
        tokenizer.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True, **given.kwargs)
    except TemplateError as error:
        raise Refusal(
            f"{given.chat_template or name}: the chat template does not take one user message ({first_line(error)}).\n"
            f"  Mend it, or give another as template.chat_template=FILE."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise Refusal(f"{path}: not readable as JSON ({first_line(error)}).\n  Download it again.") from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _only_pickled(folder: Path, name: str, trust: Trust) -> None:
    pickled = [path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))]
    pickled = [file for file in pickled if file != "training_args.bin"]
    if not pickled:
        raise Refusal(f"{name}: it has no weights; *.safetensors was expected.\n  Download it again.")
    if not trust.pickled_weights:
        raise Refusal(
            f"{name}: it has no *.safetensors, only pickled weights ({', '.join(pickled)}), which can run code.\n"
            f"  Convert them (save_pretrained writes safetensors), or give sft.trust.pickled_weights=true\n"
            f"  (base.trust.… for a base)."
        )


def _whole(path: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return
    except SafetensorError as error:
        raise Refusal(f"{name}: {path.name} does not open ({error}).\n  Download it again.") from error
