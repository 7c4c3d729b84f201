"""In which language a text is written: py3langid's own small model, which guesses the same each time."""

from pipeline.errors import Refusal, nearest


def language_of(text: str) -> str:
    """Its code, such as `en`; a text without words gets one too, so ask for texts that have some."""
    import py3langid

    return py3langid.classify(text)[0]


def check_languages(codes: list[str], knob: str) -> None:
    import py3langid

    known = [code for code, _ in py3langid.rank("")]
    for code in codes:
        if code not in known:
            raise Refusal(f"{knob}: {code} is no language that is told apart. {nearest(code, known)}")
