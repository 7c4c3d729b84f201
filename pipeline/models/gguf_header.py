"""The header of a GGUF file: its metadata and its tensors' sizes, read without any library.

Arrays, which are a tokenizer's vocabulary, are left as their length.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
STRING, ARRAY = 8, 9
# The other types of a value, in struct's spelling.
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# A model's metadata by the names that its config.json would have, for estimates.
SHAPE_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
}


@dataclass(frozen=True)
class TensorEntry:
    name: str
    elements: int
    kind: int  # how it is quantised, by ggml's number
    offset: int  # from the start of the data


@dataclass(frozen=True)
class GgufHeader:
    metadata: Mapping[str, Any]
    tensors: tuple[TensorEntry, ...]
    data_start: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def license(self) -> str | None:
        return self.metadata.get("general.license")

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    def to_model_config(self) -> dict[str, Any]:
        """The part of a config.json that estimates read."""
        config = {
            name: self.metadata.get(f"{self.architecture}.{key}")
            for name, key in SHAPE_KEYS.items()
        }
        config["vocab_size"] = config["vocab_size"] or self.metadata.get("tokenizer.ggml.tokens")
        config["model_type"] = self.architecture
        config["tie_word_embeddings"] = all(one.name != "output.weight" for one in self.tensors)
        experts = self.metadata.get(f"{self.architecture}.expert_count")
        return config | ({"num_experts": experts} if experts else {})


def read_header(file: Path, name: str) -> GgufHeader:
    """`name`: how the user calls the file. Refuses what is not a whole header."""
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise UserError(
                f"{name}: not a GGUF file: it does not begin with the letters GGUF.\n"
                "  Give the path of a .gguf file; a folder with config.json is"
                " sft=checkpoint sft.model=FOLDER."
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(_Cursor(data), name)
            except (struct.error, RecursionError, OverflowError, UnicodeDecodeError) as error:
                raise make_truncation_error(name, "within its header") from error


def make_truncation_error(name: str, where: str) -> UserError:
    return UserError(f"{name}: the file is cut off or damaged {where}.\n  Download it again.")


class _Cursor:
    """Reads the little-endian values of a file in order; past its end it raises struct.error."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, len(MAGIC)

    def read(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise struct.error("past the end of the file")

    def read_string(self) -> str:
        size = self.read("Q")
        self.skip(size)
        return self.data[self.at - size : self.at].decode()

    def read_value(self, kind: int) -> Any:
        if kind == STRING:
            return self.read_string()
        if kind == ARRAY:
            return self.skip_array()
        if kind not in VALUES:
            raise struct.error(f"no type of a value has the number {kind}")
        return self.read(VALUES[kind])

    def skip_array(self) -> int:
        """The length of the array."""
        kind, length = self.read("I"), self.read("Q")
        if kind in VALUES:
            self.skip(length * struct.calcsize(f"<{VALUES[kind]}"))
        elif kind == STRING:
            for _ in range(length):
                self.skip(self.read("Q"))
        else:
            for _ in range(length):
                self.read_value(kind)
        return int(length)


def _parse(cursor: _Cursor, name: str) -> GgufHeader:
    version = cursor.read("I")
    if version not in VERSIONS:
        raise UserError(
            f"{name}: it is GGUF in version {version}; 2 or 3 was expected (other versions are"
            " outdated, or written for processors of another byte order).\n"
            "  Convert the original checkpoint again with today's llama.cpp."
        )
    tensors, values = cursor.read("Q"), cursor.read("Q")
    metadata = {}
    for _ in range(values):
        key = cursor.read_string()
        metadata[key] = cursor.read_value(cursor.read("I"))
    entries = tuple(_read_tensor(cursor) for _ in range(tensors))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise struct.error(f"an alignment of {alignment!r}")
    return GgufHeader(metadata, entries, -(-cursor.at // alignment) * alignment)


def _read_tensor(cursor: _Cursor) -> TensorEntry:
    name = cursor.read_string()
    sizes = [cursor.read("Q") for _ in range(cursor.read("I"))]
    return TensorEntry(name, prod(sizes), cursor.read("I"), cursor.read("Q"))
