"""Draws completions of prompts from a policy: one request and one seed for each, shard by shard.

A shard that stands in `shards.json` with its hash is finished: a killed run repeats only the shards it was in.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import Model, Prompts, Samples, note_cost, write_json, write_table
from pipeline.backends import Backend, Completion, Failed, open_backend
from pipeline.config import Draw, EndpointBackend, ScriptedBackend
from pipeline.errors import Broken
from pipeline.sampling.admission import admitted, block
from pipeline.sampling.drawing import Drawing
from pipeline.sampling.journal import Journal
from pipeline.sampling.shards import Shards

JOURNAL = "scratch/journal"  # what a server has given of the shards under way
MERGED = "scratch/merged"  # an adapter policy merged for this run; gone before anything is published


def run(cfg: Draw, out: Path, *, policy: Model, prompts: Prompts) -> Samples:
    backend = open_backend(cfg.backend, policy)
    kept, dropped = admitted(cfg, backend.text, block(cfg, prompts))
    write_table(out / "dropped.parquet", dropped)
    shards = Shards(out, kept, cfg.shard)
    if shards.missing():
        draw(Drawing(cfg, policy.path.name, backend.text, shards), backend, policy, out)
    totals = shards.totals()
    note_cost(out, **totals, **paid(cfg, totals), prompts=kept.height, dropped=dropped.height)
    return Samples(out)


def draw(drawing: Drawing, backend: Backend, policy: Model, out: Path) -> None:
    started = time.monotonic()
    try:
        reads_weights = not isinstance(drawing.cfg.backend, ScriptedBackend)
        whole = merged(policy, out / MERGED) if reads_weights and policy.adapter else policy
        backend.start(whole, drawing.cfg.limits)
        note_cost(out, engine_start_seconds=round(time.monotonic() - started, 2))
        for drawn in drawn_from(backend, drawing, out):
            drawing.take(drawn)
    finally:
        backend.close()
        shutil.rmtree(out / MERGED, ignore_errors=True)
    if missing := drawing.shards.missing():
        raise Broken(f"sample: the backend ended without all completions of {len(missing)} shards ({missing[0]} …).")
    if told := drawing.failures.write():
        print("│", told, file=sys.stderr, flush=True)


def drawn_from(backend: Backend, drawing: Drawing, out: Path) -> Iterator[Completion | Failed]:
    """From a server each completion is written down at once: it was paid for."""
    if isinstance(drawing.cfg.backend, EndpointBackend):
        return Journal(out / JOURNAL).through(backend, drawing.requests())
    return backend.generate(drawing.requests())


def paid(cfg: Draw, totals: dict[str, int]) -> dict[str, float]:
    """What a server asks for all this, when its prices are known."""
    if not isinstance(cfg.backend, EndpointBackend):
        return {}
    prices = cfg.backend.runtime.prices
    return {"price": (prices.input * totals["prompt_tokens"] + prices.output * totals["tokens"]) / 1e6}


def merged(policy: Model, scratch: Path) -> Model:
    """The policy with its adapter in its weights, at full precision, for this run only."""
    from pipeline.training import models

    shutil.rmtree(scratch, ignore_errors=True)
    models.load_merged(policy).save_pretrained(scratch / "weights")
    write_json(scratch / "model.json", {"weights": "weights", "remote_code": policy.remote_code})
    return Model(scratch)
