"""Whether an answer follows IFEval's verifiable instructions, by lm-eval's 25 checkers.

It reads the columns `instruction_id_list` and `kwargs` as IFEval's own file has them. The checkers
draw at random what a prompt leaves open, and guess languages by sampling. Both are seeded before
each answer, so that a verdict repeats exactly.
"""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec, module_from_spec
from io import StringIO
from typing import Any

from pipeline.config import IfevalScorer
from pipeline.errors import UserError, suggest
from pipeline.scorers import Answer, Check

# These two split text with nltk's model of English, which nltk downloads separately.
NEED_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
NO_PUNKT = """\
nltk's data punkt_tab is not on this machine, and {asked} needs it.
  Fetch it once: python -m nltk.downloader punkt_tab (with NLTK_DATA=FOLDER for a folder of yours).
  Then run the same command again."""


def make_check(cfg: IfevalScorer) -> Check:
    """The share of instructions followed.

    The criteria are this share and the whole prompt, strict and loose.
    """
    checkers = _load_checkers()
    punkt = has_punkt()

    def check_instructions(answer: Answer) -> dict[str, float]:
        names = answer.columns["instruction_id_list"]
        if not punkt and (needing := NEED_PUNKT.intersection(names)):
            raise UserError(NO_PUNKT.format(asked=min(needing)))
        with _seed_random():
            strict, loose = _judge_instructions(checkers, answer)
        shares = {
            "instruction_strict": sum(strict) / len(strict),
            "instruction_loose": sum(loose) / len(loose),
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
        }
        return {"": shares[f"instruction_{cfg.reading}"], **shares}

    return check_instructions


def has_punkt() -> bool:
    try:
        import_nltk().data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True


def _load_checkers() -> dict[str, Any]:
    import langdetect

    tasks = find_spec("lm_eval.tasks")
    assert tasks is not None
    # Not executed: the package's __init__ would load datasets and much else.
    package = module_from_spec(tasks)
    with block_download(), substitute_packages({"lm_eval.tasks": package}):
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    langdetect.DetectorFactory.seed = 0
    return INSTRUCTION_DICT


@contextmanager
def block_download() -> Iterator[None]:
    """Importing the checkers downloads nltk's data unasked, and says so even if it did not."""
    nltk = import_nltk()
    download, nltk.download = nltk.download, lambda *_: False
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        nltk.download = download


def import_nltk() -> Any:
    """Without scipy and sklearn, which it would load for parts that no checker uses."""
    # A None in sys.modules makes the import of that package fail.
    with substitute_packages({"scipy": None, "sklearn": None}):
        import nltk
    return nltk


@contextmanager
def substitute_packages(packages: Mapping[str, Any]) -> Iterator[None]:
    """Put these in the place of packages that are not imported yet.

    Afterwards they are removed again, with their submodules.
    """
    ours = {name: package for name, package in packages.items() if name not in sys.modules}
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name in list(sys.modules):
            if any(f"{name}.".startswith(f"{substitute}.") for substitute in ours):
                del sys.modules[name]


@contextmanager
def _seed_random() -> Iterator[None]:
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


def _judge_instructions(checkers: dict[str, Any], answer: Answer) -> tuple[list[bool], list[bool]]:
    """For each instruction, whether the answer follows it, strictly and loosely.

    Loosely: the answer or one of its trimmed variants does.
    """
    names, arguments = answer.columns["instruction_id_list"], answer.columns["kwargs"]
    if not names or len(names) != len(arguments):
        raise ValueError(
            f"{len(names)} instructions and {len(arguments)} kwargs: each needs its own"
        )
    readings = [answer.completion], [answer.completion, *trim_variants(answer.completion)]
    # The published program builds its checkers anew for the loose reading, which draws again what a
    # prompt leaves open, such as a letter to count in place of `#`. So the loose verdict may differ
    # from the strict one.
    strict, loose = (
        [
            _follows_any(_build_checker(checkers, name, kwargs, answer), texts)
            for name, kwargs in zip(names, arguments, strict=True)
        ]
        for texts in readings
    )
    return strict, loose


def _build_checker(
    checkers: dict[str, Any], name: str, kwargs: dict[str, Any], answer: Answer
) -> Any:
    if name not in checkers:
        raise ValueError(
            f"{name} is none of IFEval's instructions. {suggest(name, list(checkers))}"
        )
    checker = checkers[name](name)
    checker.build_description(**{key: value for key, value in kwargs.items() if value})
    if "prompt" in (checker.get_instruction_args() or {}):
        checker.build_description(prompt=answer.prompt[-1]["content"])
    return checker


def _follows_any(checker: Any, texts: list[str]) -> bool:
    return any(text.strip() and checker.check_following(text) for text in texts)


def trim_variants(text: str) -> list[str]:
    """What the loose reading tries as well as the text itself.

    It is the text without its first line, its last, both; and each of these without asterisks.
    """
    lines = text.split("\n")
    parts = [text, *("\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1]))]
    variants = dict.fromkeys([*parts, *(part.replace("*", "") for part in parts)])
    return [variant for variant in variants if variant != text]
