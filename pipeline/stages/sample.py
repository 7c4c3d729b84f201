"""Draws completions of prompts from a policy: one request and one seed for each, shard by shard.

A shard that stands in `shards.json` with its hash is finished: a killed run repeats only the shards it was in.
"""

import shutil
import time
from pathlib import Path

from pipeline.artifacts import Model, Prompts, Samples, Scores, note_cost, write_json, write_table
from pipeline.backends import Backend, open_backend
from pipeline.config import Draw, ScriptedBackend
from pipeline.errors import Broken
from pipeline.sampling.admission import admitted, asked
from pipeline.sampling.drawing import Drawing, nothing
from pipeline.sampling.shards import Shards

MERGED = "scratch/merged"  # an adapter policy merged for this run; gone before anything is published


def run(cfg: Draw, out: Path, *, policy: Model, prompts: Prompts, scores: list[Scores] | None = None) -> Samples:
    backend = open_backend(cfg.backend, policy)
    kept, dropped = admitted(cfg, backend.text, asked(cfg, prompts, scores or []))
    write_table(out / "dropped.parquet", dropped)
    shards = Shards(out, kept, cfg.shard)
    if not kept.height:  # a wave that no prompt needs
        shards.add("00000.parquet", nothing())
    if shards.missing():
        draw(Drawing(cfg, policy.path.name, backend.text, shards), backend, policy, out)
    note_cost(out, **shards.totals(), prompts=kept.height, dropped=dropped.height)
    return Samples(out)


def draw(drawing: Drawing, backend: Backend, policy: Model, out: Path) -> None:
    started = time.monotonic()
    try:
        reads_weights = not isinstance(drawing.cfg.backend, ScriptedBackend)
        whole = merged(policy, out / MERGED) if reads_weights and policy.adapter else policy
        backend.start(whole, drawing.cfg.limits)
        note_cost(out, engine_start_seconds=round(time.monotonic() - started, 2))
        for completion in backend.generate(drawing.requests()):
            drawing.take(completion)
    finally:
        backend.close()
        shutil.rmtree(out / MERGED, ignore_errors=True)
    if missing := drawing.shards.missing():
        raise Broken(f"sample: the backend ended without all completions of {len(missing)} shards ({missing[0]} …).")


def merged(policy: Model, scratch: Path) -> Model:
    """The policy with its adapter in its weights, at full precision, for this run only."""
    from pipeline.training import models

    shutil.rmtree(scratch, ignore_errors=True)
    models.load_merged(policy).save_pretrained(scratch / "weights")
    write_json(scratch / "model.json", {"weights": "weights", "remote_code": policy.remote_code})
    return Model(scratch)
