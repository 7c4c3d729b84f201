"""How differently two models write: length, headers, lists and bold, as Arena-Hard v2 has them."""

import polars as pl

from pipeline.report.analysis.eval_results import mean_by_prompt
from pipeline.report.analysis.text_metrics import ANSWER_TEXT

CODE = r"```[^`]*```"  # markup in it is code
MARKUP = {
    "headers": r"(?m)^#{1,6}\s",
    "lists": r"(?m)^\s*(?:\d+\.|[-*+])\s",
    "bold": r"\*\*[^*\n]+\*\*|__[^_\n]+__",
}


def list_style_gaps(a: pl.DataFrame, b: pl.DataFrame) -> list[dict[str, float]]:
    """By prompt, for each feature, how much more of it the answers `a` have than `b`.

    Length as (a − b) / (a + b). The others as densities x, their number per token:
    (x_a − x_b) / (x_a + x_b + 1).
    """
    of_a, of_b = _measure_style(a), _measure_style(b)
    prompts = sorted(of_a["tokens"].keys() & of_b["tokens"].keys())
    lengths = [{key: max(own["tokens"][key], 1.0) for key in prompts} for own in (of_a, of_b)]
    long_a, long_b = lengths
    gaps = [{key: (long_a[key] - long_b[key]) / (long_a[key] + long_b[key]) for key in prompts}]
    for name in MARKUP:
        gap = {}
        for key in prompts:
            dense_a, dense_b = of_a[name][key] / long_a[key], of_b[name][key] / long_b[key]
            gap[key] = (dense_a - dense_b) / (dense_a + dense_b + 1)
        gaps.append(gap)
    return gaps


def _measure_style(answers: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Tokens and the number of each markup, by prompt."""
    texts = pl.col(ANSWER_TEXT).str.replace_all(CODE, "")
    counts = {name: texts.str.count_matches(pattern) for name, pattern in MARKUP.items()}
    table = answers.with_columns(**counts)
    return {name: mean_by_prompt(table, name) for name in ("tokens", *MARKUP)}
