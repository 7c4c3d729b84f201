"""Offline preferences in the shapes people have, each row turned into pairs and thumbs of one form, or into its fault.

A pair: `prompt` (messages), `chosen`, `rejected` (texts), `chosen_score`, `rejected_score` (or None).
A thumb: `prompt`, `completion`, `label`.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.config import HubRows, PreferenceRows
from pipeline.data.jsonl import Lines, message_fault, unwritable
from pipeline.data.readers import Fault, Row, each_row
from pipeline.errors import UserError, make_printable, pluralize, suggest

Messages = list[dict[str, str]]
SHOWN = 10


def read_preferences(cfg: PreferenceRows, knob: str = "offline") -> Lines:
    """Rows `{"pairs": [...], "thumbs": [...]}` with the broken ones by number; `on_bad_row: fail` refuses them."""
    rows, count = each_row(cfg.source, knob), 0
    shape: str = cfg.shape
    if shape == "columns" and not cfg.columns:
        raise UserError(
            f"{knob}.shape=columns: {knob}.columns says nothing. Give {{prompt: …, chosen: …, rejected: …}}."
        )
    found = Lines()
    for count, (_, fault, row) in enumerate(rows, start=1):
        try:
            if fault:
                raise Fault(fault)
            shape = shape if shape != "auto" else shape_of(row, knob)
            made = converted(cfg, shape, row)
            if fault := unwritable(made):
                raise Fault(f"its prompt or an answer {fault}")
            found.rows.append({"row": count, **made})
        except Fault as known:
            found.bad.append((count, make_printable(str(known))))
    if found.bad and cfg.on_bad_row == "fail":
        source = (
            f"dataset={cfg.source.dataset}"
            if isinstance(cfg.source, HubRows)
            else f"path={cfg.source.path}"
        )
        raise UserError(_refused(found, count, shape, f"{knob}.source.{source}", knob))
    return found


def _refused(found: Lines, rows: int, shape: str, source: str, knob: str) -> str:
    first = [f"  row {number}: {fault}" for number, fault in sorted(found.bad)[:SHOWN]]
    more = [f"  … and {len(found.bad) - SHOWN} more"] if len(found.bad) > SHOWN else []
    head = (
        f"{source}: {len(found.bad)} of {pluralize(rows, 'row')} cannot be used (read as {shape}):"
    )
    return "\n".join(
        [head, *first, *more, f"  Mend them, or skip and count them with {knob}.on_bad_row=skip."]
    )


# ── shapes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def shape_of(row: Row, knob: str = "offline") -> str:
    """By columns alone; transcripts are told from other texts by their first words."""
    has = set(row)
    if {"chosen_response", "rejected_response"} <= has:
        return "argilla"
    if {"question", "chosen", "rejected"} <= has:
        return "intel"
    if {"chosen", "rejected"} <= has:
        return "hh" if "prompt" not in has and isinstance(row["chosen"], str) else "trl"
    if _lists(row) is not None:
        return "scored"
    if {"prompt", "completion", "label"} <= has:
        return "thumbs"
    raise UserError(
        f"{knob}.shape=auto: no known shape has the columns {make_printable(', '.join(sorted(has))) or '(none)'}.\n"
        f"  Give {knob}.shape=columns {knob}.columns={{prompt: …, chosen: …, rejected: …}}, with this file's own names."
    )


def converted(cfg: PreferenceRows, shape: str, row: Row) -> Row:
    pairs, thumbs = SHAPES[shape](cfg, row)
    for pair in pairs:
        _check_prompt(pair["prompt"])
        for side in ("chosen", "rejected"):
            if not pair[side].strip():
                raise Fault(f"{side} is empty")
        if pair["chosen"] == pair["rejected"]:
            raise Fault("chosen and rejected are the same text")
    for thumb in thumbs:
        _check_prompt(thumb["prompt"])
        if not thumb["completion"].strip():
            raise Fault("the answer is empty")
    return {"pairs": pairs, "thumbs": thumbs}


Converted = tuple[list[Row], list[Row]]


def trl(cfg: PreferenceRows, row: Row) -> Converted:
    """Standard, conversational, or with the prompt inside both answers; ultrafeedback_binarized writes it twice."""
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    prompt = _prompt(row["prompt"], row.get("system")) if row.get("prompt") is not None else None
    if isinstance(chosen, str) or isinstance(rejected, str):
        if prompt is None or not (isinstance(chosen, str) and isinstance(rejected, str)):
            raise Fault(
                "chosen and rejected are not both messages, and there is no prompt beside them"
            )
        return [_pair(prompt, chosen, rejected, row)], []
    asked, answers = _common(chosen, rejected)
    if prompt is not None and asked and asked != prompt and _users(asked) != _users(prompt):
        raise Fault("the prompt is another one than the one inside chosen and rejected")
    if not (asked := asked or prompt or []):
        raise Fault("there is no prompt before the answers")
    return [_pair(asked, *answers, row)], []


def argilla(cfg: PreferenceRows, row: Row) -> Converted:
    scores = {"chosen_score": "chosen_avg_rating", "rejected_score": "rejected_avg_rating"}
    row = {**row, **{ours: row.get(theirs, row.get(ours)) for ours, theirs in scores.items()}}
    prompt = _prompt(_needed(row, "instruction"), row.get("system"))
    return [_pair(prompt, _text(row, "chosen_response"), _text(row, "rejected_response"), row)], []


def intel(cfg: PreferenceRows, row: Row) -> Converted:
    prompt = _prompt(_needed(row, "question"), row.get("system"))
    return [_pair(prompt, _text(row, "chosen"), _text(row, "rejected"), row)], []


def hh(cfg: PreferenceRows, row: Row) -> Converted:
    chosen, rejected = (transcript(_text(row, side)) for side in ("chosen", "rejected"))
    asked, answers = _common(chosen, rejected)
    return [_pair(asked, *answers, row)], []


def scored(cfg: PreferenceRows, row: Row) -> Converted:
    """The best against the worst of a list; and, where asked, every answer with its thumb."""
    names = _lists(row)
    if names is None:
        raise Fault(
            "no answers with their scores (responses and rewards, or all_generated_responses and all_rm_scores)"
        )
    texts, scores = row[names[0]], row[names[1]]
    if not isinstance(texts, list) or not isinstance(scores, list) or len(texts) != len(scores):
        raise Fault(f"{names[0]} and {names[1]} are not two lists of one length")
    known = [
        (score, t) for t, s in zip(texts, scores, strict=True) if (score := _number(s)) is not None
    ]
    if not known or not all(isinstance(text, str) for _, text in known):
        raise Fault("no answer has a score")
    prompt = _prompt(_needed(row, "prompt"), row.get("system"))
    thumbs = (
        []
        if cfg.thumbs_at is None
        else [_thumb(prompt, text, score >= cfg.thumbs_at) for score, text in known]
    )
    best, worst = max(known, key=lambda one: one[0]), min(known, key=lambda one: one[0])
    if best[0] == worst[0]:
        if thumbs:
            return [], thumbs
        raise Fault("all answers score alike")
    return [
        _pair(prompt, best[1], worst[1], {"chosen_score": best[0], "rejected_score": worst[0]})
    ], thumbs


def thumbs(cfg: PreferenceRows, row: Row) -> Converted:
    label = _needed(row, "label")
    if label not in (True, False, 0, 1):
        raise Fault(f"label is {label!r}; expected true or false")
    prompt, completion = (
        _prompt(_needed(row, "prompt"), row.get("system")),
        _side(row, "completion"),
    )
    text = completion if isinstance(completion, str) else _last(completion, "completion")
    return [], [_thumb(prompt, text, bool(label))]


def columns(cfg: PreferenceRows, row: Row) -> Converted:
    """By the user's own map; what it gives says which of our shapes it is."""
    if absent := [theirs for theirs in cfg.columns.values() if theirs not in row]:
        raise Fault(f"no column {', '.join(absent)}. {suggest(absent[0], list(row))}")
    ours = {name: row[theirs] for name, theirs in cfg.columns.items()}
    return SHAPES[shape_of(ours)](cfg, ours)


