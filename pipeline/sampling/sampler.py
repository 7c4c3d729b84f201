"""Samples completions of prompts from a policy, shard by shard: a request and a seed for each.

A shard that is in `shards.json` with its hash is finished: a killed run repeats only the shards
that it was in.
"""

import os
import shutil
import time
from functools import partial
from pathlib import Path

from pipeline import hardware
from pipeline.artifacts import (
    DROPPED_FILE,
    Model,
    Prompts,
    Samples,
    Scores,
    note_cost,
    read_cost,
    write_table,
)
from pipeline.backends import TrainedTokenizer, open_backend
from pipeline.backends.lora_support import is_quantized, runs_unmerged
from pipeline.config import (
    EndpointBackend,
    Prices,
    SampleRequest,
    ServedModel,
    TransformersBackend,
    VllmBackend,
)
from pipeline.errors import StageError, pluralize
from pipeline.progress import print_note, print_phase
from pipeline.resources import leases
from pipeline.resources.gpu_sets import Environment, worker_environments
from pipeline.resources.model_shape import parameter_cost
from pipeline.resources.worker_pool import Worker, run_shards
from pipeline.sampling.collector import (
    SampleCollector,
    derive_engine_seed,
    make_empty_samples,
)
from pipeline.sampling.journal import Journal
from pipeline.sampling.multi_turn import DIFFERENCE
from pipeline.sampling.prompt_selection import select_prompts, split_by_length
from pipeline.sampling.shards import ShardEntry, ShardList, Shards, group_shards
from pipeline.sampling.throughput import ENGINE, ThroughputMeter, price_tokens

ENGINES = (VllmBackend, TransformersBackend)  # open weights here, and fill GPUs
SERVERS = (EndpointBackend, ServedModel)  # each completion is paid for
# Open the policy here, to sample from it or to identify it.
OPENING = (*ENGINES, EndpointBackend)
# Shards that are sampled together have at most as many operations (two minutes of two cores), and
# fill the engine at most as often: then draining it costs less than two percent.
GROUPED_WORK, FILLED = 4 * 10**12, 64
JOURNAL = "scratch/journal"  # a server's completions of unfinished shards
# An adapter policy merged for this run; removed before anything is published.
MERGED = "scratch/merged"


def sample_prompts(
    cfg: SampleRequest,
    out: Path,
    *,
    policy: Model,
    prompts: Prompts,
    scores: list[Scores] | None = None,
    tokens_of: Model | None = None,
    knob: str = "sample",
    backend_knob: str | None = None,
) -> Samples:
    """`tokens_of`: the model that trains on the answers, where another one is sampled.

    `backend_knob`: what `open_backend` takes as knob, where it is another one.
    """
    backend_knob = backend_knob or knob
    shards = Shards(out, cfg.shard)
    kept, dropped = split_by_length(
        cfg,
        lambda: open_backend(cfg.backend, policy, backend_knob).tokenizer,
        select_prompts(cfg, prompts, scores or []),
        open_trained(tokens_of),
    )
    write_table(out / DROPPED_FILE, dropped)
    finished = ShardList(shards, shards.write_prompts(kept), count_grouped(cfg, policy))
    wanted, lost = kept.height, dropped.height
    del kept, dropped  # every worker reads what it needs
    if not wanted:  # a wave that no prompt needs
        name = "00000.parquet"
        entry = shards.write_samples(shards.sample_file(name), make_empty_samples())
        finished.add({name: entry})
    if finished.find_missing() or (wanted and lacks_quantization_gap(cfg, out, policy)):
        knobs = knob, backend_knob
        sample_missing(cfg, shards, finished, policy, wanted, knobs, tokens_of)
    shards.remove_prompts()
    totals = finished.sum_figures()
    price = price_tokens(read_prices(cfg), totals)
    mean = round(totals["tokens"] / max(totals["completions"], 1), 1)
    note_cost(out, **price, **totals, dropped=lost, mean_tokens=mean)
    return Samples(out)


