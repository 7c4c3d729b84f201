"""Whether a training runs each batch as one row without padding, as flash attention can."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from pipeline.config import TrainConfig
from pipeline.config.kernels import is_flash
from pipeline.progress import print_note
from pipeline.training.prompt_sharing import explain_difference, find_attention
from pipeline.training.trainers.passes import pack_always

if TYPE_CHECKING:
    import polars as pl


class RowPacking(TrainerCallback):
    """Decides before any step, by config, pairs and model alone, as a resumed training does."""

    def __init__(self, cfg: TrainConfig, rows: "dict[str, pl.DataFrame]"):
        self.cfg, self.pairs = cfg, rows["train"]

    def attach(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, cfg = self.trainer, self.cfg
        if not (
            cfg.runtime.by_length and cfg.trainer == "dpo" and is_flash(find_attention(trainer))
        ):
            return
        if trainer.aux_loss_enabled:
            return  # `passes` keeps TRL's batch, over which a mixture balances its load
        why = explain_difference(cfg, trainer, self.pairs, pack_always)
        trainer.packs_rows = not why
        if state.is_world_process_zero:
            print_note(f"rows     padded: {why}" if why else "rows     packed, without padding")
