"""All figures of the report in their order, drawn from report.json alone."""

from pipeline.report.formatting import Row
from pipeline.report.render.figures.contests import of_contests
from pipeline.report.render.figures.models import of_models
from pipeline.report.render.figures.process import of_process
from pipeline.report.render.svg import Figure


def all_figures(report: Row) -> list[Figure]:
    return [*of_models(report), *of_contests(report), *of_process(report)]
