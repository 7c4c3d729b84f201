"""What every TRL trainer on ready token ids shares: padding is not computed, each row of a step weighs the same,
however many processes share it.

A mixin that stands before TRL's class; `rows_in` says how many rows a batch of that class holds.
"""

from typing import Any

import torch

from pipeline.training.distributed.collectives import Part, gathered_by_rows, parts_of
from pipeline.training.trainers.learning_rate import ClimbingFromTheFirstStep
from pipeline.training.trainers.length_grouping import rows_by_length
from pipeline.training.trainers.rehearsal import Rehearsal, loss_of

WHOLE = (
    "DEEPSPEED",
    "FSDP",
)  # processes gather each other's weights in a pass, and all have to take as many
REHEARSED = "rehearsed"  # a micro-batch's share of the step's demonstrations
PART = "part"


class ReadyTrainer(ClimbingFromTheFirstStep):
    by_length = True
    rehearsal: Rehearsal | None = None
    part: Part | None = None  # of what all processes read at once, this one's; None: the whole

    @staticmethod
    def rows_in(batch: dict[str, Any]) -> int:
        raise NotImplementedError

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one with paths and dates into every checkpoint."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if not batches:
            return batches, items
        args, state, accelerator = self.args, self.state, self.accelerator  # type: ignore[attr-defined]
        rows = _rows_of_step(args, len(self.train_dataset), state.global_step)  # type: ignore[attr-defined]
        parts = parts_of(rows, args.train_batch_size, len(batches))
        self._mean_rows = rows / (len(batches) * args.world_size)
        batches = [
            {**self._own(batch, part), PART: part}
            for batch, part in zip(batches, parts, strict=True)
        ]
        if (
            args.world_size > 1
        ):  # accelerate would take TRL's figures, one a process, for rows and cut them to the last
            accelerator.gradient_state.active_dataloader.remainder = -1
        if self.rehearsal:
            shares = self.rehearsal.shares(state.global_step, parts=len(batches) * args.world_size)
            for batch, share in zip(
                batches, shares[args.process_index :: args.world_size], strict=True
            ):
                batch[REHEARSED] = share
        return batches, items

    def _own(self, batch: Any, part: Part) -> dict[str, Any]:
        """Without the rows that accelerate repeats to fill it up; one of them stays where there is no other."""
        count, own = self.rows_in(batch), max(part.rows, 1)
        if count == own:
            return dict(batch)
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        cut = {
            name: value.unflatten(0, (-1, count))[:, :own].flatten(0, 1)
            for name, value in tensors.items()
        }
        return {name: cut[name] if name in cut else value[:own] for name, value in batch.items()}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """A last, smaller micro-batch counts by its rows: TRL would weigh it like a full one."""
        rehearsed, self.part = (
            inputs.pop(REHEARSED, None),
            inputs.pop(PART, None if model.training else self.part),
        )
        with rows_by_length(*self._cut_in_passes()), gathered_by_rows(self.accelerator, self.part):  # type: ignore[attr-defined]
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        if not model.training:
            return loss
        loss = loss * ((self.part.rows if self.part else self.rows_in(inputs)) / self._mean_rows)
        return loss + self._rehearse(model, rehearsed, loss.device) if rehearsed else loss

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        each = self.args.eval_batch_size  # type: ignore[attr-defined]
        self._dev_parts = iter(parts_of(len(dataloader.dataset), each, len(dataloader)))
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.part = None

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.part = next(self._dev_parts)
        kept = getattr(self, "_metrics", None) or self._stored_metrics  # type: ignore[attr-defined]
        before = {name: len(values) for name, values in kept["eval"].items()}
        with gathered_by_rows(self.accelerator, self.part):  # type: ignore[attr-defined]
            found = super().prediction_step(model, self._own(inputs, self.part), *args, **kwargs)  # type: ignore[misc]
        for name, values in kept[
            "eval"
        ].items():  # TRL takes the mean of its batches', and the last one is smaller
            values += values[before.get(name, 0) :] * (self.part.of - 1)
        return found

    def _cut_in_passes(self) -> list[Any]:
        """The policy, and the reference where TRL asks it as it goes."""
        sharded = self.accelerator.distributed_type.value in WHOLE  # type: ignore[attr-defined]
        if not self.by_length or sharded:
            return []
        models = (self.model, getattr(self, "ref_model", None))  # type: ignore[attr-defined]
        return [model for model in models if model is not None]

    def _rehearse(self, model: Any, slots: Any, device: Any) -> Any:
        term = loss_of(model, slots, device)
        assert self.rehearsal
        nll = self.accelerator.gather(term.detach() / self.rehearsal.weight).mean().item()  # type: ignore[attr-defined]
        self._nlls = [*getattr(self, "_nlls", []), nll]
        return term

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The loss of the pairs, and what is rehearsed beside it: the one is read without the other."""
        if self.rehearsal and (nlls := getattr(self, "_nlls", [])):
            logs["rehearsal/nll"] = sum(nlls) / len(nlls)
            if "loss" in logs:
                logs["loss"] -= self.rehearsal.weight * logs["rehearsal/nll"]
            self._nlls = []
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def _rows_of_step(args: Any, rows: int, step: int) -> int:
    """An epoch's last step may have fewer than the others."""
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return min(batch, rows - step % -(-rows // batch) * batch)
