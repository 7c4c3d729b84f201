"""A user's own function in the shape of TRL's reward functions: what scores here also rewards there.

It is called once per prompt, as TRL calls it: `prompts` and `completions` are lists of lists of messages, every column
of the prompt is a list of the same length. It returns a number for each; None means that it has no opinion.
"""

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import groupby
from types import ModuleType
from typing import Any

from pipeline.config import Function, FunctionScorer
from pipeline.errors import Refusal, nearest
from pipeline.plural import many
from pipeline.scorers import Answer, Mark


class UserFunction:
    def __init__(self, cfg: FunctionScorer, knob: str = "score.scorers.NAME"):
        self.cfg, self.knob = cfg, knob
        self._function: Callable[..., Any] | None = None

    def mark(self, answers: list[Answer]) -> Iterator[Mark]:
        self._function = self._function or load(self.cfg.function, self.knob)
        for _, candidates in groupby(answers, key=lambda answer: answer.prompt_id):
            yield from self._marks(self._function, list(candidates))

    def close(self) -> None:
        pass

    def _marks(self, function: Callable[..., Any], answers: list[Answer]) -> Iterator[Mark]:
        try:
            scores = list(function(**arguments(answers)))
        except (
            Exception,
            SystemExit,
        ) as error:  # a fault of the function costs its rows, not the run; they are counted
            yield from (Mark(answer.sample_id, None, detail=last_line(error)) for answer in answers)
            return
        if len(scores) != len(answers):
            detail = f"the function gave {many(len(scores), 'score')} for {many(len(answers), 'completion')}"
            yield from (Mark(answer.sample_id, None, detail=detail) for answer in answers)
            return
        for answer, score in zip(answers, scores, strict=True):
            yield marked(answer, score)


def marked(answer: Answer, score: Any) -> Mark:
    if score is None:
        return Mark(answer.sample_id, None, detail="the function has no opinion", abstained=True)
    try:
        number = float(score)
    except (TypeError, ValueError):
        return Mark(answer.sample_id, None, detail=f"the function gave {score!r}, which is no number")
    if not math.isfinite(number):
        return Mark(answer.sample_id, None, detail=f"the function gave {number}")
    return Mark(answer.sample_id, number)


def arguments(answers: list[Answer]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for answer in answers for name in answer.columns)
    return {
        "prompts": [answer.prompt for answer in answers],
        "completions": [[{"role": "assistant", "content": answer.completion}] for answer in answers],
        **{name: [answer.columns.get(name) for answer in answers] for name in names},
    }


def load(name: Function, knob: str = "score.scorers.NAME") -> Callable[..., Any]:
    try:
        module = _from_file(name.file) if name.file else importlib.import_module(name.place)
    except (Exception, SystemExit) as error:
        raise Refusal(
            f"{knob}.function={name}: {name.place} cannot be imported ({last_line(error)}).\n"
            "  Give ./file.py:name or package.module.name, and see that it imports by itself."
        ) from error
    function = getattr(module, name.name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise Refusal(f"{knob}.function={name}: {name.place} has no function {name.name}. {nearest(name.name, known)}")
    if inspect.iscoroutinefunction(function):
        raise Refusal(
            f"{knob}.function={name}: it is async, and functions are called one after the other. Give a plain one."
        )
    return function


def _from_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("user_scorer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what it defines, such as dataclasses, looks its module up
    spec.loader.exec_module(module)
    return module


def last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()
