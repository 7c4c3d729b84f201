"""Below the verdict: its four figures, what changed and what did not, and where to look when it is no clear yes."""

from html import escape

from pipeline.report.analysis import changes
from pipeline.report.formatting import Row, count, interval, number, share, signed
from pipeline.report.render import reliability
from pipeline.report.render.figures.contests import shown
from pipeline.report.render.table import UNMARKED, anchor, row_of

MOST = 8  # lines of a list that are seen at once


def tiles(report: Row) -> str:
    """What one asks for first: how much better, how often, how long, how far."""
    models, exam = {model["name"]: model for model in report["models"]}, report["exam"]
    chosen, sft = models.get(exam["chosen"]), models.get("sft")
    if not chosen or not sft or chosen is sft:
        return ""
    gap = row_of(report, exam["chosen"], exam["scorer"])
    duel = next((d for d in report["duels"] if (d["a"], d["b"]) == (exam["chosen"], "sft")), None)
    scores = [
        number(model["metrics"].get(exam["scorer"], UNMARKED)["mean"]) for model in (sft, chosen)
    ]
    kl = chosen["kl"]
    told = [
        (
            f"Score by {exam['scorer']}",
            signed(gap["mean"] if gap else None),
            f"from {scores[0]} to {scores[1]}",
        ),
        ("Win rate against sft", share(duel["win_rate"] if duel else None), _counts(duel)),
        (
            "Tokens per answer",
            number(chosen["tokens"]["mean"], 1),
            f"sft {number(sft['tokens']['mean'], 1)}",
        ),
        (
            "KL to sft, nats",
            number(kl["mean"], 2),
            kl["why"] or interval(kl, lambda value: number(value, 2)),
        ),
    ]
    body = "".join(
        f"<div><dt>{escape(a)}</dt><dd><b>{escape(b)}</b><small>{escape(c)}</small></dd></div>"
        for a, b, c in told
    )
    return f'<dl class="tiles">{body}</dl>'


def _counts(duel: Row | None) -> str:
    return (
        f"{count(duel['wins'])} wins, {count(duel['ties'])} ties, {count(duel['losses'])} losses"
        if duel
        else ""
    )


def changed_html(report: Row) -> str:
    told = changes.told(report)
    lists = (
        ("What changed", [each for each in told if each.changed]),
        ("What did not, as far as can be told", [each for each in told if not each.changed]),
    )
    if not told:
        return ""
    body = "".join(_list(title, found) for title, found in lists)
    return f'<div class="changes">{body}</div><p class="note">{escape(changes.note(report))}</p>'


def _list(title: str, found: list[changes.Change]) -> str:
    if not found:
        return f'<section><h2>{title}</h2><p class="soft">Nothing.</p></section>'
    first, rest = (
        f'<dl class="facts">{"".join(map(_line, part))}</dl>'
        for part in (found[:MOST], found[MOST:])
    )
    more = (
        f"<details><summary>{len(found) - MOST} more</summary>{rest}</details>"
        if found[MOST:]
        else ""
    )
    return f"<section><h2>{title}</h2>{first}{more}</section>"


def _line(change: changes.Change) -> str:
    tone = f' class="{change.tone}"' if change.tone else ""
    return f"<dt>{escape(change.name)}</dt><dd{tone}>{escape(change.figures)}</dd>"


def links(report: Row) -> str:
    """A verdict that is no yes sends its reader on: to what became pairs, and to whether the scorer can be believed."""
    if report["verdict"]["better"] == "yes":
        return ""
    rounds = report["funnel"]["pairs"]
    funnel = anchor(f"Pairs of round {rounds[-1]['round']}", "figure") if rounds else ""
    flips = (
        anchor("Judge flips", "figure")
        if any(duel["flip_rate"] is not None for duel in shown(report))
        else reliability.ANCHOR
    )
    places = [
        ("the pair funnel", funnel),
        ("calibration", reliability.ANCHOR),
        ("judge flips", flips),
    ]
    body = " · ".join(f'<a href="#{escape(place)}">{name}</a>' for name, place in places if place)
    return f'<nav aria-label="Where to look"><b>Where to look:</b> {body}</nav>'
