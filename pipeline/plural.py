"""A count with its noun, as a person says it: `1 row`, `3 rows`, `1 process`, `12,000 pairs`."""


def many(count: int, noun: str, *, grouped: bool = False) -> str:
    """`grouped`: with commas between thousands, for figures that are read more than typed."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}" if grouped else f"{count} {noun}{ending}"
