"""One training, from its start or its newest whole checkpoint to published weights; the same in each process of it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Model, Prompts
from pipeline.config import KINDS, FullAdapter, TrainConfig
from pipeline.errors import UserError, many
from pipeline.models import loading
from pipeline.training import build, model_checks
from pipeline.training.distributed import sharded
from pipeline.training.monitoring import callbacks, guards, reference_check, summary, trackers

if TYPE_CHECKING:
    import polars as pl


def train(
    cfg: TrainConfig,
    out: Path,
    init: Model,
    held_to: Model | None,
    dev: Prompts | None,
    rows: "dict[str, pl.DataFrame]",
    processes: int = 1,
) -> None:
    """`rows` are the trainer's own columns; `held_to` is the reference."""
    model_checks.check(
        cfg,
        init,
        [column for table in rows.values() for column in table if column.name.endswith("_ids")],
    )
    model_checks.check_shared(cfg, held_to or init)
    reference_check.check_elsewhere(cfg, init, held_to, rows)

    if cfg.low_rate:
        guards.say(cfg.low_rate)
    callbacks.phase("loading the model")
    policy = build.load_policy(cfg, init)
    published_in = (
        cfg.dtype if isinstance(cfg.adapter, FullAdapter) else None
    )  # adapters keep their own
    start = dict(loading.compute_checksums(trainable(policy), published_in)) if _first() else {}
    settings = loading.copy_settings(policy)
    watch = guards.guards_for(cfg, init, held_to, dev, rows["dev"], out, processes)
    trainer, ledger = build.trainer_for(cfg, policy, init, held_to, rows, out, watch)
    _check_processes(trainer, cfg, processes)

    trackers.train(trainer, ledger.newest_whole())
    whole = sharded.gathered(trainer)
    sharded.load_whole_again(trainer)
    if trainer.is_world_process_zero():
        trained = sharded.trained(trainer, whole)
        kept = watch.finish(trainer.state.global_step, trainer.state.log_history, trained)
        loading.check_finite(policy, whole)
        unchanged = all(
            start.get(name) == number
            for name, number in loading.compute_checksums(trained, published_in)
        )
        summary.write(
            out,
            trainer.state,
            kept,
            watch.stopped,
            cfg.few_steps(trainer.state.max_steps),
            unchanged,
        )
        if isinstance(cfg.adapter, FullAdapter):
            loading.save_full(policy, settings, init, cfg.dtype, out, whole)
        else:
            loading.save_adapter(policy, init, cfg.adapter, cfg.dtype, out, whole)


def trainable(policy: Any) -> loading.State:
    return {
        name: each
        for name, each in policy.named_parameters(remove_duplicate=False)
        if each.requires_grad
    }


def _first() -> bool:
    """Whether this process is the one that publishes."""
    return os.environ.get("RANK", "0") == "0"


def _check_processes(trainer: Any, cfg: TrainConfig, wanted: int) -> None:
    """A launcher that does not find what it was asked for runs what it finds, and says nothing."""
    there, kind = trainer.args.world_size, trainer.accelerator.distributed_type.value
    expected = ("NO",) if wanted == 1 else KINDS[cfg.runtime.launch]
    if there != wanted or kind not in expected or trainer.args.n_gpu > 1:
        raise UserError(
            f"train.runtime.launch={cfg.runtime.launch}: the launcher started {many(there, 'process')} of kind {kind},"
            f" and {wanted} of {' or '.join(expected)} were expected.\n"
            f"  Give train.runtime.launch=torchrun, or as many train.runtime.processes as this machine has GPUs."
        )
