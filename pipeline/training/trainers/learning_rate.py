"""The learning rate of each step: transformers' schedule, with a warm-up whose first step is not at rate zero.

transformers climbs by `step / warmup` from step 0, so that the first step of every training changes nothing, and a
training of one step changes nothing at all. This climbs by `(step + 1) / (warmup + 1)`; what follows is as it was.
"""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR


class ClimbingFromTheFirstStep:
    """A mixin that stands before a Trainer's class."""

    lr_scheduler: Any

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        made = super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        if not isinstance(made, LambdaLR):  # of an optimizer that steps layer by layer
            return made
        warmup = self.args.get_warmup_steps(num_training_steps)  # type: ignore[attr-defined]
        rates = [climbing(factor, warmup, num_training_steps) for factor in made.lr_lambdas]
        self.lr_scheduler = LambdaLR(made.optimizer, rates)
        return self.lr_scheduler


def climbing(factor: Any, warmup: int, steps: int) -> Any:
    """`factor` gives step / warmup until `warmup`, or 1 where the schedule has no warm-up: that stays 1."""

    def of(step: int) -> float:
        at = min(
            step, steps - 1
        )  # asked once more after the last step, where a polynomial may divide by zero
        known = float(factor(at))
        return (known * warmup + 1) / (warmup + 1) if at < warmup else known

    return of
