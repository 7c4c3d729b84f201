"""Whether an answer follows IFEval's verifiable instructions, judged by lm-eval's 25 checkers.

It reads the columns `instruction_id_list` and `kwargs` as IFEval's own file has them. The checkers draw what a prompt
leaves open and guess languages by sampling: both are seeded before each answer, so a verdict repeats exactly.
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

# These two split text with nltk's model of English, which is data of its own.
NEED_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
NO_PUNKT = """\
nltk's data punkt_tab is not on this machine, and {asked} needs it.
  Fetch it once: python -m nltk.downloader punkt_tab (with NLTK_DATA=FOLDER, if it lies in a folder of yours).
  Then run the same command again."""


def check(cfg: IfevalScorer) -> Check:
    """The share of instructions followed; as criteria that share and the whole prompt, in both readings."""
    checkers = _checkers()
    punkt = has_punkt()

    def followed(answer: Answer) -> dict[str, float]:
        asked = answer.columns["instruction_id_list"]
        if not punkt and (needing := NEED_PUNKT.intersection(asked)):
            raise UserError(NO_PUNKT.format(asked=min(needing)))
        with _seeded():
            strict, loose = _verdicts(checkers, answer)
        found = {
            "instruction_strict": sum(strict) / len(strict),
            "instruction_loose": sum(loose) / len(loose),
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
        }
        return {"": found[f"instruction_{cfg.reading}"], **found}

    return followed


def has_punkt() -> bool:
    try:
        lean_nltk().data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True


def _checkers() -> dict[str, Any]:
    import langdetect

    tasks = find_spec("lm_eval.tasks")
    assert tasks is not None
    unopened = module_from_spec(tasks)  # its own first file would load datasets and much else
    with no_download(), standing_in({"lm_eval.tasks": unopened}):
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    langdetect.DetectorFactory.seed = 0
    return INSTRUCTION_DICT


@contextmanager
def no_download() -> Iterator[None]:
    """Importing the checkers would fetch nltk's data behind the user's back, and says so, fetched or not."""
    nltk = lean_nltk()
    download, nltk.download = nltk.download, lambda *_: False
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        nltk.download = download


def lean_nltk() -> Any:
    """Without the large packages that it takes when they are there, for parts that no checker uses."""
    with standing_in(
        {"scipy": None, "sklearn": None}
    ):  # importing a None says that it is not there
        import nltk
    return nltk


@contextmanager
def standing_in(packages: Mapping[str, Any]) -> Iterator[None]:
    """These are found in the place of packages that nobody has imported; they go again, with all beneath them."""
    ours = {name: package for name, package in packages.items() if name not in sys.modules}
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name in [
            name for name in sys.modules if any(f"{name}.".startswith(f"{of}.") for of in ours)
        ]:
            del sys.modules[name]


@contextmanager
def _seeded() -> Iterator[None]:
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


def _verdicts(checkers: dict[str, Any], answer: Answer) -> tuple[list[bool], list[bool]]:
    """Of each instruction, whether the answer follows it, and whether it or a trimmed one does (the loose reading)."""
    names, arguments = answer.columns["instruction_id_list"], answer.columns["kwargs"]
    if not names or len(names) != len(arguments):
        raise ValueError(
            f"{len(names)} instructions and {len(arguments)} kwargs: each needs its own"
        )
    readings = [answer.completion], [answer.completion, *trimmed(answer.completion)]
    # The published program builds its checkers anew for the loose reading. What a prompt leaves open, such as a letter
    # to count where the given one is none (`#`), is drawn again there, so the loose verdict may differ from the strict.
    strict, loose = (
        [
            _follows_any(_built(checkers, name, given, answer), texts)
            for name, given in zip(names, arguments, strict=True)
        ]
        for texts in readings
    )
    return strict, loose


def _built(checkers: dict[str, Any], name: str, given: dict[str, Any], answer: Answer) -> Any:
    if name not in checkers:
        raise ValueError(
            f"{name} is none of IFEval's instructions. {suggest(name, list(checkers))}"
        )
    one = checkers[name](name)
    one.build_description(**{key: value for key, value in given.items() if value})
    if "prompt" in (one.get_instruction_args() or {}):
        one.build_description(prompt=answer.prompt[-1]["content"])
    return one


def _follows_any(one: Any, texts: list[str]) -> bool:
    return any(text.strip() and one.check_following(text) for text in texts)


def trimmed(text: str) -> list[str]:
    """What the loose reading tries besides: without the first line, the last, both, and each without asterisks."""
    lines = text.split("\n")
    parts = [text, *("\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1]))]
    whole = dict.fromkeys([*parts, *(part.replace("*", "") for part in parts)])
    return [part for part in whole if part != text]
