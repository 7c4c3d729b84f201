"""In which language a text is written: py3langid's own small model, which guesses the same each time."""

import re

from pipeline.errors import UserError, suggest

REFUSAL = (
    r"(?i)^\W*(i(’|')?m (really |very |so )?sorry|sorry, (but )?i|i apologi[sz]e, but"
    r"|i (can(’|')?t|cannot|am unable to|am not able to|won(’|')?t|will not)\b|i(’|')?m (unable|not able) to"
    r"|as an ai\b|unfortunately, i (can|am))"
)
REFUSAL_OPENING = (
    rb"(?i)\W|.[\x80-\xff]|i\W|im|so|as|un"  # the first two bytes of every text that it matches
)


def guess_language(text: str) -> str:
    """Its code, such as `en`; a text without words gets one too, so ask for texts that have some."""
    import py3langid

    return py3langid.classify(text)[0]


def check_languages(codes: list[str], knob: str) -> None:
    import py3langid

    known = [code for code, _ in py3langid.rank("")]
    for code in codes:
        if code not in known:
            raise UserError(
                f"{knob}: {code} is no language that is told apart. {suggest(code, known)}"
            )


def strip_reasoning(text: str) -> str:
    """The answer alone: without `<think>…</think>`, without what stands before a lone `</think>` (a template may have
    opened it), and empty where thinking never ended."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0].strip()
