"""Which samples of a prompt become a pair: one table, `strategy → function`.

A strategy sees usable samples and proposes `p, chosen, rejected`: rows. Ties between equal scores go by sample id;
nothing depends on the order of rows. A null `chosen` is not a sample.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.config import LengthMatched, MarginBand, PairConfig, Sigma, TopBottom

PROMPTS = 8192  # whose samples are compared with each other at a time
PAIR = {"p": pl.UInt32, "chosen": pl.UInt32, "rejected": pl.UInt32}


@dataclass(frozen=True)
class Usable:
    """The samples that a pair can be made of: those of all candidates, by prompt, that are marked."""

    rows: pl.DataFrame
    marked: np.ndarray

    def table(self, *columns: str) -> pl.DataFrame:
        """`row, p, score` and these columns: what nobody asks for is not copied."""
        wanted = self.rows.select("p", "score", *columns)
        return wanted.with_row_index("row").filter(pl.Series(self.marked))

    @property
    def ids(self) -> pl.Series:
        """Of all candidates: a `row` is a place here."""
        return self.rows["sample_id"]


Strategy = Callable[[PairConfig, Usable], pl.DataFrame]


def propose(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    pairs = STRATEGIES[cfg.strategy.kind](cfg, usable).select("p", "chosen", "rejected")
    if cfg.ties == "both" and cfg.strategy.kind != "demonstration":
        pairs = pl.concat([pairs, both_ways(usable)])
    return pairs.cast(PAIR)  # type: ignore[arg-type]


# ── one pair a prompt ─────────────────────────────────────────────────────────────────────────────────────────────


def best_worst(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    table = usable.table()
    best, worst = extreme(table, "max", usable.ids), extreme(table, "min", usable.ids)
    pairs = best.select("p", chosen="row").with_columns(rejected=worst["row"])
    return pairs.filter(best["score"] > worst["score"])


def best_random(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    table = usable.table("sample_id", "prompt_id")
    best = extreme(table, "max", usable.ids).select("p", chosen="row", top="score")
    worse = table.join(best, on="p").filter(pl.col("score") < pl.col("top"))
    return _first(worse.with_columns(order=_chance(cfg, worse)), "order").select(
        "p", "chosen", rejected="row"
    )


def sigma(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    """The best, and among the worse the one whose score is nearest to the prompt's µ − below·σ."""
    assert isinstance(cfg.strategy, Sigma)
    table, score = usable.table("sample_id"), pl.col("score")
    best = extreme(table, "max", usable.ids).select("p", chosen="row", top="score")
    target = table.group_by("p").agg(target=score.mean() - cfg.strategy.below * score.std(ddof=0))
    worse = table.join(best, on="p").join(target, on="p").filter(score < pl.col("top"))
    return _first(worse.with_columns(order=(score - pl.col("target")).abs()), "order").select(
        "p", "chosen", rejected="row"
    )


