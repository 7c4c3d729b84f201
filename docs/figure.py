"""Take a figure out of a report or a sweep's page, as an SVG file for docs/ in light colours.

python3 docs/figure.py runs/sweep_smoke/TIME/sweep.html "Score against KL" docs/sweep_smoke.svg
"""

import re
import sys
from pathlib import Path

FONT = "svg { font-family: sans-serif; background: #ffffff; }"


def take_figure(page: str, title: str) -> str:
    """The figure with the rules of the page that draw it, its colours filled in."""
    figure = re.search(rf'<svg [^>]*aria-label="{re.escape(title)}">.*?</svg>', page, re.S)
    if figure is None:
        titles = ", ".join(sorted({*re.findall(r'<svg [^>]*aria-label="([^"]*)"', page)}))
        raise SystemExit(f"{title}: the page has no such figure. It has: {titles}")
    (css, _, _) = page.partition("@media (max-width")  # what follows is for small screens
    colours = dict(re.findall(r"--(\w+): (#\w+);", css.partition("@media")[0]))
    rules = re.findall(r"(?:svg [^{}\n]+|\.(?:c\w|flow|win|tie|loss)) \{[^{}]*\}", css)
    style = re.sub(r"var\(--(\w+)\)", lambda use: colours.get(use[1], use[0]), " ".join(rules))
    (head, _, body) = figure[0].partition("\n")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    return f"{head}\n<style>{FONT} {style}</style>\n{body}\n"


def main() -> None:
    (page, title, out) = sys.argv[1:]
    Path(out).write_text(take_figure(Path(page).read_text(), title))


if __name__ == "__main__":
    main()
