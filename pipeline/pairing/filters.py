"""What may not stand in a pair: one table for samples, one for prompts, one for pairs, each `reason → its test`.

A test is a pure function of the config: an expression over the table's columns that is true where the row has to go,
or None when it was not asked for. A row is dropped for the first reason that holds.
"""

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl

from pipeline.config import PairConfig
from pipeline.pairing import duplicates
from pipeline.pairing.arrow_views import matching
from pipeline.text import REFUSAL, REFUSAL_OPENING, check_languages, guess_language

Filter = Callable[[PairConfig], pl.Expr | None]
BLANK = rb"[\s\x80-\xff][\0\s\x80-\xff]|\0"  # the first two bytes of every text without a letter


# ── samples ───────────────────────────────────────────────────────────────────────────────────────────────────────


def without_score(cfg: PairConfig) -> pl.Expr:
    return ~pl.col("score").is_finite().fill_null(False)


def truncated(cfg: PairConfig) -> pl.Expr | None:
    return None if cfg.filters.allow_truncated else pl.col("finish_reason") != "stop"


def empty(cfg: PairConfig) -> pl.Expr:
    return _matching(r"^\s*$", BLANK)


def second_bos(cfg: PairConfig) -> pl.Expr:
    """A weak model may draw BOS in the middle of its answer; the template alone writes it."""
    return pl.col("second_bos")


def refusal(cfg: PairConfig) -> pl.Expr | None:
    return None if cfg.filters.allow_refusals else _matching(REFUSAL, REFUSAL_OPENING)


def other_language(cfg: PairConfig) -> pl.Expr | None:
    if (wanted := cfg.filters.languages) is None:
        return None
    check_languages(wanted, "pair.filters.languages")
    return ~pl.col("completion").map_elements(guess_language, return_dtype=pl.String).is_in(wanted)


def _matching(pattern: str, opening: bytes) -> pl.Expr:
    return pl.col("completion").map_batches(
        lambda texts: matching(texts, pattern, opening),
        return_dtype=pl.Boolean,
        is_elementwise=True,
    )


SAMPLES: Mapping[str, Filter] = {
    "no score": without_score,
    "truncated": truncated,
    "empty": empty,
    "second BOS": second_bos,
    "refusal": refusal,
    "other language": other_language,
}
REPEATS = "repeated answer"  # among the samples that remain: see duplicates.repeats


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def no_usable(cfg: PairConfig) -> pl.Expr:
    return pl.col("usable") == 0


def one_usable(cfg: PairConfig) -> pl.Expr | None:
    return None if cfg.strategy.kind == "demonstration" else pl.col("usable") == 1


def pass_rate(cfg: PairConfig) -> pl.Expr | None:
    if (band := cfg.filters.pass_rate) is None:
        return None
    return ~pl.col("pass_rate").is_between(band.least, band.most)


def tied(cfg: PairConfig) -> pl.Expr | None:
    kept = cfg.ties == "both" or cfg.strategy.kind == "demonstration"
    return None if kept else pl.col("high") == pl.col("low")


PROMPTS: Mapping[str, Filter] = {
    "no usable sample": no_usable,
    "one usable sample": one_usable,
    "pass rate outside the band": pass_rate,
    "tie": tied,
}
UNPAIRED = "no pair fits the strategy"  # among the prompts that remain


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def equal_answers(cfg: PairConfig) -> pl.Expr:
    return (pl.col("chosen_text") == pl.col("rejected_text")) | (
        pl.col("chosen_id") == pl.col("rejected_id")
    )


def narrow(cfg: PairConfig) -> pl.Expr:
    """A pair without scores (thumbs, demonstrations) has no margin; a tie that was asked for has one of zero."""
    asked = pl.col("margin") != 0 if cfg.ties == "both" else pl.lit(True)
    return asked & ((pl.col("margin") < cfg.filters.min_margin) | (pl.col("margin") <= 0))


def poor_chosen(cfg: PairConfig) -> pl.Expr | None:
    return (
        None if cfg.filters.min_chosen is None else pl.col("chosen_score") < cfg.filters.min_chosen
    )


def good_rejected(cfg: PairConfig) -> pl.Expr | None:
    return (
        None
        if cfg.filters.max_rejected is None
        else pl.col("rejected_score") > cfg.filters.max_rejected
    )


def over_limits(cfg: PairConfig) -> pl.Expr:
    answer = pl.max_horizontal("chosen_tokens", "rejected_tokens")
    return (pl.col("prompt_tokens") > cfg.limits.prompt) | (answer > cfg.limits.completion)


def unlike_lengths(cfg: PairConfig) -> pl.Expr | None:
    most = cfg.filters.max_length_ratio
    return None if most is None else length_ratio() > most


def disputed(cfg: PairConfig) -> pl.Expr | None:
    most = cfg.filters.max_disagreement
    return None if most is None else pl.col("disagreement") > most


def flipped(cfg: PairConfig) -> pl.Expr | None:
    most = cfg.filters.max_flip_rate
    return None if most is None else pl.col("flip_rate") > most


def unlikely(cfg: PairConfig) -> pl.Expr | None:
    least = cfg.filters.min_reference
    return None if least is None else pl.col("reference") < least


def nearly_equal(cfg: PairConfig) -> pl.Expr | None:
    most = cfg.filters.near
    return None if most is None else duplicates.alike("chosen_text", "rejected_text", most)


def repeated(cfg: PairConfig) -> pl.Expr | None:
    return (
        duplicates.repeated("prompt_text", "chosen_text", "rejected_text")
        if cfg.filters.repeats
        else None
    )


def near_another(cfg: PairConfig) -> pl.Expr | None:
    most = cfg.filters.near
    return None if most is None else duplicates.near_earlier("prompt_text", "chosen_text", most)


PAIRS: Mapping[str, Filter] = {
    "equal answers": equal_answers,
    "margin too small": narrow,
    "chosen score too low": poor_chosen,
    "rejected score too high": good_rejected,
    "longer than limits": over_limits,
    "length ratio": unlike_lengths,
    "scorers disagree": disputed,
    "judge flips": flipped,
    "unlikely under the reference": unlikely,
    "nearly equal answers": nearly_equal,
    "repeated pair": repeated,
    "near another pair": near_another,
}
# These compare a pair with the others that remain, so they come last and one after the other.
COMPARING = {"repeated pair", "near another pair"}


def length_ratio() -> pl.Expr:
    chosen, rejected = pl.col("chosen_tokens"), pl.col("rejected_tokens")
    return pl.max_horizontal(chosen, rejected) / pl.min_horizontal(chosen, rejected).clip(1)


# ── applied ───────────────────────────────────────────────────────────────────────────────────────────────────────


def asked(cfg: PairConfig, table: Mapping[str, Filter]) -> dict[str, pl.Expr]:
    return {reason: test for reason, make in table.items() if (test := make(cfg)) is not None}


def first_reasons(rows: pl.DataFrame, tests: Mapping[str, pl.Expr]) -> np.ndarray:
    """For each row 0, or 1 + the place of the first test that holds; a test on null does not hold."""
    codes = np.zeros(rows.height, dtype=np.uint8)
    if tests:
        flags = rows.select(test.alias(reason) for reason, test in tests.items()).fill_null(False)
        for place, reason in reversed([*enumerate(tests, 1)]):
            np.copyto(codes, np.uint8(place), where=flags[reason].to_numpy())
    return codes


def named(codes: np.ndarray, reasons: list[str]) -> pl.Series:
    return pl.Series("reason", [None, *reasons], dtype=pl.String).gather(codes)
