"""What is dropped: one table each for samples, prompts and pairs, `reason → its test`.

A test is a pure function of the config. It gives an expression over the table's columns that is
true where the row is dropped, or None where the config does not ask for it. A row is dropped for
the first reason that holds.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np
import polars as pl

from pipeline.config import BySource, PairRound
from pipeline.data.line_lists import read_list
from pipeline.pairing import duplicates
from pipeline.pairing.arrow_views import match_texts
from pipeline.text import REFUSAL, REFUSAL_OPENING, check_languages, guess_language

Filter = Callable[[PairRound], pl.Expr | None]
BLANK = rb"[\s\x80-\xff][\0\s\x80-\xff]|\0"  # the first two bytes of every text without a letter


# ── samples ───────────────────────────────────────────────────────────────────────────────────────


def lacks_score(cfg: PairRound) -> pl.Expr | None:
    return None if not cfg.scored else ~pl.col("score").is_finite().fill_null(False)


def is_truncated(cfg: PairRound) -> pl.Expr | None:
    return None if cfg.filters.allow_truncated else pl.col("finish_reason") != "stop"


def is_empty(cfg: PairRound) -> pl.Expr:
    return _match_completions(r"^\s*$", BLANK)


def has_second_bos(cfg: PairRound) -> pl.Expr:
    """A weak model may generate BOS within its answer; only the template writes it."""
    return pl.col("second_bos")


def is_refusal(cfg: PairRound) -> pl.Expr | None:
    return None if cfg.filters.allow_refusals else _match_completions(REFUSAL, REFUSAL_OPENING)


def is_other_language(cfg: PairRound) -> pl.Expr | None:
    if (wanted := cfg.filters.languages) is None:
        return None
    check_languages(wanted, "pair.filters.languages")
    return ~pl.col("completion").map_elements(guess_language, return_dtype=pl.String).is_in(wanted)


def _match_completions(pattern: str, opening: bytes) -> pl.Expr:
    return pl.col("completion").map_batches(
        lambda texts: match_texts(texts, pattern, opening),
        return_dtype=pl.Boolean,
        is_elementwise=True,
    )


def has_excluded_word(cfg: PairRound) -> pl.Expr | None:
    """Such as names of other models, which an answer of theirs brings along."""
    if (listed := cfg.filters.excluded_words) is None:
        return None
    example = "a list: [OpenAI, ChatGPT], or null for none"
    words = read_list(listed, "pair.filters.excluded_words", "word or phrase", example)
    pattern = "|".join(re.escape(word) for word in words)
    return pl.col("completion").str.contains(rf"(?i)\b(?:{pattern})\b")


SAMPLES: Mapping[str, Filter] = {
    "no score": lacks_score,
    "truncated": is_truncated,
    "empty": is_empty,
    "second BOS": has_second_bos,
    "refusal": is_refusal,
    "other language": is_other_language,
    "excluded word": has_excluded_word,
}
REPEATS = "repeated answer"  # among the samples that remain: see duplicates.find_repeats


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────


def has_no_usable(cfg: PairRound) -> pl.Expr:
    return pl.col("usable") == 0


def has_one_usable(cfg: PairRound) -> pl.Expr | None:
    return None if cfg.strategy.kind == "demonstration" else pl.col("usable") == 1


def lacks_source(cfg: PairRound) -> pl.Expr | None:
    """The two sides need an answer of each source that the strategy names."""
    return ~pl.col("answered") if isinstance(cfg.strategy, BySource) else None


def misses_pass_rate(cfg: PairRound) -> pl.Expr | None:
    if (band := cfg.filters.pass_rate) is None:
        return None
    return ~pl.col("pass_rate").is_between(band.min, band.max)


def is_tied(cfg: PairRound) -> pl.Expr | None:
    kept = cfg.ties == "both" or cfg.strategy.kind == "demonstration" or not cfg.scored
    return None if kept else pl.col("high") == pl.col("low")


NOT_BY_BOTH = "not answered by both sources"
PROMPTS: Mapping[str, Filter] = {
    "no usable sample": has_no_usable,
    "one usable sample": has_one_usable,
    NOT_BY_BOTH: lacks_source,
    "pass rate outside the band": misses_pass_rate,
    "tie": is_tied,
}
UNPAIRED = "no pair fits the strategy"  # among the prompts that remain


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────


def has_equal_answers(cfg: PairRound) -> pl.Expr:
    equal_texts = pl.col("chosen_text") == pl.col("rejected_text")
    return equal_texts | (pl.col("chosen_id") == pl.col("rejected_id"))


def has_narrow_margin(cfg: PairRound) -> pl.Expr:
    """A pair without scores (demonstrations, offline rows) has no margin, and passes.

    With `ties: both` a margin of zero passes too.
    """
    may_drop = pl.col("margin") != 0 if cfg.ties == "both" else pl.lit(True)
    return may_drop & ((pl.col("margin") < cfg.filters.min_margin) | (pl.col("margin") <= 0))


def has_poor_chosen(cfg: PairRound) -> pl.Expr | None:
    minimum = cfg.filters.min_chosen
    return None if minimum is None else pl.col("chosen_score") < minimum


def has_good_rejected(cfg: PairRound) -> pl.Expr | None:
    maximum = cfg.filters.max_rejected
    return None if maximum is None else pl.col("rejected_score") > maximum


def exceeds_limits(cfg: PairRound) -> pl.Expr:
    answer = pl.max_horizontal("chosen_tokens", "rejected_tokens")
    if cfg.continues_answers:
        return pl.col("prompt_tokens") + answer > cfg.limits.prompt + cfg.limits.completion
    return (pl.col("prompt_tokens") > cfg.limits.prompt) | (answer > cfg.limits.completion)


def exceeds_length_ratio(cfg: PairRound) -> pl.Expr | None:
    maximum = cfg.filters.max_length_ratio
    return None if maximum is None else length_ratio() > maximum


def exceeds_token_gap(cfg: PairRound) -> pl.Expr | None:
    """One-sided: a rejected answer may be longer by any number of tokens."""
    maximum = cfg.filters.max_token_gap
    chosen, rejected = (pl.col(f"{side}_tokens").cast(pl.Int64) for side in ("chosen", "rejected"))
    return None if maximum is None else chosen - rejected > maximum


def is_disputed(cfg: PairRound) -> pl.Expr | None:
    maximum = cfg.filters.max_disagreement
    return None if maximum is None else pl.col("disagreement") > maximum


def is_flipped(cfg: PairRound) -> pl.Expr | None:
    maximum = cfg.filters.max_flip_rate
    return None if maximum is None else pl.col("flip_rate") > maximum


def is_unlikely(cfg: PairRound) -> pl.Expr | None:
    minimum = cfg.filters.min_reference
    return None if minimum is None else pl.col("reference") < minimum


def has_near_duplicate_answers(cfg: PairRound) -> pl.Expr | None:
    threshold = cfg.filters.near_duplicate_threshold
    if threshold is None:
        return None
    return duplicates.is_near_duplicate("chosen_text", "rejected_text", threshold)


def is_repeated(cfg: PairRound) -> pl.Expr | None:
    if not cfg.filters.repeats:
        return None
    return duplicates.is_repeated("prompt_text", "chosen_text", "rejected_text")


def is_near_another(cfg: PairRound) -> pl.Expr | None:
    threshold = cfg.filters.near_duplicate_threshold
    if threshold is None:
        return None
    return duplicates.is_near_earlier("prompt_text", "chosen_text", threshold)


PAIRS: Mapping[str, Filter] = {
    "equal answers": has_equal_answers,
    "margin too small": has_narrow_margin,
    "chosen score too low": has_poor_chosen,
    "rejected score too high": has_good_rejected,
    "longer than limits": exceeds_limits,
    "length ratio": exceeds_length_ratio,
    "chosen too much longer": exceeds_token_gap,
    "scorers disagree": is_disputed,
    "judge flips": is_flipped,
    "unlikely under the reference": is_unlikely,
    "nearly equal answers": has_near_duplicate_answers,
    "repeated pair": is_repeated,
    "near another pair": is_near_another,
}
# These compare a pair with the other pairs that remain, so they come last, one after the other.
COMPARING = {"repeated pair", "near another pair"}


def length_ratio() -> pl.Expr:
    chosen, rejected = pl.col("chosen_tokens"), pl.col("rejected_tokens")
    return pl.max_horizontal(chosen, rejected) / pl.min_horizontal(chosen, rejected).clip(1)


# ── application ───────────────────────────────────────────────────────────────────────────────────


def build_tests(cfg: PairRound, table: Mapping[str, Filter]) -> dict[str, pl.Expr]:
    return {reason: test for reason, make in table.items() if (test := make(cfg)) is not None}


def find_first_reasons(rows: pl.DataFrame, tests: Mapping[str, pl.Expr]) -> np.ndarray:
    """For each row 0, or 1 + the place of the first test that holds. On null a test does not."""
    codes = np.zeros(rows.height, dtype=np.uint8)
    if tests:
        flags = rows.select(test.alias(reason) for reason, test in tests.items())
        for place, reason in reversed([*enumerate(tests, 1)]):
            codes[flags[reason].arg_true().to_numpy()] = place
    return codes


def name_reasons(codes: np.ndarray, reasons: list[str]) -> pl.Series:
    return pl.Series("reason", [None, *reasons], dtype=pl.String).gather(codes)
