"""Draws completions of prompts from a policy: one request and one seed for each, shard by shard.

A shard that stands in `shards.json` with its hash is finished: a killed run repeats only the shards
it was in.
"""

import shutil
import sys
import time
from functools import partial
from pathlib import Path

from pipeline import hardware
from pipeline.artifacts import (
    Model,
    Prompts,
    Samples,
    Scores,
    knob_of,
    note_cost,
    noted_cost,
    write_table,
)
from pipeline.backends import Backend, open_backend
from pipeline.backends.lora_support import serves
from pipeline.config import (
    Conversation,
    EndpointBackend,
    Prices,
    SampleRequest,
    ServedModel,
    TransformersBackend,
    VllmBackend,
)
from pipeline.progress import say_phase
from pipeline.resources.gpu_sets import Environment, worker_environments
from pipeline.resources.model_shape import parameter_cost
from pipeline.resources.worker_pool import Worker, run_shards
from pipeline.sampling import multi_turn
from pipeline.sampling.collector import Drawing, nothing
from pipeline.sampling.journal import Journal
from pipeline.sampling.prompt_selection import admitted, asked
from pipeline.sampling.shards import Entry, Finished, Shards
from pipeline.sampling.throughput import ENGINE, Meter, money

KNOB = "sample"  # of its block, where the driver names none
ENGINES = VllmBackend, TransformersBackend  # those that open weights here, and fill GPUs
SERVERS = EndpointBackend, ServedModel  # those where each completion is paid for
OPENING = (
    *ENGINES,
    EndpointBackend,
)  # those that open the policy here, to draw from it or to know it again
JOURNAL = "scratch/journal"  # what a server has given of the shards under way
MERGED = (
    "scratch/merged"  # an adapter policy merged for this run; gone before anything is published
)


def run(
    cfg: SampleRequest | Conversation,
    out: Path,
    *,
    policy: Model,
    prompts: Prompts,
    scores: list[Scores] | None = None,
) -> Samples:
    if isinstance(cfg, Conversation):
        return converse(cfg, out, policy, prompts)
    shards = Shards(out, cfg.shard)
    kept, dropped = admitted(
        cfg, lambda: opened(cfg, out, policy).text, asked(cfg, prompts, scores or [])
    )
    write_table(out / "dropped.parquet", dropped)
    finished = Finished(shards, shards.lay_out(kept))
    wanted, lost = kept.height, dropped.height
    del kept, dropped  # every hand reads what it needs
    if not wanted:  # a wave that no prompt needs
        finished.add("00000.parquet", shards.write("00000.parquet", nothing()))
    if finished.missing() or (wanted and owes_difference(cfg, out, policy)):
        draw_missing(cfg, shards, finished, policy, wanted)
    shards.clear()
    totals = finished.totals()
    note_cost(out, **money(prices(cfg), totals))
    note_cost(
        out,
        **totals,
        dropped=lost,
        mean_tokens=round(totals["tokens"] / max(totals["completions"], 1), 1),
    )
    return Samples(out)


def converse(cfg: Conversation, out: Path, policy: Model, prompts: Prompts) -> Samples:
    """Turn after turn, each in a folder of its own: a killed run goes on in the turn that it was
    in."""
    said = run(cfg.turn(1), multi_turn.folder(out, 1), policy=policy, prompts=prompts)
    for turn in range(2, cfg.turns + 1):
        asked = multi_turn.following(
            prompts, said, turn - 1, multi_turn.folder(out, turn) / "asked"
        )
        said = run(cfg.turn(turn), multi_turn.folder(out, turn), policy=policy, prompts=asked)
    return multi_turn.gather(out, cfg.turns)


def draw_missing(
    cfg: SampleRequest, shards: Shards, finished: Finished, policy: Model, asked: int
) -> None:
    """By as many hands as there are; the list of what is finished is kept here."""
    out, each = shards.out, sum(setting.n for setting in cfg.settings.values())
    meter = Meter(finished.totals(), asked, asked * each, cfg.limits.completion, prices(cfg))
    try:
        served = servable(cfg, policy, out)
        if missing := finished.missing():
            say_phase(starting(cfg))
            work = partial(draw, cfg, shards, policy, served)
            if isinstance(cfg.backend, ENGINES):
                note_cost(out, **parameter_cost(policy.weights, policy.revision))
            finish = partial(note_shard, out, meter, finished)
            run_shards(
                missing, work, hands(cfg, out), out / "scratch" / "workers", finish, meter.hear
            )
            note_cost(out, **meter.cost())
        if owes_difference(cfg, out, policy):
            note_difference(cfg, policy, served, out)
    finally:
        shutil.rmtree(out / MERGED, ignore_errors=True)