def demonstration(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    """A sample of each prompt to stand against its gold answer, which is no sample."""
    against = "max" if getattr(cfg.strategy, "against", "worst") == "best" else "min"
    return extreme(usable.table(), against, usable.ids).select(
        "p", chosen=pl.lit(None, pl.UInt32), rejected="row"
    )


def both_ways(usable: Usable) -> pl.DataFrame:
    """Where all samples of a prompt tie: its two smallest ids, each over the other."""
    alike = pl.col("score").max().over("p") == pl.col("score").min().over("p")
    tied = usable.table("sample_id").filter(alike).sort("p", "sample_id")
    two = (
        tied.group_by("p", maintain_order=True)
        .agg(pl.col("row").head(2))
        .filter(pl.col("row").list.len() == 2)
    )
    one, other = pl.col("row").list.get(0), pl.col("row").list.get(1)
    return pl.concat(
        [two.select("p", chosen=a, rejected=b) for a, b in ((one, other), (other, one))]
    )


def extreme(table: pl.DataFrame, which: str, ids: pl.Series) -> pl.DataFrame:
    """Each prompt's best or worst sample, in the order of prompts; among equals the one with the smallest id."""
    if not table.height:
        return table
    starts, _ = groups(table["p"].to_numpy())
    score = table["score"].to_numpy()
    reached = (np.maximum if which == "max" else np.minimum).reduceat(score, starts)
    lengths = np.diff(np.append(starts, len(score)))
    at = np.flatnonzero(score == np.repeat(reached, lengths))
    return table.select("p", "row", "score")[_smallest(table, at, ids)]


def _smallest(table: pl.DataFrame, at: np.ndarray, ids: pl.Series) -> np.ndarray:
    """Of each prompt's rows among these the one with the smallest id; few prompts have several."""
    numbers = table["p"].to_numpy()[at]
    again = numbers[1:] == numbers[:-1]
    several = np.append(again, False) | np.append(False, again)
    tied = table.select("p", "row")[at[several]]
    tied = tied.with_columns(at=at[several], sample_id=ids[tied["row"]])
    first = (
        tied.sort("p", "sample_id").unique("p", keep="first", maintain_order=True)["at"].to_numpy()
    )
    return np.sort(np.append(at[~several], first))


def groups(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each prompt's rows begin, and its number."""
    starts = (
        np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
        if len(numbers)
        else np.zeros(0, dtype=int)
    )
    return starts, numbers[starts]


def _first(rows: pl.DataFrame, *order: str) -> pl.DataFrame:
    return rows.sort("p", *order, "sample_id").unique("p", keep="first", maintain_order=True)


# ── several ───────────────────────────────────────────────────────────────────────────────────────────────────────


def random_pairs(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    table = usable.table("sample_id", "prompt_id")

    def some(pairs: pl.DataFrame) -> pl.DataFrame:
        """By the two samples' own numbers, whichever of them is the better one."""
        return _capped(
            cfg, pairs.with_columns(order=pl.col("chance") ^ pl.col("chance_r")), "order"
        )

    return _each(cfg, table.with_columns(chance=_chance(cfg, table)), some)


def top_bottom(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    """k best × k worst; a sample that is among both takes the better side only against a worse one."""
    assert isinstance(cfg.strategy, TopBottom)
    k, place = cfg.strategy.k, pl.int_range(pl.len()).over("p")
    up = (
        usable.table("sample_id")
        .sort("p", "score", "sample_id", descending=[False, True, False])
        .with_columns(top=place)
    )
    both = up.sort("p", "score", "sample_id").with_columns(bottom=place)
    ends = both.filter((pl.col("top") < k) | (pl.col("bottom") < k))

    def widest(pairs: pl.DataFrame) -> pl.DataFrame:
        return _capped(cfg, pairs.filter((pl.col("top") < k) & (pl.col("bottom_r") < k)), "-margin")

    return _each(cfg, ends, widest)


def all_pairs(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    return _each(cfg, usable.table("sample_id"), lambda pairs: _capped(cfg, pairs, "-margin"))


def margin_band(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    """Pairs whose margin lies between two quantiles of all margins; those nearest to the band's middle first."""
    assert isinstance(cfg.strategy, MarginBand)
    table = usable.table("sample_id")
    margins = _each(cfg, table, lambda pairs: pairs.select("margin"))["margin"]
    if not margins.len():
        return pl.DataFrame(schema=PAIR)
    low, middle, high = (
        margins.quantile(q, "nearest")
        for q in (cfg.strategy.low, (cfg.strategy.low + cfg.strategy.high) / 2, cfg.strategy.high)
    )

    def inside(pairs: pl.DataFrame) -> pl.DataFrame:
        band = pairs.filter(pl.col("margin").is_between(low, high))
        return _capped(cfg, band.with_columns(order=(pl.col("margin") - middle).abs()), "order")

    return _each(cfg, table, inside)


def length_matched(cfg: PairConfig, usable: Usable) -> pl.DataFrame:
    assert isinstance(cfg.strategy, LengthMatched)
    longer, shorter = (
        pl.max_horizontal("tokens", "tokens_r"),
        pl.min_horizontal("tokens", "tokens_r"),
    )
    like = longer <= cfg.strategy.ratio * shorter
    table = usable.table("sample_id", "tokens")
    return _each(cfg, table, lambda pairs: _capped(cfg, pairs.filter(like), "-margin"))


def _each(
    cfg: PairConfig, table: pl.DataFrame, take: Callable[[pl.DataFrame], pl.DataFrame]
) -> pl.DataFrame:
    """What `take` leaves of every two samples of a prompt that differ enough; some thousand prompts at a time."""
    starts, _ = groups(table["p"].to_numpy())
    ends = np.append(starts[PROMPTS::PROMPTS], table.height)
    parts = [
        table[int(start) : int(end)]
        for start, end in zip(np.append(0, ends[:-1]), ends, strict=True)
    ]
    return pl.concat([take(_differing(cfg, part)) for part in parts])


def _differing(cfg: PairConfig, part: pl.DataFrame) -> pl.DataFrame:
    pairs = part.join(part, on="p", suffix="_r").with_columns(
        margin=pl.col("score") - pl.col("score_r")
    )
    enough = (pl.col("margin") > 0) & (pl.col("margin") >= cfg.filters.min_margin)
    return pairs.filter(enough).rename({"row": "chosen", "row_r": "rejected"})


def _capped(cfg: PairConfig, pairs: pl.DataFrame, *order: str) -> pl.DataFrame:
    """The first `pairs_per_prompt` of each prompt; `-margin`: the widest first. Equal ones go by their two ids."""
    low, high = (
        pl.min_horizontal("sample_id", "sample_id_r"),
        pl.max_horizontal("sample_id", "sample_id_r"),
    )
    by = [name.lstrip("-") for name in order]
    down = [name.startswith("-") for name in order]
    ordered = pairs.with_columns(low=low, high=high).sort(
        "p", *by, "low", "high", descending=[False, *down, False, False]
    )
    return ordered.filter(pl.int_range(pl.len()).over("p") < cfg.pairs_per_prompt).select(
        "p", "chosen", "rejected"
    )


def _chance(cfg: PairConfig, rows: pl.DataFrame) -> pl.Series:
    """A number for each sample that hangs on the seed, the prompt and the sample's place among its ids alone."""
    place = (
        rows.select(pl.col("sample_id").rank("ordinal").over("p"))
        .to_series()
        .to_numpy()
        .astype(np.uint64)
    )
    with np.errstate(over="ignore"):
        mixed = rows["prompt_id"].hash(cfg.seed).to_numpy() + place * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return pl.Series(mixed ^ (mixed >> np.uint64(31)))


STRATEGIES: Mapping[str, Strategy] = {
    "best_worst": best_worst,
    "best_random": best_random,
    "random": random_pairs,
    "top_bottom": top_bottom,
    "all_pairs": all_pairs,
    "sigma": sigma,
    "margin_band": margin_band,
    "length_matched": length_matched,
    "demonstration": demonstration,
}
