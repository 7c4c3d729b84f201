"""Which model wrote each answer, and how unlikely the policy's start finds the answers of others.

A source is `policy`, a name of `sample.pool`, or what else a side of a pair comes from.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.artifacts import Logps, Samples
from pipeline.config import POLICY, REVISED
from pipeline.pairing.candidates import scan_metadata

SIDES = "chosen", "rejected"


def scan_sources(
    answers: Mapping[str, Sequence[Samples]], bos: int | None
) -> tuple[list[int], pl.DataFrame]:
    """The numbers of the policy's samples, wave by wave; all candidates, each with its `source`."""
    kind = pl.Enum(sorted(answers, key=lambda source: source != POLICY))
    waves, tables = list[int](), list[pl.DataFrame]()
    for source, samples in answers.items():
        found = [scan_metadata(each, bos) for each in samples]
        tables += [table.with_columns(source=pl.lit(source, kind)) for table in found]
        waves += [table.height for table in found] if source == POLICY else []
    return waves, pl.concat(tables)


def read_nats(logps: Iterable[Logps]) -> pl.DataFrame:
    """`sample_id, nats`: the log-probability of each answer, per token."""
    tables = [each.read().select("sample_id", "logp", "tokens") for each in logps]
    if not tables:
        return pl.DataFrame(schema={"sample_id": pl.String, "nats": pl.Float64})
    nats = pl.col("logp") / pl.col("tokens")
    return pl.concat(tables).unique("sample_id", keep="last").select("sample_id", nats=nats)


def add_reference(pairs: pl.DataFrame, logps: Iterable[Logps]) -> pl.DataFrame:
    """`reference`: the nats per token of the less likely side; null where neither is known."""
    nats = read_nats(logps)
    if nats.is_empty():
        return pairs.with_columns(reference=pl.lit(None, pl.Float64))
    for side in SIDES:
        named = nats.rename({"sample_id": f"{side}_id", "nats": f"{side}_reference"})
        pairs = pairs.join(
            named, on=f"{side}_id", how="left", maintain_order="left", validate="m:1"
        )
    sides = [f"{side}_reference" for side in SIDES]
    return pairs.with_columns(reference=pl.min_horizontal(*sides)).drop(*sides)


# What the funnel says of a source that has no sample or is in no pair.
NO_PAIR: dict[str, Any] = {"samples": 0, "chosen": 0, "rejected": 0, "nats_per_token": None}


def count_samples(rows: pl.DataFrame, nats: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """By source: its samples, and the mean of their nats per token where they are known."""
    kind = rows.schema["source"]
    assert isinstance(kind, pl.Enum)
    known = rows.select("sample_id", "source").join(nats, on="sample_id", how="left")
    means = known.group_by(pl.col("source").cast(pl.String)).agg(pl.len(), pl.col("nats").mean())
    found = {source: (count, mean) for source, count, mean in means.rows()}
    return {
        source: {"samples": count, "nats_per_token": mean}
        for source in kind.categories
        for count, mean in [found.get(source, (0, None))]
    }


def count_sides(pairs: pl.DataFrame) -> dict[str, dict[str, int]]:
    """By source: how many pairs it is the chosen side of, and how many the rejected one of."""
    counts = {side: dict(pairs[f"{side}_source"].value_counts().rows()) for side in SIDES}
    return {
        source: {side: counts[side].get(source, 0) for side in SIDES}
        for source in sorted(counts["chosen"].keys() | counts["rejected"].keys())
    }


def name_sources(sources: pl.Series) -> pl.Series:
    """Their names as strings. Looked up: a cast of the enum takes six times as long."""
    return pl.Series(sources.dtype.categories).gather(sources.to_physical())  # type: ignore[attr-defined]


def is_from(source: str, *columns: str) -> pl.Expr:
    """Whether one of these columns is this source."""
    return pl.any_horizontal(pl.col(column) == source for column in columns)


def list_origins(on_policy: str, pool: str) -> pl.Expr:
    """`origin` of pairs of samples: the policy's own, its revised ones, or with the pool's."""
    sides = [pl.col(f"{side}_source").cast(pl.String) for side in SIDES]
    both = pl.all_horizontal(side == POLICY for side in sides)
    revised = pl.all_horizontal((side == POLICY) | (side == REVISED) for side in sides)
    other = pl.when(revised).then(pl.lit(REVISED)).otherwise(pl.lit(pool))
    return pl.when(both).then(pl.lit(on_policy)).otherwise(other)
