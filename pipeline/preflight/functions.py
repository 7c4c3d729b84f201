"""A user's own function, called before anything is built, or as soon as its prompts are.

A fault in it would show only after the sampling, which may take hours. It is called in a separate
process, as the stage calls it, and by a plan as well: whatever it does elsewhere, a run does with
every prompt.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from pipeline.config import FunctionScorer, ScoreConfig
from pipeline.data.prompt_checks import PromptSummary
from pipeline.errors import UserError, collect_faults, make_printable
from pipeline.preflight.scorers import check_scorer, exists
from pipeline.scorers import Answer
from pipeline.scorers.function import UserFunction, build_arguments

# Nothing is sampled yet. Two, since a function may compare a prompt's answers.
MADE_UP_ANSWERS = "This is a made-up answer.", "And this is another one."
MAX_CALL = 1000  # characters of the call that a message repeats


def list_functions(knob: str, cfg: ScoreConfig) -> Iterator[tuple[str, FunctionScorer]]:
    """The functions whose faults count. max_failed=1 allows every score to fail."""
    for name, scorer in cfg.scorers.items():
        if isinstance(scorer, FunctionScorer) and cfg.max_failed < 1:
            yield f"{knob}.scorers.{name}", scorer


def check_call(knob: str, scorer: FunctionScorer, prompts: PromptSummary) -> None:
    """Refuse a function that raises, or gives no number, for a prompt of the user's.

    A made-up prompt would lack the columns that the function reads.
    """
    file = scorer.function.file
    is_missing = file is not None and not exists(file)
    if is_missing or collect_faults([partial(check_scorer, knob, scorer)]):
        return  # it has its own error
    answers = [
        Answer(text, "", prompts.first["prompt"], text, prompts.first["columns"])
        for text in MADE_UP_ANSWERS
    ]
    with closing(UserFunction(scorer, knob)) as function:
        scores = list(function.score(answers))
    if faults := [one.detail for one in scores if one.score is None and not one.abstained]:
        column = explain_taken(faults[0], prompts.taken)
        raise UserError(
            f"{knob}.function={scorer.function}: {faults[0]}. It was called with a prompt of yours"
            " and two made-up answers:\n"
            f"  {describe_call(scorer.function.name, build_arguments(answers))}\n"
            "  It has to give a number for any answer, or None for no opinion. Fix it; that call in"
            f" Python repeats the fault.{column}"
        )


def explain_taken(fault: str, taken: Sequence[str]) -> str:
    """Where a function asks by its column's name for the prompt itself, how it gets it."""
    asked = next((name for name in taken if f"'{name}'" in fault), None)
    if asked is None:
        return ""
    return (
        f"\n  Your column {asked} became the prompt: take the argument prompts instead, and read"
        " prompt[-1]['content'] of each."
    )


def describe_call(name: str, arguments: dict[str, Any]) -> str:
    words = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return make_printable(f"{name}({words})", MAX_CALL)
