"""Where prompts come from, what is left out of them, and how they are split."""

import difflib
from collections import Counter
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from pipeline.config.base import Block, DecontaminationConfig, Local, Seed, Share
from pipeline.config.demonstrations import DemonstrationsConfig
from pipeline.config.rows import FileRows, HubDataset, HubRows
from pipeline.errors import suggest

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
READ_COLUMNS += ["question", "system", "id", "chosen", "rejected", "tools"]


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
NearDuplicate = Annotated[float, Field(gt=0, le=1)] | None


def _check_set_names(sets: dict[str, PromptRows]) -> dict[str, PromptRows]:
    if taken := sorted({"train", "dev", "test"} & sets.keys()):
        raise ValueError(
            f"{taken[0]} is the name of a split of the prompts; give the set another name"
        )
    return sets


EvaluationSets = Annotated[dict[str, NamedRows], AfterValidator(_check_set_names)]
# This many prompts of the source, or a separate set.
HeldOut = Annotated[
    Annotated[PositiveInt, Tag("count")] | Annotated[NamedRows, Tag("set")],
    Discriminator(lambda value: "set" if isinstance(value, str | dict | PromptRows) else "count"),
]


class EvaluationQuestions(Block):
    """One set of prompts.evaluation, for chat benchmarks, and the file of its reference answers."""

    rows: PromptRows
    references: Local | None

    @property
    def outside_identity(self) -> frozenset[str]:
        return frozenset() if self.references else frozenset({"references"})


class PromptSplit(Block):
    dev: HeldOut
    test: HeldOut


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


# IFEval's verifiable instructions, as lm-eval registers them.
ConstraintFamily = Literal[
    "keywords:existence",
    "keywords:frequency",
    "keywords:forbidden_words",
    "keywords:letter_frequency",
    "language:response_language",
    "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "length_constraints:number_words",
    "length_constraints:nth_paragraph_first_word",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:number_bullet_lists",
    "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:json_format",
    "detectable_format:title",
    "combination:two_responses",
    "combination:repeat_prompt",
    "startend:end_checker",
    "startend:quotation",
    "change_case:capital_word_frequency",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "punctuation:no_comma",
]
CONSTRAINT_FAMILIES: tuple[ConstraintFamily, ...] = get_args(ConstraintFamily)


def _refuse_unknown(name: Any) -> Any:
    """With the nearest one, as a bare list of 25 names would hide it."""
    if name in CONSTRAINT_FAMILIES:
        return name
    hint = suggest(str(name), list(CONSTRAINT_FAMILIES))
    raise ValueError(f"{name!r} is none of IFEval's instructions. {hint}")


def _refuse_repeats(names: list[ConstraintFamily]) -> list[ConstraintFamily]:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{repeated[0]} is in the list twice")
    return names


KnownFamily = Annotated[ConstraintFamily, BeforeValidator(_refuse_unknown)]
Families = Annotated[list[KnownFamily], AfterValidator(_refuse_repeats)]


class InstructionPrompts(Block):
    """Generated instructions with IFEval's constraints."""

    kind: Literal["instructions"]
    rows: PositiveInt
    # Relative numbers of prompts with one, two and three constraints.
    constraints: Annotated[list[NonNegativeFloat], Field(min_length=1, max_length=3)]
    max_words: Annotated[int, Field(ge=40, le=1000)]
    excluded: Families
    held_out: Families
    held_out_share: Share
    near_duplicate_threshold: NearDuplicate
    evaluation: EvaluationSets
    seed: Seed
    split: PromptSplit
    decontamination: DecontaminationConfig

    caps: ClassVar[None] = None

    @model_validator(mode="after")
    def _check_families(self) -> Self:
        if both := [name for name in self.held_out if name in self.excluded]:
            raise ValueError(f"{both[0]} is in held_out and in excluded; keep it in one of them")
        if not self.trained_families:
            raise ValueError("held_out and excluded leave no family to train on; shorten them")
        if not any(self.constraints):
            raise ValueError(
                f"constraints={self.constraints}: no number of constraints has a share."
                " Give a number above 0, such as [3, 2, 1]"
            )
        if self.held_out and not self.held_out_rows:
            raise ValueError(
                "held_out names families, and no prompt of dev or test is generated with them."
                " Raise held_out_share, or give held_out=[]"
            )
        return self

    @property
    def trained_families(self) -> list[ConstraintFamily]:
        left_out = {*self.held_out, *self.excluded}
        return [name for name in CONSTRAINT_FAMILIES if name not in left_out]

    @property
    def held_out_rows(self) -> int:
        """Prompts with a held-out family: a share of those that dev and test take."""
        if not self.held_out:
            return 0
        taken = sum(wanted for _, wanted in self.split if isinstance(wanted, int))
        return round(taken * self.held_out_share)


class UserPrompts(Block):
    """The knobs of a user's own prompts, from a file or the hub."""

    shape: PromptShape
    columns: Columns
    on_bad_row: Literal["fail", "skip"]
    near_duplicate_threshold: NearDuplicate
    caps: PromptCaps | None
    exclude: list[Literal["demonstrations"]]
    demonstrations: DemonstrationsConfig | None
    evaluation: EvaluationSets
    seed: Seed
    split: PromptSplit
    decontamination: DecontaminationConfig

    @property
    def outside_identity(self) -> frozenset[str]:
        """Demonstrations are read where `exclude` names them."""
        return frozenset() if self.exclude else frozenset({"exclude", "demonstrations"})

    @model_validator(mode="after")
    def _check_exclude(self) -> Self:
        if self.exclude and self.demonstrations is None:
            raise ValueError(
                "exclude=[demonstrations]: this run trains no sft, so its demonstrations are not"
                " known. Give prompts.demonstrations={kind: jsonl, path: FILE, on_bad_row: skip},"
                " the file that the checkpoint was trained on, or prompts.exclude=[]"
            )
        return self


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


PromptsConfig = Annotated[
    PlaygroundPrompts | InstructionPrompts | FilePrompts | HubPrompts,
    Field(discriminator="kind"),
]
