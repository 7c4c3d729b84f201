"""All figures of the report in their order, drawn from report.json alone."""

from pipeline.report.formatting import ReportRow
from pipeline.report.render.figures.contests import draw_contests
from pipeline.report.render.figures.models import draw_models
from pipeline.report.render.figures.process import draw_process
from pipeline.report.render.svg import Figure


def draw_figures(report: ReportRow) -> list[Figure]:
    return [*draw_models(report), *draw_contests(report), *draw_process(report)]
