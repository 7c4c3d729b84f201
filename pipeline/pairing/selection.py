"""From candidates to pairs: samples that may stand in one, prompts that can have one, proposals, filters.

Every sample, prompt and proposed pair that goes is dropped with its reason: in = out + dropped, for each of the three.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.config import PairConfig
from pipeline.pairing import duplicates, filters, strategies

DROPPED = {
    "kind": pl.String,
    "prompt_id": pl.String,
    "sample_id": pl.String,
    "chosen_id": pl.String,
    "rejected_id": pl.String,
    "reason": pl.String,
    "detail": pl.String,
}
# What pairs are judged by; `chosen` and `rejected` are rows of the candidates, null where an answer is none of them.
JUDGED = {
    "prompt_id": pl.String,
    "prompt_tokens": pl.UInt32,
    "chosen": pl.UInt32,
    "rejected": pl.UInt32,
    **{
        f"{side}_{name}": kind
        for side in ("chosen", "rejected")
        for name, kind in {
            "id": pl.String,
            "text": pl.String,
            "tokens": pl.UInt32,
            "score": pl.Float64,
        }.items()
    },
    "margin": pl.Float64,
    "origin": pl.String,
}
ON_POLICY, DEMONSTRATION, OFFLINE, EDITED = "on-policy", "demonstration", "offline", "edited"


@dataclass(frozen=True)
class Proposed:
    """What the strategy proposes, and what was dropped on the way there."""

    pairs: pl.DataFrame
    dropped_samples: pl.DataFrame
    dropped_prompts: pl.DataFrame
    prompts: pl.DataFrame
    usable: int


def proposed(cfg: PairConfig, rows: pl.DataFrame) -> Proposed:
    codes, reasons = judge_samples(cfg, rows)
    kept = codes == 0
    prompts = about_prompts(cfg, rows, kept)
    fit = prompts["code"].to_numpy() == 0
    pairs = strategies.propose(cfg, strategies.Usable(rows, kept & fit[rows["p"].to_numpy()]))
    prompts = _without_pair(prompts, pairs)
    return Proposed(
        sides(cfg, rows, pairs),
        dropped_samples(rows, codes, reasons),
        dropped_prompts(cfg, prompts),
        prompts,
        int(kept.sum()),
    )


# ── samples ───────────────────────────────────────────────────────────────────────────────────────────────────────


def judge_samples(cfg: PairConfig, rows: pl.DataFrame) -> tuple[np.ndarray, list[str]]:
    tests = filters.asked(cfg, filters.SAMPLES)
    codes, reasons = filters.first_reasons(rows, tests), list(tests)
    if cfg.filters.repeats:
        codes[duplicates.repeats(rows, among=codes == 0)] = len(reasons) + 1
        reasons.append(filters.REPEATS)
    return codes, reasons


def dropped_samples(rows: pl.DataFrame, codes: np.ndarray, reasons: list[str]) -> pl.DataFrame:
    gone = np.flatnonzero(codes)
    picked = rows.select("prompt_id", "sample_id", detail="finish_reason")[gone]
    return as_dropped("sample", picked.with_columns(filters.named(codes[gone], reasons)))


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def about_prompts(cfg: PairConfig, rows: pl.DataFrame, kept: np.ndarray) -> pl.DataFrame:
    """One row a prompt: its usable samples, their highest and lowest score, pass rate, why it has no pair."""
    firsts, _ = strategies.groups(rows["p"].to_numpy())
    at = np.flatnonzero(kept)
    starts, numbers = strategies.groups(rows["p"].to_numpy()[at])
    score = rows["score"].to_numpy()[at]
    found = {"usable": np.zeros(len(firsts), dtype=np.uint32)}
    found["usable"][numbers] = np.diff(np.append(starts, len(score)))
    band = cfg.filters.pass_rate
    reduced: dict[str, Any] = {"high": (np.maximum, score), "low": (np.minimum, score)}
    reduced |= {"pass_rate": (np.add, (score >= band.at).astype(float))} if band else {}
    for name, (reduce, values) in reduced.items():
        found[name] = np.full(len(firsts), np.nan)
        if len(starts):
            found[name][numbers] = reduce.reduceat(values, starts)
    table = rows.select("prompt_id")[firsts].with_columns(
        pl.Series(name, values) for name, values in found.items()
    )
    if band:
        table = table.with_columns(pl.col("pass_rate") / pl.col("usable"))
    return table.with_columns(
        code=filters.first_reasons(table, filters.asked(cfg, filters.PROMPTS))
    )


def _without_pair(prompts: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """The prompts that could have had a pair and for which the strategy found none get a code of their own."""
    code = prompts["code"].to_numpy().copy()
    has = np.zeros(prompts.height, dtype=bool)
    has[pairs["p"].to_numpy()] = True
    code[~has & (code == 0)] = 255
    return prompts.with_columns(code=code)


def dropped_prompts(cfg: PairConfig, prompts: pl.DataFrame) -> pl.DataFrame:
    gone = prompts.filter(pl.col("code") > 0)
    reasons = list(filters.asked(cfg, filters.PROMPTS))
    codes = np.minimum(gone["code"].to_numpy(), len(reasons) + 1)
    detail = pl.format("{} usable samples, scores from {} to {}", "usable", "low", "high")
    return as_dropped(
        "prompt",
        gone.with_columns(filters.named(codes, [*reasons, filters.UNPAIRED]), detail=detail),
    )


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def sides(cfg: PairConfig, rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Proposals with what their two answers are judged by; a demonstration's chosen side comes later."""
    names = {"id": "sample_id", "text": "completion", "tokens": "tokens", "score": "score"}
    lean = rows.select(*names.values())
    rejected = pairs["rejected"]
    table = pairs.select("chosen", "rejected").hstack(
        [
            *rows.select("prompt_id", "prompt_tokens")[rejected].get_columns(),
            *_side(lean, rejected, names, "rejected"),
        ]
    )
    if cfg.strategy.kind == "demonstration":
        return table.with_columns(origin=pl.lit(DEMONSTRATION))
    table = table.hstack(_side(lean, pairs["chosen"], names, "chosen"))
    margin = pl.col("chosen_score") - pl.col("rejected_score")
    return table.with_columns(margin=margin, origin=pl.lit(ON_POLICY)).select(*JUDGED)