def join_sampling(
    cfg: SampleRequest,
    out: Path,
    worker: Worker,
    *,
    policy: Model,
    tokens_of: Model | None = None,
    knob: str = "sample",
) -> None:
    """One worker's part of a step that another process builds."""
    shards = Shards(out, cfg.shard)
    groups = group_shards(shards.list_names(), count_grouped(cfg, policy))
    engine_model = Model(out / MERGED) if (out / MERGED).exists() else policy
    joined = "-".join([*leases.describe_machine(), str(os.getpid())])
    knobs = knob, knob
    sample_shards(cfg, shards, groups, policy, engine_model, knobs, tokens_of, worker, joined)


def open_trained(model: Model | None) -> TrainedTokenizer | None:
    from pipeline.backends.chat import ModelTokenizer

    return ModelTokenizer(model) if model else None


def sample_missing(
    cfg: SampleRequest,
    shards: Shards,
    finished: ShardList,
    policy: Model,
    asked: int,
    knobs: tuple[str, str],
    tokens_of: Model | None,
) -> None:
    """By all workers. This process keeps the list of finished shards."""
    out, samples_each = shards.out, sum(setting.n for setting in cfg.settings.values())
    wanted, prices = asked * samples_each, read_prices(cfg)
    meter = ThroughputMeter(finished.sum_figures(), asked, wanted, cfg.limits.completion, prices)
    try:
        engine_model = prepare_policy(cfg, policy, out)
        if missing := finished.find_missing():
            print_phase(describe_start(cfg))
            groups = finished.groups
            work = partial(
                sample_shards, cfg, shards, groups, policy, engine_model, knobs, tokens_of
            )
            if isinstance(cfg.backend, ENGINES):
                note_cost(out, **parameter_cost(policy.weights, policy.revision))
            environments = choose_environments(cfg, knobs[0])
            on_finish = partial(note_shards, out, meter, finished)
            may_join = not isinstance(cfg.backend, SERVERS)
            run_shards(missing, work, environments, out, on_finish, meter.update, may_join)
            if lost := finished.find_missing():
                raise StageError(f"sample: {pluralize(len(lost), 'group')} of shards not sampled.")
        if lacks_quantization_gap(cfg, out, policy):
            note_quantization_gap(cfg, policy, engine_model, out)
    finally:
        shutil.rmtree(out / MERGED, ignore_errors=True)


def note_shards(
    out: Path,
    meter: ThroughputMeter,
    finished: ShardList,
    _group: str,
    entries: dict[str, ShardEntry],
) -> None:
    """Notes the speed after each group of shards, so that the time of the rest can be estimated."""
    finished.add(entries)
    totals = finished.sum_figures()
    mean = totals["tokens"] / max(totals["completions"], 1)
    note_cost(
        out,
        **meter.measure_cost(),
        completions=totals["completions"],
        tokens=totals["tokens"],
        mean_tokens=mean,
    )


