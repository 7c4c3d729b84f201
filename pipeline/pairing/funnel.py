"""The funnel of the pairs: counts, quantiles and examples, as JSON, table and dataset card."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config import PairRound
from pipeline.data.drop_log import count_reasons
from pipeline.errors import pluralize
from pipeline.pairing import filters

NOT_ASKED = "not asked"
SHOWN = 240  # characters of an answer in an example
POINTS = {"least": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "most": 1.0}
QUANTITIES = (
    "margin",
    "chosen_score",
    "rejected_score",
    "chosen_tokens",
    "rejected_tokens",
    "length_ratio",
)
# Examples: name, the column that they are sorted by, whether descending, how many.
EXAMPLES = (
    ("most_certain", "margin", True, 7),
    ("least_certain", "margin", False, 7),
    ("longest_gap", "gap", True, 6),
)


def count_by_filter(cfg: PairRound, dropped: pl.DataFrame) -> dict[str, int | str]:
    """Each filter's count, even if it dropped nothing, and which filters were not asked for."""
    found = count_reasons(dropped)
    tables = {**filters.SAMPLES, **filters.PROMPTS, **filters.PAIRS}
    counts: dict[str, int | str] = {}
    for reason, make in tables.items():
        if reason == filters.NOT_BY_BOTH and make(cfg) is None:  # no filter: what a strategy needs
            continue
        counts[reason] = NOT_ASKED if make(cfg) is None else found.get(reason, 0)
    repeats = found.get(filters.REPEATS, 0) if cfg.filters.repeats else NOT_ASKED
    return {**counts, filters.REPEATS: repeats}


def compute_quantiles(values: pl.Series) -> dict[str, float]:
    values = values.drop_nulls()
    if values.is_empty():
        return {}
    return {name: round(float(values.quantile(point) or 0), 6) for name, point in POINTS.items()}


def describe_pairs(pairs: pl.DataFrame) -> dict[str, Any]:
    """Of the pairs that `selection.filter_pairs` leaves."""
    return {
        "origin": dict(sorted(pairs["origin"].value_counts().rows())),
        "margin": compute_quantiles(pairs["margin"]),
        "chosen_score": compute_quantiles(pairs["chosen_score"]),
        "rejected_score": compute_quantiles(pairs["rejected_score"]),
        "chosen_tokens": compute_quantiles(pairs["chosen_tokens"]),
        "rejected_tokens": compute_quantiles(pairs["rejected_tokens"]),
        "length_ratio": compute_quantiles(pairs.select(filters.length_ratio()).to_series()),
        "chosen_longer": _mean_share(pairs, pl.col("chosen_tokens") > pl.col("rejected_tokens")),
    }


def correlate_length(rows: pl.DataFrame) -> float | None:
    """Of length with score over all samples: a scorer that likes long answers teaches length."""
    scored = rows.filter(pl.col("score").is_finite())
    if scored.height < 2:
        return None
    found = scored.select(pl.corr(pl.col("tokens").cast(pl.Float64), "score")).item()
    return round(found, 4) if found is not None and found == found else None


def _mean_share(pairs: pl.DataFrame, test: pl.Expr) -> float | None:
    return round(float(pairs.select(test.mean()).item()), 4) if pairs.height else None


