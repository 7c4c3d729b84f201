"""What is checked early: Steps before anything is built, artifacts before the next Step starts."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pipeline.config import (
    Checkpoint,
    GgufCheckpoint,
    MergePoint,
    RewardCheckpoint,
    SampleRequest,
)
from pipeline.errors import run_all
from pipeline.models.checkpoint import check_files
from pipeline.models.gguf import check_source
from pipeline.preflight.answers import check_answers, list_answer_checks
from pipeline.preflight.context_length import check_context
from pipeline.preflight.environment import check_engine, check_keys, check_packages
from pipeline.preflight.inputs import check_lengths, check_offline, check_prompts
from pipeline.preflight.merging import check_models
from pipeline.preflight.online import unfold_online
from pipeline.preflight.rows import describe_unread as describe_unread
from pipeline.preflight.rows import list_row_checks
from pipeline.preflight.rows import warn_of_one_sided_sets as warn_of_one_sided_sets
from pipeline.preflight.scorers import exists, list_scorer_checks
from pipeline.preflight.servers import warn_of_silent_servers as warn_of_silent_servers
from pipeline.preflight.templates import check_template
from pipeline.step import Step


def list_checks(coming: Iterable[Step], is_here: bool = True) -> Iterator[Callable[[], object]]:
    """Checks of the Steps to be built; those in the store need no GPU or server.

    `is_here`: whether this machine builds them, and not a cluster.
    """
    coming, engines = list(unfold_online(coming)), list[object]()
    yield partial(check_packages, {step.stage for step in coming})
    for step in coming:
        yield partial(check_keys, step)
        yield from list_scorer_checks(step)
        if isinstance(step.config, Checkpoint):
            yield partial(check_template, step.config)
        if isinstance(step.config, MergePoint) and all(map(exists, step.config.models)):
            yield partial(check_models, step)
        yield from list_row_checks(step, coming)
        yield from list_answer_checks(step)
        yield from list_checkpoint_checks(step.config)
        if isinstance(step.config, SampleRequest):
            yield partial(check_context, step, step.config)
            engine = step.config.backend, step.config.runtime.workers
            if engine not in engines:
                yield partial(check_engine, step, *engine, is_here)
            engines.append(engine)


def list_checkpoint_checks(cfg: object) -> Iterator[Callable[[], object]]:
    """Checks of a local checkpoint's files."""
    if isinstance(cfg, GgufCheckpoint):
        yield partial(check_source, cfg)
    if isinstance(cfg, Checkpoint | RewardCheckpoint) and cfg.model.is_local and exists(cfg.model):
        yield partial(check_files, cfg)


def check_artifact(made: Step, folder_of: Callable[[Step], Path], coming: Iterable[Step]) -> None:
    """Check what only an artifact shows, before the next Step starts."""
    run_all(list_artifact_checks(made, folder_of, coming))


def list_artifact_checks(
    made: Step, folder_of: Callable[[Step], Path], coming: Iterable[Step]
) -> Iterator[Callable[[], object]]:
    coming = list(unfold_online(coming))
    yield partial(check_prompts, made, folder_of(made), coming)
    yield partial(check_answers, made, folder_of(made), coming)
    yield partial(check_offline, made, folder_of(made), coming)
    yield partial(check_lengths, made, folder_of, coming)
