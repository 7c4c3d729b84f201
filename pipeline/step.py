"""A Step: one stage on given inputs. It runs nothing; it knows its inputs and its fingerprint.

An input is a Step, a part of one (`prompts / "test"`), a list or dict of inputs, or None.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Union

from pipeline.config import (
    POLICY,
    REVISED,
    Block,
    Function,
    HubDataset,
    Local,
    PromptShare,
    TextModel,
    Weights,
)
from pipeline.errors import UserError, describe_place, run_all
from pipeline.hashing import hash_json

# Bump a stage's number when what it makes changes meaning, so that earlier results do not count.
STAGE_VERSIONS = {
    "prompts": 5,
    "base": 1,
    "sft": 3,
    "reward": 2,
    "sample": 2,
    "revise": 1,
    "steps": 1,
    "score": 3,
    "offline": 3,
    "pair": 4,
    "reference": 1,
    "train": 4,
    "merge": 1,
    "gate": 1,
    "benchmark": 1,
    "duel": 1,
    "evaluate": 8,
}

Input = Union["Step", "Part", Sequence["Input"], Mapping[str, "Input"], None]
PathHasher = Callable[[str], str]


@dataclass(frozen=True, eq=False)
class Part:
    """One part of what a Step publishes; its fingerprint and content are the part's own."""

    step: "Step"
    part: str


@dataclass(frozen=True, eq=False)
class Step:
    stage: str
    config: Block
    label: int | str
    knob: str  # where its block is in the config, for messages; outside identity, like the label
    inputs: dict[str, Any] = field(repr=False)

    def __init__(
        self, stage: str, config: Block, at: int | str = 0, knob: str | None = None, **inputs: Input
    ):
        object.__setattr__(self, "stage", stage)
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "label", at)
        object.__setattr__(self, "knob", knob or stage)
        object.__setattr__(
            self, "inputs", {name: _drop_none(i) for name, i in inputs.items() if _is_edge(i)}
        )

    @property
    def label_text(self) -> str:
        """The label for a reader: `round 1`, `test sft`, or nothing before the rounds."""
        is_round = isinstance(self.label, int) and self.label
        label = f"round {self.label}" if is_round else str(self.label or "")
        return f"{label} {self.pool_member or ''}".strip()

    @property
    def round_text(self) -> str | None:
        """The number of its round; of a replicate, the round that it trains by another seed."""
        replicate = re.fullmatch(r"round-(\d+)-seed-\d+", str(self.label))
        if replicate:
            return replicate[1]
        return str(self.label) if isinstance(self.label, int) else None

    @property
    def in_evaluation(self) -> bool:
        """Whether it is of a model's evaluation: what makes a model is not, whatever its label."""
        return isinstance(self.label, str) and self.stage not in ("train", "merge", "gate")

    @property
    def pool_member(self) -> str | None:
        """The model of sample.pool whose answers it samples or scores, if any; or `revised`."""
        sampling = self.inputs.get("samples", self)
        if self.stage == "score" and getattr(sampling, "stage", None) == "revise":
            return REVISED
        share = getattr(getattr(sampling, "config", None), "prompt_share", None)
        return share.model if isinstance(share, PromptShare) and share.model != POLICY else None

    def __truediv__(self, part: str) -> Part:
        return Part(self, part)

    def edges(self) -> Iterator[tuple[str, "Step", str | None]]:
        """Every input by its flat name: `evals.sft.samples`, Step, part."""
        for name, value in self.inputs.items():
            yield from _flatten(name, value)

    def ancestors(self) -> list["Step"]:
        """All Steps that this one depends on and itself, each once, inputs before their readers."""
        order: dict[int, Step] = {}

        def visit(step: Step) -> None:
            if id(step) in order:
                return
            for _, source, _ in step.edges():
                visit(source)
            order[id(step)] = step

        visit(self)
        return list(order.values())