def count_grouped(cfg: SampleRequest, policy: Model) -> int:
    """How many shards are sampled together, so that an engine that repeats its bytes rarely drains.

    While it drains, a step of a small model takes nearly as long as a full one. A large model's
    does not, and a killed run repeats them all: so they are no more than two minutes of work.
    """
    if not isinstance(cfg.backend, VllmBackend) or cfg.seeded is False or hardware.list_gpus():
        return 1
    parameters = parameter_cost(policy.weights, policy.revision).get("parameters")
    completions = cfg.shard * sum(setting.n for setting in cfg.settings.values())
    if parameters is None:
        return 1
    by_work = GROUPED_WORK // (2 * parameters * cfg.limits.completion * completions)
    by_engine = -(-FILLED * cfg.backend.runtime.max_sequences // completions)
    return max(1, min(by_work, by_engine))


def choose_environments(cfg: SampleRequest, knob: str) -> list[Environment]:
    if isinstance(cfg.backend, SERVERS):
        return [{}]  # one worker keeps as many requests in flight as the server takes
    if not isinstance(cfg.backend, ENGINES):
        return [{}] * (1 if cfg.runtime.workers == "auto" else cfg.runtime.workers)
    gpus_each = cfg.backend.gpus if isinstance(cfg.backend, VllmBackend) else 1
    workers = f"{find_runtime_knob(cfg, knob)}.runtime.workers"
    return worker_environments(cfg.runtime.workers, workers, gpus_each)


def find_runtime_knob(cfg: SampleRequest, knob: str) -> str:
    """The block that `runtime` is in: a member of the pool has that of `sample`."""
    return "sample" if cfg.prompt_share else knob


def sample_shards(
    cfg: SampleRequest,
    shards: Shards,
    groups: dict[str, list[str]],
    policy: Model,
    engine_model: Model,
    knobs: tuple[str, str],
    tokens_of: Model | None,
    worker: Worker,
    joined: str = "",
) -> None:
    """One worker's part.

    Its engine starts once, and gets the next shard before the last one is finished. `joined`: what
    tells a process of another machine from all others, whose GPUs may have the same numbers.
    """
    knob, backend_knob = knobs
    seed = derive_engine_seed(cfg, os.environ.get(hardware.VISIBLE), joined)
    backend = open_backend(cfg.backend, policy, backend_knob, cfg.seeded, seed)
    journal = Journal(shards.out / JOURNAL) if isinstance(cfg.backend, SERVERS) else None
    drawing = SampleCollector(
        cfg,
        policy.path.name,
        backend.tokenizer,
        shards,
        worker,
        find_runtime_knob(cfg, knob),
        groups=groups,
        is_paid=journal is not None,
        trained=open_trained(tokens_of),
    )
    started = time.monotonic()
    try:
        backend.start(engine_model, cfg.limits)
        worker.report(**{ENGINE: time.monotonic() - started})
        while drawing.claim_group():
            asked = drawing.build_blocks()
            if journal:
                completions = journal.generate(backend, asked)
            else:
                completions = backend.generate(asked, drawing.report_unfinished)
            for completion in completions:
                drawing.add_result(completion)
            drawing.finish()
        if summary := drawing.failures.write():
            print_note(summary)
    finally:
        backend.close()
        drawing.close()


def describe_start(cfg: SampleRequest) -> str:
    """What the stage does before the first token."""
    match cfg.backend:
        case VllmBackend():
            return "starting the vLLM engine"
        case TransformersBackend():
            return "loading the model"
    return "asking for the first completions"


def read_prices(cfg: SampleRequest) -> Prices | None:
    return cfg.backend.runtime.prices if isinstance(cfg.backend, SERVERS) else None


def prepare_policy(cfg: SampleRequest, policy: Model, out: Path) -> Model:
    """The policy as the backend can open it: base and adapter, or merged for this run only."""
    if not isinstance(cfg.backend, OPENING) or policy.adapter is None:
        return policy
    from pipeline.models import loading

    loading.check_base(policy)
    if isinstance(cfg.backend, VllmBackend) and runs_unmerged(policy):
        return policy
    print_phase("merging the adapter into its base")
    return loading.write_merged(out / MERGED, policy)


def lacks_quantization_gap(cfg: SampleRequest, out: Path, policy: Model) -> bool:
    """Whether a policy trained on a quantised base is sampled merged, and the gap is not noted."""
    if not isinstance(cfg.backend, OPENING) or policy.adapter is None or not is_quantized(policy):
        return False
    return DIFFERENCE not in read_cost(out)


def note_quantization_gap(
    cfg: SampleRequest, policy: Model, engine_model: Model, out: Path
) -> None:
    """For the report: how far sampling a QLoRA policy from merged weights is from the policy."""
    from pipeline.models.quantization_gap import measure_gap

    dtypes = (policy.record["quantization"]["dtype"], getattr(cfg.backend, "dtype", "float32"))
    gap = measure_gap(policy, engine_model, next(Samples(out).read_shards()), *dtypes)
    note_cost(out, **{DIFFERENCE: gap})
