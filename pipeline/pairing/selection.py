"""From candidates to pairs: usable samples, prompts that can have a pair, proposals, filters.

Every sample, prompt and proposed pair is kept or dropped with a reason: for each of the three,
in = out + dropped.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.config import POOL, BySource, PairRound
from pipeline.pairing import duplicates, filters, sources, strategies
from pipeline.pairing.candidates import PairCandidates

DROPPED = {
    "kind": pl.String,
    "prompt_id": pl.String,
    "sample_id": pl.String,
    "chosen_id": pl.String,
    "rejected_id": pl.String,
    "reason": pl.String,
    "detail": pl.String,
}
# What the filters read. `chosen` and `rejected` are rows of the candidates, null for other answers.
FILTER_COLUMNS = {
    "prompt_id": pl.String,
    "prompt_tokens": pl.UInt32,
    "chosen": pl.UInt32,
    "rejected": pl.UInt32,
    "chosen_id": pl.String,
    "chosen_text": pl.String,
    "chosen_tokens": pl.UInt32,
    "chosen_score": pl.Float64,
    "rejected_id": pl.String,
    "rejected_text": pl.String,
    "rejected_tokens": pl.UInt32,
    "rejected_score": pl.Float64,
    "margin": pl.Float64,
    "origin": pl.String,
    "chosen_source": pl.String,
    "rejected_source": pl.String,
}
ON_POLICY, DEMONSTRATION, OFFLINE, EDITED = "on-policy", "demonstration", "offline", "edited"


@dataclass(frozen=True)
class Proposal:
    """What the strategy proposes, and what was dropped before."""

    pairs: pl.DataFrame
    dropped_samples: pl.DataFrame
    dropped_prompts: pl.DataFrame
    prompts: pl.DataFrame
    usable: int


def propose_pairs(cfg: PairRound, candidates: PairCandidates) -> Proposal:
    rows = candidates.rows
    codes, reasons = judge_samples(cfg, candidates)
    kept = candidates.list_rows(codes == 0)
    numbers = rows["p"].to_numpy()[kept]
    prompts = describe_prompts(cfg, candidates, kept, numbers)
    fit = (prompts["code"].to_numpy() == 0)[numbers]
    extremes = {"max": prompts["high"].to_numpy(), "min": prompts["low"].to_numpy()}
    usable = strategies.UsableSamples(rows, kept[fit], numbers[fit], extremes)
    pairs = strategies.propose(cfg, usable)
    prompts = _flag_unpaired(prompts, pairs)
    return Proposal(
        add_sides(cfg, rows, pairs),
        list_dropped_samples(candidates, codes, reasons),
        list_dropped_prompts(cfg, prompts),
        prompts,
        len(kept),
    )


# ── samples ───────────────────────────────────────────────────────────────────────────────────────


def judge_samples(cfg: PairRound, candidates: PairCandidates) -> tuple[np.ndarray, list[str]]:
    tests = filters.build_tests(cfg, filters.SAMPLES)
    codes, reasons = filters.find_first_reasons(candidates.rows, tests), list(tests)
    if cfg.filters.repeats:
        compared = candidates.list_rows(codes == 0)
        codes[duplicates.find_repeats(candidates.rows, compared)] = len(reasons) + 1
        reasons.append(filters.REPEATS)
    return codes, reasons


def list_dropped_samples(
    candidates: PairCandidates, codes: np.ndarray, reasons: list[str]
) -> pl.DataFrame:
    gone = candidates.list_rows(codes > 0)
    picked = candidates.rows.select("prompt_id", "sample_id", detail="finish_reason")[gone]
    return to_dropped("sample", picked.with_columns(filters.name_reasons(codes[gone], reasons)))


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────


def describe_prompts(
    cfg: PairRound, candidates: PairCandidates, kept: np.ndarray, numbers: np.ndarray
) -> pl.DataFrame:
    """One row for each prompt: usable samples, highest and lowest score, pass rate, reason code.

    `kept`: the numbers of the usable rows, in the order of prompts. `numbers`: their prompts.
    """
    rows, prompts = candidates.rows, candidates.prompts
    starts, answered = strategies.find_groups(numbers)
    score = rows["score"].to_numpy()[kept]
    found = {"usable": np.zeros(len(prompts), dtype=np.uint32)}
    found["usable"][answered] = np.diff(np.append(starts, len(score)))
    band = cfg.filters.pass_rate
    reduced: dict[str, Any] = {"high": (np.maximum, score), "low": (np.minimum, score)}
    reduced |= {"pass_rate": (np.add, (score >= band.threshold).astype(float))} if band else {}
    for name, (reduce, values) in reduced.items():
        found[name] = np.full(len(prompts), np.nan)
        if len(starts):
            found[name][answered] = reduce.reduceat(values, starts)
    table = pl.DataFrame({"prompt_id": prompts, **found})
    if band:
        table = table.with_columns(pl.col("pass_rate") / pl.col("usable"))
    if isinstance(cfg.strategy, BySource):
        both = _find_answered(cfg.strategy, rows["source"][kept], numbers, len(prompts))
        table = table.with_columns(answered=both)
    return table.with_columns(
        code=filters.find_first_reasons(table, filters.build_tests(cfg, filters.PROMPTS))
    )


def _find_answered(
    strategy: BySource, source: pl.Series, numbers: np.ndarray, count: int
) -> np.ndarray:
    """Which of `count` prompts have a usable sample of each source that the strategy names."""
    answered = np.ones(count, dtype=bool)
    for name in strategy.names:
        has = np.zeros(count, dtype=bool)
        has[numbers[(source == name).to_numpy()]] = True
        answered &= has
    return answered


def _flag_unpaired(prompts: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Sets code 255 for prompts that could have had a pair, where the strategy proposes none."""
    code = prompts["code"].to_numpy().copy()
    has = np.zeros(prompts.height, dtype=bool)
    has[pairs["p"].to_numpy()] = True
    code[~has & (code == 0)] = 255
    return prompts.with_columns(code=code)


