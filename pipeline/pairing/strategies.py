"""Which samples of a prompt become a pair: one table, `strategy → function`.

A strategy sees usable samples and proposes `p, chosen, rejected`, where the last two are row
numbers. Ties between equal scores go by sample id; nothing depends on the order of rows. A null
`chosen` is not a sample.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.config import BySource, LengthMatched, MarginBand, PairRound, Sigma, TopBottom
from pipeline.pairing.sources import is_from

PROMPTS_AT_ONCE = 8192  # in one self-join of samples
PAIR = {"p": pl.UInt32, "chosen": pl.UInt32, "rejected": pl.UInt32}


@dataclass(frozen=True)
class UsableSamples:
    """The samples that a pair can be made of."""

    rows: pl.DataFrame  # all candidates
    usable: np.ndarray  # the numbers of these samples, in the order of prompts
    numbers: np.ndarray  # of their prompts
    extremes: Mapping[str, np.ndarray]  # of each prompt: its `max` and `min` score

    def table(self, *columns: str) -> pl.DataFrame:
        """`row, p, score` and these columns. Other columns are not copied."""
        at = pl.Series("row", self.usable.astype(np.uint32))
        p = pl.Series("p", self.numbers).set_sorted()
        return self.rows.select("score", *columns)[at].insert_column(0, at).insert_column(1, p)

    @property
    def ids(self) -> pl.Series:
        """Of all candidates: a `row` is a position here."""
        return self.rows["sample_id"]


Strategy = Callable[[PairRound, UsableSamples], pl.DataFrame]


def propose(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    pairs = STRATEGIES[cfg.strategy.kind](cfg, usable).select("p", "chosen", "rejected")
    if cfg.keeps_ties:
        pairs = pl.concat([pairs, pair_ties(cfg, usable)])
    return pairs.cast(PAIR)  # type: ignore[arg-type]


# ── one pair a prompt ─────────────────────────────────────────────────────────────────────────────


def best_worst(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    if cfg.at_least_one:
        return _best_worst_with(cfg.at_least_one, usable)
    table = usable.table()
    best, worst = (
        _take_scores(table, usable.extremes[which], usable.ids) for which in ("max", "min")
    )
    pairs = best.select("p", chosen="row").with_columns(rejected=worst["row"])
    return pairs.filter(best["score"] > worst["score"])


def _best_worst_with(source: str, usable: UsableSamples) -> pl.DataFrame:
    """The best of all against the worst of a source, or its best against the worst of all.

    The wider margin; of equal ones the smaller ids, whichever side they are on.
    """
    table = usable.table("source")
    own = table.filter(is_from(source, "source"))
    both = pl.concat([_join_extremes(usable, table, own), _join_extremes(usable, own, table)])
    ids = [usable.ids[both[side]].alias(side) for side in ("chosen", "rejected")]
    low, high = pl.min_horizontal(*ids), pl.max_horizontal(*ids)
    order = ["p", "margin", "low", "high"]
    ranked = both.with_columns(low=low, high=high).sort(
        order, descending=[False, True, False, False]
    )
    return ranked.filter(pl.col("margin") > 0).unique("p", keep="first", maintain_order=True)


def _join_extremes(usable: UsableSamples, up: pl.DataFrame, down: pl.DataFrame) -> pl.DataFrame:
    """The best of some samples against the worst of others: `p, chosen, rejected, margin`."""
    best, worst = find_extremes(up, "max", usable.ids), find_extremes(down, "min", usable.ids)
    both = best.select("p", "row", "score").join(worst, on="p", maintain_order="left")
    margin = pl.col("score") - pl.col("score_right")
    return both.select("p", chosen="row", rejected="row_right", margin=margin)


def by_source(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    """A named model's answer against another's: the best and the worst where scores are known."""
    assert isinstance(cfg.strategy, BySource)
    chosen, rejected, needed = cfg.strategy.chosen, cfg.strategy.rejected, cfg.at_least_one
    if needed not in (chosen, rejected):
        chosen, rejected = chosen or needed, rejected or needed
    table = usable.table("source").with_columns(pl.col("score").fill_null(0.0))
    up, down = (
        table.filter(is_from(name, "source")) if name else table for name in (chosen, rejected)
    )
    pairs = _join_extremes(usable, up, down)
    return pairs.filter(pl.col("margin") > 0) if cfg.scored else pairs


def best_random(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    worse = _list_worse(cfg, usable, "sample_id", "prompt_id")
    first = _take_first(worse.with_columns(order=_hash_order(cfg, worse)), "order")
    return first.select("p", "chosen", rejected="row")


def _list_worse(cfg: PairRound, usable: UsableSamples, *columns: str) -> pl.DataFrame:
    """The samples that score below the best one of their prompt, `chosen`."""
    table = usable.table(*columns, *_source_column(cfg))
    best = _take_scores(table, usable.extremes["max"], usable.ids)
    best = best.select("p", chosen="row", top="score")
    worse = table.join(best, on="p").filter(pl.col("score") < pl.col("top"))
    if cfg.at_least_one:
        sources = usable.rows["source"].cast(pl.String)
        worse = worse.with_columns(source_best=sources[worse["chosen"]])
        worse = worse.filter(is_from(cfg.at_least_one, "source", "source_best"))
    return worse


def sigma(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    """The best, and among the worse the one whose score is nearest to the prompt's µ − below·σ."""
    assert isinstance(cfg.strategy, Sigma)
    score, below = pl.col("score"), cfg.strategy.below
    target = usable.table().group_by("p").agg(target=score.mean() - below * score.std(ddof=0))
    worse = _list_worse(cfg, usable, "sample_id").join(target, on="p", maintain_order="left")
    first = _take_first(worse.with_columns(order=(score - pl.col("target")).abs()), "order")
    return first.select("p", "chosen", rejected="row")


