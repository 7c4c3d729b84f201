"""Whether an answer's result equals the known one as mathematics, by math-verify: 1/2, 0.5 and \\frac{1}{2} are one."""

import logging
from typing import Any

from pipeline.config import MathScorer
from pipeline.scorers import Answer, Check


def check(cfg: MathScorer) -> Check:
    """1 or 0. An answer without a result is wrong; one that takes too long to compare could not be marked."""
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    limits = {"parsing_timeout": cfg.seconds, "raise_on_error": True}

    def expected(columns: dict[str, Any]) -> list[Any]:
        text = str(columns[cfg.column]).rpartition("####")[2].strip()  # GSM8K's column ends so
        found = parse(f"${text}$", **limits) or parse(text, **limits)
        if not found:
            raise ValueError(f"the column {cfg.column} holds no mathematics: {text!r}")
        return found

    def result(text: str) -> list[Any]:
        try:
            return parse(text, **limits)
        except Exception:  # what cannot be read as mathematics is no result; a timeout is another kind of exception
            return []

    def equal(answer: Answer) -> dict[str, float]:
        try:
            gold = expected(answer.columns)
            return {"": float(verify(gold, result(answer.completion), timeout_seconds=cfg.seconds))}
        except TimeoutException as error:
            raise TimeoutError(f"math-verify took longer than {cfg.seconds} s") from error

    return equal
