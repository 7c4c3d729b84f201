"""One model of several: the sum of their weights by shares, or of their adapters where it is exact.

An adapter adds s·B·A to a matrix, where s is its scale. The sum of several is exact

- with one adapter and its base, as the same adapter with B times the share;
- with equal A, as one adapter with the sum of the B;
- else as one adapter with all A above and all B next to each other, of rank r₁ + r₂ + …:
  Σ wᵢsᵢBᵢAᵢ = [w₁s₁B₁ w₂s₂B₂ …]·[A₁; A₂; …].

The mean of the B times the mean of the A is none of these: it adds cross terms BᵢAⱼ.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.artifacts import (
    ADAPTER_CONFIG,
    MODEL_FILE,
    Model,
    find_step,
    find_store,
    write_adapter_config,
    write_json,
)
from pipeline.errors import UserError
from pipeline.hashing import find_local_folder
from pipeline.models import loading
from pipeline.models.interpolation import choose_wide, slerp_shares, sum_tensors
from pipeline.models.soup_checks import check_settings, check_tokenizers, list_tied_copies
from pipeline.models.tensor_files import (
    DTYPES,
    TensorFolder,
    TensorInfo,
    open_tensors,
    write_folder,
    write_tensors,
)
from pipeline.progress import Progress

if TYPE_CHECKING:
    import torch

Method = Literal["linear", "slerp"]
PARTS = "weights", "adapter"  # of a step's folder
ADAPTER_FILE = "adapter_model.safetensors"
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.jinja"),
    *("vocab*", "merges.txt", "*.model", "*.tiktoken"),
)
PREFIX = "base_model.model."  # before each name in an adapter's file
A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
DENSIFY = "Give merge.densify=true, which merges each adapter into its base."


@dataclass(frozen=True)
class Parent:
    """A model to merge: an artifact, or the folder of any other checkpoint."""

    folder: Path  # of its whole weights, or of its base's
    tokenizer: Path
    model: Model | None = None

    @cached_property
    def weights(self) -> TensorFolder:
        return open_tensors(self.folder)

    @property
    def adapter_folder(self) -> Path | None:
        return self.model.adapter if self.model else None

    @cached_property
    def adapter(self) -> TensorFolder:
        assert self.adapter_folder
        return open_tensors(self.adapter_folder, ADAPTER_FILE)

    @property
    def place(self) -> Path:
        """What messages name."""
        return self.adapter_folder or self.folder

    @property
    def record(self) -> dict[str, Any]:
        return self.model.record if self.model else {}

    @property
    def peft(self) -> dict[str, Any]:
        config: dict[str, Any] = self.record["peft"]
        return config

    @property
    def scale(self) -> float:
        """Of B·A."""
        rank = self.peft["r"]
        return float(self.peft["lora_alpha"] / (math.sqrt(rank) if self.has_root else rank))

    @property
    def has_root(self) -> bool:
        return bool(self.peft.get("use_rslora"))

    @property
    def has_code(self) -> bool:
        return bool(self.model and self.model.remote_code)

    @property
    def base(self) -> str:
        """The step that it is an adapter of, or itself, by its path."""
        if self.model is None:
            return str(self.folder)
        name = loading.read_base_name(self.model)
        return str(find_step(find_store(self.model.path), name).resolve())

    def read(self, name: str) -> "torch.Tensor":
        """A weight with its adapter in it: not rounded yet."""
        weight, module = self.weights.read(name), PREFIX + name.removesuffix(".weight")
        if self.adapter_folder is None or module + A not in self.adapter.tensors:
            return weight
        wide = choose_wide(weight.dtype)
        a, b = (self.adapter.read(module + side).to(wide) for side in (A, B))
        change = b @ a * self.scale
        weight = weight.to(wide) + (change.T if self.peft.get("fan_in_fan_out") else change)
        if module + MAGNITUDE in self.adapter.tensors:  # DoRA: the length of each row by itself
            magnitude = self.adapter.read(module + MAGNITUDE).to(wide)
            weight = weight * (magnitude / weight.norm(dim=1))[:, None]
        return weight


def open_parent(model: Model) -> Parent:
    folder = find_local_folder(model.weights, model.revision)
    assert folder, f"{model.path}: its checkpoint was fetched when it was built"
    return Parent(folder, model.tokenizer, model)


def open_folder(path: str, knob: str) -> Parent:
    """A model that a user names: a step's folder in a store, or any folder with a config.json."""
    folder = Path(path).expanduser().resolve()
    step = folder.parent if folder.name in PARTS else folder
    if (step / MODEL_FILE).is_file():
        return open_parent(Model(step))
    if (folder / "config.json").is_file():
        return Parent(folder, folder)
    what = "is not a model: it has no config.json"
    if (folder / ADAPTER_CONFIG).is_file():
        what = "is an adapter without the record of the step that trained it"
    raise UserError(
        f"{knob}={path}: it {what}.\n"
        "  Give a model's folder in a store, such as store/train/FINGERPRINT, or a folder of whole"
        " weights."
    )


