"""Below the verdict: what was run, four figures, and links for a verdict that is not yes."""

from pipeline.errors import pluralize
from pipeline.report.formatting import (
    ReportRow,
    format_interval,
    format_number,
    format_share,
    format_signed,
)
from pipeline.report.render import reliability
from pipeline.report.render.figures.contests import select_contests
from pipeline.report.render.table import NO_METRIC, anchor_id, find_difference


def list_settings(report: ReportRow) -> list[tuple[str, str]]:
    """Model, prompts and training by their main knobs; the command has all others."""
    setup, evaluation = report["setup"], report["evaluation"]
    if not setup:
        return []
    asked = pluralize(evaluation["prompts"], f"{evaluation['split']} prompt", grouped=True)
    settings = [("Model", setup["model"]), ("Prompts", f"{setup['prompts']} ({asked})")]
    if not setup["rounds"]:
        return settings
    return [
        *settings,
        ("Objective", setup["objective"]),
        ("β", f"{setup['beta']:g}"),
        ("Learning rate", f"{setup['learning_rate']:g}"),
        ("Rounds", str(setup["rounds"])),
        *([("Seeds", str(seeds))] if (seeds := _count_seeds(report)) else []),
    ]


def _count_seeds(report: ReportRow) -> int:
    """Of the last round; 0 where it was trained once."""
    return len({row["model"] for row in report.get("replicates", ())})


def list_tiles(report: ReportRow) -> list[tuple[str, str, str]]:
    """How much better, how often, how long, how far from SFT."""
    models, evaluation = {model["name"]: model for model in report["models"]}, report["evaluation"]
    scorer = evaluation["scorer"]
    chosen, sft = models.get(evaluation["chosen"]), models.get("sft")
    if not chosen or not sft or chosen is sft:
        return []
    gap = find_difference(report, evaluation["chosen"], scorer)
    against_sft = evaluation["chosen"], "sft"
    duel = next((row for row in report["duels"] if (row["a"], row["b"]) == against_sft), None)
    before, after = (
        format_number(model["metrics"].get(scorer, NO_METRIC)["mean"]) for model in (sft, chosen)
    )
    kl = chosen["kl"]
    return [
        (
            f"Score by {scorer}",
            format_signed(gap["mean"] if gap else None),
            f"from {before} to {after}",
        ),
        (
            "Win rate against sft",
            format_share(duel["win_rate"] if duel else None),
            _format_counts(duel),
        ),
        (
            "Tokens per answer",
            format_number(chosen["tokens"]["mean"], 1),
            f"sft {format_number(sft['tokens']['mean'], 1)}",
        ),
        (
            "KL to sft, nats",
            format_number(kl["mean"], 2),
            kl["why"] or format_interval(kl, lambda value: format_number(value, 2)),
        ),
    ]


def _format_counts(duel: ReportRow | None) -> str:
    if not duel:
        return ""
    nouns = {"wins": "win", "ties": "tie", "losses": "loss"}
    return ", ".join(pluralize(duel[key], noun, grouped=True) for key, noun in nouns.items())


def list_links(report: ReportRow) -> list[tuple[str, str]]:
    """If the verdict is not yes: links to how pairs were made and how far to trust the scorer."""
    if report["verdict"]["better"] == "yes":
        return []
    rounds = report["funnel"]["pairs"]
    funnel = anchor_id(f"Pairs of round {rounds[-1]['round']}", "figure") if rounds else ""
    has_flips = any(duel["flip_rate"] is not None for duel in select_contests(report))
    flips = anchor_id("Judge flips", "figure") if has_flips else reliability.ANCHOR
    places = [
        ("the pair funnel", funnel),
        ("calibration", reliability.ANCHOR),
        ("judge flips", flips),
    ]
    return [(name, place) for name, place in places if place]
