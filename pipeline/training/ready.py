"""What every TRL trainer on ready token ids shares: padding is not computed, each row of a step weighs the same.

A mixin that stands before TRL's class; `rows_in` says how many rows a batch of that class holds.
"""

from typing import Any

from pipeline.training.by_length import rows_by_length
from pipeline.training.rehearsal import Rehearsal, loss_of

WHOLE = ("DEEPSPEED", "FSDP")  # processes gather each other's weights in a pass, and all have to take as many
REHEARSED = "rehearsed"  # a micro-batch's share of the step's demonstrations


class ReadyTrainer:
    by_length = True
    rehearsal: Rehearsal | None = None

    @staticmethod
    def rows_in(batch: dict[str, Any]) -> int:
        raise NotImplementedError

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one with paths and dates into every checkpoint."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        self._mean_rows = sum(self.rows_in(batch) for batch in batches) / max(len(batches), 1)
        if self.rehearsal and batches:
            args, step = self.args, self.state.global_step  # type: ignore[attr-defined]
            shares = self.rehearsal.shares(step, parts=len(batches) * args.world_size)
            for batch, share in zip(batches, shares[args.process_index :: args.world_size], strict=True):
                batch[REHEARSED] = share
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """A last, smaller micro-batch counts by its rows: TRL would weigh it like a full one."""
        rehearsed = inputs.pop(REHEARSED, None)
        with rows_by_length(*self._cut_in_passes()):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        if not model.training:
            return loss
        loss = loss * (self.rows_in(inputs) / self._mean_rows)
        return loss + self._rehearse(model, rehearsed, loss.device) if rehearsed else loss

    def _cut_in_passes(self) -> list[Any]:
        """The policy, and the reference where TRL asks it as it goes."""
        sharded = self.accelerator.distributed_type.value in WHOLE  # type: ignore[attr-defined]
        if not self.by_length or sharded:
            return []
        return [module for module in (self.model, getattr(self, "ref_model", None)) if module is not None]  # type: ignore[attr-defined]

    def _rehearse(self, model: Any, slots: Any, device: Any) -> Any:
        term = loss_of(model, slots, device)
        assert self.rehearsal
        nll = self.accelerator.gather(term.detach() / self.rehearsal.weight).mean().item()  # type: ignore[attr-defined]
        self._nlls = [*getattr(self, "_nlls", []), nll]
        return term

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if nlls := getattr(self, "_nlls", []):
            logs["rehearsal/nll"] = sum(nlls) / len(nlls)
            self._nlls = []
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
