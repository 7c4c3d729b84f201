"""Whether a training computes each prompt once for both answers.

Config, pairs and model alone decide, so that a resumed training decides the same.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from pipeline.artifacts import note_cost
from pipeline.config import TrainConfig
from pipeline.progress import print_note
from pipeline.training.monitoring.reference_check import NATS_PER_TOKEN, is_exact
from pipeline.training.trainers.passes import (
    FLEX,
    choose_shared_layout,
    estimate_cost,
    use_layout,
)
from pipeline.training.trainers.segment_attention import SEGMENTS
from pipeline.training.trainers.shared_prompt import IGNORED

if TYPE_CHECKING:
    import polars as pl

Arrange = Callable[[Any], AbstractContextManager[None]]  # of a model's rows
# Of the tokens. Under a mask 88 % of them took as long as all.
WORTHWHILE_SHARE = 0.85
EXACT_NATS_PER_TOKEN = 1e-4  # in float32
# Kinds of layers that see what the mask shows, where a window has room for the longest row.
MASKED_LAYERS = {"full_attention", "sliding_attention"}


class PromptSharing(TrainerCallback):
    """Decides before any step, once every process has its part of the model on its device."""

    def __init__(self, cfg: TrainConfig, rows: "dict[str, pl.DataFrame]", out: Path):
        self.cfg, self.pairs, self.out = cfg, rows["train"], out

    def attach(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.cfg.runtime.shared_prompt or self.cfg.is_online:
            return
        why = explain_separate(self.cfg, self.trainer, self.pairs)
        self.trainer.shares_prompts = not why
        if not state.is_world_process_zero:
            return
        if why:
            print_note(f"prompts  computed for each answer: {why}")
            return
        share = measure_trained_share(self.trainer, self.pairs)
        print_note(f"prompts  computed once for both answers: {share:.0%} of the tokens")
        note_cost(self.out, computed_share=round(share, 3))


def explain_separate(cfg: TrainConfig, trainer: Any, pairs: "pl.DataFrame") -> str | None:
    """Why each answer gets a separate row. None: two share one."""
    if cfg.trainer != "dpo":
        return f"only {cfg.knob}.trainer=dpo shares them"
    if "orpo" in cfg.loss:
        return "the likelihood of orpo is of prompts as well"
    if cfg.mask.format_tokens:
        return f"{cfg.knob}.mask.format_tokens leaves tokens of the answers out"
    if trainer.aux_loss_enabled:
        return "a mixture of experts balances its load over all tokens"
    if measure_trained_share(trainer, pairs) > WORTHWHILE_SHARE:
        return "they are too short to save time"
    for model in list_unwrapped_models(trainer):
        if why := explain_attention(model.config.get_text_config(), cfg):
            return why
    layout = choose_shared_layout(find_attention(trainer))
    return explain_difference(cfg, trainer, pairs, partial(use_layout, layout))


def measure_trained_share(trainer: Any, pairs: "pl.DataFrame") -> float:
    width = trainer.model.config.get_text_config().hidden_size
    # By segments a shared row attends to no more than separate rows do.
    return measure_share(pairs, math.inf if find_attention(trainer) == SEGMENTS else width)


def measure_share(pairs: "pl.DataFrame", hidden: float) -> float:
    """The share of the pairs' tokens that is computed where each pair takes what costs less."""
    import polars as pl

    sides = "prompt_ids", "chosen_ids", "rejected_ids"
    prompt, chosen, rejected = (pl.col(name).list.len().cast(pl.Int64) for name in sides)
    once, twice = prompt + chosen + rejected, 2 * prompt + chosen + rejected
    separate = estimate_cost(prompt + chosen, hidden) + estimate_cost(prompt + rejected, hidden)
    is_cheaper = estimate_cost(once, hidden) < separate
    computed = pl.when(is_cheaper).then(once).otherwise(twice)
    return float(pairs.select(computed.sum() / twice.sum()).item())


def explain_attention(config: Any, cfg: TrainConfig) -> str | None:
    """Why a model with this config cannot tell a row's two branches apart. None: it can."""
    if (kind := config._attn_implementation) not in ("sdpa", SEGMENTS, FLEX):
        return f"attention by {kind} takes no mask of two branches"
    if others := set(getattr(config, "layer_types", None) or []) - MASKED_LAYERS:
        return f"the model has layers of {min(others)}"
    window = getattr(config, "sliding_window", None)
    if window and window < cfg.max_length:
        longest = f"{cfg.knob}.max_length={cfg.max_length}"
        return f"the model's window of {window} tokens is shorter than {longest}"
    return None


def explain_difference(
    cfg: TrainConfig, trainer: Any, pairs: "pl.DataFrame", arrange: Arrange
) -> str | None:
    """Compute the longest pair in separate rows and within `arrange`."""
    limit = EXACT_NATS_PER_TOKEN if is_exact(cfg) else NATS_PER_TOKEN
    batch = trainer._prepare_inputs(trainer.data_collator([_find_longest(pairs)]))
    rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    for model in trainer.list_models():
        model.eval()
        try:
            gap = _measure_gap(trainer, model, {**rows, "labels": labels}, arrange)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model's code raises, it does not take such rows
            return f"the model refuses such rows ({type(error).__name__}: {error})"
        if not gap <= limit:
            return f"the model's log-probabilities would differ by {gap:.2g} nats per token"
    return None


def _measure_gap(
    trainer: Any, model: Any, rows: dict[str, torch.Tensor], arrange: Arrange
) -> float:
    call = {**rows, "fused_lm_head": True, "use_cache": False}
    with torch.no_grad(), trainer.compute_loss_context_manager():
        separate = model(**call).log_probs
        with arrange(model):
            arranged = model(**call).log_probs
    tokens = (rows["labels"] != IGNORED).sum()
    return float((arranged - separate).abs().sum() / tokens)


def _find_longest(pairs: "pl.DataFrame") -> dict[str, Any]:
    import polars as pl

    lengths = pairs.select(pl.col("^.*_ids$").list.len()).sum_horizontal()
    return pairs.row(lengths.arg_max() or 0, named=True)


def find_attention(trainer: Any) -> str:
    """By transformers' name. A reference that the trainer loads has the same."""
    return str(trainer.model.config.get_text_config()._attn_implementation)


def list_unwrapped_models(trainer: Any) -> list[Any]:
    return [trainer.accelerator.unwrap_model(model) for model in trainer.list_models()]