def pick_examples(pairs: pl.DataFrame, prompts: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Twenty pairs to read, each once.

    The widest margins, the narrowest, and the greatest differences in length.
    """
    gap = (pl.col("chosen_tokens").cast(pl.Int64) - pl.col("rejected_tokens").cast(pl.Int64)).abs()
    left, found = pairs.with_columns(gap=gap), {}
    ids = ["prompt_id", "chosen_id", "rejected_id"]
    for name, column, descending, how_many in EXAMPLES:
        order = [descending, False, False, False]
        ordered = left.sort(column, *ids, descending=order, nulls_last=True)
        taken = ordered.head(how_many)
        left = left.join(taken, on=ids, how="anti", maintain_order="left")
        rows = taken.join(prompts, on="prompt_id", how="left")
        found[name] = [_format_example(row) for row in rows.iter_rows(named=True)]
    return found


def _format_example(row: dict[str, Any]) -> dict[str, Any]:
    turns = [message["content"] for message in row["prompt"] or [] if message["role"] == "user"]
    return {
        "prompt_id": row["prompt_id"],
        "prompt": _shorten(turns[-1] if turns else ""),
        "chosen": _shorten(row["chosen_text"]),
        "rejected": _shorten(row["rejected_text"]),
        "chosen_score": row["chosen_score"],
        "rejected_score": row["rejected_score"],
        "chosen_tokens": row["chosen_tokens"],
        "rejected_tokens": row["rejected_tokens"],
        "origin": row["origin"],
    }


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"


# ── for readers ──────────────────────────────────────────────────────────────────────────────────


def format_lines(summary: dict[str, Any]) -> list[str]:
    """One aligned table: what came in, what each filter dropped, the rest; lengths and scores."""
    rows: list[tuple[str, Any]] = []
    for kind in ("samples", "prompts", "pairs"):
        rows.append((f"{kind} in", summary[f"{kind}_in"]))
        rows += [(f"  − {reason}", n) for reason, n in summary[f"dropped_{kind}"].items()]
        if kind == "samples":
            rows.append(("  = usable", summary["candidates"]))
    rows += [("pairs", summary["pairs"]), ("  train", summary["train"]), ("  dev", summary["dev"])]
    easy, hard = summary["ties"]["all_easy"], summary["ties"]["all_hard"]
    rows.append(("  all easy, all hard prompts", f"{easy}, {hard}"))
    for source, counts in summary.get("sources", {}).items():
        sides = f"{counts['chosen']}, {counts['rejected']}"
        rows.append((f"  chosen, rejected from {source}", sides))
    width = max(len(name) for name, _ in rows)
    table = [f"{name:<{width}}  {value:>10}" for name, value in rows]
    heads = "  ".join(f"{name:>10}" for name in POINTS)
    table.append(f"{'':<{width}}  {heads}")
    for name in QUANTITIES:
        if quantiles := summary[name]:
            values = "  ".join(f"{quantiles[point]:>10.4g}" for point in POINTS)
            table.append(f"{name.replace('_', ' '):<{width}}  {values}")
    return [*table, *_format_nats(summary), *_format_noise(summary)]


def _format_nats(summary: dict[str, Any]) -> Iterator[str]:
    for source, counts in summary.get("sources", {}).items():
        if (nats := counts["nats_per_token"]) is not None:
            yield f"answers of {source} have {nats:+.2f} nats per token under the SFT model"


def _format_noise(summary: dict[str, Any]) -> Iterator[str]:
    if (r := summary["length_score_correlation"]) is not None:
        yield f"correlation of length with score {r:+.2f}"
    if (noise := summary["noise"]["estimate"]) is not None:
        smoothing = summary["noise"]["suggested_label_smoothing"]["robust_dpo"]
        yield f"label noise about {noise:.0%}; suggested label smoothing {smoothing:g}"


def no_pairs_error(summary: dict[str, Any], dropped: Path) -> str:
    reasons = {
        **summary["dropped_samples"],
        **summary["dropped_prompts"],
        **summary["dropped_pairs"],
    }
    counts = "\n".join(f"  {reason}: {n}" for reason, n in reasons.items())
    samples, prompts = (
        pluralize(summary["samples_in"], "sample"),
        pluralize(summary["prompts_in"], "prompt"),
    )
    unscored = summary["dropped_samples"].get("no score") == summary["samples_in"] > 0
    remedy = UNSCORED.format(scorer=summary["scorer"]) if unscored else REMEDY
    if filters.NOT_BY_BOTH in summary["dropped_prompts"]:
        remedy = APART
    return (
        f"pair: no pair is left of {samples} for {prompts}:\n{counts}\n"
        f"  {dropped} names each.\n  {remedy}"
    )


UNSCORED = (
    "Every score of {scorer} is null: its rows in score's table say why."
    " Fix the scorer, or give pair.scorer=ANOTHER."
)
APART = (
    "A pair needs an answer of each source that the strategy names to the same prompt: raise"
    " sample.pool.NAME.share or sample.models_per_prompt, or name other sources."
)
REMEDY = (
    "Loosen pair.filters or raise limits, choose another pair strategy,"
    " or draw more samples (sample.settings.draw.n). Where demonstrations are missing: give prompts"
    " that have them (pair.strategy.column)."
)


def _name_reason(summary: dict[str, Any]) -> str:
    scorer = summary["scorer"]
    return f"with the scores of `{scorer}`" if scorer else "without scores, by who answered"


def render_card(summary: dict[str, Any]) -> str:
    """A dataset card that is published with the pairs."""
    table = "\n".join(format_lines(summary))
    unpaired = summary["unpaired"]
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
  - split: dev
    path: dev.parquet
- config_name: unpaired
  data_files:
  - split: train
    path: unpaired.parquet
tags: [preference, dpo]
---

# Preference pairs

TRL's conversational preference format (`prompt, chosen, rejected`), with ids, scores and token ids.
Chosen by `{summary["strategy"]}` {_name_reason(summary)}.
`unpaired.parquet` holds {pluralize(unpaired["up"], "good answer")} and {unpaired["down"]} bad.
`dropped.parquet` lists what was left out, each with its reason.

```
{table}
```
"""
