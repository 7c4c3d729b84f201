"""Draws completions of prompts from a policy: one request and one seed for each, shard by shard.

A shard that stands in `shards.json` with its hash is finished: a killed run repeats only the shards it was in.
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
    find_knob,
    note_cost,
    read_cost,
    write_table,
)
from pipeline.backends import Backend, open_backend
from pipeline.backends.lora_support import supports_adapter
from pipeline.config import (
    ConversationRequest,
    EndpointBackend,
    Prices,
    SampleRequest,
    ServedModel,
    TransformersBackend,
    VllmBackend,
)
from pipeline.progress import print_phase
from pipeline.resources.gpu_sets import Environment, environments
from pipeline.resources.model_shape import parameters_of
from pipeline.resources.worker_pool import Hand, work_off
from pipeline.sampling import multi_turn
from pipeline.sampling.collector import SampleCollector, make_empty_samples
from pipeline.sampling.journal import Journal
from pipeline.sampling.prompt_selection import select_prompts, split_by_length
from pipeline.sampling.shards import ShardEntry, ShardList, Shards
from pipeline.sampling.throughput import ENGINE, ThroughputMeter, price_tokens

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
    cfg: SampleRequest | ConversationRequest,
    out: Path,
    *,
    policy: Model,
    prompts: Prompts,
    scores: list[Scores] | None = None,
) -> Samples:
    if isinstance(cfg, ConversationRequest):
        return converse(cfg, out, policy, prompts)
    shards = Shards(out, cfg.shard)
    kept, dropped = split_by_length(
        cfg, lambda: opened(cfg, out, policy).tokenizer, select_prompts(cfg, prompts, scores or [])
    )
    write_table(out / "dropped.parquet", dropped)
    finished = ShardList(shards, shards.write_prompts(kept))
    wanted, lost = kept.height, dropped.height
    del kept, dropped  # every hand reads what it needs
    if not wanted:  # a wave that no prompt needs
        finished.add("00000.parquet", shards.write_samples("00000.parquet", make_empty_samples()))
    if finished.find_missing() or (wanted and owes_difference(cfg, out, policy)):
        draw_missing(cfg, shards, finished, policy, wanted)
    shards.remove_prompts()
    totals = finished.sum_figures()
    note_cost(out, **price_tokens(prices(cfg), totals))
    note_cost(
        out,
        **totals,
        dropped=lost,
        mean_tokens=round(totals["tokens"] / max(totals["completions"], 1), 1),
    )
    return Samples(out)


def converse(cfg: ConversationRequest, out: Path, policy: Model, prompts: Prompts) -> Samples:
    """Turn after turn, each in a folder of its own: a killed run goes on in the turn that it was in."""
    said = run(cfg.request_turn(1), multi_turn.turn_folder(out, 1), policy=policy, prompts=prompts)
    for turn in range(2, cfg.turns + 1):
        asked = multi_turn.write_next_prompts(
            prompts, said, turn - 1, multi_turn.turn_folder(out, turn) / "asked"
        )
        said = run(
            cfg.request_turn(turn), multi_turn.turn_folder(out, turn), policy=policy, prompts=asked
        )
    return multi_turn.merge_turns(out, cfg.turns)


def draw_missing(
    cfg: SampleRequest, shards: Shards, finished: ShardList, policy: Model, asked: int
) -> None:
    """By as many hands as there are; the list of what is finished is kept here."""
    out, each = shards.out, sum(setting.n for setting in cfg.settings.values())
    meter = ThroughputMeter(
        finished.sum_figures(), asked, asked * each, cfg.limits.completion, prices(cfg)
    )
    try:
        served = servable(cfg, policy, out)
        if missing := finished.find_missing():
            print_phase(starting(cfg))
            work = partial(draw, cfg, shards, policy, served)
            if isinstance(cfg.backend, ENGINES):
                note_cost(out, **parameters_of(policy.weights, policy.revision))
            finish = partial(note_shard, out, meter, finished)
            work_off(
                missing, work, hands(cfg, out), out / "scratch" / "workers", finish, meter.update
            )
            note_cost(out, **meter.measure_cost())
        if owes_difference(cfg, out, policy):
            note_difference(cfg, policy, served, out)
    finally:
        shutil.rmtree(out / MERGED, ignore_errors=True)


def note_shard(
    out: Path, meter: ThroughputMeter, finished: ShardList, shard: str, entry: ShardEntry
) -> None:
    """From the first shard on it is known how fast this goes, and so how long the rest of a plan may take."""
    finished.add(shard, entry)
    totals = finished.sum_figures()
    mean = totals["tokens"] / max(totals["completions"], 1)
    note_cost(
        out,
        **meter.measure_cost(),
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
    return environments(cfg.runtime.workers, f"{find_knob(out, KNOB)}.runtime.workers", together)


def draw(cfg: SampleRequest, shards: Shards, policy: Model, served: Model, hand: Hand) -> None:
    """One hand's part: its engine starts once and is given the next shard before the last one drains."""
    backend = opened(cfg, shards.out, policy)
    drawing = SampleCollector(cfg, policy.path.name, backend.tokenizer, shards, hand)
    journal = Journal(shards.out / JOURNAL) if isinstance(cfg.backend, SERVERS) else None
    started = time.monotonic()
    try:
        backend.start(served, cfg.limits)
        hand.tell(**{ENGINE: time.monotonic() - started})
        while drawing.claim_shard():
            asked = drawing.build_blocks()
            for drawn in (
                journal.generate(backend, asked)
                if journal
                else backend.generate(asked, drawing.report_unfinished)
            ):
                drawing.add_result(drawn)
            drawing.check_complete()
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
    return open_backend(cfg.backend, policy, find_knob(out, KNOB))


def prices(cfg: SampleRequest) -> Prices | None:
    return cfg.backend.runtime.prices if isinstance(cfg.backend, SERVERS) else None


def servable(cfg: SampleRequest, policy: Model, out: Path) -> Model:
    """The policy as the backend can open it: with its adapter beside the base, or merged for this run only."""
    if not isinstance(cfg.backend, OPENING) or policy.adapter is None:
        return policy
    from pipeline.models import loading

    loading.check_base(policy)
    if (
        isinstance(cfg.backend, VllmBackend)
        and supports_adapter(policy.adapter, on_cpu=not hardware.list_gpus())
        and not quantized(policy)
    ):
        return policy
    print_phase("merging the adapter into its base")
    # What was trained beside a quantised base is merged with what those few bits say: no engine reads both as trained.
    return loading.write_merged(out / MERGED, policy)


def quantized(policy: Model) -> bool:
    return "quantization" in policy.record


def owes_difference(cfg: SampleRequest, out: Path, policy: Model) -> bool:
    """Whether it was sampled merged though it was trained beside a quantised base, and what that means is not noted."""
    if not isinstance(cfg.backend, OPENING) or policy.adapter is None or not quantized(policy):
        return False
    return multi_turn.DIFFERENCE not in read_cost(out)


def note_difference(cfg: SampleRequest, policy: Model, served: Model, out: Path) -> None:
    """What sampling a QLoRA policy from whole weights costs in fidelity, for the report to name."""
    from pipeline.models.quantization_gap import measure_gap

    dtypes = policy.record["quantization"]["dtype"], getattr(cfg.backend, "dtype", "float32")
    note_cost(
        out,
        **{
            multi_turn.DIFFERENCE: measure_gap(
                policy, served, next(Samples(out).read_shards()), *dtypes
            )
        },
    )
