"""Corrections by a person: `keep`, `drop`, `swap` or `replace` a pair, named by its two ids.

A pair that no line names is kept.
"""

from collections.abc import Callable, Iterable
from typing import Any

import polars as pl

from pipeline.data.jsonl import describe_faults
from pipeline.errors import UserError, pluralize, suggest
from pipeline.hashing import hash_json
from pipeline.pairing.selection import EDITED, to_dropped

ACTIONS = ["keep", "drop", "swap", "replace"]
IDS = "chosen_id", "rejected_id"
SIDES = "chosen", "rejected"
BY_HAND = {"margin": None, "p_chosen": 1.0}  # once a person overrules the scores
Row = dict[str, Any]
Tokenise = Callable[[str, str], list[int]]  # prompt id, new text → its tokens


def find_fault(row: Row) -> str | None:
    if absent := [name for name in ("action", *IDS) if not isinstance(row.get(name), str)]:
        return (
            f"no {', '.join(absent)};"
            " expected action (keep, drop, swap or replace), chosen_id and rejected_id"
        )
    if row["action"] in ACTIONS:
        return None
    return f"action {row['action']!r}: {suggest(row['action'], ACTIONS)}"


def keep_typed(row: Row) -> Row:
    """What a person may have typed. The texts of a line are the model's unless it replaces them."""
    if row["action"] == "replace":
        return row
    return {name: row[name] for name in row if name not in SIDES}


def check_lines(knob: str, path: str, bad: list[tuple[int, str]]) -> None:
    if bad:
        faults = describe_faults((f"line {number}", fault) for number, fault in bad)
        raise UserError(
            f"{knob}={path}: {pluralize(len(bad), 'line')} cannot be used:\n{faults}\n"
            "  Fix them, or take them out: a pair that no line names is kept."
        )


def apply_edits(
    knob: str, pairs: pl.DataFrame, edits: Iterable[Row], tokenise: Tokenise, ranked: bool = False
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, list[int]]]:
    """The pairs after the edits, the dropped ones, and the tokens of each new text by its new
    id.

    `ranked`: an edited chosen answer is also chosen over the one that it replaces, and that pair
    stays.
    """
    rows = {(row["chosen_id"], row["rejected_id"]): row for row in pairs.iter_rows(named=True)}
    new_tokens: dict[str, list[int]] = {}
    dropped, ranking = [], dict[tuple[str, str], list[Row]]()
    for number, edit in enumerate(edits, 1):
        key, place = (edit["chosen_id"], edit["rejected_id"]), f"{knob}, line {number}"
        if key not in rows:
            raise UserError(
                f"{place}: no pair has chosen_id {key[0]}"
                f" and rejected_id {key[1]}.\n"
                "  Edits hold for the pairs they were written from:"
                f" strop edit RUN {knob.rpartition('.')[2]} writes those of this round."
            )
        row = rows[key]
        match edit["action"]:
            case "keep":
                _check_unchanged(place, edit, row)
            case "drop":
                reason = {"reason": "dropped by hand", "detail": str(edit.get("why", ""))}
                dropped.append({**rows.pop(key), **reason})
            case "swap":
                rows[key] = _swap_sides(row)
            case "replace":
                rows[key] = new = _replace_texts(place, edit, row, tokenise, new_tokens)
                if ranked and new["chosen_id"] != row["chosen_id"]:
                    ranking[key] = [row, _put_over_chosen(new, row)]
    every = [one for key, row in rows.items() for one in (row, *ranking.get(key, ()))]
    kept = pl.DataFrame(every, schema=pairs.schema)
    gone = pl.DataFrame(dropped, schema={**pairs.schema, "reason": pl.String, "detail": pl.String})
    return kept, to_dropped("pair", gone), new_tokens


def _check_unchanged(place: str, edit: Row, row: Row) -> None:
    if changed := [side for side in SIDES if side in edit and edit[side] != row[f"{side}_text"]]:
        raise UserError(
            f"{place}: the text of {' and '.join(changed)} is another one,"
            " and its action is keep.\n"
            '  Write "action": "replace" to train on the new text.'
        )


def _swap_sides(row: Row) -> Row:
    """The pair as a person judges it."""
    other = dict(zip(SIDES, reversed(SIDES), strict=True))
    swapped = {}
    for side in SIDES:
        for name in row:
            if name.startswith(side):
                swapped[name] = row[name.replace(side, other[side], 1)]
    return {**row, **swapped, **BY_HAND}


def _put_over_chosen(new: Row, row: Row) -> Row:
    """A pair of an edited answer and the chosen one that it was made of."""
    columns = [name for name in row if name.startswith("chosen")]
    return {**new, **{name.replace("chosen", "rejected", 1): row[name] for name in columns}}


def _replace_texts(
    place: str, edit: Row, row: Row, tokenise: Tokenise, new_tokens: dict[str, list[int]]
) -> Row:
    texts: dict[str, Any] = {side: edit.get(side, row[f"{side}_text"]) for side in SIDES}
    changed: list[str] = [side for side in SIDES if texts[side] != row[f"{side}_text"]]
    if not changed or not all(isinstance(text, str) and text.strip() for text in texts.values()):
        raise UserError(
            f"{place}: replace needs a new text as chosen or rejected, and neither may be empty."
        )
    if texts["chosen"] == texts["rejected"]:
        raise UserError(f"{place}: chosen and rejected would be the same text.")
    new = dict(row)
    for side in changed:
        ids = tokenise(row["prompt_id"], texts[side])
        name = hash_json([EDITED, row[f"{side}_id"], texts[side]])[:16]
        new_tokens[name] = ids
        new |= {
            f"{side}_id": name,
            f"{side}_text": texts[side],
            f"{side}_tokens": len(ids),
            f"{side}_score": None,
            f"{side}_source": EDITED,
        }
    return {**new, **dict.fromkeys(changed), **BY_HAND, "origin": EDITED}
