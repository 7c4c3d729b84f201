"""The steps of a written solution, and the equations in a step that are false as arithmetic.

Only what has numbers on both sides is checked: `12 * 3 = 36`, not `2x + 3 = 7`.
"""

import ast
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

STEP_STARTS = {
    "numbered": r"(?m)^[ \t#*]*step[ \t]+\d+",
    "paragraphs": r"(?<=\n)\n+(?=\S)",
    "lines": r"\n+(?=[^\n])",
}
_REWRITES = [  # to one spelling of numbers and signs
    (r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\times|\\cdot|×|·|(?<=\d)\s*x\s*(?=\d)", "*"),
    (r"\\div|÷", "/"),
    (r"\u2212", "-"),
    (r"\\left|\\right|\\[,;! ]|\\?\$|\*\*|\\[()\[\]]", ""),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    (r"(?m)^\s*[-*•]\s+", ""),  # the mark of a list
]
_RUN = re.compile(r"[\d+\-*/()= \t.]+")
_OPERATOR = re.compile(r"\d[\s)]*[-+*/]")
_NUMBER = re.compile(r"-?\d+(?:\.(\d+))?")
# What touches a run makes its first or last side a part of something else: 2x, 50%, 3^2.
_TOUCHES = re.compile(r"[\w%^\\{}!]")
_OPERATORS = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: Fraction.__truediv__,
}


def split_steps(text: str, by: str) -> list[tuple[int, int]]:
    """Where each step begins and ends. Together they are the text; none is blank."""
    starts = [
        match.end() if by != "numbered" else match.start() for match in _find_starts(text, by)
    ]
    if by == "numbered":
        starts = starts[1:]  # what comes before the first one is a part of it
    bounds = [0, *(start for start in starts if text[:start].strip()), len(text)]
    return [(start, end) for start, end in pairwise(bounds) if text[start:end].strip()]


def find_step_end(text: str, at: int, by: str) -> int:
    """Where the step that continues from a place in a text ends."""
    ends = (end for start, end in split_steps(text, by) if text[max(start, at) : end].strip())
    return next((end for end in ends if end > at), len(text))


def _find_starts(text: str, by: str) -> Iterator[re.Match[str]]:
    return re.finditer(STEP_STARTS[by], text, re.IGNORECASE)


def find_false_equation(step: str) -> str | None:
    """The first equation of a step whose two sides are different numbers."""
    for pattern, spelling in _REWRITES:
        step = re.sub(pattern, spelling, step)
    for line in step.splitlines():
        for run in _RUN.finditer(line):
            for left, right in pairwise(_list_sides(line, run)):
                if _differ(left, right):
                    return f"{left.strip()} = {right.strip()}"
    return None


def _list_sides(line: str, run: re.Match[str]) -> list[str]:
    """The sides of a chain of equations; one that is a part of something else is empty."""
    sides = run.group().rstrip(" \t.").split("=")
    before, after = line[: run.start()], line[run.end() :]
    goes_on = before.strip() and sides[0].lstrip()[:1] in ("-", "+", "*", "/")
    if goes_on or (_TOUCHES.match(before[-1:]) and not run.group()[0].isspace()):
        sides[0] = ""
    if _TOUCHES.match(after[:1]) and run.group()[-1] not in " \t.":
        sides[-1] = ""
    return sides


def _differ(left: str, right: str) -> bool:
    a, b = evaluate(left), evaluate(right)
    if a is None or b is None or not any(_OPERATOR.search(side) for side in (left, right)):
        return False
    unit = max(_last_decimal(left), _last_decimal(right))
    return abs(a - b) >= unit if unit else a != b


def _last_decimal(side: str) -> Fraction:
    """Of a number with decimals, which may be rounded or cut off there; else 0."""
    number = _NUMBER.fullmatch(side.strip())
    return Fraction(1, 10 ** len(number[1])) if number and number[1] else Fraction(0)


def evaluate(side: str) -> Fraction | None:
    """The value of numbers, + - * / and brackets; None for anything else."""
    try:
        return _evaluate(ast.parse(side.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as value):
            return Fraction(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left), _evaluate(right))
        case _:
            raise ValueError("not arithmetic")
