"""Where prompts come from, what is left out of them, and how they are split."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, field_validator

from pipeline.config.base import Block, Local, Seed
from pipeline.config.rows import FileRows, HubDataset, HubRows

PromptShape = Literal[
    "auto", "prompt", "messages", "alpaca", "sharegpt", "turns", "question", "columns"
]


class PromptRows(Block):
    """A set of prompts with what is needed to read it."""

    source: Annotated[FileRows | HubRows, Field(discriminator="kind")]
    shape: PromptShape
    columns: dict[str, str]


def _expand_path(value: Any) -> Any:
    """A path alone means: a file whose columns tell its shape."""
    return (
        {"source": {"kind": "file", "path": value}, "shape": "auto", "columns": {}}
        if type(value) is str
        else value
    )


NamedRows = Annotated[PromptRows, BeforeValidator(_expand_path)]
# So many prompts of the source, or a set of its own.
HeldOut = Annotated[
    Annotated[PositiveInt, Tag("count")] | Annotated[NamedRows, Tag("set")],
    Discriminator(lambda value: "set" if isinstance(value, str | dict | PromptRows) else "count"),
]


class EvaluationQuestions(Block):
    """One set of prompts.evaluation by itself, to be asked in exams."""

    rows: PromptRows


class PromptSplit(Block):
    dev: HeldOut
    test: HeldOut


class DecontaminationConfig(Block):
    ngram: PositiveInt


class PromptCaps(Block):
    column: str
    most: PositiveInt


class PlaygroundPrompts(Block):
    kind: Literal["playground"]
    rows: PositiveInt
    constraints: PositiveInt
    seed: Seed
    split: PromptSplit
    fence: DecontaminationConfig

    # Its prompts are few words put together anew: alike on purpose, and no set of anybody's.
    near: ClassVar[None] = None
    caps: ClassVar[None] = None
    evaluation: ClassVar[dict[str, PromptRows]] = {}


class UserPrompts(Block):
    """What is asked of prompts that a user brings, wherever they lie."""

    shape: PromptShape
    columns: dict[str, str]
    on_bad_row: Literal["fail", "skip"]
    near: Annotated[float, Field(gt=0, le=1)] | None
    caps: PromptCaps | None
    evaluation: dict[str, NamedRows]
    seed: Seed
    split: PromptSplit
    fence: DecontaminationConfig

    @field_validator("evaluation")
    @classmethod
    def _check_set_names(cls, sets: dict[str, PromptRows]) -> dict[str, PromptRows]:
        if taken := sorted({"train", "dev", "test"} & sets.keys()):
            raise ValueError(
                f"{taken[0]} names a part of the prompts themselves; call the set something else"
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
