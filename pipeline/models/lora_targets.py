"""Whether an adapter's targets are layers of a model, read as PEFT reads them."""

import re
from collections.abc import Collection


def explain_unknown_target(
    targets: str | list[str],
    names: Collection[str],
    linear: Collection[str],
    head: str | None,
    knob: str,
) -> str | None:
    """The error for the first target that cannot be trained; None: all can be.

    `names` are the whole names of the model's modules, `linear` those of its linear layers,
    `head` that of its output layer, and `knob` is that of the targets.
    """
    if targets == "all-linear":
        return None
    is_pattern = isinstance(targets, str)
    for target in [targets] if isinstance(targets, str) else targets:
        hits = [name for name in names if _is_target(target, name, is_pattern)]
        if hits and head not in hits:
            continue
        if hits:
            why = "its adapter would never be trained by TRL"
        elif is_pattern:
            why = "no module's whole name matches this pattern"
        else:
            why = "no module of this model has that name"
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear if name != head}))
        # Without brackets it would be a pattern.
        form = ", in brackets" if is_pattern else ""
        return (
            f"{knob}: {target}: {why}.\n"
            f"  Expected names of linear layers{form} ({known}), or all-linear."
        )
    return None


def _is_target(target: str, name: str, is_pattern: bool) -> bool:
    """A string is a pattern for a whole name, a list has ends of names."""
    if is_pattern:
        return bool(re.fullmatch(target, name))
    return name == target or name.endswith(f".{target}")
