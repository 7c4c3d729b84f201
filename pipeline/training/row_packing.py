"""Whether a training runs each batch as one row without padding: flash attention can, and a CPU."""

from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from pipeline.config import TrainConfig
from pipeline.config.kernels import is_flash
from pipeline.progress import print_note
from pipeline.training.prompt_sharing import (
    explain_attention,
    explain_difference,
    find_attention,
    list_unwrapped_models,
)
from pipeline.training.trainers.packed_rows import PackedRows, SegmentedRows
from pipeline.training.trainers.passes import use_layout
from pipeline.training.trainers.segment_attention import SEGMENTS, register

if TYPE_CHECKING:
    import polars as pl


class RowPacking(TrainerCallback):
    """Decides before any step, by config, pairs, model and device, as a resumed training does."""

    def __init__(self, cfg: TrainConfig, rows: "dict[str, pl.DataFrame]"):
        self.cfg, self.pairs = cfg, rows["train"]

    def attach(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, cfg = self.trainer, self.cfg
        if not cfg.runtime.by_length or cfg.trainer != "dpo" or trainer.aux_loss_enabled:
            return  # `passes` keeps TRL's batch for a mixture, which balances its load over it
        if is_flash(attention := find_attention(trainer)):
            why = explain_difference(cfg, trainer, self.pairs, partial(use_layout, PackedRows))
        elif attention == "sdpa" and trainer.accelerator.device.type == "cpu":
            why = self._cut_into_segments()
        else:
            return
        trainer.packs_rows = not why
        if why and state.is_world_process_zero:
            print_note(f"rows     padded: {why}")

    def _cut_into_segments(self) -> str | None:
        """Why the models cannot attend by segments. None: from now on they do."""
        models = list_unwrapped_models(self.trainer)
        for model in models:
            if why := explain_attention(model.config.get_text_config(), self.cfg):
                return why
        register()
        for model in models:
            model.set_attn_implementation(SEGMENTS)
        segmented = partial(use_layout, SegmentedRows)
        why = explain_difference(self.cfg, self.trainer, self.pairs, segmented)
        if why:
            for model in models:
                model.set_attn_implementation("sdpa")
        return why
