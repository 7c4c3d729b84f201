"""Servers that this run will ask, and whether anybody answers there yet: said and not refused, since a judge
is often started later, on the same GPUs. A connection is opened and closed again; no key is sent.
"""

import socket
import time
from collections.abc import Iterable, Iterator
from threading import Thread
from urllib.parse import urlsplit

from pipeline.config import (
    DuelConfig,
    EndpointBackend,
    Judge,
    SampleRequest,
    ScoreConfig,
    ServedModel,
    ServiceRuntime,
)
from pipeline.config.base import Server
from pipeline.step import Step

PATIENCE = 1.0  # seconds for all of them together, whatever the network does
PORTS = {"http": 80, "https": 443}


def list_servers(step: Step) -> Iterator[tuple[str, Server]]:
    """Those that a Step asks, each with the knob of the block that names it."""
    match step.config:
        case SampleRequest(backend=ServedModel() as model):
            yield step.knob, model.runtime
        case SampleRequest(backend=EndpointBackend() as backend):
            yield f"{step.knob}.backend", backend.runtime
        case DuelConfig() as judge:
            yield from _list_judge_servers(step.knob, judge)
        case ScoreConfig(scorers=scorers):
            for name, scorer in scorers.items():
                yield from _list_judge_servers(f"{step.knob}.scorers.{name}", scorer)


def _list_judge_servers(knob: str, scorer: object) -> Iterator[tuple[str, Server]]:
    if isinstance(scorer, Judge) and isinstance(scorer.engine.runtime, ServiceRuntime):
        yield f"{knob}.engine", scorer.engine.runtime


def warn_of_silent_servers(coming: Iterable[Step]) -> Iterator[str]:
    """A warning for each address at which nobody answers, by the first Step that will ask there."""
    first: dict[str, tuple[str, Step]] = {}
    for step in coming:
        for knob, server in list_servers(step):
            first.setdefault(server.base_url, (f"{knob}.runtime.base_url", step))
    for url, why in _probe_all([*first]).items():
        knob, step = first[url]
        if why:
            yield (
                f"! {knob}={url}: no server answers there now ({why}).\n"
                f"  {_advise(step)}, or give {knob}=ADDRESS of one that runs."
            )


def _advise(step: Step) -> str:
    if isinstance(step.config, SampleRequest) and isinstance(step.config.backend, EndpointBackend):
        return "A run is refused without it: start it before"  # it is measured to serve the policy
    return f"{step.stage} {step.label_text} asks it first: start it by then"


def _probe_all(urls: list[str]) -> dict[str, str]:
    """Why nobody is reached there, all tried at once. To look up a name may take minutes: nobody waits for that."""
    faults = dict.fromkeys(urls, f"nothing within {PATIENCE:g} s")

    def look(url: str) -> None:
        faults[url] = _probe(url)

    ends, tries = (
        time.monotonic() + PATIENCE,
        [Thread(target=look, args=[url], daemon=True) for url in urls],
    )
    for one in tries:
        one.start()
    for one in tries:
        one.join(max(0.0, ends - time.monotonic()))
    return dict(faults)


def _probe(url: str) -> str:
    place = urlsplit(url)
    try:
        address = place.hostname or "", place.port or PORTS[place.scheme]
        if not _is_behind_proxy(place.scheme, address[0]):
            socket.create_connection(address, PATIENCE).close()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _is_behind_proxy(scheme: str, host: str) -> bool:
    """What stands behind a proxy is reached by it alone, and whether it answers is not known here."""
    from urllib.request import getproxies, proxy_bypass

    return bool({scheme, "all"} & getproxies().keys()) and not proxy_bypass(host)
