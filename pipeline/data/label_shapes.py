"""Other shapes of annotators' labels, turned into the rows that `label_files` describes.

Preferred answers; PandaLM's and LLMBar's files as published; Argilla's exports of the pairs of
`strop label`. Argilla's `records.to_json` nests the answers to a question.
`records.to_datasets()` and `to_list(flatten=True)` put the answers, their users and their status
into columns of lists, which a CSV holds as they are printed.
"""

import re
from collections.abc import Iterator
from typing import Any

from pipeline.errors import UserError, make_printable

Row = dict[str, Any]
PANDALM = {"instruction", "response1", "response2", "annotator1"}
LLMBAR = {"input", "output_1", "output_2", "label"}
ARGILLA = {"fields", "metadata", "responses"}
VERDICTS = {"0": "tie", "1": "a", "2": "b"}  # of the published files
ANSWERS, USERS, STATES = "verdict.responses", "verdict.responses.users", "verdict.responses.status"
WORD = r"""('[^'"]*'|"[^'"]*"|None)"""
# Python prints a list with commas, NumPy without.
PRINTED_LIST = re.compile(rf"\[\s*(?:{WORD}(?:\s*,\s*|\s+|(?=\])))*\]")


def convert_row(place: str, pair: str, row: Row) -> Iterator[Row]:
    """A row for each label. `pair` names the pair where its answers have no ids."""
    keys = row.keys()
    if keys >= ARGILLA:
        yield from _convert_record(place, row)
    elif questions := [name for name in keys if name.endswith(".responses")]:
        yield from _convert_flat_record(place, questions, row)
    elif keys >= PANDALM:
        yield from _convert_pandalm(place, pair, row)
    elif keys >= LLMBAR:
        texts = {"prompt": row["input"], "a": row["output_1"], "b": row["output_2"]}
        verdict = _parse_number(place, row["label"])
        yield {"pair": pair, "verdict": verdict, "annotator": "label", **texts}
    elif keys >= {"chosen_id", "rejected_id"} and not keys >= {"sample_id", "score"}:
        yield {**row, "a_id": row["chosen_id"], "b_id": row["rejected_id"], "verdict": "a"}
    else:
        yield row


def _convert_pandalm(place: str, pair: str, row: Row) -> Iterator[Row]:
    parts = (_to_text(row["instruction"]), _to_text(row.get("input")))
    texts = {
        "prompt": "\n\n".join(part for part in parts if part),
        "a": _to_text(row["response1"]),
        "b": _to_text(row["response2"]),
    }
    for name in row:
        if name.startswith("annotator"):
            verdict = _parse_number(place, row[name])
            yield {"pair": pair, "verdict": verdict, "annotator": name, **texts}


def _to_text(value: str | float | None) -> str:
    """PandaLM's file has NaN for an empty input, as pandas writes it."""
    return value if isinstance(value, str) else ""


def _parse_number(place: str, value: Any) -> str:
    if str(value) not in VERDICTS:
        shown = make_printable(repr(value), 40)
        raise UserError(
            f"{place}: a verdict is {shown}. Expected 1 or 2, the better answer, or 0 for a tie."
        )
    return VERDICTS[str(value)]


# ── Argilla ───────────────────────────────────────────────────────────────────────────────────────


def _convert_record(place: str, record: Row) -> Iterator[Row]:
    """A record is a pair, with the answers of all its annotators to the question `verdict`."""
    fields, metadata, responses = (record[name] for name in ("fields", "metadata", "responses"))
    if not all(isinstance(part, dict) for part in (fields, metadata, responses)):
        raise _unlike_argilla(place)
    questions = [name for name, answers in responses.items() if answers]
    if questions and "verdict" not in questions:
        raise _other_question(place, questions)
    answers = responses.get("verdict") or []
    if not isinstance(answers, list):
        raise _unlike_argilla(place)
    for answer in answers:
        if not isinstance(answer, dict) or not {"value", "user_id"} <= answer.keys():
            raise _unlike_argilla(place)
        yield {**fields, **metadata, "verdict": answer["value"], "annotator": answer["user_id"]}


def _unlike_argilla(place: str) -> UserError:
    return UserError(f"{place}: it is not as records.to_json writes it. Export the records again.")


def _other_question(place: str, questions: list[str]) -> UserError:
    return UserError(
        f"{place}: its question is {', '.join(questions)}, not verdict."
        " Name the dataset's question verdict, with the labels a, b and tie."
    )


def _convert_flat_record(place: str, questions: list[str], row: Row) -> Iterator[Row]:
    """A row per submitted answer. A draft or a discarded one is not a verdict."""
    if ANSWERS not in row:
        raise _other_question(place, [name.removesuffix(".responses") for name in questions])
    answers, users = _read_list(place, row, ANSWERS), _read_list(place, row, USERS)
    states = _read_list(place, row, STATES) if row.get(STATES) else ["submitted"] * len(answers)
    if not len(answers) == len(users) == len(states):
        raise UserError(
            f"{place}: it has {len(answers)} {ANSWERS}, {len(users)} {USERS} and"
            f" {len(states)} {STATES}; as many of each were expected."
            " Export the records again, best with records.to_json."
        )
    for verdict, annotator, state in zip(answers, users, states, strict=True):
        if state in ("submitted", None):
            yield {**row, "verdict": verdict, "annotator": annotator}


def _read_list(place: str, row: Row, name: str) -> list[str | None]:
    """A list of words, also as it is printed in a cell."""
    value = row.get(name) or []
    if isinstance(value, list):
        return value
    if not isinstance(value, str) or not PRINTED_LIST.fullmatch(value.strip()):
        raise UserError(
            f"{place}: {name}={str(value)[:40]} is not a list of words"
            " as Argilla's records have them.\n"
            "  Export them as JSON, which holds lists: dataset.records.to_json('records.json')."
        )
    return [None if word == "None" else word[1:-1] for word in re.findall(WORD, value)]
