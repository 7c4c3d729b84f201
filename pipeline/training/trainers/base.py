"""What the TRL trainers on token ids share: no padding is computed, and every row weighs the same.

The second holds however many processes and micro-batches share an optimizer step. The class here
is a mixin: inherit it before TRL's class, and let `count_rows` say how many rows a batch holds.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch

from pipeline.training.distributed.collectives import BatchPart, gather_uneven_rows, split_batches
from pipeline.training.trainers.learning_rate import NonzeroWarmup
from pipeline.training.trainers.passes import Arrangement, arrange_rows
from pipeline.training.trainers.rehearsal import Rehearsal, compute_rehearsal_loss

REHEARSED = "rehearsed"  # a micro-batch's share of the step's demonstrations
PART = "part"


class PretokenizedTrainer(NonzeroWarmup):
    accelerator: Any
    args: Any
    model: Any
    state: Any
    train_dataset: Any
    _metrics: Any

    by_length = True
    # training/prompt_sharing.py and row_packing.py decide before the first step.
    shares_prompts = packs_rows = False
    rehearsal: Rehearsal | None = None
    part: BatchPart | None = None  # this process's rows of the current batch; None: all of them

    @staticmethod
    def count_rows(batch: dict[str, Any]) -> int:
        raise NotImplementedError

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL would write a card with paths and dates into every checkpoint."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        trl: Any = super()
        batches, items = trl.get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, items
        args, step = self.args, self.state.global_step
        rows = _count_step_rows(args, len(self.train_dataset), step)
        parts = split_batches(rows, args.train_batch_size, len(batches))
        self._mean_rows = rows / (len(batches) * args.world_size)
        batches = [
            {**self._trim_rows(batch, part), PART: part}
            for batch, part in zip(batches, parts, strict=True)
        ]
        if args.world_size > 1:
            # TRL gathers one figure per process. accelerate would take these for rows and cut them
            # to the size of an epoch's last batch.
            self.accelerator.gradient_state.active_dataloader.remainder = -1
        if self.rehearsal:
            shares = self.rehearsal.split_rows(step, parts=len(batches) * args.world_size)
            own = shares[args.process_index :: args.world_size]
            for batch, share in zip(batches, own, strict=True):
                batch[REHEARSED] = share
        return batches, items

    def _trim_rows(self, batch: Any, part: BatchPart) -> dict[str, Any]:
        """Remove the rows that accelerate repeats to fill a batch. One row stays in any case."""
        count, own = self.count_rows(batch), max(part.rows, 1)
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
        """Weigh a step's last micro-batch by its rows: TRL would weigh it like a full one."""
        rehearsed = inputs.pop(REHEARSED, None)
        self.part = inputs.pop(PART, None if model.training else self.part)
        trl: Any = super()
        with self._arrange_rows(), gather_uneven_rows(self.accelerator, self.part):
            loss = trl.compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:
            return loss
        loss = loss * ((self.part.rows if self.part else self.count_rows(inputs)) / self._mean_rows)
        return loss + self._rehearse(model, rehearsed, loss.device) if rehearsed else loss

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        size = self.args.eval_batch_size
        self._dev_parts = iter(split_batches(len(dataloader.dataset), size, len(dataloader)))
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.part = None

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.part = next(self._dev_parts)
        metrics = self._metrics["eval"]
        before = {name: len(values) for name, values in metrics.items()}
        own = self._trim_rows(inputs, self.part)
        with gather_uneven_rows(self.accelerator, self.part):
            result = super().prediction_step(model, own, *args, **kwargs)  # type: ignore[misc]
        # TRL averages over batches, and the last batch is smaller: list each value once per row.
        for name, values in metrics.items():
            values += values[before.get(name, 0) :] * (self.part.total - 1)
        return result

    def _arrange_rows(self) -> AbstractContextManager[None]:
        config, kind = self.model.config.get_text_config(), self.accelerator.distributed_type.value
        arrangement = Arrangement(
            hidden=config.hidden_size,
            attention=config._attn_implementation,
            by_length=self.by_length,
            shares_prompts=self.shares_prompts,
            sharded=kind in ("FSDP", "DEEPSPEED"),
            packs=self.packs_rows,
        )
        return arrange_rows(self.list_models(), arrangement)

    def list_models(self) -> list[Any]:
        """The policy, and the reference where TRL computes its values during training."""
        models = (self.model, getattr(self, "ref_model", None))
        return [model for model in models if model is not None]

    def _rehearse(self, model: Any, slots: Any, device: Any) -> Any:
        term = compute_rehearsal_loss(model, slots, device)
        assert self.rehearsal
        nll = self.accelerator.gather(term.detach() / self.rehearsal.weight).mean().item()
        self._nlls = [*getattr(self, "_nlls", []), nll]
        return term

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the loss of the pairs without the rehearsal term, and the rehearsal's NLL apart."""
        if self.rehearsal and (nlls := getattr(self, "_nlls", [])):
            logs["rehearsal/nll"] = sum(nlls) / len(nlls)
            if "loss" in logs:
                logs["loss"] -= self.rehearsal.weight * logs["rehearsal/nll"]
            self._nlls = []
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def _count_step_rows(args: Any, rows: int, step: int) -> int:
    """Rows of this optimizer step: the last step of an epoch may have fewer than the others."""
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return min(batch, rows - step % -(-rows // batch) * batch)
