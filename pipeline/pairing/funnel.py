"""The account of the pairs: every count, quantiles, twenty examples; as JSON, one aligned table, a dataset card."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config import PairConfig
from pipeline.errors import pluralize
from pipeline.pairing import filters

NOT_ASKED = "not asked"
SHOWN = 240  # characters of an answer in an example
POINTS = {"least": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "most": 1.0}


def counts(dropped: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(dropped["reason"].value_counts().rows()))


def by_filter(cfg: PairConfig, dropped: pl.DataFrame) -> dict[str, int | str]:
    """Each filter's count, also when it dropped nothing, and which were not asked."""
    found = counts(dropped)
    tables = {**filters.SAMPLES, **filters.PROMPTS, **filters.PAIRS}
    told: dict[str, int | str] = {
        reason: NOT_ASKED if make(cfg) is None else found.get(reason, 0)
        for reason, make in tables.items()
    }
    return {
        **told,
        filters.REPEATS: found.get(filters.REPEATS, 0) if cfg.filters.repeats else NOT_ASKED,
    }


def quantiles(values: pl.Series) -> dict[str, float]:
    values = values.drop_nulls()
    if values.is_empty():
        return {}
    return {name: round(float(values.quantile(point) or 0), 6) for name, point in POINTS.items()}


def about_pairs(pairs: pl.DataFrame) -> dict[str, Any]:
    """Of the pairs as `filtered` leaves them."""
    return {
        "origin": dict(sorted(pairs["origin"].value_counts().rows())),
        "margin": quantiles(pairs["margin"]),
        "chosen_score": quantiles(pairs["chosen_score"]),
        "rejected_score": quantiles(pairs["rejected_score"]),
        "chosen_tokens": quantiles(pairs["chosen_tokens"]),
        "rejected_tokens": quantiles(pairs["rejected_tokens"]),
        "length_ratio": quantiles(pairs.select(filters.length_ratio()).to_series()),
        "chosen_longer": _share(pairs, pl.col("chosen_tokens") > pl.col("rejected_tokens")),
    }


def correlation(rows: pl.DataFrame) -> float | None:
    """Of length with score over all scored samples: a scorer that likes long answers teaches length."""
    scored = rows.filter(pl.col("score").is_finite())
    found = (
        scored.select(pl.corr(pl.col("tokens").cast(pl.Float64), "score")).item()
        if scored.height > 1
        else None
    )
    return round(found, 4) if found is not None and found == found else None


def _share(rows: pl.DataFrame, test: pl.Expr) -> float | None:
    return round(float(rows.select(test.mean()).item()), 4) if rows.height else None


def examples(pairs: pl.DataFrame, prompts: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Twenty pairs to read: the widest margins, the narrowest, the longest difference in length; each pair once."""
    gap = (pl.col("chosen_tokens").cast(pl.Int64) - pl.col("rejected_tokens").cast(pl.Int64)).abs()
    left, found = pairs.with_columns(gap=gap), {}
    for name, column, descending, how_many in (
        ("most_certain", "margin", True, 7),
        ("least_certain", "margin", False, 7),
        ("longest_gap", "gap", True, 6),
    ):
        ids = ["prompt_id", "chosen_id", "rejected_id"]
        taken = left.sort(
            column, *ids, descending=[descending, False, False, False], nulls_last=True
        ).head(how_many)
        left = left.join(taken, on=ids, how="anti", maintain_order="left")
        found[name] = [
            _example(row)
            for row in taken.join(prompts, on="prompt_id", how="left").iter_rows(named=True)
        ]
    return found


def _example(row: dict[str, Any]) -> dict[str, Any]:
    asked = [message["content"] for message in row["prompt"] or [] if message["role"] == "user"]
    return {
        "prompt_id": row["prompt_id"],
        "prompt": _short(asked[-1] if asked else ""),
        **{side: _short(row[f"{side}_text"]) for side in ("chosen", "rejected")},
        **{
            name: row[name]
            for name in (
                "chosen_score",
                "rejected_score",
                "chosen_tokens",
                "rejected_tokens",
                "origin",
            )
        },
    }


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"


# ── for people ────────────────────────────────────────────────────────────────────────────────────────────────────


def lines(story: dict[str, Any]) -> list[str]:
    """One aligned table: what came in, what each filter dropped, what is left; then lengths and scores."""
    rows: list[tuple[str, Any]] = []
    for kind, single in (("samples", "sample"), ("prompts", "prompt"), ("pairs", "pair")):
        rows += [(f"{kind} in", story[f"{kind}_in"])]
        rows += [(f"  − {reason}", n) for reason, n in story[f"dropped_{kind}"].items()]
        rows += [("  = usable", story["candidates"])] if single == "sample" else []
    rows += [("pairs", story["pairs"]), ("  train", story["train"]), ("  dev", story["dev"])]
    rows += [
        (
            "  all easy, all hard prompts",
            f"{story['ties']['all_easy']}, {story['ties']['all_hard']}",
        )
    ]
    width = max(len(name) for name, _ in rows)
    table = [f"{name:<{width}}  {value:>10}" for name, value in rows]
    heads = f"{'':<{width}}  " + "  ".join(f"{name:>10}" for name in POINTS)
    spread = [
        f"{name.replace('_', ' '):<{width}}  "
        + "  ".join(f"{story[name][point]:>10.4g}" for point in POINTS)
        for name in (
            "margin",
            "chosen_score",
            "rejected_score",
            "chosen_tokens",
            "rejected_tokens",
            "length_ratio",
        )
        if story[name]
    ]
    return [*table, heads, *spread, *_last_words(story)]


def _last_words(story: dict[str, Any]) -> Iterable[str]:
    if (r := story["length_score_correlation"]) is not None:
        yield f"correlation of length with score {r:+.2f}"
    if (noise := story["noise"]["estimate"]) is not None:
        smoothing = story["noise"]["suggested_label_smoothing"]["robust_dpo"]
        yield f"label noise about {noise:.0%}; suggested label smoothing {smoothing:g}"


def nothing_left(story: dict[str, Any], dropped: Path) -> str:
    told = {**story["dropped_samples"], **story["dropped_prompts"], **story["dropped_pairs"]}
    counts = "\n".join(f"  {reason}: {n}" for reason, n in told.items())
    rows = (
        f"{pluralize(story['samples_in'], 'sample')} for {pluralize(story['prompts_in'], 'prompt')}"
    )
    unscored = story["dropped_samples"].get("no score") == story["samples_in"] > 0
    remedy = UNSCORED.format(scorer=story["scorer"]) if unscored else REMEDY
    return f"pair: no pair is left of {rows}:\n{counts}\n  {dropped} names each.\n  {remedy}"


UNSCORED = "Every score of {scorer} is null: its rows in score's table say why. Mend the scorer, or give pair.scorer=ANOTHER."
REMEDY = "Loosen pair.filters or raise limits, choose another pair strategy, or draw more samples (sample.settings.draw.n)."


def card(story: dict[str, Any]) -> str:
    """A dataset card that travels with the pairs."""
    table = "\n".join(lines(story))
    unpaired = story["unpaired"]
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
Chosen by `{story["strategy"]}` with the scores of `{story["scorer"]}`.
`unpaired.parquet` holds {pluralize(unpaired["up"], "answer")} with thumbs up and {unpaired["down"]} with thumbs down.
`dropped.parquet` lists what was left out, each with its reason.

```
{table}
```
"""
