"""Rules on the text alone: a pattern, JSON, a length, a language."""

import json
import re

from pipeline.config import JsonScorer, LanguageScorer, LengthScorer, RegexScorer
from pipeline.scorers import Answer, Check
from pipeline.scorers.user_files import schema_of
from pipeline.text import check_languages, guess_language

FENCED = re.compile(r"\s*```\w*\n(.*)\n\s*```\s*", re.DOTALL)


def check(
    cfg: RegexScorer | JsonScorer | LengthScorer | LanguageScorer, knob: str = "score.scorers.NAME"
) -> Check:
    match cfg:
        case RegexScorer():
            return _regex(cfg)
        case JsonScorer():
            return _json(cfg, knob)
        case LengthScorer():
            return _length(cfg)
        case LanguageScorer():
            return _language(cfg, knob)


def _regex(cfg: RegexScorer) -> Check:
    pattern = re.compile(cfg.pattern)
    found = pattern.fullmatch if cfg.whole else pattern.search
    return lambda answer: {"": float((found(answer.completion) is not None) == cfg.wanted)}


def _json(cfg: JsonScorer, knob: str) -> Check:
    """1 for JSON that fits the schema, else 0; without a schema any JSON does. NaN and Infinity are not JSON."""
    import jsonschema

    schema = schema_of(cfg.schema_file, knob) if cfg.schema_file else {}
    validator = jsonschema.validators.validator_for(schema)(schema)

    def fits(answer: Answer) -> dict[str, float]:
        fenced = FENCED.fullmatch(answer.completion) if cfg.fenced else None
        try:
            value = json.loads(fenced[1] if fenced else answer.completion, parse_constant=_no_json)
        except (ValueError, RecursionError):
            return {"": 0.0}
        return {"": float(validator.is_valid(value))}

    return fits


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _length(cfg: LengthScorer) -> Check:
    """1 within the band; outside it the nearer edge over the length, or the length over it: further off is worse."""

    def within(answer: Answer) -> dict[str, float]:
        length = _counted(answer, cfg.unit)
        if length < cfg.least:
            return {"": length / cfg.least}
        return {"": 1.0 if length <= cfg.most else cfg.most / length}

    return within


def _counted(answer: Answer, unit: str) -> int:
    if unit == "words":
        return len(answer.completion.split())
    if unit == "characters":
        return len(answer.completion)
    if answer.tokens is None:
        raise ValueError(
            "this answer was not sampled, so its tokens are not known; count words or characters"
        )
    return answer.tokens


def _language(cfg: LanguageScorer, knob: str) -> Check:
    check_languages(cfg.languages, f"{knob}.languages")

    def spoken(answer: Answer) -> dict[str, float]:
        text = answer.completion
        return {
            "": float(bool(re.search(r"[^\W\d_]", text)) and guess_language(text) in cfg.languages)
        }

    return spoken
