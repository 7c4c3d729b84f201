"""Solutions in steps, and the equations in them that are false."""

import pytest

from pipeline.data.solution_steps import find_false_equation, split_steps

NUMBERED = "Let us see.\nStep 1: 3 + 4 = 7.\nStep 2: 7 * 2 = 15.\nStep 3: The answer is 15."


def texts(text: str, by: str) -> list[str]:
    return [text[start:end] for start, end in split_steps(text, by)]


@pytest.mark.parametrize("by", ["numbered", "paragraphs", "lines"])
@pytest.mark.parametrize("text", [NUMBERED, "\n\nA\n\n\nB\nC\n", "A", "Step 1: A", " \n"])
def test_the_steps_together_are_the_text(text, by):
    found = texts(text, by)
    assert "".join(found) == (text if text.strip() else "")
    assert all(step.strip() for step in found)


def test_steps_begin_where_they_are_said_to():
    assert texts(NUMBERED, "numbered") == [
        "Let us see.\nStep 1: 3 + 4 = 7.\n",
        "Step 2: 7 * 2 = 15.\n",
        "Step 3: The answer is 15.",
    ]
    assert texts("## Step 1\nA\n**Step 2:** B", "numbered") == ["## Step 1\nA\n", "**Step 2:** B"]
    assert texts("A\nB\n\nC\n\n\nD", "paragraphs") == ["A\nB\n\n", "C\n\n\n", "D"]
    assert texts("A\nB\n\nC", "lines") == ["A\n", "B\n\n", "C"]
    assert texts("No step here.\n\nNone.", "numbered") == ["No step here.\n\nNone."]


@pytest.mark.parametrize(
    ("step", "false"),
    [
        ("So 3 + 4 = 8 apples.", "3 + 4 = 8"),
        ("She pays $1,200 - $300 = $800.", "1200 - 300 = 800"),
        ("\\(12 \\times 3 = 35\\)", "12 * 3 = 35"),
        ("12 x 3 = 36 and 36 / 5 = 7.3", "36 / 5 = 7.3"),
        ("2 + 3 = 5 = 4 + 2", "5 = 4 + 2"),
        ("x = 3 * (4 + 1) = 16", "3 * (4 + 1) = 16"),
        ("\\frac{9}{3} = 4", "((9)/(3)) = 4"),
        ("<<48/2=25>>25", "48/2 = 25"),
        ("**3 + 4 = 9**", "3 + 4 = 9"),
    ],
)
def test_an_equation_that_is_false_is_found(step, false):
    assert find_false_equation(step) == false


@pytest.mark.parametrize(
    "step",
    [
        "So 3 + 4 = 7 apples. 7 - 2 = 5.",
        "2x + 3 = 7, so 2x = 4 and x = 4 / 2 = 2.",
        "x + 3 + 4 = 10",
        "a - 3 + 4 = 10",
        "5 apples - 3 = 2",
        "f(3) = 3 * 2 = 6",
        "3 = -3",
        "10 / 3 = 3.33 and 2 / 3 = 0.666",
        "20% * 50 = 10",
        "3^2 + 1 = 10",
        "5! = 120 and 2 * 5! = 240",
        "- 3 + 4 = 7",
        "1. 3 + 4 = 7",
        "1 / 0 = 1",
        "n = 12",
        "2(3 + 4) = 14",
        "3 + 4 = 7m",
        "(" * 400 + "1 + 1 = 3",
    ],
)
def test_what_is_true_or_no_plain_arithmetic_passes(step):
    assert find_false_equation(step) is None