def check_alike(parents: Sequence[Parent]) -> None:
    """Refuse models whose weights or tokens mean different things."""
    check_settings([parent.folder for parent in parents])
    check_tokenizers([parent.tokenizer for parent in parents])
    list_tied_copies([parent.weights for parent in parents])


# ── whole weights ─────────────────────────────────────────────────────────────────────────────────


def write_weights(
    parents: Sequence[Parent], shares: Sequence[float], method: Method, out: Path
) -> Model:
    """Settings, tokenizer and the split into files are those of the first parent."""
    import torch

    for parent in parents:
        if parent.adapter_folder:
            _check_can_densify(parent)
    copies = list_tied_copies([parent.weights for parent in parents])
    files = {
        file: {name: _widen(parents, name) for name in infos if name not in copies}
        for file, infos in parents[0].weights.files.items()
    }
    infos = {name: info for entries in files.values() for name, info in entries.items()}

    def make(name: str) -> "torch.Tensor":
        tensors = [parent.read(name) for parent in parents]
        used = shares
        if method == "slerp":
            used = _choose_arc(parents, name, tensors, shares[0])
        return sum_tensors(tensors, used, getattr(torch, DTYPES[infos[name].dtype]))

    folder = out / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    progress = Progress("merge", len(infos), "tensors", sum(info.size for info in infos.values()))
    write_folder(folder, files, make, _count_tensors(progress))
    _copy_settings(parents[0], {DTYPES[info.dtype] for info in infos.values()}, folder)
    _copy_tokenizer(parents[0], folder)
    trust = {"remote_code": True} if parents[0].has_code else {}
    write_json(out / MODEL_FILE, {"weights": "weights", "tokenizer": "weights", **trust})
    return Model(out)


def _widen(parents: Sequence[Parent], name: str) -> TensorInfo:
    """Of the widest dtype among the parents, so that none of them is rounded."""
    import torch

    infos = [parent.weights.tensors[name] for parent in parents]
    if len({info.dtype for info in infos}) == 1:
        return infos[0]
    wide = reduce(torch.promote_types, (getattr(torch, DTYPES[info.dtype]) for info in infos))
    spelled = {getattr(torch, torch_name): name for name, torch_name in DTYPES.items()}
    return TensorInfo(spelled[wide], infos[0].shape)


def _choose_arc(
    parents: Sequence[Parent], name: str, tensors: Sequence["torch.Tensor"], alpha: float
) -> list[float]:
    try:
        return slerp_shares(tensors[0], tensors[1], alpha)
    except ValueError as error:
        raise UserError(
            f"merge.method=slerp: the tensor {name} of {parents[0].place} points in the opposite"
            f" direction of {parents[1].place}'s, so there are many arcs between them.\n"
            "  Give merge.method=linear"
        ) from error


def _count_tensors(progress: Progress) -> Callable[[int], None]:
    def count(size: int) -> None:
        progress.work_done += size
        progress.advance()

    return count


def _copy_settings(parent: Parent, dtypes: set[str], folder: Path) -> None:
    """config.json, generation_config.json, and the code of a model that brings its own."""
    code = [*parent.folder.glob("*.py")] if parent.has_code else []
    for file in (*parent.folder.glob("*config.json"), *code):
        if not file.name.startswith(("tokenizer", "adapter")):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text())
    knob = next((name for name in ("dtype", "torch_dtype") if name in config), None)
    if knob and len(dtypes) == 1 and config[knob] not in dtypes:
        write_json(folder / "config.json", {**config, knob: dtypes.pop()})


def _copy_tokenizer(parent: Parent, folder: Path) -> None:
    for pattern in TOKENIZER_FILES:
        for file in parent.tokenizer.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _check_can_densify(parent: Parent) -> None:
    if "quantization" in parent.record:
        raise UserError(
            f"merge: the base of {parent.place} was quantised while it was trained, and bits cannot"
            " be added.\n  Give merge.densify=false merge.method=linear, or train with adapter=lora"
        )
    modules = {name.removesuffix(A) for name in parent.adapter.tensors if name.endswith(A)}
    known = {module + end for module in modules for end in (A, B, MAGNITUDE)}
    names = {f"{module.removeprefix(PREFIX)}.weight": module for module in modules}
    foreign = sorted({*parent.adapter.tensors} - known) + sorted(
        {*names} - {*parent.weights.tensors}
    )
    if foreign:
        raise UserError(
            f"merge.densify=true: {foreign[0]} of {parent.place} changes no tensor of"
            f" {parent.folder}, whose files name their tensors in another way.\n"
            "  Give merge.densify=false, and adapters of one base."
        )


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────