def note_shard(out: Path, meter: Meter, finished: Finished, shard: str, entry: Entry) -> None:
    """From the first shard on it is known how fast this goes, and so how long the rest of a plan
    may take."""
    finished.add(shard, entry)
    totals = finished.totals()
    mean = totals["tokens"] / max(totals["completions"], 1)
    note_cost(
        out,
        **meter.cost(),
        completions=totals["completions"],
        tokens=totals["tokens"],
        mean_tokens=mean,
    )


def hands(cfg: SampleRequest, out: Path) -> list[Environment]:
    if isinstance(cfg.backend, SERVERS):
        return [{}]  # one hand keeps as many requests under way as the server takes
    if not isinstance(cfg.backend, ENGINES):
        return [{}] * (1 if cfg.runtime.workers == "auto" else cfg.runtime.workers)
    together = cfg.backend.runtime.tensor_parallel if isinstance(cfg.backend, VllmBackend) else 1
    return worker_environments(
        cfg.runtime.workers, f"{knob_of(out, KNOB)}.runtime.workers", together
    )


def draw(cfg: SampleRequest, shards: Shards, policy: Model, served: Model, hand: Worker) -> None:
    """One hand's part: its engine starts once and is given the next shard before the last one
    drains."""
    backend = opened(cfg, shards.out, policy)
    drawing = Drawing(cfg, policy.path.name, backend.text, shards, hand)
    journal = Journal(shards.out / JOURNAL) if isinstance(cfg.backend, SERVERS) else None
    started = time.monotonic()
    try:
        backend.start(served, cfg.limits)
        hand.report(**{ENGINE: time.monotonic() - started})
        while drawing.claim():
            asked = drawing.requests()
            for drawn in (
                journal.through(backend, asked)
                if journal
                else backend.generate(asked, drawing.count)
            ):
                drawing.take(drawn)
            drawing.check_whole()
        if told := drawing.failures.write():
            print("│", told, file=sys.stderr, flush=True)
    finally:
        backend.close()


def starting(cfg: SampleRequest) -> str:
    """What is waited for before the first token."""
    match cfg.backend:
        case VllmBackend():
            return "starting the vLLM engine"
        case TransformersBackend():
            return "loading the model"
    return "asking for the first completions"


def opened(cfg: SampleRequest, out: Path, policy: Model) -> Backend:
    return open_backend(cfg.backend, policy, knob_of(out, KNOB))


def prices(cfg: SampleRequest) -> Prices | None:
    return cfg.backend.runtime.prices if isinstance(cfg.backend, SERVERS) else None


def servable(cfg: SampleRequest, policy: Model, out: Path) -> Model:
    """The policy as the backend can open it: with its adapter beside the base, or merged for
    this run only."""
    if not isinstance(cfg.backend, OPENING) or policy.adapter is None:
        return policy
    from pipeline.models import loading

    loading.check_base(policy)
    if (
        isinstance(cfg.backend, VllmBackend)
        and serves(policy.adapter, on_cpu=not hardware.gpus())
        and not quantized(policy)
    ):
        return policy
    say_phase("merging the adapter into its base")
    # What was trained beside a quantised base is merged with what those few bits say: no engine
    # reads both as trained.
    return loading.merged_in(out / MERGED, policy)


def quantized(policy: Model) -> bool:
    return "quantization" in policy.record


def owes_difference(cfg: SampleRequest, out: Path, policy: Model) -> bool:
    """Whether it was sampled merged though it was trained beside a quantised base, and what that
    means is not noted."""
    if not isinstance(cfg.backend, OPENING) or policy.adapter is None or not quantized(policy):
        return False
    return multi_turn.DIFFERENCE not in noted_cost(out)


def note_difference(cfg: SampleRequest, policy: Model, served: Model, out: Path) -> None:
    """What sampling a QLoRA policy from whole weights costs in fidelity, for the report to name."""
    from pipeline.models.quantization_gap import per_token

    dtypes = policy.record["quantization"]["dtype"], getattr(cfg.backend, "dtype", "float32")
    note_cost(
        out,
        **{multi_turn.DIFFERENCE: per_token(policy, served, next(Samples(out).shards()), *dtypes)},
    )
