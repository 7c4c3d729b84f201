"""Whether an answer's result equals the known one as mathematics, by math-verify.

1/2, 0.5 and \\frac{1}{2} are equal.
"""

import logging
from typing import Any

from pipeline.config import MathScorer
from pipeline.scorers import Answer, Check


def make_check(cfg: MathScorer) -> Check:
    """1 or 0.

    An answer without a result is wrong; one that takes too long to compare has no score.
    """
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    limits = {"parsing_timeout": cfg.seconds, "raise_on_error": True}

    def parse_gold(columns: dict[str, Any]) -> list[Any]:
        text = str(columns[cfg.column]).rpartition("####")[2].strip()  # GSM8K's column ends so
        gold = parse(f"${text}$", **limits) or parse(text, **limits)
        if not gold:
            raise ValueError(f"the column {cfg.column} holds no mathematics: {text!r}")
        return gold

    def parse_result(text: str) -> list[Any]:
        try:
            return parse(text, **limits)
        except Exception:  # it cannot be read as mathematics; a timeout is not an Exception
            return []

    def check_result(answer: Answer) -> dict[str, float]:
        try:
            gold = parse_gold(answer.columns)
            result = parse_result(answer.completion)
            return {"": float(verify(gold, result, timeout_seconds=cfg.seconds))}
        except TimeoutException as error:
            raise TimeoutError(f"math-verify took longer than {cfg.seconds} s") from error

    return check_result
