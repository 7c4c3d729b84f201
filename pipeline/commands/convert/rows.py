"""The data: a tool's preferences as `offline`, and the prompts that the evaluation is held on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.commands.convert.recipe import Recipe
from pipeline.commands.convert.source import Source
from pipeline.data.jsonl import ROLES
from pipeline.data.preferences import TURNS
from pipeline.data.prompt_shapes import SPEAKERS

ENDINGS = {".json", ".jsonl", ".parquet", ".csv"}
NO_PROMPT = "rows without a column prompt: add shape: columns, columns: {messages: chosen}"
UNREAD_TURNS = (
    "Strop reads turns {from, value} and {role, content}, from system, user and assistant. Write"
    " the rows so, and give offline.source.path=FILE prompts.path=FILE offline.shape=auto."
)
REMOTE = ("s3://", "gs://", "gcs://", "az://", "abfs://", "oci://", "http://", "https://")


@dataclass(frozen=True)
class PreferenceSource:
    """Where a tool's rows come from, and their shape by Strop's names."""

    place: str  # a file, a folder, or a name on the hub
    key: str  # the key that names it
    is_local: bool
    split: str = "train"
    split_key: str = ""  # the key that names the split
    subset: str | None = None
    revision: str | None = None
    shape: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    test_split: str | None = None  # of the same data set, where the file names one
    test_key: str = ""
    has_prompt: bool = True  # False: the prompt is inside chosen and rejected alone
    unread: str | None = None  # why Strop cannot read rows of this shape


def is_local(place: str) -> bool:
    """By the name alone: what a recipe says must not depend on the folder it is written in."""
    ending = PurePosixPath(place).suffix.lower()
    return place.startswith((".", "/", "~", *REMOTE)) or ending in ENDINGS


def name_turns(role: str, content: str, speakers: Mapping[str, str]) -> str | None:
    """Strop's column for turns with these two keys; None where it does not read them.

    `speakers`: who speaks, by the file's names → by ours.
    """
    known = SPEAKERS if role == "from" else {name: name for name in ROLES}
    is_known = all(known.get(theirs) == ours for theirs, ours in speakers.items())
    columns = {("from", "value"): "conversations", ("role", "content"): "messages"}
    return columns.get((role, content)) if is_known else None


def name_shape(columns: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """The shape of a conversation and its answers; columns of our names need no map."""
    is_plain = all(ours == theirs for ours, theirs in columns.items())
    return ("conversation", {}) if is_plain else ("columns", columns)


def convert_rows(source: Source, recipe: Recipe, found: list[PreferenceSource]) -> None:
    """Strop reads one source of preferences: the first; the others are named."""
    first, *others = found
    kind = "file" if first.is_local else "hub"
    recipe.choose("prompts", kind)
    recipe.choose("offline", kind)
    _set_offline(recipe, first)
    _set_prompts(recipe, first)
    recipe.set("pair.mix.on_policy", 0.0, "train on the file's preferences alone, as it did")
    recipe.set("pair.mix.offline", 1.0)
    for other in others:
        recipe.lose(
            other.key,
            f"{other.place}, {other.split}",
            "Would have been added to the rows. A run reads one source here: join them into one"
            " file and give offline=file offline.source.path=FILE.",
        )
    if first.unread:
        recipe.lose(first.key, first.place, first.unread)
    if first.place.startswith(REMOTE):
        effect = "Would have been downloaded. Download it and give the path of the file."
        recipe.lose(first.key, first.place, effect)


def _set_offline(recipe: Recipe, rows: PreferenceSource) -> None:
    if rows.is_local:
        recipe.set("offline.source.path", rows.place, rows.key)
    else:
        recipe.set("offline.source.dataset", rows.place, rows.key)
        recipe.set("offline.source.split", rows.split, rows.split_key)
        if rows.subset:
            recipe.set("offline.source.subset", rows.subset)
        if rows.revision:
            recipe.set("offline.source.revision", rows.revision)
    if rows.shape != "auto":
        recipe.set("offline.shape", rows.shape)
    if rows.shape == "columns":
        recipe.set("offline.columns", dict(rows.columns))


def _set_prompts(recipe: Recipe, rows: PreferenceSource) -> None:
    """The prompts of the same rows: those that are held out are dropped from the training."""
    if rows.is_local:
        recipe.set("prompts.path", rows.place, "its dev and test prompts are not trained on")
    else:
        comment = NO_PROMPT if rows.shape == "auto" else ""
        recipe.set("prompts.dataset", rows.place, comment)
        recipe.set("prompts.hub_split", rows.test_split or rows.split, _describe_split(rows))
        if rows.subset:
            recipe.set("prompts.subset", rows.subset)
        if rows.revision:
            recipe.set("prompts.revision", rows.revision)
    read = ("system", *TURNS)
    if asked := {ours: rows.columns[ours] for ours in read if ours in rows.columns}:
        recipe.set("prompts.shape", "columns")
        recipe.set("prompts.columns", asked)
    if not rows.has_prompt:
        recipe.set("prompts.shape", "columns")
        recipe.set("prompts.columns", {"messages": "chosen"}, "the turns before the answer")


def _describe_split(rows: PreferenceSource) -> str:
    if rows.test_split:
        return f"{rows.test_key}: dev and test prompts are drawn from it; it needs more than 800"
    return "800 of its prompts are held out as dev and test; their pairs are not trained on"


def convert_held_out(source: Source, recipe: Recipe) -> None:
    """Rows held out for the trainer's own loss: a share below 1, or else their number."""
    held_out = source.number("held_out")
    if not source.has("held_out") or held_out is None:
        return
    key = source.key("held_out")
    if held_out == 0:
        effect = "Would have held nothing out; here pair.dev holds out 2 %, for loss and accuracy."
        recipe.lose(key, "0", effect)
    elif held_out < 1:
        recipe.set("pair.dev.share", held_out, f"{key}; at least pair.dev.min=200 pairs")
        recipe.set("pair.dev.max_share", max(0.1, held_out))
    else:
        recipe.set("pair.dev.min", int(held_out), key)
