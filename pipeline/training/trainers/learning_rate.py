"""The learning rate of each step: transformers' schedule, with a warm-up that begins above zero.

transformers warms up by `step / warmup` from step 0: the first step of every training changes
nothing, and a training of one step changes nothing at all. The warm-up here is
`(step + 1) / (warmup + 1)`. What follows the warm-up is unchanged.
"""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR


class NonzeroWarmup:
    """A mixin: inherit it before the Trainer's class."""

    lr_scheduler: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        scheduler = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        if not isinstance(scheduler, LambdaLR):  # of an optimizer that steps layer by layer
            return scheduler
        warmup = self.args.get_warmup_steps(num_training_steps)  # type: ignore[attr-defined]
        factors = scheduler.lr_lambdas
        rates = [shift_warmup(factor, warmup, num_training_steps) for factor in factors]
        self.lr_scheduler = LambdaLR(scheduler.optimizer, rates)
        return self.lr_scheduler


def shift_warmup(factor: Any, warmup: int, steps: int) -> Any:
    """`factor` is step / warmup until `warmup`, or 1 where the schedule has none: 1 stays 1."""

    def rate(step: int) -> float:
        # The Trainer asks once more after the last step: a polynomial may divide by zero there.
        at = min(step, steps - 1)
        known = float(factor(at))
        return (known * warmup + 1) / (warmup + 1) if at < warmup else known

    return rate
