"""Which tests of the report are corrected together, by Holm's method.

Every model's difference to SFT by one scorer is one family, by its kinds (`scorer/kind`) another; the contests of one
judge or scorer are one too. The A/A control asks of the machinery, not of a model: all its tests are one family.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.config import CONTROL
from pipeline.report.analysis.statistics import holm

Rows = list[dict[str, Any]]


def corrected(
    differences: Sequence[dict[str, Any]], duels: Sequence[dict[str, Any]]
) -> tuple[Rows, Rows]:
    """The same rows with `p_holm`: the p-value as it counts within its family."""
    rows = [*differences, *duels]
    families: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        families.setdefault(_family(row), []).append(place)
    counted: dict[int, float | None] = {}
    for places in families.values():
        counted.update(zip(places, holm([rows[place]["p_value"] for place in places]), strict=True))
    whole = [{**row, "p_holm": counted[place]} for place, row in enumerate(rows)]
    return whole[: len(differences)], whole[len(differences) :]


def _family(row: dict[str, Any]) -> Any:
    if CONTROL in (row.get("model"), row.get("a")):
        return CONTROL
    if "judge" in row:
        return "contests", row["judge"]
    scorer, _, kind = row["scorer"].partition("/")
    return "differences", scorer, bool(kind)
