"""All tables of the report in their order, made from report.json alone, for the page and for the model card."""

from pipeline.report import benchmark_sheets, contest_sheets, gates, model_sheets, origin_sheets
from pipeline.report.chat_sheets import chats
from pipeline.report.people_sheet import people
from pipeline.report.sheet import Row, Sheet


def all_sheets(report: Row) -> list[Sheet]:
    made = (
        model_sheets.models(report),
        model_sheets.habits(report),
        model_sheets.kinds(report),
        model_sheets.slices(report),
        model_sheets.proxy(report),
        contest_sheets.duels(report),
        people(report),
        *chats(report),
        benchmark_sheets.benchmarks(report),
        benchmark_sheets.retained(report),
        gates.sheet(report),
        origin_sheets.prompts(report),
        origin_sheets.samples(report),
        origin_sheets.training(report),
    )
    return [sheet for sheet in made if sheet.rows]
