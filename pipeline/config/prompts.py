"""Where prompts come from, what is left out of them, and how they are split."""

import difflib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    field_validator,
)

from pipeline.config.base import Block, Local, Seed
from pipeline.config.rows import FileRows, HubDataset, HubRows

PromptShape = Literal[
    "auto",
    "prompt",
    "messages",
    "alpaca",
    "sharegpt",
    "turns",
    "question",
    "harmbench",
    "wildjailbreak",
    "columns",
]


# The columns that shapes of rows read. Scorers may read any other.
READ_COLUMNS = ["prompt", "messages", "conversations", "instruction", "input", "instances", "turns"]
READ_COLUMNS += ["question", "system", "id", "chosen", "rejected"]


def _refuse_misspelt(columns: dict[str, str]) -> dict[str, str]:
    """A name that is nearly one that is read: the file's column would be kept and never read."""
    for name in columns:
        near = difflib.get_close_matches(name, READ_COLUMNS, n=1, cutoff=0.85)
        if near and name not in READ_COLUMNS:
            raise ValueError(f"{name} is not a column that is read. Did you mean {near[0]}?")
    return columns


Columns = Annotated[dict[str, str], AfterValidator(_refuse_misspelt)]  # ours: the file's


class PromptRows(Block):
    """A set of prompts, and how to read it."""

    source: Annotated[FileRows | HubRows, Field(discriminator="kind")]
    shape: PromptShape
    columns: Columns


def _expand_path(value: Any) -> Any:
    """A bare path means a file whose columns tell its shape."""
    if type(value) is not str:
        return value
    return {"source": {"kind": "file", "path": value}, "shape": "auto", "columns": {}}


NamedRows = Annotated[PromptRows, BeforeValidator(_expand_path)]
# This many prompts of the source, or a separate set.
HeldOut = Annotated[
    Annotated[PositiveInt, Tag("count")] | Annotated[NamedRows, Tag("set")],
    Discriminator(lambda value: "set" if isinstance(value, str | dict | PromptRows) else "count"),
]


class EvaluationQuestions(Block):
    """One set of prompts.evaluation, for chat benchmarks."""

    rows: PromptRows


class PromptSplit(Block):
    dev: HeldOut
    test: HeldOut


class DecontaminationConfig(Block):
    ngram: PositiveInt


class PromptCaps(Block):
    column: str
    max: PositiveInt


class PlaygroundPrompts(Block):
    kind: Literal["playground"]
    rows: PositiveInt
    constraints: PositiveInt
    seed: Seed
    split: PromptSplit
    decontamination: DecontaminationConfig

    # Its prompts recombine few words: they are alike on purpose and contain no evaluation set.
    near_duplicate_threshold: ClassVar[None] = None
    caps: ClassVar[None] = None
    evaluation: ClassVar[dict[str, PromptRows]] = {}


class UserPrompts(Block):
    """The knobs of a user's own prompts, from a file or the hub."""

    shape: PromptShape
    columns: Columns
    on_bad_row: Literal["fail", "skip"]
    near_duplicate_threshold: Annotated[float, Field(gt=0, le=1)] | None
    caps: PromptCaps | None
    evaluation: dict[str, NamedRows]
    seed: Seed
    split: PromptSplit
    decontamination: DecontaminationConfig

    @field_validator("evaluation")
    @classmethod
    def _check_set_names(cls, sets: dict[str, PromptRows]) -> dict[str, PromptRows]:
        if taken := sorted({"train", "dev", "test"} & sets.keys()):
            raise ValueError(
                f"{taken[0]} is the name of a split of the prompts; give the set another name"
            )
        return sets


class FilePrompts(UserPrompts):
    kind: Literal["file"]
    path: Local

    @property
    def prompt_rows(self) -> PromptRows:
        return PromptRows(
            source=FileRows(kind="file", path=self.path), shape=self.shape, columns=self.columns
        )


class HubPrompts(UserPrompts):
    kind: Literal["hub"]
    dataset: HubDataset
    revision: str | None
    subset: str | None
    hub_split: str

    @property
    def prompt_rows(self) -> PromptRows:
        place = {
            "dataset": self.dataset,
            "revision": self.revision,
            "subset": self.subset,
            "split": self.hub_split,
        }
        return PromptRows(
            source=HubRows(kind="hub", **place), shape=self.shape, columns=self.columns
        )


PromptsConfig = Annotated[PlaygroundPrompts | FilePrompts | HubPrompts, Field(discriminator="kind")]
