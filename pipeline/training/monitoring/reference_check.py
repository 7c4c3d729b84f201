"""Check the reference on a few pairs before the first optimizer step, by our own forward passes."""

import math
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from pipeline.artifacts import Model
from pipeline.config import FullAdapter, Quantization, TrainConfig
from pipeline.config.launch import SHARDED_WEIGHTS
from pipeline.errors import StageError
from pipeline.models import loading
from pipeline.models.logprobs import compute_logps
from pipeline.training.distributed import sharded
from pipeline.training.monitoring.callbacks import report_phase

if TYPE_CHECKING:
    import polars as pl

CHECKED_PAIRS = 16
NATS_PER_SEQUENCE = 1e-3  # float32
# Half precision, and 8-bit bases: their rounding depends on the other rows of a batch.
NATS_PER_TOKEN = 0.02
RECOMPUTED = "computed again with the reference model"


class StartCheck(TrainerCallback):
    """Runs once every process has its part of the model on its device, before any step."""

    def __init__(
        self,
        cfg: TrainConfig,
        rows: "dict[str, pl.DataFrame]",
        init: Model,
        reference: Model | None,
    ):
        self.cfg, self.rows = cfg, first_pairs(rows)
        self.init, self.reference = init, reference

    def attach(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reference is None or state.global_step:
            return
        report_phase(f"checking the reference on {CHECKED_PAIRS} pairs")
        if self.reference.path == self.init.path:
            check_start(self.cfg, self.trainer, self.rows)
        elif self.cfg.reference_logps == "precomputed" and sharded.is_sharded(self.trainer):
            with sharded.load_sharded(self.trainer, self.reference, self.cfg.dtype) as module:
                logps = _compute_logps(self.cfg, module, self.rows)
                _compare_logps(self.cfg, logps, self.rows, RECOMPUTED)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Online training measures its KL itself: 0 at the first step, before any update."""
        starts_there = self.reference is not None and self.reference.path == self.init.path
        kl = (logs or {}).get("kl")
        if not (self.cfg.is_online and starts_there and state.global_step == 1) or kl is None:
            return
        if self.cfg.args.get("disable_dropout") is False:  # its masks are drawn for each model
            return
        limit = NATS_PER_SEQUENCE if is_exact(self.cfg) else NATS_PER_TOKEN
        if not abs(kl) <= limit:
            raise StageError(
                f"the reference is wrong: training starts from its reference, so the KL of its"
                f" first answers should be 0, and TRL's is {kl:.4g} nats per token.\n"
                f"  This is a bug of the pipeline, not of your settings."
            )


def first_pairs(rows: "dict[str, pl.DataFrame]") -> dict[str, list[Any]]:
    return rows["train"].head(CHECKED_PAIRS).to_dict(as_series=False)


def check_separate_reference(
    cfg: TrainConfig, init: Model, reference: Model | None, rows: "dict[str, pl.DataFrame]"
) -> None:
    """Recompute a few precomputed values where training starts from another model.

    This comes before the policy is loaded, so that memory never holds both. With sharded weights
    no process could hold the reference: there `StartCheck` has all processes do it together.
    """
    if reference is None or reference.path == init.path or cfg.runtime.launch in SHARDED_WEIGHTS:
        return
    if cfg.reference_logps == "precomputed":
        report_phase(f"checking the reference on {CHECKED_PAIRS} pairs")
        module = loading.load(reference, cfg.dtype, _base_quantization(cfg))
        pairs = first_pairs(rows)
        _compare_logps(cfg, _compute_logps(cfg, module, pairs), pairs, RECOMPUTED)


def check_start(cfg: TrainConfig, trainer: Any, rows: dict[str, list[Any]]) -> None:
    """Where training starts from its reference, all log-ratios are 0 before the first step."""
    trainer.model.eval()
    if cfg.reference_logps == "precomputed":
        with trainer.compute_loss_context_manager():
            logps = _compute_logps(cfg, trainer.model, rows)
            _compare_logps(cfg, logps, rows, "of the model before its first step")
    # Only these losses are ln 2 where all log-ratios are 0.
    is_sigmoid = cfg.trainer == "dpo" and cfg.loss in (["sigmoid"], ["cdpo"])
    if is_sigmoid and not cfg.args.get("use_weighting"):
        _compare_loss(cfg, trainer, rows)


def _base_quantization(cfg: TrainConfig) -> Quantization | None:
    return None if isinstance(cfg.adapter, FullAdapter) else cfg.adapter.quantization


def is_exact(cfg: TrainConfig) -> bool:
    quantization = _base_quantization(cfg)
    return cfg.dtype == "float32" and not (quantization and quantization.bits == 8)


def _compute_logps(
    cfg: TrainConfig, module: Any, rows: dict[str, list[Any]]
) -> dict[str, list[float]]:
    return {
        side: compute_logps(module, rows["prompt_ids"], rows[f"{side}_ids"], cfg.max_length)
        for side in ("chosen", "rejected")
    }


def _compare_logps(
    cfg: TrainConfig, logps: dict[str, list[float]], rows: dict[str, list[Any]], whose: str
) -> None:
    gaps, tokens = [], 0
    for side in ("chosen", "rejected"):
        gaps += [abs(a - b) for a, b in zip(logps[side], rows[f"ref_{side}_logps"], strict=True)]
        tokens += sum(map(len, rows[f"{side}_ids"]))
    if is_exact(cfg):
        worst = max(gaps, key=lambda gap: math.inf if math.isnan(gap) else gap)
        figure, limit, unit = worst, NATS_PER_SEQUENCE, "nats in the worst sequence"
    else:
        figure, limit, unit = sum(gaps) / max(tokens, 1), NATS_PER_TOKEN, "nats per token"
    if not figure <= limit:
        raise StageError(
            f"the reference is wrong: its precomputed log-probabilities differ from those {whose} "
            f"by {figure:.4g} {unit} over {len(gaps)} sequences; at most {limit:g} is expected in "
            f"{cfg.dtype}.\n"
            f"  They are of another model, other tokens or another dtype: compare reference.dtype "
            f"with {cfg.knob}.dtype, and let the stage reference run again."
        )


def _compute_first_loss(cfg: TrainConfig, trainer: Any, rows: dict[str, list[Any]]) -> float:
    """TRL's mean loss on the pairs, in batches of the size that training uses.

    The loss that balances a mixture's experts is not of pairs: it is left out.
    """
    import torch

    pairs = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    total, size = 0.0, cfg.runtime.per_device
    for start in range(0, len(pairs), size):
        some = pairs[start : start + size]
        batch = trainer._prepare_inputs(trainer.data_collator(some))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, batch).item()
        if trainer.aux_loss_enabled:
            loss -= trainer.router_aux_loss_coef * trainer._metrics["eval"]["aux_loss"][-1]
        total += loss * len(some)
    trainer._metrics["eval"].clear()
    return total / len(pairs) / sum(cfg.loss_weights or [1.0])


def _compare_loss(cfg: TrainConfig, trainer: Any, rows: dict[str, list[Any]]) -> None:
    """TRL's own loss on the same pairs must be ln 2, within the tolerance of the log-ratios."""
    loss = _compute_first_loss(cfg, trainer, rows)
    pairs = len(rows["prompt_ids"])
    answers = [*rows["chosen_ids"], *rows["rejected_ids"]]
    tokens = sum(map(len, answers)) / pairs
    # |d/dx log σ(βx)| ≤ β: the loss moves by at most β times the log-ratios' error.
    slack = 2 * NATS_PER_SEQUENCE if is_exact(cfg) else NATS_PER_TOKEN * tokens
    if not abs(loss - math.log(2)) <= cfg.beta * slack + 1e-6:
        raise StageError(
            f"the reference is wrong: training starts from its reference, so the first loss should "
            f"be ln 2 = {math.log(2):.6f}, and TRL's is {loss:.6f} on {pairs} pairs.\n"
            f"  The log-probabilities agree, so the trainer gets something else: this is a bug of "
            f"the pipeline, not of your settings."
        )
