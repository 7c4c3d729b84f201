"""The servers that this run will ask, and whether they answer now.

A silent server is a warning, not an error: a judge is often started later, on the same GPUs. A
connection is opened and closed again; no key is sent.
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
    RevisionRequest,
    SampleRequest,
    ScoreConfig,
    ServedModel,
    ServiceRuntime,
    StepJudge,
    StepSearch,
)
from pipeline.config.base import Server
from pipeline.step import Step

PATIENCE = 1.0  # seconds for all servers together
PORTS = {"http": 80, "https": 443}


def list_servers(step: Step) -> Iterator[tuple[str, Server]]:
    """The servers that a Step asks, each with the knob of its block."""
    match step.config:
        case RevisionRequest(backend=ServedModel() as model):
            yield f"{step.knob}.backend", model.runtime
        case SampleRequest(backend=ServedModel() as model):
            yield step.knob, model.runtime
        case SampleRequest(backend=EndpointBackend() as backend):
            yield f"{step.knob}.backend", backend.runtime
        case DuelConfig() as judge:
            yield from _list_judge_servers(step.knob, judge)
        case StepSearch(judge=StepJudge() as judge):
            yield from _list_judge_servers(f"{step.knob}.judge", judge)
        case ScoreConfig(scorers=scorers):
            for name, scorer in scorers.items():
                yield from _list_judge_servers(f"{step.knob}.scorers.{name}", scorer)


def _list_judge_servers(knob: str, scorer: object) -> Iterator[tuple[str, Server]]:
    if isinstance(scorer, Judge) and isinstance(scorer.engine.runtime, ServiceRuntime):
        yield f"{knob}.engine", scorer.engine.runtime


def warn_of_silent_servers(coming: Iterable[Step]) -> Iterator[str]:
    """A warning for each address that does not answer, at the first Step that will ask it."""
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
        # The run checks that this server serves the policy.
        return "A run is refused without it: start it before"
    return f"{step.stage} {step.label_text} asks it first: start it by then"


def _probe_all(urls: list[str]) -> dict[str, str]:
    """Each address's fault, all tried at once. A name's lookup may take minutes: we do not wait."""
    faults = dict.fromkeys(urls, f"nothing within {PATIENCE:g} s")

    def probe(url: str) -> None:
        faults[url] = _probe(url)

    deadline = time.monotonic() + PATIENCE
    threads = [Thread(target=probe, args=[url], daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(faults)


def _probe(url: str) -> str:
    parts = urlsplit(url)
    try:
        address = parts.hostname or "", parts.port or PORTS[parts.scheme]
        if not _is_behind_proxy(parts.scheme, address[0]):
            socket.create_connection(address, PATIENCE).close()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _is_behind_proxy(scheme: str, host: str) -> bool:
    """Behind a proxy it is not known here whether a server answers."""
    from urllib.request import getproxies, proxy_bypass

    return bool({scheme, "all"} & getproxies().keys()) and not proxy_bypass(host)
