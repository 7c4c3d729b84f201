"""All figures of the report in their order, drawn from report.json alone."""

from pipeline.report.figures.contests import of_contests
from pipeline.report.figures.models import of_models
from pipeline.report.figures.process import of_process
from pipeline.report.svg import Figure
from pipeline.report.wording import Row


def all_figures(report: Row) -> list[Figure]:
    return [*of_models(report), *of_contests(report), *of_process(report)]
