"""Offline preferences in common shapes; each row becomes pairs and unpaired answers, or a fault.

A pair: `prompt` (messages), `chosen`, `rejected` (texts), `chosen_score`, `rejected_score`,
`p_chosen`, `weight` (or None). An unpaired answer: `prompt`, `completion`, `label`. An answer that
calls tools is a list of its turns (`tool_turns`), which each model's chat template writes in its
own form.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.config import HubRows, PreferenceRows
from pipeline.data.jsonl import RESULT, Lines, advise_on_bad_rows, describe_faults, find_unwritable
from pipeline.data.prompt_shapes import convert_turns
from pipeline.data.readers import Row, RowFault, read_rows
from pipeline.data.tool_turns import (
    Answer,
    add_tools,
    is_answer,
    pack_messages,
    split_answer,
    to_answer,
    to_text,
)
from pipeline.errors import UserError, make_printable, pluralize, suggest

Messages = list[dict[str, str]]


def read_preferences(cfg: PreferenceRows, knob: str = "offline") -> Lines:
    """Rows `{"row": number, "pairs": [...], "unpaired": [...]}`, and the broken ones by number.

    `on_bad_row: fail` refuses the file where there are broken ones.
    """
    rows, count = read_rows(cfg.source, knob), 0
    shape: str = cfg.shape
    if shape == "columns" and not cfg.columns:
        raise UserError(
            f"{knob}.shape=columns: {knob}.columns says nothing."
            " Give {prompt: …, chosen: …, rejected: …}."
        )
    found = Lines()
    for count, (_, fault, row) in enumerate(rows, start=1):
        try:
            if fault:
                raise RowFault(fault)
            shape = shape if shape != "auto" else detect_shape(row, knob)
            converted = convert_row(cfg, shape, row)
            if fault := find_unwritable(converted):
                raise RowFault(f"its prompt or an answer {fault}")
            found.rows.append({"row": count, **converted})
        except RowFault as error:
            found.bad.append((count, make_printable(str(error))))
    if found.bad and cfg.on_bad_row == "fail":
        raise UserError(_bad_rows_error(cfg, found, count, shape, knob))
    return found


def _bad_rows_error(cfg: PreferenceRows, found: Lines, rows: int, shape: str, knob: str) -> str:
    source = cfg.source
    name = f"dataset={source.dataset}" if isinstance(source, HubRows) else f"path={source.path}"
    total = pluralize(rows, "row")
    head = f"{knob}.source.{name}: {len(found.bad)} of {total} cannot be used (read as {shape}):"
    faults = describe_faults((f"row {number}", fault) for number, fault in sorted(found.bad))
    read_by = f"say by {knob}.shape and {knob}.columns how to read them"
    advice = advise_on_bad_rows(len(found.rows), f"{knob}.on_bad_row", read_by)
    return "\n".join([head, faults, advice])


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────


def detect_shape(row: Row, knob: str = "offline") -> str:
    """By the columns alone. A text as `chosen` without a prompt is a transcript."""
    columns = set(row)
    if _is_conversation(row):
        return "conversation"
    if {"chosen_response", "rejected_response"} <= columns:
        return "argilla"
    if {"question", "chosen", "rejected"} <= columns:
        return "intel"
    if {"chosen", "rejected"} <= columns:
        return "hh" if "prompt" not in columns and isinstance(row["chosen"], str) else "trl"
    if _find_lists(row) is not None:
        return "scored"
    if {"prompt", "completion", "label"} <= columns:
        return "unpaired"
    names = make_printable(", ".join(sorted(columns))) or "(none)"
    raise UserError(
        f"{knob}.shape=auto: no known shape has the columns {names}.\n"
        f"  Give {knob}.shape=columns {knob}.columns={{prompt: …, chosen: …, rejected: …}},"
        " with this file's own names."
    )


def convert_row(cfg: PreferenceRows, shape: str, row: Row) -> Row:
    if shape == "columns":
        row = _rename_columns(cfg, row)
        shape = detect_shape(row)
    pairs, unpaired = SHAPES[shape](cfg, row)
    for part in [*pairs, *unpaired] if row.get("tools") else []:
        part["prompt"] = add_tools(part["prompt"], row["tools"])
    for pair in pairs:
        _check_prompt(pair["prompt"])
        for side in ("chosen", "rejected"):
            if not to_text(pair[side]).strip():
                raise RowFault(f"{side} is empty")
        if pair["chosen"] == pair["rejected"]:
            raise RowFault("chosen and rejected are the same text")
    for answer in unpaired:
        _check_prompt(answer["prompt"])
        if not to_text(answer["completion"]).strip():
            raise RowFault("the answer is empty")
    return {"pairs": pairs, "unpaired": unpaired}


Converted = tuple[list[Row], list[Row]]  # pairs, and unpaired answers


def convert_trl(cfg: PreferenceRows, row: Row) -> Converted:
    """Standard, conversational, or with the prompt inside both answers.

    ultrafeedback_binarized has the prompt both ways.
    """
    chosen, rejected = _read_side(row, "chosen"), _read_side(row, "rejected")
    prompt = None
    if row.get("prompt") is not None:
        prompt = _read_prompt(row["prompt"], row.get("system"))
    if isinstance(chosen, str) or isinstance(rejected, str):
        if prompt is None or not (isinstance(chosen, str) and isinstance(rejected, str)):
            raise RowFault("chosen and rejected are not both messages, and the row has no prompt")
        return [_make_pair(prompt, chosen, rejected, row)], []
    shared, answers = _split_common(chosen, rejected)
    differs = prompt is not None and shared and shared != prompt
    if differs and _user_turns(shared) != _user_turns(prompt or []):
        raise RowFault("the prompt is another one than the one inside chosen and rejected")
    if not (shared := shared or prompt or []):
        raise RowFault("no prompt comes before the answers")
    return [_make_pair(shared, *answers, row)], []


def convert_argilla(cfg: PreferenceRows, row: Row) -> Converted:
    scores = {"chosen_score": "chosen_avg_rating", "rejected_score": "rejected_avg_rating"}
    row = {**row, **{ours: row.get(theirs, row.get(ours)) for ours, theirs in scores.items()}}
    prompt = _read_prompt(_require(row, "instruction"), row.get("system"))
    chosen, rejected = (_require_text(row, f"{s}_response") for s in ("chosen", "rejected"))
    return [_make_pair(prompt, chosen, rejected, row)], []


def convert_intel(cfg: PreferenceRows, row: Row) -> Converted:
    prompt = _read_prompt(_require(row, "question"), row.get("system"))
    chosen, rejected = (_require_text(row, side) for side in ("chosen", "rejected"))
    return [_make_pair(prompt, chosen, rejected, row)], []


def convert_hh(cfg: PreferenceRows, row: Row) -> Converted:
    chosen, rejected = (parse_transcript(_require_text(row, s)) for s in ("chosen", "rejected"))
    prompt, answers = _split_common(chosen, rejected)
    return [_make_pair(prompt, *answers, row)], []


def convert_conversation(cfg: PreferenceRows, row: Row) -> Converted:
    """All turns in one column. Two answers follow them, or a label of the last turn.

    A turn is {role, content}, as for axolotl, or {from, value}, as for LLaMA-Factory.
    """
    name = next((name for name in TURNS if row.get(name) is not None), TURNS[0])
    turns = _read_prompt(_read_turns(_require(row, name), name), row.get("system"))
    if "chosen" in row:
        chosen, rejected = (_read_answer(row, side) for side in ("chosen", "rejected"))
        return [_make_pair(turns, chosen, rejected, row)], []
    prompt, answer = _split_last(turns, name)
    return [], [_make_unpaired(prompt, answer, _read_label(row))]


def convert_scored(cfg: PreferenceRows, row: Row) -> Converted:
    """The best against the worst of a list; and, where asked, every answer with its label."""
    names = _find_lists(row)
    if names is None:
        raise RowFault(
            "no answers with their scores (responses and rewards,"
            " or all_generated_responses and all_rm_scores)"
        )
    texts, scores = row[names[0]], row[names[1]]
    if not isinstance(texts, list) or not isinstance(scores, list) or len(texts) != len(scores):
        raise RowFault(f"{names[0]} and {names[1]} are not two lists of one length")
    numbers = [_parse_number(score) for score in scores]
    known = [(n, text) for n, text in zip(numbers, texts, strict=True) if n is not None]
    if not known or not all(isinstance(text, str) for _, text in known):
        raise RowFault("no answer has a score")
    prompt = _read_prompt(_require(row, "prompt"), row.get("system"))
    unpaired: list[Row] = []
    if (threshold := cfg.unpaired_threshold) is not None:
        unpaired = [_make_unpaired(prompt, text, score >= threshold) for score, text in known]
    best, worst = max(known, key=lambda one: one[0]), min(known, key=lambda one: one[0])
    if best[0] == worst[0]:
        if unpaired:
            return [], unpaired
        raise RowFault("all answers score alike")
    pair_scores = {"chosen_score": best[0], "rejected_score": worst[0]}
    return [_make_pair(prompt, best[1], worst[1], pair_scores)], unpaired


def convert_unpaired(cfg: PreferenceRows, row: Row) -> Converted:
    label = _read_label(row)
    prompt = _read_prompt(_require(row, "prompt"), row.get("system"))
    completion = _read_side(row, "completion")
    answer = completion
    if not isinstance(completion, str):
        _, answer = _split_last(completion, "completion")
    return [], [_make_unpaired(prompt, answer, label)]


SHAPES: Mapping[str, Callable[[PreferenceRows, Row], Converted]] = {
    "trl": convert_trl,
    "conversation": convert_conversation,
    "argilla": convert_argilla,
    "intel": convert_intel,
    "hh": convert_hh,
    "scored": convert_scored,
    "unpaired": convert_unpaired,
}


# ── parts of a row ───────────────────────────────────────────────────────────────────────────────

TURNS = "conversations", "messages", "prompt"  # columns that may hold all turns
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
_ROLE = {"Human": "user", "Assistant": "assistant"}
_SCORES = (("chosen_score", "score_chosen"), ("rejected_score", "score_rejected"))
_OTHERS = "p_chosen", "weight"  # of a pair
_LISTS = (
    ("all_generated_responses", "all_rm_scores"),
    ("responses", "rewards"),
    ("responses", "scores"),
)


def parse_transcript(text: str) -> Messages:
    """`\\n\\nHuman: …\\n\\nAssistant: …` as messages."""
    pieces = _TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise RowFault("not a transcript that begins with Human:")
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": _ROLE[speaker], "content": text.strip()} for speaker, text in turns]


def _rename_columns(cfg: PreferenceRows, row: Row) -> Row:
    """By the user's own map. The columns that it gives tell the shape."""
    if absent := [theirs for theirs in cfg.columns.values() if theirs not in row]:
        raise RowFault(f"no column {', '.join(absent)}. {suggest(absent[0], list(row))}")
    return {name: row[theirs] for name, theirs in cfg.columns.items()}


