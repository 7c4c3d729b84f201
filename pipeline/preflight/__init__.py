"""What is refused at once: of Steps before anything is built, of an artifact before the next Step is started."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pipeline.config import Checkpoint, RewardCheckpoint, SampleRequest
from pipeline.errors import together
from pipeline.models.checkpoint import check_files
from pipeline.preflight.context_length import check_context
from pipeline.preflight.environment import check_engine, check_keys
from pipeline.preflight.inputs import check_lengths, check_offline, check_prompts
from pipeline.preflight.rows import checks_of_rows
from pipeline.preflight.rows import unread as unread
from pipeline.preflight.scorers import checks_of_given, is_there
from pipeline.preflight.servers import silent as silent
from pipeline.preflight.templates import check_template
from pipeline.step import Step


def check(coming: Iterable[Step]) -> None:
    """Of the Steps that are to be built alone: what is in the store needs no GPU and no server. All is said at once."""
    together(checks(coming))


def checks(coming: Iterable[Step]) -> Iterator[Callable[[], object]]:
    coming, engines = list(coming), list[object]()
    for step in coming:
        yield partial(check_keys, step)
        yield from checks_of_given(step)
        if isinstance(step.config, Checkpoint):
            yield partial(check_template, step.config)
        yield from checks_of_rows(step, coming)
        yield from checks_of_checkpoint(step.config)
        if isinstance(step.config, SampleRequest):
            yield partial(check_context, step, step.config)
            engine = step.config.backend, step.config.runtime.workers
            if engine not in engines:
                yield partial(check_engine, step, *engine)
            engines.append(engine)


def checks_of_checkpoint(cfg: object) -> Iterator[Callable[[], object]]:
    """Of a folder that is here, what its files tell."""
    if (
        isinstance(cfg, Checkpoint | RewardCheckpoint)
        and cfg.model.is_local
        and is_there(cfg.model)
    ):
        yield partial(check_files, cfg)


def check_made(made: Step, folder_of: Callable[[Step], Path], coming: Iterable[Step]) -> None:
    """What only a Step's artifact can tell, asked before the next Step is started."""
    together(checks_of_made(made, folder_of, coming))


def checks_of_made(
    made: Step, folder_of: Callable[[Step], Path], coming: Iterable[Step]
) -> Iterator[Callable[[], object]]:
    coming = list(coming)
    yield partial(check_prompts, made, folder_of(made), coming)
    yield partial(check_offline, made, folder_of(made), coming)
    yield partial(check_lengths, made, folder_of, coming)
