"""Is the sampler the trainer? Their log-probabilities of the same sampled tokens, before any step.

The sampler's are those of the model without temperature and truncation, a sum for each answer, as
samples keep them. An answer's gap is the difference of the two sums divided by its tokens: it shows
another model, adapter, scale or precision; independent rounding of single tokens partly cancels.
"""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from pipeline.artifacts import note_cost
from pipeline.config import TrainConfig
from pipeline.models.logprobs import compute_logps
from pipeline.progress import print_note, print_warning
from pipeline.training.monitoring.callbacks import report_phase

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

NEAR_CERTAIN = 0.99


class SamplerCheck(TrainerCallback):
    """`answers`: the policy's own, as `prompt_ids, completion_ids, logprob`; None to check nothing.

    Every process computes all of them: with sharded weights none could alone.
    """

    def __init__(self, cfg: TrainConfig, answers: "pl.DataFrame | None", out: "Path"):
        self.cfg, self.answers, self.out = cfg, answers, out

    def attach(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        limit = self.cfg.runtime.warn_sampler_gap
        if self.answers is None or self.answers.is_empty() or limit is None or state.global_step:
            return
        report_phase(f"comparing with the sampler on {self.answers.height} answers")
        self.trainer.model.eval()
        with self.trainer.compute_loss_context_manager():
            gaps = measure_gaps(self.trainer.model, self.answers, self.cfg.max_length)
        if self.trainer.is_world_process_zero():
            report_gaps(gaps, self.cfg, self.out)


def measure_gaps(module: Any, answers: "pl.DataFrame", batch_tokens: int) -> "pl.Series":
    """Nats per token, one for each answer."""
    import polars as pl

    columns = answers["prompt_ids"].to_list(), answers["completion_ids"].to_list()
    logps = pl.Series(compute_logps(module, *columns, batch_tokens), dtype=pl.Float64)
    return (logps - answers["logprob"]).abs() / answers["completion_ids"].list.len()


def report_gaps(gaps: "pl.Series", cfg: TrainConfig, out: "Path") -> None:
    """Its mean and 99th percentile: a note, or a warning where the mean exceeds the limit."""
    mean, high = gaps.mean(), gaps.quantile(NEAR_CERTAIN, "higher")
    assert isinstance(mean, float) and high is not None
    note_cost(out, sampler_gap=mean, sampler_gap_high=high, sampler_gap_answers=len(gaps))
    figures = (
        f"the sampler's log-probabilities differ from the trainer's by {mean:.2g} nats per token"
        f" (99 % of {len(gaps)} answers: at most {high:.2g})"
    )
    limit = cfg.runtime.warn_sampler_gap
    if limit is None or mean <= limit:
        print_note(figures)
        return
    print_warning(
        f"{figures}, more than {cfg.knob}.runtime.warn_sampler_gap={limit:g}: the pairs are not of"
        " the model that is trained. Compare the dtype, the quantisation and the adapter of both:"
        " backend=transformers samples as the trainer computes."
    )