SHAPES: Mapping[str, Callable[[PreferenceRows, Row], Converted]] = {
    "trl": trl,
    "argilla": argilla,
    "intel": intel,
    "hh": hh,
    "scored": scored,
    "thumbs": thumbs,
    "columns": columns,
}


# ── their parts ───────────────────────────────────────────────────────────────────────────────────────────────────

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
_ROLE = {"Human": "user", "Assistant": "assistant"}
_SCORES = ("chosen_score", "score_chosen"), ("rejected_score", "score_rejected")
_LISTS = (
    ("all_generated_responses", "all_rm_scores"),
    ("responses", "rewards"),
    ("responses", "scores"),
)


def transcript(text: str) -> Messages:
    """`\\n\\nHuman: …\\n\\nAssistant: …` as messages."""
    pieces = _TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise Fault("not a transcript that begins with Human:")
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": _ROLE[who], "content": said.strip()} for who, said in turns]


def _pair(prompt: Messages, chosen: str, rejected: str, row: Row) -> Row:
    scores = {}
    for ours, theirs in _SCORES:
        scores[ours] = _number(row.get(ours, row.get(theirs)))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **scores}


def _number(value: Any) -> float | None:
    """A score that a float can hold; 10**400 is a whole number and none of those."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _thumb(prompt: Messages, text: str, label: bool) -> Row:
    return {"prompt": prompt, "completion": text, "label": label}


def _prompt(value: Any, system: Any = None) -> Messages:
    messages = (
        [{"role": "user", "content": value}]
        if isinstance(value, str)
        else _messages(value, "prompt")
    )
    return (
        [{"role": "system", "content": system}, *messages]
        if isinstance(system, str) and system.strip()
        else messages
    )


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise Fault(f"{name} is neither text nor a list of messages")
    if fault := message_fault(value):
        raise Fault(f"{name}: {fault}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _side(row: Row, name: str) -> str | Messages:
    value = _needed(row, name)
    return value if isinstance(value, str) else _messages(value, name)


def _common(chosen: Messages, rejected: Messages) -> tuple[Messages, tuple[str, str]]:
    """The turns before the two answers, which both sides share."""
    answers = _last(chosen, "chosen"), _last(rejected, "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise Fault("chosen and rejected differ before their last turn")
    return chosen[:-1], answers


def _last(messages: Messages, name: str) -> str:
    if messages[-1]["role"] != "assistant":
        raise Fault(f"the last turn of {name} is not the assistant's")
    return messages[-1]["content"]


def _needed(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise Fault(f"no {name} (it has: {', '.join(sorted(row))})")
    return row[name]


def _text(row: Row, name: str) -> str:
    if not isinstance(value := _needed(row, name), str):
        raise Fault(f"{name} is not text")
    return value


def _lists(row: Row) -> tuple[str, str] | None:
    return next((names for names in _LISTS if set(names) <= set(row)), None)


def _users(messages: Messages) -> Iterator[str] | list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


def _check_prompt(messages: Messages) -> None:
    if not messages or messages[-1]["role"] != "user":
        raise Fault("the turn before the answer is not the user's")
    if not messages[-1]["content"].strip():
        raise Fault("the prompt is empty")