def write_adapter(parents: Sequence[Parent], shares: Sequence[float], out: Path) -> Model:
    """A parent without an adapter is the base itself."""
    _check_exact(parents)
    adapters = [
        (parent, share)
        for parent, share in zip(parents, shares, strict=True)
        if parent.adapter_folder
    ]
    first, _ = adapters[0]
    folder = out / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    same = all(_have_equal_inputs(first, other) for other, _ in adapters[1:])
    config = first.peft if same else _add_ranks([parent for parent, _ in adapters])
    tensors = {
        name: _sum_side(adapters, name) if same else _join_side(adapters, name)
        for name in first.adapter.tensors
    }
    infos = {
        name: TensorInfo(info.dtype, tuple(tensors[name].shape))
        for name, info in first.adapter.tensors.items()
    }
    write_tensors(folder / ADAPTER_FILE, infos, lambda name: tensors[name])
    _copy_tokenizer(parents[0], folder)
    write_json(out / MODEL_FILE, {**first.record, "peft": config})
    write_adapter_config(Model(out))
    return Model(out)


def _check_exact(parents: Sequence[Parent]) -> None:
    """Refuse adapters whose sum is not an adapter, or not one of ours."""
    first, *others = [parent for parent in parents if parent.adapter_folder]
    for parent in parents:
        if parent.base != first.base:
            what = "an adapter of" if parent.adapter_folder else "the model"
            raise UserError(
                f"merge: {first.place} is an adapter of {first.base}, and {parent.place} is {what}"
                f" {parent.base}: their sum is not an adapter of one base.\n  {DENSIFY}"
            )
    for other in others:
        if (rank := other.peft["r"]) != first.peft["r"]:
            raise UserError(
                f"merge: the adapters have different ranks: {first.peft['r']} in {first.place} and"
                f" {rank} in {other.place}.\n  {DENSIFY}"
            )
        if differ := sorted(first.adapter.tensors.keys() ^ other.adapter.tensors.keys()):
            raise UserError(
                f"merge: only one of the adapters {first.place} and {other.place} has the tensor"
                f" {differ[0]}.\n  {DENSIFY}"
            )
        if first.record.get("quantization") != other.record.get("quantization"):
            raise UserError(
                f"merge: the bases of {first.place} and {other.place} were quantised differently."
                "\n  Merge adapters that were trained with the same train.adapter.quantization."
            )
    if any(parent.peft.get("use_dora") for parent in (first, *others)):
        raise UserError(
            f"merge: {first.place} is a DoRA adapter, whose change of the weights is not linear in"
            f" its matrices.\n  {DENSIFY}"
        )


def _have_equal_inputs(first: Parent, other: Parent) -> bool:
    import torch

    inputs = [name for name in first.adapter.tensors if name.endswith(A)]
    return all(torch.equal(first.adapter.read(name), other.adapter.read(name)) for name in inputs)


def _add_ranks(adapters: Sequence[Parent]) -> dict[str, Any]:
    """PEFT's config of the joined adapter. Its scale is 1: the parents' scales are in its B."""
    rank = sum(parent.peft["r"] for parent in adapters)
    return {**adapters[0].peft, "r": rank, "lora_alpha": rank, "use_rslora": False}


def _sum_side(adapters: Sequence[tuple[Parent, float]], name: str) -> "torch.Tensor":
    """The common A, or the sum of the B in the scale of the first."""
    tensors = [parent.adapter.read(name) for parent, _ in adapters]
    if name.endswith(A):
        return tensors[0]
    first, _ = adapters[0]
    shares = [share * (parent.scale / first.scale) for parent, share in adapters]
    return _sum_or_clear(tensors, shares)


def _join_side(adapters: Sequence[tuple[Parent, float]], name: str) -> "torch.Tensor":
    import torch

    tensors = [(parent.adapter.read(name), parent.scale * share) for parent, share in adapters]
    if name.endswith(A):
        return torch.cat([tensor for tensor, _ in tensors], dim=0)
    return torch.cat([_sum_or_clear([tensor], [share]) for tensor, share in tensors], dim=1)


def _sum_or_clear(tensors: Sequence["torch.Tensor"], shares: Sequence[float]) -> "torch.Tensor":
    """Shares of 0 alone give the base: B is 0."""
    if not any(shares):
        return tensors[0] * 0
    return sum_tensors(tensors, shares, tensors[0].dtype)
