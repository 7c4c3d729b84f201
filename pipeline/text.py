"""What a text is: its language, by py3langid, and whether it refuses; and it without reasoning."""

import re

from pipeline.errors import UserError, suggest

REFUSAL = (
    r"(?i)^\W*(i(’|')?m (really |very |so )?sorry|sorry, (but )?i|i apologi[sz]e, but"
    r"|i (can(’|')?t|cannot|am unable to|am not able to|won(’|')?t|will not)\b"
    r"|i(’|')?m (unable|not able) to"
    r"|as an ai\b|unfortunately, i (can|am))"
)
# The first two bytes of every text that REFUSAL matches.
REFUSAL_OPENING = rb"(?i)\W|.[\x80-\xff]|i\W|im|so|as|un"


def guess_language(text: str) -> str:
    """Its code, such as `en`. A text without words gets one too, so pass texts that have some."""
    import py3langid

    return py3langid.classify(text)[0]


def check_languages(codes: list[str], knob: str) -> None:
    import py3langid

    known = [code for code, _ in py3langid.rank("")]
    for code in codes:
        if code not in known:
            raise UserError(
                f"{knob}: {code}: this language is not recognised. {suggest(code, known)}"
            )


def strip_reasoning(text: str) -> str:
    """The answer alone, without `<think>…</think>`.

    Text before a lone `</think>` goes too, since a template may have opened it. Where thinking
    never ended, nothing is left.
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0].strip()
