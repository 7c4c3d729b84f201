"""Knobs, groups and stages that have another name now. The old name is refused with the new one.

Typing what the message says brings an older recipe up to date.
"""

import re
from collections.abc import Iterable

from pipeline.errors import UserError

KeyPath = tuple[str, ...]

# The first name of a path: a block, a group of conf/ or a stage.
BLOCKS = {
    "exam": "evaluate",
    "refer": "reference",
    "refit": "best_of_n",
    "other": "baseline",
    "data": "train_on",
}
# A file's mount.
MOUNTS = {"adapter@train.adapter": "adapter"}
# A knob inside a block.
KNOBS = {
    "refer": "reference",
    "others": "baselines",
    "fence": "decontamination",
    "near": "near_duplicate_threshold",
    "at": "threshold",
    "least": "min",
    "most": "max",
    "most_share": "max_share",
    "thumbs_at": "unpaired_threshold",
    "more": "resample_ties",
    "of": "weights",
    "logps": "reference_logps",
    "together": "loss_group",
    "warn_fall": "warn_chosen_logp_drop",
    "fall_budget": "max_chosen_logp_drop",
    "watch": "eval_when_distributed",
    "usual_rate": "typical_learning_rate",
}
# A value of a knob, by the knob's new name.
VALUES = {
    ("init", "refit"): "best_of_n",
    ("best_of_n", "best"): "default",
    ("learn_from", "thumbs"): "unpaired",
    ("shape", "thumbs"): "unpaired",
    ("reference_logps", "ready"): "precomputed",
    ("reference_logps", "live"): "online",
    ("eval_when_distributed", "alone"): "false",
    ("eval_when_distributed", "always"): "true",
}


def rename(path: KeyPath) -> KeyPath:
    """The path by today's names; unchanged where none of them has changed."""
    first, *rest = path
    return BLOCKS.get(first, first), *(KNOBS.get(name, name) for name in rest)


def rename_value(path: KeyPath, value: object) -> object:
    """The value by today's names, for a path by today's names."""
    return VALUES.get((path[-1], str(value)), value)


def describe_renamed(path: KeyPath, leaves: Iterable[tuple[KeyPath, object]]) -> str:
    """What to write in place of a key by its old name."""
    new, words = rename(path), []
    for old, value in leaves:
        leaf = rename(old)
        words.append(f"{'.'.join(leaf)}={_write(rename_value(leaf, value))}")
    return f"{'.'.join(path)} is {'.'.join(new)} now: write {', '.join(words)}."


def _write(value: object) -> object:
    """As it is typed."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), value)


def rename_words(text: str) -> str | None:
    """Which name quoted in one of Hydra's messages has changed: `refit` of 'override /refit'."""
    for word in re.findall(r"'([^']+)'", text):
        if word in MOUNTS:
            return f"{word} is {MOUNTS[word]} now"
        block = re.split(r"[@./]", word.lstrip("+~/"))[0]
        if block in BLOCKS:
            return f"{block} is {BLOCKS[block]} now"
    return None


def refuse_renamed_mount(key: str, value: str) -> None:
    """A file mounted by an old name, which Hydra would not find: `+scorer@exam.score…`."""
    prefix = key[: len(key) - len(key.lstrip("+~"))]
    group, at, place = key.removeprefix(prefix).partition("@")
    new_key = key
    if at:
        # Further names are the user's own, such as that of a scorer.
        block, *names = place.split(".", 2)
        new_place = [*rename((block, *names[:1])), *names[1:]]
        new_key = f"{prefix}{BLOCKS.get(group, group)}@{'.'.join(new_place)}"
        new_key = MOUNTS.get(new_key.lstrip("+"), new_key)
    elif group == "reference" and value != "default":
        new_key = "reference.model"
    if new_key != key:
        raise UserError(f"command line: {key} is {new_key} now. Type {new_key}={value}")
