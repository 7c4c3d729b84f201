"""Is the reference right? Judged on a few pairs before the first optimizer step, from our own forward passes."""

import math
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from pipeline.artifacts import Model
from pipeline.config import FullAdapter, Quantization, TrainConfig
from pipeline.config.launch import SHARDED
from pipeline.errors import StageError
from pipeline.models import loading
from pipeline.models.logprobs import compute_logps
from pipeline.training.distributed import sharded
from pipeline.training.monitoring.callbacks import phase

if TYPE_CHECKING:
    import polars as pl

PAIRS = 16
NATS_PER_SEQUENCE = 1e-3  # float32
NATS_PER_TOKEN = (
    0.02  # half precision, and 8-bit bases: they round activations by what shares their batch
)
AGAIN = "computed again with the reference model"


class StartCheck(TrainerCallback):
    """Once every process has its part of the model on its own device, and nothing has changed yet."""

    def __init__(
        self,
        cfg: TrainConfig,
        rows: "dict[str, pl.DataFrame]",
        init: Model,
        reference: Model | None,
    ):
        self.cfg, self.rows = cfg, first(rows)
        self.init, self.reference = init, reference

    def watch(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reference is None or state.global_step:
            return
        phase(f"checking the reference on {PAIRS} pairs")
        if self.reference.path == self.init.path:
            check_start(self.cfg, self.trainer, self.rows)
        elif self.cfg.logps == "ready" and sharded.is_sharded(self.trainer):
            with sharded.loaded(self.trainer, self.reference, self.cfg.dtype) as module:
                _compare(self.cfg, _logps(self.cfg, module, self.rows), self.rows, AGAIN)


def first(rows: "dict[str, pl.DataFrame]") -> dict[str, list[Any]]:
    return rows["train"].head(PAIRS).to_dict(as_series=False)


def check_elsewhere(
    cfg: TrainConfig, init: Model, reference: Model | None, rows: "dict[str, pl.DataFrame]"
) -> None:
    """Training starts from another model than its reference, whose values are computed again before both are there.

    Where processes share weights none could hold it: `StartCheck` has them do it together.
    """
    if reference is None or reference.path == init.path or cfg.runtime.launch in SHARDED:
        return
    if cfg.logps == "ready":
        phase(f"checking the reference on {PAIRS} pairs")
        module = loading.load(reference, cfg.dtype, _quantization(cfg))
        _compare(cfg, _logps(cfg, module, first(rows)), first(rows), AGAIN)


def check_start(cfg: TrainConfig, trainer: Any, rows: dict[str, list[Any]]) -> None:
    """Training starts from its reference: nothing has changed yet, so log-ratios are 0 and the loss knows no margin."""
    trainer.model.eval()
    if cfg.logps == "ready":
        with trainer.compute_loss_context_manager():
            _compare(
                cfg, _logps(cfg, trainer.model, rows), rows, "of the model before its first step"
            )
    if (
        cfg.trainer == "dpo"
        and cfg.loss in (["sigmoid"], ["cdpo"])
        and not cfg.args.get("use_weighting")
    ):
        _compare_loss(cfg, trainer, rows)


def _quantization(cfg: TrainConfig) -> Quantization | None:
    return None if isinstance(cfg.adapter, FullAdapter) else cfg.adapter.quantization


def _exact(cfg: TrainConfig) -> bool:
    quantization = _quantization(cfg)
    return cfg.dtype == "float32" and not (quantization and quantization.bits == 8)


def _logps(cfg: TrainConfig, module: Any, rows: dict[str, list[Any]]) -> dict[str, list[float]]:
    return {
        side: compute_logps(module, rows["prompt_ids"], rows[f"{side}_ids"], cfg.max_length)
        for side in ("chosen", "rejected")
    }


def _compare(
    cfg: TrainConfig, found: dict[str, list[float]], rows: dict[str, list[Any]], whose: str
) -> None:
    gaps, tokens = [], 0
    for side in ("chosen", "rejected"):
        gaps += [abs(a - b) for a, b in zip(found[side], rows[f"ref_{side}_logps"], strict=True)]
        tokens += sum(map(len, rows[f"{side}_ids"]))
    if _exact(cfg):
        worst = max(gaps, key=lambda gap: math.inf if math.isnan(gap) else gap)
        figure, limit, unit = worst, NATS_PER_SEQUENCE, "nats in the worst sequence"
    else:
        figure, limit, unit = sum(gaps) / max(tokens, 1), NATS_PER_TOKEN, "nats per token"
    if not figure <= limit:
        raise StageError(
            f"the reference is wrong: its ready log-probabilities differ from those {whose} by {figure:.4g} {unit} "
            f"over {len(gaps)} sequences; at most {limit:g} is expected in {cfg.dtype}.\n"
            f"  They belong to another model, other tokens or another dtype: compare refer.dtype with train.dtype, and "
            f"let refer run again on the reference."
        )


def _first_loss(cfg: TrainConfig, trainer: Any, rows: dict[str, list[Any]]) -> float:
    """Over as many at once as a step has in memory."""
    import torch

    pairs = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    total, each = 0.0, cfg.runtime.at_once
    for some in (pairs[at : at + each] for at in range(0, len(pairs), each)):
        batch = trainer._prepare_inputs(trainer.data_collator(some))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            total += trainer.compute_loss(trainer.model, batch).item() * len(some)
    trainer._metrics["eval"].clear()
    return total / len(pairs) / sum(cfg.loss_weights or [1.0])


def _compare_loss(cfg: TrainConfig, trainer: Any, rows: dict[str, list[Any]]) -> None:
    """TRL's own loss on the same pairs: ln 2 for the sigmoid loss, with the slack that the log-ratios have."""
    loss = _first_loss(cfg, trainer, rows)
    tokens = sum(len(ids) for side in ("chosen", "rejected") for ids in rows[f"{side}_ids"]) / len(
        rows["prompt_ids"]
    )
    slack = 2 * NATS_PER_SEQUENCE if _exact(cfg) else NATS_PER_TOKEN * tokens
    if not abs(loss - math.log(2)) <= cfg.beta * slack + 1e-6:
        raise StageError(
            f"the reference is wrong: training starts from its reference, so the first loss should be ln 2 = "
            f"{math.log(2):.6f}, and TRL's is {loss:.6f} on {len(rows['prompt_ids'])} pairs.\n"
            f"  Log-probabilities agree, so what reaches the trainer differs: this is a fault of the pipeline, not of "
            f"your settings."
        )
