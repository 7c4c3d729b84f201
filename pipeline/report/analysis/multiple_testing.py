"""Which tests of the report are corrected together, by Holm's method.

The chosen model's difference to SFT by the primary scorer is the one test that is planned
beforehand. It answers whether the model is better, and is not corrected. One family each: all other
models' differences by one scorer; those by its criteria (`scorer/criterion`); the contests of one
judge or scorer. All tests of the A/A control are one family too, because they test the machinery
and not a model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import CONTROL
from pipeline.report.analysis.statistics import adjust_holm

Rows = list[dict[str, Any]]


def correct_families(
    differences: Sequence[dict[str, Any]],
    duels: Sequence[dict[str, Any]],
    primary: tuple[str | None, str] | None = None,
) -> tuple[Rows, Rows]:
    """The same rows with `p_holm`, the p-value corrected within its family.

    `primary`: the model and the scorer of the test planned beforehand, a family by itself.
    """
    rows = [*differences, *duels]
    families: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        is_primary = primary is not None and is_primary_test(row, *primary)
        families.setdefault("primary" if is_primary else _family_key(row), []).append(place)
    adjusted: dict[int, float | None] = {}
    for places in families.values():
        p_values = adjust_holm([rows[place]["p_value"] for place in places])
        adjusted.update(zip(places, p_values, strict=True))
    corrected = [{**row, "p_holm": adjusted[place]} for place, row in enumerate(rows)]
    return corrected[: len(differences)], corrected[len(differences) :]


def is_primary_test(row: Mapping[str, Any], chosen: str | None, scorer: str) -> bool:
    """Whether a row is the chosen model's difference to SFT by the primary scorer."""
    return (row.get("model"), row.get("scorer")) == (chosen, scorer)


def _family_key(row: dict[str, Any]) -> Any:
    if CONTROL in (row.get("model"), row.get("a")):
        return CONTROL
    if "judge" in row:
        return "contests", row["judge"]
    scorer, _, criterion = row["scorer"].partition("/")
    return "differences", scorer, bool(criterion)
