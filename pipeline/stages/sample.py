"""Samples completions of prompts from a policy, shard by shard: a request and a seed for each.

A shard that is in `shards.json` with its hash is finished: a killed run repeats only the shards
that it was in.
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

KNOB = "sample"  # its block, where the driver names none
ENGINES = VllmBackend, TransformersBackend  # open weights here, and fill GPUs
SERVERS = EndpointBackend, ServedModel  # each completion is paid for
# Open the policy here, to sample from it or to identify it.
OPENING = *ENGINES, EndpointBackend
JOURNAL = "scratch/journal"  # a server's completions of unfinished shards
# An adapter policy merged for this run; removed before anything is published.
MERGED = "scratch/merged"


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
        cfg, lambda: make_backend(cfg, out, policy).text, asked(cfg, prompts, scores or [])
    )
    write_table(out / "dropped.parquet", dropped)
    finished = Finished(shards, shards.lay_out(kept))
    wanted, lost = kept.height, dropped.height
    del kept, dropped  # every worker reads what it needs
    if not wanted:  # a wave that no prompt needs
        finished.add("00000.parquet", shards.write("00000.parquet", nothing()))
    if finished.missing() or (wanted and lacks_quantization_gap(cfg, out, policy)):
        sample_missing(cfg, shards, finished, policy, wanted)
    shards.clear()
    totals = finished.totals()
    note_cost(out, **money(read_prices(cfg), totals))
    mean = round(totals["tokens"] / max(totals["completions"], 1), 1)
    note_cost(out, **totals, dropped=lost, mean_tokens=mean)
    return Samples(out)


def converse(cfg: Conversation, out: Path, policy: Model, prompts: Prompts) -> Samples:
    """Turn after turn, each in its own folder: a killed run resumes in the turn that it was in."""
    samples = run(cfg.turn(1), multi_turn.folder(out, 1), policy=policy, prompts=prompts)
    for turn in range(2, cfg.turns + 1):
        asked = multi_turn.following(
            prompts, samples, turn - 1, multi_turn.folder(out, turn) / "asked"
        )
        samples = run(cfg.turn(turn), multi_turn.folder(out, turn), policy=policy, prompts=asked)
    return multi_turn.gather(out, cfg.turns)


def sample_missing(
    cfg: SampleRequest, shards: Shards, finished: Finished, policy: Model, asked: int
) -> None:
    """By all workers. This process keeps the list of finished shards."""
    out, samples_each = shards.out, sum(setting.n for setting in cfg.settings.values())
    wanted, prices = asked * samples_each, read_prices(cfg)
    meter = Meter(finished.totals(), asked, wanted, cfg.limits.completion, prices)
    try:
        engine_model = prepare_policy(cfg, policy, out)
        if missing := finished.missing():
            say_phase(describe_start(cfg))
            work = partial(sample_shards, cfg, shards, policy, engine_model)
            if isinstance(cfg.backend, ENGINES):
                note_cost(out, **parameter_cost(policy.weights, policy.revision))
            environments, logs = choose_environments(cfg, out), out / "scratch" / "workers"
            on_finish = partial(note_shard, out, meter, finished)
            run_shards(missing, work, environments, logs, on_finish, meter.hear)
            note_cost(out, **meter.cost())
        if lacks_quantization_gap(cfg, out, policy):
            note_quantization_gap(cfg, policy, engine_model, out)
    finally:
        shutil.rmtree(out / MERGED, ignore_errors=True)


def note_shard(out: Path, meter: Meter, finished: Finished, shard: str, entry: Entry) -> None:
    """Notes the speed after each shard, so that the time of the rest can be estimated."""
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


def choose_environments(cfg: SampleRequest, out: Path) -> list[Environment]:
    if isinstance(cfg.backend, SERVERS):
        return [{}]  # one worker keeps as many requests in flight as the server takes
    if not isinstance(cfg.backend, ENGINES):
        return [{}] * (1 if cfg.runtime.workers == "auto" else cfg.runtime.workers)
    gpus_each = cfg.backend.runtime.tensor_parallel if isinstance(cfg.backend, VllmBackend) else 1
    knob = f"{knob_of(out, KNOB)}.runtime.workers"
    return worker_environments(cfg.runtime.workers, knob, gpus_each)


def sample_shards(
    cfg: SampleRequest, shards: Shards, policy: Model, engine_model: Model, worker: Worker
) -> None:
    """One worker's part.

    Its engine starts once, and gets the next shard before the last one is finished.
    """
    backend = make_backend(cfg, shards.out, policy)
    drawing = Drawing(cfg, policy.path.name, backend.text, shards, worker)
    journal = Journal(shards.out / JOURNAL) if isinstance(cfg.backend, SERVERS) else None
    started = time.monotonic()
    try:
        backend.start(engine_model, cfg.limits)
        worker.report(**{ENGINE: time.monotonic() - started})
        while drawing.claim():
            asked = drawing.requests()
            if journal:
                completions = journal.through(backend, asked)
            else:
                completions = backend.generate(asked, drawing.count)
            for completion in completions:
                drawing.take(completion)
            drawing.check_whole()
        if summary := drawing.failures.write():
            print("│", summary, file=sys.stderr, flush=True)
    finally:
        backend.close()


def describe_start(cfg: SampleRequest) -> str:
    """What the stage does before the first token."""
    match cfg.backend:
        case VllmBackend():
            return "starting the vLLM engine"
        case TransformersBackend():
            return "loading the model"
    return "asking for the first completions"


def make_backend(cfg: SampleRequest, out: Path, policy: Model) -> Backend:
    return open_backend(cfg.backend, policy, knob_of(out, KNOB))


def read_prices(cfg: SampleRequest) -> Prices | None:
    return cfg.backend.runtime.prices if isinstance(cfg.backend, SERVERS) else None


def prepare_policy(cfg: SampleRequest, policy: Model, out: Path) -> Model:
    """The policy as the backend can open it: base and adapter, or merged for this run only."""
    if not isinstance(cfg.backend, OPENING) or policy.adapter is None:
        return policy
    from pipeline.models import loading

    loading.check_base(policy)
    if (
        isinstance(cfg.backend, VllmBackend)
        and serves(policy.adapter, on_cpu=not hardware.gpus())
        and not is_quantized(policy)
    ):
        return policy
    say_phase("merging the adapter into its base")
    # An adapter trained on a quantised base is merged with the weights that the bits stand for: no
    # engine reads base and adapter as they were trained.
    return loading.merged_in(out / MERGED, policy)


def is_quantized(policy: Model) -> bool:
    return "quantization" in policy.record


def lacks_quantization_gap(cfg: SampleRequest, out: Path, policy: Model) -> bool:
    """Whether a policy trained on a quantised base is sampled merged, and the gap is not noted."""
    if not isinstance(cfg.backend, OPENING) or policy.adapter is None or not is_quantized(policy):
        return False
    return multi_turn.DIFFERENCE not in noted_cost(out)


def note_quantization_gap(
    cfg: SampleRequest, policy: Model, engine_model: Model, out: Path
) -> None:
    """For the report: how far sampling a QLoRA policy from merged weights is from the policy."""
    from pipeline.models.quantization_gap import per_token

    dtypes = policy.record["quantization"]["dtype"], getattr(cfg.backend, "dtype", "float32")
    gap = per_token(policy, engine_model, next(Samples(out).shards()), *dtypes)
    note_cost(out, **{multi_turn.DIFFERENCE: gap})
