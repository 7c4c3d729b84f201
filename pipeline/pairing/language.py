"""In which language a text is written: py3langid's own small model, which guesses the same each time."""

import polars as pl

from pipeline.errors import Refusal, nearest


def is_none_of(text: pl.Expr, wanted: list[str]) -> pl.Expr:
    import py3langid

    known = [code for code, _ in py3langid.rank("")]
    for code in wanted:
        if code not in known:
            raise Refusal(f"pair.filters.languages: {code} is no language that is told apart. {nearest(code, known)}")
    return ~text.map_elements(lambda words: py3langid.classify(words)[0], return_dtype=pl.String).is_in(wanted)