def list_dropped_prompts(cfg: PairRound, prompts: pl.DataFrame) -> pl.DataFrame:
    gone = prompts.filter(pl.col("code") > 0)
    reasons = list(filters.build_tests(cfg, filters.PROMPTS))
    codes = np.minimum(gone["code"].to_numpy(), len(reasons) + 1)
    detail = pl.format("{} usable samples", "usable")
    if cfg.scored:
        detail = pl.format("{} usable samples, scores from {} to {}", "usable", "low", "high")
    return to_dropped(
        "prompt",
        gone.with_columns(filters.name_reasons(codes, [*reasons, filters.UNPAIRED]), detail=detail),
    )


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────


def add_sides(cfg: PairRound, rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """The proposals with the columns of their two answers.

    A demonstration's chosen side is added later.
    """
    names = {
        "id": "sample_id",
        "text": "completion",
        "tokens": "tokens",
        "score": "score",
        "source": "source",
    }
    metadata = rows.select(*names.values())
    rejected = pairs["rejected"]
    table = pairs.select("chosen", "rejected").hstack(
        [
            *rows.select("prompt_id", "prompt_tokens")[rejected].get_columns(),
            *_side_columns(metadata, rejected, names, "rejected"),
        ]
    )
    if cfg.strategy.kind == "demonstration":
        return table.with_columns(origin=pl.lit(DEMONSTRATION))
    table = table.hstack(_side_columns(metadata, pairs["chosen"], names, "chosen"))
    margin = pl.col("chosen_score") - pl.col("rejected_score")
    origin = sources.list_origins(ON_POLICY, POOL)
    return table.with_columns(margin=margin, origin=origin).select(*FILTER_COLUMNS)


def _side_columns(
    metadata: pl.DataFrame, at: pl.Series, names: dict[str, str], side: str
) -> list[pl.Series]:
    picked = metadata[at]
    picked = picked.with_columns(source=sources.name_sources(picked["source"]))
    return [picked[column].alias(f"{side}_{name}") for name, column in names.items()]


def sort_pairs(pairs: pl.DataFrame) -> pl.DataFrame:
    """The order of pairs in files, and for filters that compare a pair with earlier ones."""
    prompts = pairs["prompt_id"]
    if bool((prompts[1:] > prompts[:-1]).all()):  # one pair a prompt, and prompts are in order
        return pairs
    return pairs.sort("prompt_id", "chosen_id", "rejected_id")


def filter_pairs(cfg: PairRound, pairs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pairs that remain, and the others with their reasons. `pairs` are in order."""
    tests = filters.build_tests(cfg, filters.PAIRS)
    alone = {reason: test for reason, test in tests.items() if reason not in filters.COMPARING}
    codes = filters.find_first_reasons(pairs, alone)
    reasons = list(alone)
    for reason in (name for name in tests if name in filters.COMPARING):
        left = np.flatnonzero(codes == 0)
        compared = pairs.select(*dict.fromkeys(tests[reason].meta.root_names()))
        again = filters.find_first_reasons(compared[left], {reason: tests[reason]})
        reasons.append(reason)
        codes[left[again > 0]] = len(reasons)
    gone = np.flatnonzero(codes)
    shown = "chosen_score", "rejected_score", "chosen_tokens", "rejected_tokens"
    texts = [pl.col(name).cast(pl.String).fill_null("–") for name in shown]
    detail = pl.format("scores {} and {}, {} and {} tokens", *texts)
    columns = "prompt_id", "chosen_id", "rejected_id", *shown
    dropped = pairs.select(columns)[gone].with_columns(
        filters.name_reasons(codes[gone], reasons), detail=detail
    )
    return pairs.filter(pl.Series(codes == 0)), to_dropped("pair", dropped)


def to_dropped(kind: str, rows: pl.DataFrame) -> pl.DataFrame:
    absent = [
        pl.lit(None, pl.String).alias(name)
        for name in DROPPED
        if name not in rows.columns and name != "kind"
    ]
    return rows.with_columns(*absent, kind=pl.lit(kind)).select(*DROPPED)


def count_ties(cfg: PairRound, prompts: pl.DataFrame) -> dict[str, int]:
    """Prompts whose usable samples score alike; none where nothing scored them.

    They are all easy or all hard where this is the run's best or worst score, or by the pass rate.
    """
    if not cfg.scored:
        return {"prompts": 0, "all_easy": 0, "all_hard": 0}
    tied = prompts.filter((pl.col("usable") > 1) & (pl.col("high") == pl.col("low")))
    if (band := cfg.filters.pass_rate) is not None:
        scored = prompts.filter(pl.col("usable") > 1)
        easy = scored.filter(pl.col("low") >= band.threshold)
        hard = scored.filter(pl.col("high") < band.threshold)
    else:
        best = pl.lit(prompts["high"].drop_nans().max())
        worst = pl.lit(prompts["low"].drop_nans().min())
        easy = tied.filter(pl.col("low") == best)
        hard = tied.filter(pl.col("high") == worst)
    return {"prompts": tied.height, "all_easy": easy.height, "all_hard": hard.height}