class Identity:
    """Fingerprints of Steps, each computed once. `hash_path` hashes a local path by its content."""

    def __init__(self, hash_path: PathHasher):
        self._path_hasher = hash_path
        self._known: dict[int, str] = {}

    def fingerprint(self, step: Step) -> str:
        if id(step) not in self._known:
            self._known[id(step)] = hash_json(
                {
                    "stage": step.stage,
                    "version": STAGE_VERSIONS[step.stage],
                    "config": self._to_json(step.config, step.knob),
                    "inputs": {
                        name: self.fingerprint_input(source, part)
                        for name, source, part in step.edges()
                    },
                }
            )[:12]
        return self._known[id(step)]

    def hash_config(self, value: Any, knob: str) -> str:
        """A hash of a config alone, by what of it would enter a fingerprint."""
        return hash_json(self._to_json(value, knob))[:12]

    def fingerprint_input(self, step: Step, part: str | None) -> str:
        return f"{self.fingerprint(step)}/{part}" if part else self.fingerprint(step)

    def _to_json(self, value: Any, knob: str) -> Any:
        """What enters identity: without `runtime` and the like, local paths as content hashes."""
        if isinstance(value, Block):
            outside = value.outside_identity | {"runtime"}
            return self._dict_to_json(
                {name: item for name, item in value if name not in outside}, knob
            )
        if isinstance(value, dict):
            return self._dict_to_json(value, knob)
        if isinstance(value, list | tuple):
            return [self._to_json(item, knob) for item in value]
        if isinstance(value, Weights) and not value.is_local:
            return str(value)
        if isinstance(value, Function) and value.file:
            return f"content:{self._hash_path(value.file, knob)}:{value.name}"
        if isinstance(value, Local):
            return f"content:{self._hash_path(value, knob)}"
        return value

    def _dict_to_json(self, values: Mapping[str, Any], knob: str) -> dict[str, Any]:
        def place(name: str, item: Any) -> str:
            # A baseline known by its texts alone was typed without this word.
            is_typed = name != "backend" or not isinstance(item, TextModel)
            return f"{knob}.{name}" if is_typed else knob

        items = run_all(
            partial(self._to_json, item, place(name, item)) for name, item in values.items()
        )
        return dict(zip(values, items, strict=True))

    def _hash_path(self, path: str, knob: str) -> str:
        try:
            return self._path_hasher(path)
        except FileNotFoundError as error:
            raise UserError(
                f"{knob}={path}: no such file or folder{describe_place(path)}."
                " Give the path of one that exists."
            ) from error
        except OSError as error:
            raise UserError(
                f"{knob}={path}: cannot be read ({error.strerror}). Give the path of one that can."
            ) from error


def list_local_paths(value: Any) -> Iterator[Path]:
    """The local files and folders that a config names."""
    if isinstance(value, Block):
        value = dict(value)
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from list_local_paths(item)
    local = value.file if isinstance(value, Function) else value
    if isinstance(local, Local) and (not isinstance(local, Weights) or local.is_local):
        with suppress(RuntimeError):  # no such home directory: the path is refused elsewhere
            yield Path(local).expanduser()


def find_checkpoint(step: Step) -> str | None:
    """The path of a local checkpoint. It is outside identity, since the same bytes may move."""
    model = getattr(step.config, "model", None)
    if not isinstance(model, Weights) or not model.is_local:
        return None
    return str(Path(model).expanduser().absolute())


def has_floating_revision(step: Step) -> bool:
    """Whether the fingerprint depends on a hub revision that may still change."""
    return any(is_floating(ancestor.config) for ancestor in step.ancestors())


def is_floating(value: Any) -> bool:
    if isinstance(value, Block):
        if _find_hub_name(value) and not is_commit(getattr(value, "revision", None)):
            return True
        return any(is_floating(item) for _, item in value)
    return isinstance(value, dict) and any(is_floating(item) for item in value.values())


def pin_revisions(value: Any, resolve_commit: Callable[[str, str | None], str]) -> Any:
    """Replace every floating hub revision in a config by its commit."""
    if isinstance(value, dict):
        return {name: pin_revisions(item, resolve_commit) for name, item in value.items()}
    if not isinstance(value, Block) or not is_floating(value):
        return value
    changes = {name: pin_revisions(item, resolve_commit) for name, item in value}
    name, revision = _find_hub_name(value), changes.get("revision")
    if name and not is_commit(revision):
        changes["revision"] = resolve_commit(name, revision)
    return value.model_copy(update=changes)


def _find_hub_name(value: Block) -> str | None:
    """The hub repository that a block names, if any: a model's name or `datasets/NAME`."""
    model, dataset = getattr(value, "model", None), getattr(value, "dataset", None)
    if isinstance(model, Weights) and not model.is_local:
        return str(model)
    return f"datasets/{dataset}" if isinstance(dataset, HubDataset) else None


def is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def _is_edge(value: Input) -> bool:
    return value is not None and value != [] and value != {}


def _drop_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _drop_none(item) for name, item in value.items() if _is_edge(item)}
    if isinstance(value, list):
        return [_drop_none(item) for item in value if _is_edge(item)]
    return value


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Step, str | None]]:
    match value:
        case Step():
            yield name, value, None
        case Part():
            yield name, value.step, value.part
        case list():
            for index, item in enumerate(value):
                yield from _flatten(f"{name}.{index}", item)
        case dict():
            for key, item in value.items():
                yield from _flatten(f"{name}.{key}", item)
        case _:
            kinds = "a Step, a part, a list or dict of inputs, or None"
            raise TypeError(f"{name}: an input is {kinds}, not {value!r}")