def _make_pair(prompt: Messages, chosen: Answer, rejected: Answer, row: Row) -> Row:
    scores = {}
    for ours, theirs in _SCORES:
        scores[ours] = _parse_number(row.get(ours, row.get(theirs)))
    others = {name: _parse_number(row.get(name)) for name in _OTHERS}
    if (probability := others["p_chosen"]) is not None and not 0 <= probability <= 1:
        raise RowFault(f"its p_chosen is {probability:g}, and a probability is from 0 to 1")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **scores, **others}


def _parse_number(value: Any) -> float | None:
    """A finite float; 10**400 is an int that no float can hold."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _make_unpaired(prompt: Messages, answer: Answer, label: bool) -> Row:
    return {"prompt": prompt, "completion": answer, "label": label}


def _read_prompt(value: Any, system: Any = None) -> Messages:
    if isinstance(value, str):
        messages = [{"role": "user", "content": value}]
    else:
        messages = _read_messages(value, "prompt")
    if isinstance(system, str) and system.strip():
        return [{"role": "system", "content": system}, *messages]
    return messages


def _read_messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise RowFault(f"{name} is neither text nor a list of messages")
    try:
        turns = pack_messages(value)
    except RowFault as fault:
        raise RowFault(f"{name}: {fault}") from None
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _read_side(row: Row, name: str) -> str | Messages:
    value = _require(row, name)
    return value if isinstance(value, str) else _read_messages(value, name)


def _read_turns(value: Any, name: str) -> Any:
    """A list of sharegpt's turns as messages; any other value as it is."""
    turns = value if isinstance(value, list) else []
    is_sharegpt = any(isinstance(turn, dict) and "from" in turn for turn in turns)
    return convert_turns(turns, name) if is_sharegpt else value


