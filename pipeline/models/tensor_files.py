"""Weights in safetensors files, read and written tensor by tensor: no file is held in memory.

The format: eight bytes with the length of a JSON header, the header (dtype, shape and place of each
tensor), then the tensors' bytes in the header's order.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
METADATA = "__metadata__"
# torch's names of the dtypes that are merged, and their bytes. Weights of any other are quantised.
DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
BLOCK = 2**22  # bytes that are compared at once


@dataclass(frozen=True)
class TensorInfo:
    dtype: str  # as a header spells it: BF16
    shape: tuple[int, ...]
    start: int = field(default=0, compare=False)  # where its bytes begin in the file

    @property
    def size(self) -> int:
        return WIDTHS[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class TensorFolder:
    """The files of one model: which tensors are where. Opening it reads headers alone."""

    path: Path
    files: dict[str, dict[str, TensorInfo]]  # tensors by name in the order of each file

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        return {name: info for infos in self.files.values() for name, info in infos.items()}

    def read(self, name: str) -> "torch.Tensor":
        from safetensors import safe_open

        with safe_open(self._find_file(name), framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor

    def is_copy(self, name: str) -> bool:
        """Whether another tensor has the same bytes, as both of a tied pair have."""
        tensors = self.tensors
        alike = [other for other, info in tensors.items() if info == tensors[name]]
        return any(self._have_same_bytes(name, other) for other in alike if other != name)

    def _have_same_bytes(self, *names: str) -> bool:
        size = self.tensors[names[0]].size
        with self._find_file(names[0]).open("rb") as a, self._find_file(names[1]).open("rb") as b:
            for stream, name in zip((a, b), names, strict=True):
                stream.seek(self.tensors[name].start)
            blocks = [min(BLOCK, size - at) for at in range(0, size, BLOCK)]
            return all(a.read(block) == b.read(block) for block in blocks)

    def _find_file(self, name: str) -> Path:
        return self.path / next(file for file, infos in self.files.items() if name in infos)


def open_tensors(folder: Path, file: str = ONE_FILE) -> TensorFolder:
    """`file` is where the tensors are if the folder has no index of several files."""
    index = folder / INDEX
    names = {file}
    if index.is_file():
        names = set(_read_json(index).get("weight_map", {}).values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing or not names:
        raise UserError(
            f"{folder}: it has no {missing[0] if missing else ONE_FILE}.\n"
            "  Merging reads safetensors files. Give a complete folder of them, as"
            " save_pretrained writes it."
        )
    return TensorFolder(folder, {name: _read_header(folder / name) for name in sorted(names)})


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise _describe_damage(file) from error


def _read_header(file: Path) -> dict[str, TensorInfo]:
    """Also checks that the file has all the bytes that its header promises."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, file.stat().st_size)))
        header.pop(METADATA, None)
        ends = [entry["data_offsets"] for entry in header.values()]
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        infos = {
            name: TensorInfo(it["dtype"], tuple(it["shape"]), 8 + length + it["data_offsets"][0])
            for name, it in entries
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _describe_damage(file) from error
    if file.stat().st_size != 8 + length + max((end for _, end in ends), default=0):
        raise _describe_damage(file)
    return infos


def _describe_damage(file: Path) -> UserError:
    return UserError(f"{file}: it is damaged or not complete.\n  Copy or download it again.")


def write_tensors(
    file: Path, infos: dict[str, TensorInfo], make: Callable[[str], "torch.Tensor"]
) -> None:
    """Make and write one tensor after the other, as safetensors would write them all at once."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    end = 0
    for name, info in infos.items():
        start, end = end, end + info.size
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, info in infos.items():  # no name holds a tensor while the next one is made
            count = stream.write(_view_bytes(make(name)))
            assert count == info.size, name


def _view_bytes(tensor: "torch.Tensor") -> memoryview:
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def write_folder(
    folder: Path,
    files: dict[str, dict[str, TensorInfo]],
    make: Callable[[str], "torch.Tensor"],
    on_tensor: Callable[[int], object],
) -> None:
    """All files of a model, and their index if there are several."""

    def make_counted(name: str) -> "torch.Tensor":
        tensor = make(name)
        on_tensor(tensor.nbytes)
        return tensor

    folder.mkdir(parents=True, exist_ok=True)
    for file, infos in files.items():
        write_tensors(folder / file, infos, make_counted)
    if len(files) > 1:
        index = json.dumps(_build_index(files), indent=2, sort_keys=True)
        (folder / INDEX).write_text(f"{index}\n")


def _build_index(files: dict[str, dict[str, TensorInfo]]) -> dict[str, Any]:
    """With the two totals that save_pretrained writes."""
    infos = [info for entries in files.values() for info in entries.values()]
    totals = {
        "total_parameters": sum(math.prod(info.shape) for info in infos),
        "total_size": sum(info.size for info in infos),
    }
    places = {name: file for file, entries in files.items() for name in entries}
    return {"metadata": totals, "weight_map": places}
