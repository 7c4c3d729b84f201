"""Which models can be merged: same tensors, same tokens, same settings. Reads no weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, pluralize
from pipeline.models.tensor_files import DTYPES, TensorFolder

ROPE = "rope_parameters"  # of transformers 5; before, its values were among the others
# What config.json says of the file, of generation and of padding, not of the network.
FREE_SETTINGS = {
    ROPE,  # its values are compared one by one
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "auto_map",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}
SAME_KIND = "Only models with the same architecture and tokenizer can be merged."


def list_tied_copies(folders: Sequence[TensorFolder]) -> set[str]:
    """Tensors that only some of the models store, as copies of others: tied weights.

    Refuses tensors that differ between the models in any other way.
    """
    first, *others = folders
    for folder in others:
        _check_shapes(first, folder)
    common = set(first.tensors).intersection(*(folder.tensors for folder in others))
    copies = set[str]()
    for folder in folders:
        for name in sorted(folder.tensors.keys() - common):
            if not folder.is_copy(name):
                lacking = next(one for one in folders if name not in one.tensors)
                raise UserError(
                    f"merge: {folder.path} has the tensor {name}, and {lacking.path} has none of"
                    f" this name.\n  {SAME_KIND}"
                )
            copies.add(name)
    return copies


def _check_shapes(first: TensorFolder, other: TensorFolder) -> None:
    for name, info in first.tensors.items():
        found = other.tensors.get(name, info)
        if found.shape != info.shape:
            raise UserError(
                f"merge: the tensor {name} has the shape {[*info.shape]} in {first.path} and"
                f" {[*found.shape]} in {other.path}.\n  {SAME_KIND}"
            )
        for folder, dtype in ((first, info.dtype), (other, found.dtype)):
            if dtype not in DTYPES:
                raise UserError(
                    f"merge: the tensor {name} of {folder.path} has the dtype {dtype}: quantised"
                    " weights cannot be added.\n  Give models in bfloat16, float16 or float32."
                )


def check_tokenizers(folders: Sequence[Path]) -> None:
    """Refuse models whose ids mean different tokens."""
    first, *others = folders
    known = _read_vocabulary(first)
    for folder in others:
        vocabulary = _read_vocabulary(folder)
        if vocabulary == known:
            continue
        tokens = sorted(known.keys() | vocabulary.keys())
        differ = [token for token in tokens if known.get(token) != vocabulary.get(token)]
        ids = [_describe_id(each, differ[0]) for each in (known, vocabulary)]
        raise UserError(
            f"merge: {pluralize(len(differ), 'token')} differ between {first} and {folder}:"
            f" {differ[0]!r} {ids[0]} in the one and {ids[1]} in the other.\n  {SAME_KIND}"
        )


def _describe_id(vocabulary: Mapping[str, int], token: str) -> str:
    return f"has the id {vocabulary[token]}" if token in vocabulary else "is missing"


def _read_vocabulary(folder: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"merge: {folder} has no tokenizer.json, so its tokens cannot be compared.\n"
            "  Save its tokenizer there: AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)"
        )
    try:
        vocabulary: dict[str, int] = Tokenizer.from_file(str(file)).get_vocab()
    except Exception as error:  # tokenizers, written in Rust, raises bare exceptions
        raise UserError(f"{file}: it does not open.\n  Copy or download it again.") from error
    return vocabulary


def check_settings(folders: Sequence[Path]) -> None:
    """Refuse models whose weights mean different networks. Settings of one alone are defaults."""
    first, *others = folders
    known = _read_settings(first)
    for folder in others:
        settings = _read_settings(folder)
        for name in sorted(known.keys() & settings.keys() - FREE_SETTINGS):
            if known[name] != settings[name]:
                raise UserError(
                    f"merge: {name} is {known[name]} in {first}/config.json and {settings[name]} in"
                    f" {folder}/config.json.\n  {SAME_KIND} Where this does not matter to the"
                    " weights, write the same value into both files."
                )


def _read_settings(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        settings = dict(json.loads(file.read_bytes()))
        return settings | dict(settings.get(ROPE) or {})
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"merge: {file} is missing or damaged.\n  Give the folder of a model."
        ) from error
