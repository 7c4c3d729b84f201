"""Rules on the text alone: a pattern, JSON, a length, a language."""

import json
import re

from pipeline.config import JsonScorer, LanguageScorer, LengthScorer, RegexScorer
from pipeline.scorers import Answer, Check
from pipeline.scorers.user_files import load_schema
from pipeline.text import check_languages, guess_language

FENCED = re.compile(r"\s*```\w*\n(.*)\n\s*```\s*", re.DOTALL)


def make_check(
    cfg: RegexScorer | JsonScorer | LengthScorer | LanguageScorer, knob: str = "score.scorers.NAME"
) -> Check:
    match cfg:
        case RegexScorer():
            return _make_regex_check(cfg)
        case JsonScorer():
            return _make_json_check(cfg, knob)
        case LengthScorer():
            return _make_length_check(cfg)
        case LanguageScorer():
            return _make_language_check(cfg, knob)


def _make_regex_check(cfg: RegexScorer) -> Check:
    pattern = re.compile(cfg.pattern)
    match = pattern.fullmatch if cfg.whole else pattern.search
    return lambda answer: {"": float((match(answer.completion) is not None) == cfg.wanted)}


def _make_json_check(cfg: JsonScorer, knob: str) -> Check:
    """1 for JSON that fits the schema, else 0.

    Without a schema any JSON fits. NaN and Infinity are not JSON.
    """
    import jsonschema

    schema = load_schema(cfg.schema_file, knob) if cfg.schema_file else {}
    validator = jsonschema.validators.validator_for(schema)(schema)

    def check_json(answer: Answer) -> dict[str, float]:
        fenced = FENCED.fullmatch(answer.completion) if cfg.fenced else None
        text = fenced[1] if fenced else answer.completion
        try:
            value = json.loads(text, parse_constant=_reject_constant)
        except (ValueError, RecursionError):
            return {"": 0.0}
        return {"": float(validator.is_valid(value))}

    return check_json


def _reject_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _make_length_check(cfg: LengthScorer) -> Check:
    """1 within the band.

    Outside it the ratio of the length and the nearer edge, which falls with the distance.
    """

    def check_length(answer: Answer) -> dict[str, float]:
        length = _measure_length(answer, cfg.unit)
        if length < cfg.min:
            return {"": length / cfg.min}
        return {"": 1.0 if length <= cfg.max else cfg.max / length}

    return check_length


def _measure_length(answer: Answer, unit: str) -> int:
    if unit == "words":
        return len(answer.completion.split())
    if unit == "characters":
        return len(answer.completion)
    if answer.tokens is None:
        raise ValueError(
            "this answer was not sampled, so its tokens are not known; count words or characters"
        )
    return answer.tokens


def _make_language_check(cfg: LanguageScorer, knob: str) -> Check:
    check_languages(cfg.languages, f"{knob}.languages")

    def check_language(answer: Answer) -> dict[str, float]:
        text = answer.completion
        has_letters = re.search(r"[^\W\d_]", text) is not None
        return {"": float(has_letters and guess_language(text) in cfg.languages)}

    return check_language
