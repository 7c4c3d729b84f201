"""What a function can return or raise: each answer gets one score or a reason that can be kept."""

import decimal
import fractions
import json
import math

import polars as pl
import pytest
from hypothesis import strategies as st

from pipeline.scorers import Answer
from pipeline.scorers.function import clean_detail, make_score
from pipeline.scorers.function_harness import call_function
from tests.faults.fuzzing import ODD_NUMBERS, briefly, for_a_while, texts, values

ANSWERS = [Answer(f"s{at}", "p", [], "text", {}) for at in range(2)]


class Odd:
    """Its methods raise or return what it was made with."""

    def __init__(self, does):
        self.does = does

    def _do(self, *_):
        if isinstance(self.does, BaseException):
            raise self.does
        return self.does

    __float__ = __repr__ = __str__ = __index__ = __len__ = __iter__ = __next__ = __bool__ = (
        __eq__
    ) = __hash__ = _do


EXCEPTIONS = [
    ValueError, SystemExit, KeyError, KeyboardInterrupt, MemoryError, GeneratorExit, StopIteration,
    RecursionError, OSError,
]  # fmt: skip
raised = st.builds(lambda kind, text: kind(text), st.sampled_from(EXCEPTIONS), texts)
objects = st.builds(Odd, raised | values)
numbers = (
    st.sampled_from(ODD_NUMBERS)
    | st.floats()
    | st.decimals()
    | st.fractions()
    | st.binary(max_size=3)
)
scores = (
    numbers
    | objects
    | values
    | st.builds(lambda e: type("Own", (Exception,), {"__str__": Odd._do, "does": e})(), raised)
)
given_back = st.lists(scores, min_size=2, max_size=2) | st.lists(scores, max_size=4) | scores


def told(value, raises) -> None:
    def function(**_):
        if raises:
            raise value if isinstance(value, BaseException) else Odd(value)  # type: ignore[misc]
        return value

    answer = json.loads(json.dumps(call_function(function, {"completions": [1, 2]})))
    if "scores" not in answer:
        fault = clean_detail(answer.get("fault", str(answer.get("count"))))
        assert fault and len(fault) <= 301
        pl.DataFrame({"detail": [fault]})
        return
    marks = [make_score(one, *score) for one, score in zip(ANSWERS, answer["scores"], strict=True)]
    columns = {"score": [mark.score for mark in marks], "detail": [mark.detail for mark in marks]}
    table = pl.DataFrame(columns, schema={"score": pl.Float64, "detail": pl.String})
    assert table.height == 2
    for mark in marks:
        assert (mark.score is None) == bool(mark.detail) and len(mark.detail) <= 301
        assert mark.score is None or math.isfinite(mark.score)


KINDS = {"value": given_back | raised, "raises": st.booleans()}


def test_anything_given_back_or_raised_is_a_score_or_a_reason():
    briefly(told, **KINDS)
    told([decimal.Decimal("0.5"), fractions.Fraction(1, 2)], False)


@pytest.mark.slow
def test_anything_given_back_or_raised_is_a_score_or_a_reason_for_a_while():
    for_a_while(told, **KINDS)
