"""What is refused at once: of Steps before anything is built, of an artifact before the next Step is started."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pipeline.config import Checkpoint, Draw, Optimization
from pipeline.door.contexts import check_context
from pipeline.door.made import check_lengths, check_offline, check_prompts
from pipeline.door.outside import check_engine, check_keys, check_tracker
from pipeline.door.scorers import checks_of_given
from pipeline.door.servers import silent as silent
from pipeline.door.templates import check_template
from pipeline.errors import together
from pipeline.step import Step


def check(coming: Iterable[Step]) -> None:
    """Of the Steps that are to be built alone: what is in the store needs no GPU and no server. All is said at once."""
    together(_checks(coming))


def _checks(coming: Iterable[Step]) -> Iterator[Callable[[], object]]:
    engines: list[object] = []
    for step in coming:
        yield partial(check_keys, step)
        yield from checks_of_given(step)
        if isinstance(step.config, Checkpoint):
            yield partial(check_template, step.config)
        if isinstance(step.config, Draw):
            yield partial(check_context, step, step.config)
            engine = step.config.backend, step.config.runtime.workers
            if engine not in engines:
                yield partial(check_engine, step, *engine)
            engines.append(engine)


def check_trackers(coming: Iterable[Step]) -> None:
    """A dry run asks this too: it takes no network, and a tracker is this machine's, whoever runs the engines."""
    for step in coming:
        if isinstance(step.config, Optimization):
            check_tracker(step.config.runtime.tracker)


def check_made(made: Step, folder_of: Callable[[Step], Path], coming: Iterable[Step]) -> None:
    """What only a Step's artifact can tell, asked before the next Step is started."""
    coming = list(coming)
    check_prompts(made, folder_of(made), coming)
    check_offline(made, folder_of(made), coming)
    check_lengths(made, folder_of, coming)
