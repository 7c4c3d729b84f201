"""One training, from its start or newest checkpoint to published weights.

Each of its processes runs this.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Model, Prompts, note_cost
from pipeline.config import DISTRIBUTED_TYPES, FullAdapter, OnlineTraining, TrainConfig
from pipeline.config.trl_args import NO_CONTEXT_PARALLEL
from pipeline.errors import UserError, pluralize
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
    reference: Model | None,
    dev: Prompts | None,
    rows: "dict[str, pl.DataFrame]",
    processes: int = 1,
    prompts: Prompts | None = None,
    reward: Model | None = None,
) -> None:
    """`rows`: the trainer's columns under `train` and `dev`, demonstrations under `rehearsal`.

    The policy's own answers under `sampled`, where they were sampled.
    `prompts` and `reward` are what online training scores its answers by.
    """
    columns = [column for table in rows.values() for column in table]
    ids = [column for column in columns if column.name.endswith("_ids")]
    model_checks.check_model(cfg, init, ids)
    model_checks.check_shardable(cfg, reference or init)
    reference_check.check_separate_reference(cfg, init, reference, rows)

    for warning in filter(None, (cfg.low_rate_warning, cfg.sampling_warning)):
        guards.warn(warning)
    callbacks.report_phase("loading the model")
    policy = build.load_policy(cfg, init)
    # Full weights are published in cfg.dtype; an adapter keeps its own.
    published_dtype = cfg.dtype if isinstance(cfg.adapter, FullAdapter) else None
    start = {}
    if _is_first_process():
        start = dict(loading.compute_checksums(trainable_weights(policy), published_dtype))
    settings = loading.copy_settings(policy)
    watch = guards.build_guards(cfg, init, reference, dev, rows["dev"], out, processes)
    with build.open_rewards(cfg, init, prompts, reward) as rewards:
        given = (policy, init, reference, rows, out, watch, rewards)
        trainer, ledger = build.build_trainer(cfg, *given)
        _check_processes(trainer, cfg, processes)
        trackers.train_with_trackers(trainer, ledger.find_newest())
    whole = sharded.gather_weights(trainer)
    sharded.unset_zero3_config(trainer)
    if trainer.is_world_process_zero():
        trained = sharded.select_trained(trainer, whole)
        state = trainer.state
        kept = watch.restore_weights(state.global_step, state.log_history, trained)
        loading.check_finite(policy, whole)
        checksums = loading.compute_checksums(trained, published_dtype)
        unchanged = all(start.get(name) == number for name, number in checksums)
        few_steps = cfg.explain_few_steps(state.max_steps)
        _note_answers(cfg, out, state)
        summary.write(cfg, out, state, kept, watch.stop_reason, few_steps, unchanged)
        if isinstance(cfg.adapter, FullAdapter):
            loading.save_full(policy, settings, init, cfg.dtype, out, whole)
        else:
            loading.save_adapter(policy, init, cfg.adapter, cfg.dtype, out, whole)


def _note_answers(cfg: TrainConfig, out: Path, state: Any) -> None:
    """What online training sampled: before it, only the most that it could be was known."""
    if isinstance(cfg, OnlineTraining):
        from pipeline.training.trainers import online

        answers = state.global_step * cfg.batch // cfg.passes
        by = "vllm" if online.uses_vllm(cfg) else "transformers"
        tokens, steps = int(state.num_input_tokens_seen), state.global_step
        note_cost(out, completions=answers, tokens=tokens, steps=steps, sampled_by=by)


def trainable_weights(policy: Any) -> loading.State:
    return {
        name: each
        for name, each in policy.named_parameters(remove_duplicate=False)
        if each.requires_grad
    }


def _is_first_process() -> bool:
    """Whether this is the process that publishes."""
    return os.environ.get("RANK", "0") == "0"


def _check_processes(trainer: Any, cfg: TrainConfig, wanted: int) -> None:
    """A launcher that lacks what was requested runs what it finds, without a warning."""
    split = trainer.accelerator.parallelism_config
    if split and split.non_data_parallel_size > 1:
        raise UserError(
            "train: accelerate would split rows or layers among processes, as its environment says,"
            f" and {cfg.name_knobs(NO_CONTEXT_PARALLEL)}.\n"
            "  Type `unset ACCELERATE_USE_PARALLELISM_CONFIG`, and run the same command again."
        )
    started, kind = trainer.args.world_size, trainer.accelerator.distributed_type.value
    expected = ("NO",) if wanted == 1 else DISTRIBUTED_TYPES[cfg.runtime.launch]
    if started != wanted or kind not in expected or trainer.args.n_gpu > 1:
        raise UserError(
            f"{cfg.knob}.runtime.launch={cfg.runtime.launch}: the launcher started "
            f"{pluralize(started, 'process')} of kind {kind}, and {wanted} of "
            f"{' or '.join(expected)} were expected.\n"
            f"  Give {cfg.knob}.runtime.launch=torchrun, or as many {cfg.knob}.runtime.processes"
            " as this machine has GPUs."
        )
