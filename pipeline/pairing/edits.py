"""Corrections by hand: `keep`, `drop`, `swap` or `replace` a pair, named by its two ids. What no line names is kept."""

from collections.abc import Callable, Iterable
from typing import Any

import polars as pl

from pipeline.errors import UserError, pluralize, suggest
from pipeline.hashing import hash_json
from pipeline.pairing.selection import EDITED, as_dropped

SHOWN = 10
ACTIONS = ["keep", "drop", "swap", "replace"]
IDS = "chosen_id", "rejected_id"
SIDES = "chosen", "rejected"
Row = dict[str, Any]
Tokenise = Callable[[str, str], list[int]]  # prompt id, new text → its tokens


def fault(row: Row) -> str | None:
    if absent := [name for name in ("action", *IDS) if not isinstance(row.get(name), str)]:
        return f"no {', '.join(absent)}; expected action (keep, drop, swap or replace), chosen_id and rejected_id"
    return (
        None
        if row["action"] in ACTIONS
        else f"action {row['action']!r}: {suggest(row['action'], ACTIONS)}"
    )


def typed(row: Row) -> Row:
    """What a person may have written: unless it replaces one, a line's texts are the model's, whatever is in them."""
    return (
        row
        if row["action"] == "replace"
        else {name: row[name] for name in row if name not in SIDES}
    )


def check_lines(path: str, bad: list[tuple[int, str]]) -> None:
    if bad:
        shown = "\n".join(f"  line {number}: {said}" for number, said in bad[:SHOWN])
        raise UserError(
            f"pair.edits={path}: {pluralize(len(bad), 'line')} cannot be used:\n{shown}\n"
            "  Mend them, or take them out: a pair that no line names is kept."
        )


def applied(
    pairs: pl.DataFrame, edits: Iterable[Row], tokenise: Tokenise
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, list[int]]]:
    """The pairs after the edits, what was dropped, and the tokens of every new text by its new id."""
    rows = {(row["chosen_id"], row["rejected_id"]): row for row in pairs.iter_rows(named=True)}
    made: dict[str, list[int]] = {}
    dropped = []
    for number, edit in enumerate(edits, 1):
        key = (edit["chosen_id"], edit["rejected_id"])
        if key not in rows:
            raise UserError(
                f"pair.edits, line {number}: no pair has chosen_id {key[0]} and rejected_id {key[1]}.\n"
                "  Edits hold for the pairs they were written from: strop edit RUN writes those of a run."
            )
        row = rows[key]
        match edit["action"]:
            case "keep":
                _unchanged(number, edit, row)
            case "drop":
                dropped.append(
                    {
                        **rows.pop(key),
                        "reason": "dropped by hand",
                        "detail": str(edit.get("why", "")),
                    }
                )
            case "swap":
                rows[key] = _swapped(row)
            case "replace":
                rows[key] = _replaced(number, edit, row, tokenise, made)
    left = pl.DataFrame(list(rows.values()), schema=pairs.schema)
    gone = pl.DataFrame(dropped, schema={**pairs.schema, "reason": pl.String, "detail": pl.String})
    return left, as_dropped("pair", gone), made


def _unchanged(number: int, edit: Row, row: Row) -> None:
    if changed := [side for side in SIDES if side in edit and edit[side] != row[f"{side}_text"]]:
        raise UserError(
            f"pair.edits, line {number}: the text of {' and '.join(changed)} is another one, and its action is keep.\n"
            '  Write "action": "replace" to train on the new text.'
        )


def _swapped(row: Row) -> Row:
    """A person's verdict against the scores': there is no margin that says by how much."""
    other = dict(zip(SIDES, reversed(SIDES), strict=True))
    turned = {
        name: row[name.replace(side, other[side], 1)]
        for side in SIDES
        for name in row
        if name.startswith(side)
    }
    return {**row, **turned, "margin": None}


def _replaced(
    number: int, edit: Row, row: Row, tokenise: Tokenise, made: dict[str, list[int]]
) -> Row:
    changed: list[str] = [
        side for side in SIDES if edit.get(side, row[f"{side}_text"]) != row[f"{side}_text"]
    ]
    texts: dict[str, Any] = {side: edit.get(side, row[f"{side}_text"]) for side in SIDES}
    if not changed or not all(isinstance(text, str) and text.strip() for text in texts.values()):
        raise UserError(
            f"pair.edits, line {number}: replace needs a new text as chosen or rejected, and neither may be empty."
        )
    if texts["chosen"] == texts["rejected"]:
        raise UserError(f"pair.edits, line {number}: chosen and rejected would be the same text.")
    new = dict(row)
    for side in changed:
        ids = tokenise(row["prompt_id"], texts[side])
        name = hash_json([EDITED, row[f"{side}_id"], texts[side]])[:16]
        made[name] = ids
        new |= {
            f"{side}_id": name,
            f"{side}_text": texts[side],
            f"{side}_tokens": len(ids),
            f"{side}_score": None,
        }
    return {**new, **dict.fromkeys(changed), "margin": None, "origin": EDITED}
