"""Answers as benchmarks publish them, by question: AlpacaEval, FastChat (MT-Bench), Arena-Hard."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.config import AnswersFile
from pipeline.data.readers import Row, read_files
from pipeline.errors import UserError, pluralize

ID_NAMES = "question_id", "uid"
SHOWN = 60  # characters of a question, in a message
REFERENCE_COLUMN = "reference"  # of a question, with its reference answers
SHAPES = (
    '{"instruction": …, "output": …} (AlpacaEval), {"question_id" or "uid": …, "choices":'
    ' [{"turns": […]}]} (FastChat, Arena-Hard v0.1) or {"uid": …, "messages": […]} (Arena-Hard v2)'
)

Question = str | tuple[str]  # its text, or its number in a tuple


def read_published_answers(cfg: AnswersFile, knob: str) -> dict[str, list[str]]:
    """The answers to each first question, one for each turn. The first row of a question counts."""
    questions = _read_questions(Path(cfg.questions)) if cfg.questions else {}
    found: dict[str, list[str]] = {}
    for where, question, answers in _read_answers(cfg.file, f"{knob}.file"):
        if isinstance(question, str):
            found.setdefault(question.strip(), answers)
        elif (text := questions.get(question[0])) is not None:
            found.setdefault(text.strip(), answers)
        elif cfg.questions is None:
            raise UserError(
                f"{knob}.file={cfg.file}: {where}: it names its question by {question[0]} alone.\n"
                f"  Give the file of the questions: {knob}.questions=FILE."
            )
    if not found:
        where = f"none of its questions is in {cfg.questions}" if cfg.questions else ""
        raise UserError(
            f"{knob}.file={cfg.file}: {where or 'it holds no answer'}.\n"
            f"  Expected rows such as {SHAPES}."
        )
    return found


def list_questions(messages: Sequence[Mapping[str, str]]) -> list[str]:
    """What the user asks in a prompt, turn by turn."""
    return [message["content"] for message in messages if message["role"] == "user"]


def find_answer(answers: Mapping[str, list[str]], asked: Sequence[str]) -> str | None:
    """The answer to the last of these turns: answers are found by the first."""
    found = answers.get(asked[0].strip(), []) if asked else []
    return found[len(asked) - 1] if 0 < len(asked) <= len(found) else None


def describe_other_questions(cfg: AnswersFile, knob: str, count: int) -> str:
    """The error where none of the `count` answered questions is asked."""
    return (
        f"{knob}.file={cfg.file}: none of its {count} questions is among the prompts that it is"
        " compared on.\n"
        "  Give the answers of this evaluation's own prompts, or this benchmark's questions as"
        " prompts.evaluation."
    )


def describe_unanswered(
    knob: str, cfg: AnswersFile, unanswered: list[list[str]], asked: int, limit: float
) -> str:
    """The error where too many of `asked` questions have no answer."""
    first = next(chain(*unanswered), "")[:SHOWN]
    return (
        f"{knob}.file={cfg.file}: {len(unanswered)} of the {pluralize(asked, 'prompt')} that it is"
        f" compared on have no answer in it (the first: {first!r}). The limit is"
        f" evaluate.sample.runtime.max_failed={limit:g}.\n"
        f"  Add these answers, raise the limit, or leave this baseline out (~{knob})."
    )


def read_reference_answers(file: str, knob: str) -> dict[str, list[str]]:
    """The answers, one for each turn, by the text of the first question or by its number."""
    found: dict[str, list[str]] = {}
    for _, question, answers in _read_answers(file, knob):
        found.setdefault(question.strip() if isinstance(question, str) else question[0], answers)
    return found


def _read_answers(file: str, knob: str) -> Iterator[tuple[str, Question, list[str]]]:
    """Where each row is, its question and its answers."""
    for where, fault, row in read_files(Path(file).expanduser()):
        parsed = None if fault else _parse_answers(row)
        if parsed is None:
            raise UserError(
                f"{knob}={file}: {where}: {fault or 'no answer is found in it'}.\n"
                f"  Expected rows such as {SHAPES}."
            )
        yield where, *parsed


def _parse_answers(row: Row) -> tuple[Question, list[str]] | None:
    match row:
        case {"instruction": str(question), "output": str(answer)}:
            return question, [answer]
        case {"messages": [*messages]}:
            written = [*_list_messages(messages)]
            asked = [text for role, text in written if role == "user"]
            replies = [text for role, text in written if role == "assistant"]
            return (asked[0], replies) if asked and replies else None
        case {"choices": [{"turns": [*turns]}, *_]}:
            texts = [text for text in map(_find_text, turns) if text is not None]
            number = find_question_id(row)
            return ((number,), texts) if number and len(texts) == len(turns) > 0 else None
    return None


def _list_messages(messages: list[Any]) -> Iterator[tuple[str, str]]:
    for message in messages:
        if isinstance(message, dict) and (text := _find_text(message.get("content"))) is not None:
            yield str(message.get("role")), text


def _find_text(value: Any) -> str | None:
    """A text, or what holds one: `{"content": …}`, `{"answer": …}`."""
    match value:
        case str():
            return value
        case {"answer": str(text)} | {"content": str(text)}:
            return text
    return None


def find_question_id(row: Row) -> str | None:
    """The number by which published files name a question."""
    return next((str(row[name]) for name in ID_NAMES if row.get(name) is not None), None)


def _read_questions(file: Path) -> dict[str, str]:
    questions: dict[str, str] = {}
    for _, fault, row in read_files(file.expanduser()):
        turns = row.get("turns")
        text = _find_text(turns[0] if isinstance(turns, list) and turns else row.get("prompt"))
        if not fault and text is not None and (number := find_question_id(row)):
            questions[number] = text
    return questions
