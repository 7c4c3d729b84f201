"""All tables of the report in their order, made from report.json alone, for the page and for the model card."""

from pipeline.report.formatting import Row
from pipeline.report.render.table import Sheet
from pipeline.report.render.tables import (
    benchmarks,
    chats,
    contests,
    gates,
    models,
    origins,
    people,
)


def all_sheets(report: Row) -> list[Sheet]:
    made = (
        models.models(report),
        models.habits(report),
        models.kinds(report),
        models.slices(report),
        models.proxy(report),
        contests.duels(report),
        people.people(report),
        *chats.chats(report),
        benchmarks.benchmarks(report),
        benchmarks.retained(report),
        gates.gates(report),
        origins.prompts(report),
        origins.samples(report),
        origins.ties(report),
        origins.training(report),
    )
    return [sheet for sheet in made if sheet.rows]
