"""What scorers, filters and reports are given: known languages, a schema, a function that is there, people's words."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from pipeline.config import (
    DuelConfig,
    Evaluation,
    FunctionScorer,
    JsonScorer,
    Judge,
    LabelsScorer,
    LanguageScorer,
    PairRound,
    RubricScorer,
    ScoreConfig,
)
from pipeline.config.score import count_gpus
from pipeline.preflight.environment import check_gpus
from pipeline.scorers.judging import PACKAGES, not_installed_error
from pipeline.scorers.judging.template import PAIRWISE_FIELDS, RUBRIC_FIELDS, JudgeTemplate
from pipeline.scorers.label_files import read_labels, read_votes
from pipeline.scorers.user_files import check_function, load_schema
from pipeline.step import Step
from pipeline.text import check_languages


def checks_of_given(step: Step) -> Iterator[Callable[[], object]]:
    match step.config:
        case ScoreConfig() as cfg:
            for name, scorer in cfg.scorers.items():
                yield partial(check_scorer, f"{step.knob}.scorers.{name}", scorer)
                if isinstance(scorer, Judge):
                    yield from checks_of_judge(scorer, f"{step.knob}.scorers.{name}")
            for name, scorer in cfg.local_model_scorers.items():
                engine = f"{step.knob}.scorers.{name}.engine"
                yield partial(
                    check_gpus, engine, count_gpus(scorer), step.knob, cfg.runtime.workers
                )
        case DuelConfig() as judge:
            yield from checks_of_judge(judge, step.knob)
        case PairRound(filters=filters) if filters.languages:
            yield partial(check_languages, filters.languages, "pair.filters.languages")
        case Evaluation(labels=labels):
            for name, path in labels.items():
                if is_there(path):
                    yield partial(read_votes, path, f"evaluate.labels.{name}")


def is_there(path: str) -> bool:
    """Of a file that is not, identity says so."""
    return Path(path).expanduser().exists()


def checks_of_judge(cfg: Judge, knob: str) -> Iterator[Callable[[], object]]:
    yield partial(check_package, cfg, f"{knob}.engine")
    if is_there(cfg.template):
        needs = RUBRIC_FIELDS if isinstance(cfg, RubricScorer) else PAIRWISE_FIELDS
        yield partial(JudgeTemplate, cfg.template, needs, cfg.form, cfg.seed)


def check_package(cfg: Judge, knob: str) -> None:
    name = PACKAGES[cfg.engine.kind]
    if find_spec(name) is None:
        raise not_installed_error(
            cfg.engine, knob, ModuleNotFoundError(f"No module named {name!r}")
        )


def check_scorer(knob: str, scorer: object) -> None:
    match scorer:
        case LanguageScorer():
            check_languages(scorer.languages, f"{knob}.languages")
        case JsonScorer(schema_file=str(path)) if is_there(path):
            load_schema(path, knob)
        case FunctionScorer(function=own) if own.file is None or is_there(own.file):
            check_function(own, own.source, own.name, own.file is not None, knob)
        case LabelsScorer(path=path) if is_there(path):
            read_labels(Path(path).expanduser())