def _side(lean: pl.DataFrame, at: pl.Series, names: dict[str, str], side: str) -> list[pl.Series]:
    picked = lean[at]
    return [picked[column].alias(f"{side}_{name}") for name, column in names.items()]


def in_order(pairs: pl.DataFrame) -> pl.DataFrame:
    """The one order of pairs: filters that compare a pair with earlier ones, and the files, go by it."""
    prompts = pairs["prompt_id"]
    if bool((prompts[1:] > prompts[:-1]).all()):  # one pair a prompt, and prompts are in order
        return pairs
    return pairs.sort("prompt_id", "chosen_id", "rejected_id")


def filtered(cfg: PairConfig, pairs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pairs that remain, and the others with their reason. `pairs` are in order."""
    tests = filters.asked(cfg, filters.PAIRS)
    alone = {reason: test for reason, test in tests.items() if reason not in filters.COMPARING}
    codes = filters.first_reasons(pairs, alone)
    reasons = list(alone)
    for reason in (name for name in tests if name in filters.COMPARING):
        left = np.flatnonzero(codes == 0)
        compared = pairs.select(*dict.fromkeys(tests[reason].meta.root_names()))
        again = filters.first_reasons(compared[left], {reason: tests[reason]})
        reasons.append(reason)
        codes[left[again > 0]] = len(reasons)
    gone = np.flatnonzero(codes)
    detail = pl.format(
        "scores {} and {}, {} and {} tokens",
        *(
            pl.col(f"{side}_{name}").cast(pl.String).fill_null("–")
            for name in ("score", "tokens")
            for side in ("chosen", "rejected")
        ),
    )
    told = (
        "prompt_id",
        *(
            f"{side}_{name}"
            for side in ("chosen", "rejected")
            for name in ("id", "score", "tokens")
        ),
    )
    dropped = pairs.select(told)[gone].with_columns(
        filters.named(codes[gone], reasons), detail=detail
    )
    return pairs.filter(pl.Series(codes == 0)), as_dropped("pair", dropped)


def as_dropped(kind: str, rows: pl.DataFrame) -> pl.DataFrame:
    absent = [
        pl.lit(None, pl.String).alias(name)
        for name in DROPPED
        if name not in rows.columns and name != "kind"
    ]
    return rows.with_columns(*absent, kind=pl.lit(kind)).select(*DROPPED)


def ties(cfg: PairConfig, prompts: pl.DataFrame) -> dict[str, int]:
    """Prompts whose usable samples score alike; all easy or all hard where that is the run's best or worst score."""
    several = prompts.filter((pl.col("usable") > 1) & (pl.col("high") == pl.col("low")))
    if (band := cfg.filters.pass_rate) is not None:
        scored = prompts.filter(pl.col("usable") > 1)
        easy, hard = (
            scored.filter(pl.col("low") >= band.at),
            scored.filter(pl.col("high") < band.at),
        )
    else:
        best, worst = (
            pl.lit(prompts["high"].drop_nans().max()),
            pl.lit(prompts["low"].drop_nans().min()),
        )
        easy, hard = several.filter(pl.col("low") == best), several.filter(pl.col("high") == worst)
    return {"prompts": several.height, "all_easy": easy.height, "all_hard": hard.height}
