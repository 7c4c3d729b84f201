"""What scorers, filters and reports need: known languages, a schema, a function, labels."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from pipeline.config import (
    AnswerJudge,
    DuelConfig,
    FunctionScorer,
    JsonScorer,
    Judge,
    LabelsScorer,
    LanguageScorer,
    PairRound,
    ReportConfig,
    RubricScorer,
    ScoreConfig,
    StepJudge,
    StepSearch,
)
from pipeline.config.score import count_gpus
from pipeline.data.label_files import read_sample_labels, read_votes
from pipeline.preflight.environment import check_gpus
from pipeline.scorers.judging import PACKAGES, not_installed_error
from pipeline.scorers.judging.template import (
    FIRST_WRONG_FIELDS,
    PAIRWISE_FIELDS,
    REFERENCE,
    RUBRIC_FIELDS,
    JudgeTemplate,
)
from pipeline.scorers.user_files import check_function, load_schema
from pipeline.step import Step
from pipeline.text import check_languages


def list_scorer_checks(step: Step) -> Iterator[Callable[[], object]]:
    match step.config:
        case ScoreConfig() as cfg:
            for name, scorer in cfg.scorers.items():
                yield partial(check_scorer, f"{step.knob}.scorers.{name}", scorer)
                if isinstance(scorer, Judge):
                    yield from list_judge_checks(scorer, f"{step.knob}.scorers.{name}")
            for name, scorer in cfg.local_model_scorers.items():
                engine = f"{step.knob}.scorers.{name}.engine"
                yield partial(
                    check_gpus, engine, count_gpus(scorer), step.knob, cfg.runtime.workers
                )
        case DuelConfig() as judge:
            yield from list_judge_checks(judge, step.knob)
        case StepSearch(judge=StepJudge() as judge):
            yield from list_judge_checks(judge, f"{step.knob}.judge")
        case PairRound(filters=filters) if filters.languages:
            yield partial(check_languages, filters.languages, "pair.filters.languages")
        case ReportConfig(labels=labels):
            for name, path in labels.items():
                if exists(path):
                    yield partial(read_votes, path, f"evaluate.labels.{name}")


def exists(path: str) -> bool:
    """A missing file is reported when the fingerprint is computed."""
    return Path(path).expanduser().exists()


def list_judge_checks(cfg: Judge, knob: str) -> Iterator[Callable[[], object]]:
    yield partial(check_package, cfg, f"{knob}.engine")
    needs = find_fields(cfg)
    if exists(cfg.template):
        yield partial(JudgeTemplate, cfg.template, needs, cfg.form, cfg.seed)
    if not isinstance(cfg, AnswerJudge):
        return
    if cfg.reference_column and exists(cfg.reference_template):
        yield partial(
            JudgeTemplate, cfg.reference_template, {*needs, REFERENCE}, cfg.form, cfg.seed
        )


def find_fields(cfg: Judge) -> set[str]:
    """What a judge's template has to use."""
    match cfg:
        case RubricScorer():
            return RUBRIC_FIELDS
        case StepJudge():
            return FIRST_WRONG_FIELDS
        case _:
            return PAIRWISE_FIELDS


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
        case JsonScorer(schema_file=str(path)) if exists(path):
            load_schema(path, knob)
        case FunctionScorer(function=own) if own.file is None or exists(own.file):
            check_function(own, own.source, own.name, own.file is not None, knob)
        case LabelsScorer(path=path) if exists(path):
            read_sample_labels(Path(path).expanduser())
