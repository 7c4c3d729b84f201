"""report.html: one offline file, light and dark, desk and phone, from the report's own files."""

import polars as pl

from pipeline.report.analysis.changes import EMPTY_LISTS, group_changes, write_note
from pipeline.report.analysis.verdict import write_headline
from pipeline.report.formatting import BADGES, ReportRow, format_level
from pipeline.report.render import header
from pipeline.report.render.answers import describe_answers
from pipeline.report.render.environment import render_document
from pipeline.report.render.figures import draw_figures
from pipeline.report.render.reliability import TITLE, explain_reliability
from pipeline.report.render.tables import build_tables


def render_page(
    report: ReportRow, answers: pl.DataFrame, verdicts: pl.DataFrame | None = None
) -> str:
    """`answers` and `verdicts` as in their tables; without verdicts no contest can be browsed."""
    better = report["verdict"]["better"]
    tables = build_tables(report)
    # The models, what was expected of them, and the seeds of the last round.
    first = 1 + bool(report["expected"]) + bool(report.get("replicates"))
    return render_document(
        "report.html",
        script="answers.js",
        title=write_headline(report),
        badge=BADGES[better],
        better=better,
        lead=report["verdict"]["why"],
        links=header.list_links(report),
        tiles=header.list_tiles(report),
        settings=header.list_settings(report),
        report=report,
        first_tables=tables[:first],
        changes=group_changes(report),
        empty_lists=EMPTY_LISTS,
        changes_note=write_note(report),
        drawings=draw_figures(report),
        reliability_title=TITLE,
        reliability=explain_reliability(report),
        answers=describe_answers(report, answers, verdicts),
        tables=tables[first:],
        footer=_list_terms(report["evaluation"]),
    )


def _list_terms(evaluation: ReportRow) -> list[tuple[str, str]]:
    return [
        (
            "Score",
            f"The mean of {evaluation['scorer']} over prompts; several answers to one prompt are"
            " averaged first. Failed scores are left out and counted, never 0. control is sft"
            " sampled again with other seeds.",
        ),
        (
            "Interval",
            f"{format_level(evaluation['level'])} over prompts, at each end the farther of"
            " Student's t and the bootstrap-t. Δ is the paired difference: the same prompts"
            " answered by both.",
        ),
        (
            "p",
            "Of a difference by a sign-flip test, of a contest by the sign test; corrected by"
            " Holm's method within a scorer's models, a judge's contests, a column's slices, and"
            " the control's tests. The chosen model's difference by"
            f" {evaluation['scorer']} is the one test planned beforehand and is not corrected."
            " report.json has p with and without correction.",
        ),
        (
            "KL to sft",
            "In nats per answer, on the model's own samples at temperature 1 without truncation.",
        ),
        (
            "Style",
            "Truncated: answers that reached the token limit. Repetition: the share of an answer's"
            " word trigrams that occurred before in it. Tokens exclude reasoning. Other language"
            " than the prompt's, among texts of 40 characters or more.",
        ),
        (
            "Other files",
            "report.json has all figures, answers.parquet all answers,"
            " verdicts.parquet all contests.",
        ),
    ]