def _read_answer(row: Row, name: str) -> Answer:
    """An answer that is a text, or one message."""
    value = _require(row, name)
    if isinstance(value, str):
        return value
    return _split_last(_read_messages(_read_turns([value], name), name), name)[1]


def _read_label(row: Row) -> bool:
    label = _require(row, "label")
    if label not in (True, False, 0, 1):
        raise RowFault(f"label is {label!r}; expected true or false")
    return bool(label)


def _is_conversation(row: Row) -> bool:
    """Whether all turns are in one column, and an answer is one message or has a label."""
    if "rejected" in row and isinstance(row.get("chosen"), dict):
        return True
    has_turns = "prompt" not in row and not {"conversations", "messages"}.isdisjoint(row)
    is_labelled = "label" in row and "completion" not in row
    return has_turns and (is_labelled or isinstance(row.get("chosen"), str))


def _split_common(chosen: Messages, rejected: Messages) -> tuple[Messages, tuple[Answer, Answer]]:
    """The turns that both sides share, and their two answers."""
    shared, chosen_answer = _split_last(chosen, "chosen")
    theirs, rejected_answer = _split_last(rejected, "rejected")
    if shared != theirs:
        raise RowFault("chosen and rejected differ before their last turn")
    return shared, (chosen_answer, rejected_answer)


def _split_last(messages: Messages, name: str) -> tuple[Messages, Answer]:
    """The turns before the last, and the last, which is the assistant's."""
    prompt, answer = split_answer(messages)
    if not is_answer(answer):
        raise RowFault(f"the last turn of {name} is not the assistant's")
    return prompt, to_answer(answer)


def _require(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise RowFault(f"no {name} (it has: {', '.join(sorted(row))})")
    return row[name]


def _require_text(row: Row, name: str) -> str:
    if not isinstance(value := _require(row, name), str):
        raise RowFault(f"{name} is not text")
    return value


def _find_lists(row: Row) -> tuple[str, str] | None:
    return next((names for names in _LISTS if set(names) <= set(row)), None)


def _user_turns(messages: Messages) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


def _check_prompt(messages: Messages) -> None:
    if not messages or messages[-1]["role"] not in ("user", RESULT):
        raise RowFault("the turn before the answer is not the user's or a tool's")
    if messages[-1]["role"] == "user" and not messages[-1]["content"].strip():
        raise RowFault("the prompt is empty")
