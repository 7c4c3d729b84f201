"""Whether a baseline's file of published answers can be read and answers what it is asked.

It is opened after all training; its faults are known from the first.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.artifacts import Prompts
from pipeline.backends import Message
from pipeline.config import (
    AnswersFile,
    EvaluationQuestions,
    FilePrompts,
    HubPrompts,
    InstructionPrompts,
    PlaygroundPrompts,
    PromptRows,
    SampleRequest,
)
from pipeline.data.published_answers import (
    describe_other_questions,
    describe_unanswered,
    find_answer,
    list_questions,
    read_published_answers,
)
from pipeline.errors import UserError, run_all
from pipeline.preflight.rows import is_read_here, is_small, list_sets
from pipeline.sampling.asking import build_messages
from pipeline.step import Part, Step


def list_answer_checks(step: Step) -> Iterator[Callable[[], object]]:
    match step.config:
        case SampleRequest(backend=AnswersFile() as answers) as cfg if _can_be_read(answers):
            part = step.inputs.get("prompts")
            prompts = _read_given(part.step, part.part) if isinstance(part, Part) else None
            yield partial(_check_answered, step.knob, cfg, answers, prompts)


def check_answers(made: Step, folder: Path, coming: Iterable[Step]) -> None:
    """As soon as prompts are built: those that are generated or on the hub are read only here."""
    run_all(_list_built_checks(made, folder, coming))


def _list_built_checks(
    made: Step, folder: Path, coming: Iterable[Step]
) -> Iterator[Callable[[], object]]:
    for step in coming:
        match step.config:
            case SampleRequest(backend=AnswersFile() as answers) as cfg if _can_be_read(answers):
                part = step.inputs.get("prompts")
                if not isinstance(part, Part) or part.step is not made:
                    continue
                if (folder / part.part / "prompts.parquet").exists():
                    from pipeline.sampling.prompt_selection import select_block  # loads polars

                    prompts = select_block(cfg, Prompts(folder / part.part))["prompt"].to_list()
                    yield partial(_check_answered, step.knob, cfg, answers, prompts, are_all=True)


def _can_be_read(answers: AnswersFile) -> bool:
    return all(is_small(file) for file in (answers.file, answers.questions) if file is not None)


def _check_answered(
    knob: str,
    cfg: SampleRequest,
    answers: AnswersFile,
    prompts: list[list[Message]] | None,
    are_all: bool = False,
) -> None:
    """`prompts`: at least those that are asked, and these alone with `are_all`; None: not known."""
    found = read_published_answers(answers, knob)
    if prompts is None:
        return
    asked = [
        list_questions(build_messages(setting, prompt))
        for prompt in prompts
        for setting in cfg.settings.values()
    ]
    unanswered = [questions for questions in asked if find_answer(found, questions) is None]
    if len(unanswered) == len(asked):
        raise UserError(describe_other_questions(answers, knob, len(found)))
    limit = cfg.runtime.max_failed
    if are_all and len(unanswered) > limit * len(asked):
        raise UserError(describe_unanswered(knob, answers, unanswered, len(asked), limit))


def _read_given(step: Step, part: str) -> list[list[Message]] | None:
    """The prompts that a part is taken from, or None if they are not read before they are built."""
    from pipeline.data.prompts import read_prompts

    rows, knob, on_bad_row = _find_rows(step, part)
    if rows is None or not is_read_here(rows.source):
        return None
    with suppress(UserError):  # the check of these rows reports it
        return read_prompts(rows, knob, on_bad_row).rows["prompt"].to_list()
    return None


def _find_rows(step: Step, part: str) -> tuple[PromptRows | None, str, str]:
    """The rows that a part is taken from, their knob, and what a bad row does."""
    match step.config:
        case EvaluationQuestions(rows=rows):
            return rows, step.knob, "fail"
        case FilePrompts() | HubPrompts() | PlaygroundPrompts() | InstructionPrompts() as cfg:
            is_own = isinstance(dict(cfg.split).get(part), int)
            knob = "prompts" if is_own else f"prompts.split.{part}"
            on_bad_row = cfg.on_bad_row if is_own and isinstance(cfg, FilePrompts) else "fail"
            return list_sets(cfg).get(knob), knob, on_bad_row
    return None, "", "fail"
