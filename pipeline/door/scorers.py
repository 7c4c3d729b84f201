"""What scorers and filters are given: languages that are known, a schema that is one, a function that is there."""

from pipeline.config import FunctionScorer, JsonScorer, LanguageScorer, PairRound, ScoreConfig
from pipeline.config.score import gpus_of
from pipeline.door.outside import check_gpus
from pipeline.given import check_function, schema_of
from pipeline.language import check_languages
from pipeline.step import Step


def check_given(step: Step) -> None:
    match step.config:
        case ScoreConfig() as cfg:
            for name, scorer in cfg.scorers.items():
                check_scorer(f"the scorer {name}", scorer)
            for name, scorer in cfg.local.items():
                check_gpus(f"{step.knob}.scorers.{name}.engine", gpus_of(scorer), step.knob, cfg.runtime.workers)
        case PairRound(filters=filters) if filters.languages:
            check_languages(filters.languages, "pair.filters.languages")


def check_scorer(name: str, scorer: object) -> None:
    match scorer:
        case LanguageScorer():
            check_languages(scorer.languages, f"{name}: languages")
        case JsonScorer(schema_file=str(path)):
            schema_of(path)
        case FunctionScorer(function=own):
            check_function(own, own.place, own.name, own.file is not None)
