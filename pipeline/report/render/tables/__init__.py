"""All tables of the report in their order, from report.json alone, for the page and report.md."""

from pipeline.report.formatting import ReportRow
from pipeline.report.render.table import ReportTable
from pipeline.report.render.tables import (
    annotators,
    benchmarks,
    chats,
    contests,
    expected,
    gates,
    models,
    origins,
    panels,
)


def build_tables(report: ReportRow) -> list[ReportTable]:
    tables = (
        models.build_models(report),
        expected.build_expected(report),
        models.build_seeds(report),
        models.build_habits(report),
        models.build_criteria(report),
        models.build_slices(report),
        models.build_proxy(report),
        contests.build_duels(report),
        panels.build_panels(report),
        annotators.build_agreement(report),
        *chats.build_chats(report),
        benchmarks.build_benchmarks(report),
        benchmarks.build_retention(report),
        gates.build_gates(report),
        origins.build_prompts(report),
        origins.build_samples(report),
        origins.build_ties(report),
        origins.build_sources(report),
        origins.build_training(report),
        origins.build_effort(report),
    )
    return [table for table in tables if table.rows]
