"""A judge says which step of a wrong solution is the first wrong one."""

from collections.abc import Sequence
from string import ascii_uppercase

from pipeline.scorers.judging import JudgeRequest
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.parsing import Verdict

NONE = "0"  # every step is right
MAX_STEPS = len(ascii_uppercase)


def build_request(judge: CachedJudge, question: str, steps: Sequence[str]) -> JudgeRequest:
    """Steps have letters, which differ in their first token as numbers above 9 do not."""
    letters = ascii_uppercase[: len(steps)]
    lettered = (f"[{letter}] {step.strip()}" for letter, step in zip(letters, steps, strict=True))
    judged = {"question": question, "answer": "\n\n".join(lettered)}
    return judge.template.build_request(judged, (*letters, NONE))


def find_judged_step(verdict: Verdict) -> int | None:
    """The number of the first wrong step, from 0; None: all are right, or the judge is torn."""
    label = verdict.label
    return None if label in (None, NONE) else ascii_uppercase.index(label)
