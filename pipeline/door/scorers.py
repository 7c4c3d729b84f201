"""What scorers, filters and reports are given: known languages, a schema, a function that is there, people's words."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.config import (
    Evaluation,
    FunctionScorer,
    JsonScorer,
    LabelsScorer,
    LanguageScorer,
    PairRound,
    ScoreConfig,
)
from pipeline.config.score import gpus_of
from pipeline.door.outside import check_gpus
from pipeline.given import check_function, schema_of
from pipeline.language import check_languages
from pipeline.scorers.label_files import read_labels, read_votes
from pipeline.step import Step


def checks_of_given(step: Step) -> Iterator[Callable[[], object]]:
    match step.config:
        case ScoreConfig() as cfg:
            for name, scorer in cfg.scorers.items():
                yield partial(check_scorer, f"the scorer {name}", scorer)
            for name, scorer in cfg.local.items():
                engine = f"{step.knob}.scorers.{name}.engine"
                yield partial(check_gpus, engine, gpus_of(scorer), step.knob, cfg.runtime.workers)
        case PairRound(filters=filters) if filters.languages:
            yield partial(check_languages, filters.languages, "pair.filters.languages")
        case Evaluation(labels=labels):
            for name, path in labels.items():
                yield partial(read_votes, path, f"evaluate.labels.{name}")


def check_scorer(name: str, scorer: object) -> None:
    match scorer:
        case LanguageScorer():
            check_languages(scorer.languages, f"{name}: languages")
        case JsonScorer(schema_file=str(path)):
            schema_of(path)
        case FunctionScorer(function=own):
            check_function(own, own.place, own.name, own.file is not None)
        case LabelsScorer(path=path):
            read_labels(Path(path).expanduser())
