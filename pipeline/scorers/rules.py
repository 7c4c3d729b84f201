"""Scores that need no model: pure functions of one answer, `{"": whole, criterion: part}`.

A check that cannot read its columns raises; a bad answer never does. Slow checks run in processes of their own: the
marks are the same and in the same order, however many there are.
"""

import math
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from pipeline.config import CheckScorer, CodeScorer, IfevalScorer, MathScorer, RuleScorer
from pipeline.errors import StageError, UserError
from pipeline.scorers import Answer, Check, Score, text_rules

Columns = dict[str, Any]

CHUNK = 64  # answers that a process is given at once
WORTH_IT = 512  # fewer answers of a shard are checked before a process has started (3 seconds for IFEval's)


class Rules:
    def __init__(self, cfg: CheckScorer, knob: str = "score.scorers.NAME"):
        self.cfg, self.knob = cfg, knob
        self.workers = workers_of(cfg)
        self._check: Check | None = None
        self._processes: ProcessPoolExecutor | None = None

    def mark(self, answers: list[Answer]) -> Iterator[Score]:
        """Processes begin with these answers at this call; without them each mark is made when it is asked for."""
        return (
            self._marked_elsewhere(answers)
            if self._needs_processes(len(answers))
            else self._marked_here(answers)
        )

    def close(self) -> None:
        if self._processes:
            self._processes.shutdown(cancel_futures=True)

    def _needs_processes(self, answers: int) -> bool:
        """Off the main thread always: there the alarm that limits a check's time cannot be set."""
        if self.workers is None:
            return False
        least = (
            2 if isinstance(self.cfg, CodeScorer) else WORTH_IT
        )  # code takes longer than that, answer by answer
        off_main = threading.current_thread() is not threading.main_thread()
        return off_main or (self.workers > 1 and answers >= least)

    def _marked_here(self, answers: list[Answer]) -> Iterator[Score]:
        self._check = self._check or check_of(self.cfg, self.knob)
        for answer in answers:
            yield from marks_of(self._check, answer)

    def _marked_elsewhere(self, answers: list[Answer]) -> Iterator[Score]:
        # spawn: a fork of a process with threads, such as polars', may never wake up
        self._processes = self._processes or ProcessPoolExecutor(
            self.workers,
            multiprocessing.get_context("spawn"),
            initializer=_open,
            initargs=(self.cfg, self.knob),
        )
        size = max(1, min(CHUNK, math.ceil(len(answers) / (4 * (self.workers or 1)))))
        parts = [answers[i : i + size] for i in range(0, len(answers), size)]
        with all_alive(self.cfg, self.knob):
            return _drawn(
                [self._processes.submit(_marked, part) for part in parts], self.cfg, self.knob
            )


def _drawn(parts: list[Future[list[Score]]], cfg: CheckScorer, knob: str) -> Iterator[Score]:
    with all_alive(cfg, knob):
        for part in parts:
            yield from part.result()


@contextmanager
def all_alive(cfg: CheckScorer, knob: str) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise StageError(
            f"a process that checks answers ({cfg.kind}) was killed, perhaps for want of memory."
            f" Give {knob}.runtime.workers=1 and run the same command again."
        ) from error


def workers_of(cfg: CheckScorer) -> int | None:
    """How many processes check, or None where a check is quicker than handing an answer over."""
    if not isinstance(cfg, IfevalScorer | MathScorer | CodeScorer):
        return None
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return cores if cfg.runtime.workers == "auto" else cfg.runtime.workers


_opened: list[Check] = []  # the check of a process that was started to check


def _open(cfg: CheckScorer, knob: str) -> None:
    _opened.append(check_of(cfg, knob))


def _marked(answers: list[Answer]) -> list[Score]:
    return [mark for answer in answers for mark in marks_of(_opened[0], answer)]


def check_of(cfg: CheckScorer, knob: str = "score.scorers.NAME") -> Check:
    match cfg:
        case RuleScorer():
            rule = RULES[cfg.rule]
            return lambda answer: rule(answer.completion, answer.columns)
        case IfevalScorer():
            from pipeline.scorers import ifeval

            return ifeval.check(cfg)
        case MathScorer():
            from pipeline.scorers import math_answer

            return math_answer.check(cfg)
        case CodeScorer():
            from pipeline.scorers import code

            return code.check(cfg, knob)
        case _:
            return text_rules.check(cfg, knob)


def marks_of(check: Check, answer: Answer) -> Iterator[Score]:
    try:
        scores = check(answer)
    except UserError:
        raise
    except Exception as error:  # a rule's fault must cost one score, not the run; it is counted
        yield Score(answer.sample_id, None, detail=f"{type(error).__name__}: {error}")
        return
    for criterion, score in scores.items():
        if math.isfinite(score):
            yield Score(answer.sample_id, float(score), criterion)
        else:
            yield Score(answer.sample_id, None, criterion, f"the rule gave {score}")


def playground(completion: str, columns: Columns) -> dict[str, float]:
    """The share of the prompt's constraints that the answer obeys, and 0 or 1 for each. No words: nothing is obeyed."""
    text = completion.strip()
    empty = not re.search(r"\w", text)
    marks = {c["kind"]: 0.0 if empty else float(_obeys(text, c)) for c in columns["constraints"]}
    return {"": sum(marks.values()) / len(marks), **marks}


def _obeys(text: str, constraint: Columns) -> bool:
    match constraint["kind"]:
        case "sentences":
            return len(_sentences(text)) == constraint["count"] and text[-1] in ".!?"
        case "mention":
            return _has_word(text, constraint["word"])
        case "open":
            return re.match(rf"{re.escape(constraint['word'])}\b", text, re.IGNORECASE) is not None
        case "close":
            return _sentences(text)[-1].casefold() == constraint["sentence"].casefold()
        case "avoid":
            return not _has_word(text, constraint["word"])
        case "lower":
            return text == text.lower()
        case kind:
            raise ValueError(f"no rule checks a constraint of kind {kind!r}")


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _sentences(text: str) -> list[str]:
    """A sentence ends with . ! or ? before a space or the end; what follows the last such mark is one more."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text) if part]


RULES = {"playground": playground}
