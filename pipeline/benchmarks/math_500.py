"""Whether an answer to a problem of MATH has the known result, by the scorer `math`.

lm-eval's own tasks for MATH-500 do not serve chat models: hendrycks_math500 takes all text between
the first and the last dollar sign for the result, and minerva_math500 needs another antlr than
Hydra.
"""

from functools import cache
from typing import Any

from pipeline.config import CheckRuntime, MathScorer
from pipeline.scorers import Answer, Check
from pipeline.scorers.math_answer import make_check


def check_result(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """1 or 0. A comparison that takes too long is wrong, as in the published figures."""
    answer = Answer("", "", [], answers[0], {"answer": doc["answer"]})
    try:
        return {"math_verify": _open_check()(answer)[""]}
    except TimeoutError:
        return {"math_verify": 0.0}


@cache
def _open_check() -> Check:
    runtime = CheckRuntime(workers=1)
    return make_check(
        MathScorer(kind="math", column="answer", seconds=5, gold=False, runtime=runtime)
    )
