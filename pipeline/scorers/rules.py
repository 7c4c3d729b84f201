"""Scores that need no model: pure functions of one answer, `{"": overall, criterion: part}`.

A check that cannot read its columns raises; a bad answer never does. Slow checks run in several
processes: the scores and their order do not depend on how many.
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

from pipeline.config import (
    CheckScorer,
    CodeScorer,
    IfevalScorer,
    MathScorer,
    RefusalScorer,
    RuleScorer,
)
from pipeline.errors import StageError, UserError
from pipeline.scorers import Answer, Check, Score, refusal, text_rules
from pipeline.scorers.unseen_constraints import check_unseen_constraints

Columns = dict[str, Any]

CHUNK = 64  # answers that a process receives at a time
# A process takes 3 seconds to start for IFEval; fewer answers than these are checked by then.
MIN_ANSWERS_FOR_PROCESSES = 512


class Rules:
    def __init__(self, cfg: CheckScorer, knob: str = "score.scorers.NAME"):
        self.cfg, self.knob = cfg, knob
        self.workers = count_workers(cfg)
        self._check: Check | None = None
        self._processes: ProcessPoolExecutor | None = None

    def score(self, answers: list[Answer]) -> Iterator[Score]:
        """Processes begin at this call. Without them a score is made when it is read."""
        if self._needs_processes(len(answers)):
            return self._score_in_processes(answers)
        return self._score_here(answers)

    def close(self) -> None:
        if self._processes:
            self._processes.shutdown(cancel_futures=True)

    def _needs_processes(self, answers: int) -> bool:
        """Always off the main thread, where the alarm that limits a check's time cannot be set."""
        if self.workers is None:
            return False
        # Code takes longer than a process's start, answer by answer.
        threshold = 2 if isinstance(self.cfg, CodeScorer) else MIN_ANSWERS_FOR_PROCESSES
        off_main = threading.current_thread() is not threading.main_thread()
        return off_main or (self.workers > 1 and answers >= threshold)

    def _score_here(self, answers: list[Answer]) -> Iterator[Score]:
        self._check = self._check or make_check(self.cfg, self.knob)
        for answer in answers:
            yield from apply_check(self._check, answer)

    def _score_in_processes(self, answers: list[Answer]) -> Iterator[Score]:
        # spawn: a fork of a process with threads, such as polars', may deadlock
        self._processes = self._processes or ProcessPoolExecutor(
            self.workers,
            multiprocessing.get_context("spawn"),
            initializer=_open_check,
            initargs=(self.cfg, self.knob),
        )
        size = max(1, min(CHUNK, math.ceil(len(answers) / (4 * (self.workers or 1)))))
        chunks = [answers[i : i + size] for i in range(0, len(answers), size)]
        with explain_killed_process(self.cfg, self.knob):
            futures = [self._processes.submit(_score_chunk, chunk) for chunk in chunks]
            return _read_results(futures, self.cfg, self.knob)


def _read_results(
    futures: list[Future[list[Score]]], cfg: CheckScorer, knob: str
) -> Iterator[Score]:
    with explain_killed_process(cfg, knob):
        for future in futures:
            yield from future.result()


@contextmanager
def explain_killed_process(cfg: CheckScorer, knob: str) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise StageError(
            f"a process that checks answers ({cfg.kind}) was killed, perhaps for lack of memory."
            f" Give {knob}.runtime.workers=1 and run the same command again."
        ) from error


def count_workers(cfg: CheckScorer) -> int | None:
    """How many processes check; None where sending an answer to one takes longer than its check."""
    if not isinstance(cfg, IfevalScorer | MathScorer | CodeScorer):
        return None
    if cfg.runtime.workers != "auto":
        return cfg.runtime.workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_checks: list[Check] = []  # the one check of a process that was started to check


def _open_check(cfg: CheckScorer, knob: str) -> None:
    _checks.append(make_check(cfg, knob))


def _score_chunk(answers: list[Answer]) -> list[Score]:
    return [score for answer in answers for score in apply_check(_checks[0], answer)]


def make_check(cfg: CheckScorer, knob: str = "score.scorers.NAME") -> Check:
    match cfg:
        case RuleScorer():
            rule = RULES[cfg.rule]
            return lambda answer: rule(answer.completion, answer.columns)
        case IfevalScorer():
            from pipeline.scorers import ifeval

            return ifeval.make_check(cfg)
        case MathScorer():
            from pipeline.scorers import math_answer

            return math_answer.make_check(cfg)
        case CodeScorer():
            from pipeline.scorers import code

            return code.make_check(cfg, knob)
        case RefusalScorer():
            return refusal.make_check(cfg)
        case _:
            return text_rules.make_check(cfg, knob)


def apply_check(check: Check, answer: Answer) -> Iterator[Score]:
    try:
        scores = check(answer)
    except UserError:
        raise
    except Exception as error:  # a rule's fault costs one score, not the run; it is counted
        yield Score(answer.sample_id, None, detail=f"{type(error).__name__}: {error}")
        return
    for criterion, score in scores.items():
        if math.isfinite(score):
            yield Score(answer.sample_id, float(score), criterion)
        else:
            yield Score(answer.sample_id, None, criterion, f"the rule gave {score}")


def check_playground(completion: str, columns: Columns) -> dict[str, float]:
    """The share of the prompt's constraints that the answer obeys, and 0 or 1 for each.

    Without words it obeys none.
    """
    text = completion.strip()
    has_words = re.search(r"\w", text) is not None
    scores = {
        constraint["kind"]: float(has_words and _is_obeyed(constraint, text))
        for constraint in columns["constraints"]
    }
    return {"": sum(scores.values()) / len(scores), **scores}


def _is_obeyed(constraint: Columns, text: str) -> bool:
    match constraint["kind"]:
        case "sentences":
            return len(_split_sentences(text)) == constraint["count"] and text[-1] in ".!?"
        case "mention":
            return _has_word(text, constraint["word"])
        case "open":
            return re.match(rf"{re.escape(constraint['word'])}\b", text, re.IGNORECASE) is not None
        case "close":
            return _split_sentences(text)[-1].casefold() == constraint["sentence"].casefold()
        case "avoid":
            return not _has_word(text, constraint["word"])
        case "lower":
            return text == text.lower()
        case kind:
            raise ValueError(f"no rule checks a constraint of kind {kind!r}")


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _split_sentences(text: str) -> list[str]:
    """A sentence ends with . ! or ? before a space or the end.

    What follows the last of them is one more.
    """
    return [part for part in re.split(r"(?<=[.!?])\s+", text) if part]


RULES = {"playground": check_playground, "unseen_constraints": check_unseen_constraints}
