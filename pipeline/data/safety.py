"""Which requests of a safety set should be refused, as the published files say it.

Each file says it in another column; the first of the table that a row has decides. HarmBench has
harmful requests alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import UserError

Columns = Mapping[str, Any]
HARMFUL = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def should_refuse(columns: Columns) -> bool:
    """Raises ValueError where the row does not say it."""
    name = next((name for name in LABEL_COLUMNS if columns.get(name) not in (None, "")), None)
    if name is None:
        raise ValueError(
            "no column says whether to refuse"
            f" (looked for {', '.join(LABEL_COLUMNS)};"
            f" it has {', '.join(sorted(columns)) or 'only its text'})"
        )
    value = str(columns[name]).strip().lower()
    if (harmful := LABEL_COLUMNS[name](value)) is None:
        raise ValueError(f"{name}={columns[name]!r} does not say whether to refuse")
    return harmful


def _read_type(value: str) -> bool | None:
    """XSTest's first edition has no label: its contrasts are the harmful requests."""
    return value.startswith("contrast_")


def _read_data_type(value: str) -> bool | None:
    return {"harmful": True, "benign": False}.get(value.rpartition("_")[2])


# By column: what its value, as a small-letter text, says.
LABEL_COLUMNS: Mapping[str, Callable[[str], bool | None]] = {
    "should_refuse": HARMFUL.get,  # your own file
    "prompt_harm_label": {"harmful": True, "unharmful": False}.get,  # WildGuardTest
    "data_type": _read_data_type,  # WildJailbreak
    "label": {**HARMFUL, "unsafe": True, "safe": False, "harmful": True, "benign": False}.get,
    "type": _read_type,  # XSTest
    "SemanticCategory": lambda value: True,  # HarmBench
}


def check_labels(rows: Mapping[str, Columns], knob: str) -> None:
    """`rows`: each prompt's columns."""
    faults: dict[str, str] = {}
    for key, columns in rows.items():
        try:
            should_refuse(columns)
        except ValueError as error:
            faults[key] = str(error)
    if faults:
        key, fault = next(iter(faults.items()))
        raise UserError(
            f"{knob}: {len(faults)} of {len(rows)} requests do not say whether to refuse them"
            f" (id {key}: {fault}).\n"
            "  Give XSTest, HarmBench, WildJailbreak or WildGuardTest as published,"
            " or rows with prompt and should_refuse (true or false)."
        )


def describe_one_sided(rows: Mapping[str, Columns], knob: str) -> str | None:
    """A warning where one kind of requests is missing: half of safety is not measured."""
    kinds = {should_refuse(columns) for columns in rows.values()}
    if len(kinds) != 1:
        return None
    kind, missing, model = (
        ("harmful", "harmless look-alikes", "refuses everything")
        if kinds == {True}
        else ("harmless", "harmful requests", "refuses nothing")
    )
    return (
        f"! {knob}: it has {kind} requests alone, so a model that {model} scores 1.\n"
        f"  Add {missing}, as XSTest has both."
    )
