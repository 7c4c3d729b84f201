"""What every TRL trainer on ready token ids shares: padding is not computed, each row of a step weighs the same.

A mixin that stands before TRL's class; `rows_in` says how many rows a batch of that class holds.
"""

from typing import Any

from pipeline.training.by_length import rows_by_length

WHOLE = ("DEEPSPEED", "FSDP")  # processes gather each other's weights in a pass, and all have to take as many


class ReadyTrainer:
    by_length = True

    @staticmethod
    def rows_in(batch: dict[str, Any]) -> int:
        raise NotImplementedError

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one with paths and dates into every checkpoint."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        self._mean_rows = sum(self.rows_in(batch) for batch in batches) / max(len(batches), 1)
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """A last, smaller micro-batch counts by its rows: TRL would weigh it like a full one."""
        with rows_by_length(*self._cut_in_passes()):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        return loss * (self.rows_in(inputs) / self._mean_rows) if model.training else loss

    def _cut_in_passes(self) -> list[Any]:
        """The policy, and the reference where TRL asks it as it goes."""
        sharded = self.accelerator.distributed_type.value in WHOLE  # type: ignore[attr-defined]
        if not self.by_length or sharded:
            return []
        return [module for module in (self.model, getattr(self, "ref_model", None)) if module is not None]  # type: ignore[attr-defined]