def demonstration(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    """A sample of each prompt, for its gold answer, which is not a sample."""
    against = "max" if getattr(cfg.strategy, "against", "worst") == "best" else "min"
    table = usable.table(*_source_column(cfg))
    if cfg.at_least_one:
        table = table.filter(is_from(cfg.at_least_one, "source"))
    sample = find_extremes(table, against, usable.ids)
    return sample.select("p", chosen=pl.lit(None, pl.UInt32), rejected="row")


def pair_ties(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    """Where all samples of a prompt tie: its two smallest ids, each over the other.

    With `at_least_one` those of that source come first.
    """
    is_tied = pl.col("score").max().over("p") == pl.col("score").min().over("p")
    tied = usable.table("sample_id", *_source_column(cfg)).filter(is_tied)
    if cfg.at_least_one:
        is_own = is_from(cfg.at_least_one, "source")
        tied = tied.filter(is_own.any().over("p")).sort("p", ~is_own, "sample_id")
    else:
        tied = tied.sort("p", "sample_id")
    firsts = tied.group_by("p", maintain_order=True).agg(pl.col("row").head(2))
    two = firsts.filter(pl.col("row").list.len() == 2)
    one, other = pl.col("row").list.get(0), pl.col("row").list.get(1)
    return pl.concat(
        [two.select("p", chosen=a, rejected=b) for a, b in ((one, other), (other, one))]
    )


def find_extremes(table: pl.DataFrame, which: str, ids: pl.Series) -> pl.DataFrame:
    """Each prompt's best or worst sample, in the order of prompts. Of equal ones the smallest
    id."""
    if not table.height:
        return table
    starts, numbers = find_groups(table["p"].to_numpy())
    reached = np.empty(numbers[-1] + 1)
    reduce = np.maximum if which == "max" else np.minimum
    reached[numbers] = reduce.reduceat(table["score"].to_numpy(), starts)
    return _take_scores(table, reached, ids)


def _take_scores(table: pl.DataFrame, reached: np.ndarray, ids: pl.Series) -> pl.DataFrame:
    """Of each prompt's samples with the score that its prompt has in `reached` the smallest id."""
    at = np.flatnonzero(table["score"].to_numpy() == reached[table["p"].to_numpy()])
    return table.select("p", "row", "score")[_take_smallest(table, at, ids)]


def _take_smallest(table: pl.DataFrame, at: np.ndarray, ids: pl.Series) -> np.ndarray:
    """Of the rows `at`, the one of each prompt with the smallest id. Few prompts have several."""
    numbers = table["p"].to_numpy()[at]
    again = numbers[1:] == numbers[:-1]
    several = np.zeros(len(at), dtype=bool)
    several[1:] |= again
    several[:-1] |= again
    places = np.flatnonzero(several)
    tied = table.select("p", "row")[at[places]]
    tied = tied.with_columns(place=places, sample_id=ids[tied["row"]])
    first = tied.sort("p", "sample_id").unique("p", keep="first", maintain_order=True)
    several[first["place"].to_numpy()] = False
    return at[~several]


def find_groups(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each prompt's rows begin, and its number."""
    if not len(numbers):
        starts = np.zeros(0, dtype=int)
    else:
        starts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
    return starts, numbers[starts]


def _take_first(rows: pl.DataFrame, *order: str) -> pl.DataFrame:
    return rows.sort("p", *order, "sample_id").unique("p", keep="first", maintain_order=True)


# ── several ───────────────────────────────────────────────────────────────────────────────────────


def random_pairs(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    table = usable.table("sample_id", "prompt_id", *_source_column(cfg))

    def cap_random(pairs: pl.DataFrame) -> pl.DataFrame:
        """By the two samples' own numbers, whichever of them is the better one."""
        order = pl.col("chance") ^ pl.col("chance_r")
        return _cap_pairs(cfg, pairs.with_columns(order=order), "order")

    return _pair_within_prompts(cfg, table.with_columns(chance=_hash_order(cfg, table)), cap_random)


def top_bottom(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    """k best × k worst. A sample among both is chosen only against a worse one."""
    assert isinstance(cfg.strategy, TopBottom)
    k, place = cfg.strategy.k, pl.int_range(pl.len()).over("p")
    down = usable.table("sample_id", *_source_column(cfg)).sort(
        "p", "score", "sample_id", descending=[False, True, False]
    )
    up = down.with_columns(top=place).sort("p", "score", "sample_id")
    ranked = up.with_columns(bottom=place)
    ends = ranked.filter((pl.col("top") < k) | (pl.col("bottom") < k))

    def cap_widest(pairs: pl.DataFrame) -> pl.DataFrame:
        is_wanted = (pl.col("top") < k) & (pl.col("bottom_r") < k)
        return _cap_pairs(cfg, pairs.filter(is_wanted), "-margin")

    return _pair_within_prompts(cfg, ends, cap_widest)


def all_pairs(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    table = usable.table("sample_id", *_source_column(cfg))
    return _pair_within_prompts(cfg, table, lambda pairs: _cap_pairs(cfg, pairs, "-margin"))


def margin_band(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    """Pairs whose margin is between two quantiles of all margins, nearest to the middle first."""
    assert isinstance(cfg.strategy, MarginBand)
    table = usable.table("sample_id", *_source_column(cfg))
    margins = _pair_within_prompts(cfg, table, lambda pairs: pairs.select("margin"))["margin"]
    if not margins.len():
        return pl.DataFrame(schema=PAIR)
    ends = cfg.strategy.low, cfg.strategy.high
    low, high = (margins.quantile(q, "nearest") for q in ends)
    middle = margins.quantile(sum(ends) / 2, "nearest")

    def cap_band(pairs: pl.DataFrame) -> pl.DataFrame:
        band = pairs.filter(pl.col("margin").is_between(low, high))
        return _cap_pairs(cfg, band.with_columns(order=(pl.col("margin") - middle).abs()), "order")

    return _pair_within_prompts(cfg, table, cap_band)


def length_matched(cfg: PairRound, usable: UsableSamples) -> pl.DataFrame:
    assert isinstance(cfg.strategy, LengthMatched)
    longer = pl.max_horizontal("tokens", "tokens_r")
    shorter = pl.min_horizontal("tokens", "tokens_r")
    is_matched = longer <= cfg.strategy.ratio * shorter

    def cap_matched(pairs: pl.DataFrame) -> pl.DataFrame:
        return _cap_pairs(cfg, pairs.filter(is_matched), "-margin")

    table = usable.table("sample_id", "tokens", *_source_column(cfg))
    return _pair_within_prompts(cfg, table, cap_matched)


def _pair_within_prompts(
    cfg: PairRound, table: pl.DataFrame, take: Callable[[pl.DataFrame], pl.DataFrame]
) -> pl.DataFrame:
    """What `take` leaves of all pairs of samples of a prompt that differ enough.

    Some thousand prompts at a time.
    """
    starts, _ = find_groups(table["p"].to_numpy())
    ends = np.append(starts[PROMPTS_AT_ONCE::PROMPTS_AT_ONCE], table.height)
    bounds = zip(np.append(0, ends[:-1]), ends, strict=True)
    parts = [table[int(start) : int(end)] for start, end in bounds]
    return pl.concat([take(_join_pairs(cfg, part)) for part in parts])


def _join_pairs(cfg: PairRound, part: pl.DataFrame) -> pl.DataFrame:
    pairs = part.join(part, on="p", suffix="_r")
    if cfg.at_least_one:
        pairs = pairs.filter(is_from(cfg.at_least_one, "source", "source_r"))
    pairs = pairs.with_columns(margin=pl.col("score") - pl.col("score_r"))
    enough = (pl.col("margin") > 0) & (pl.col("margin") >= cfg.filters.min_margin)
    return pairs.filter(enough).rename({"row": "chosen", "row_r": "rejected"})


def _cap_pairs(cfg: PairRound, pairs: pl.DataFrame, *order: str) -> pl.DataFrame:
    """The first `pairs_per_prompt` of each prompt, in this order. `-margin`: the widest first.

    Equal ones go by their two ids.
    """
    low = pl.min_horizontal("sample_id", "sample_id_r")
    high = pl.max_horizontal("sample_id", "sample_id_r")
    by = [name.lstrip("-") for name in order]
    down = [name.startswith("-") for name in order]
    ordered = pairs.with_columns(low=low, high=high).sort(
        "p", *by, "low", "high", descending=[False, *down, False, False]
    )
    first = ordered.filter(pl.int_range(pl.len()).over("p") < cfg.pairs_per_prompt)
    return first.select("p", "chosen", "rejected")


def _source_column(cfg: PairRound) -> list[str]:
    """Read where a pair needs an answer of one source."""
    return ["source"] if cfg.at_least_one else []


def _hash_order(cfg: PairRound, rows: pl.DataFrame) -> pl.Series:
    """A number for each sample, from the seed, the prompt and the sample's place among its ids."""
    ranks = rows.select(pl.col("sample_id").rank("ordinal").over("p")).to_series()
    place = ranks.to_numpy().astype(np.uint64)
    with np.errstate(over="ignore"):  # the mixing steps are those of splitmix64
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
    "by_source": by_source,
}
