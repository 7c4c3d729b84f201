"""Evaluate the policy before the first step and during training; warn, stop, keep weights.

Guards hold no state: they decide by the trainer's history, which checkpoints carry.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from pipeline.artifacts import Model, Prompts
from pipeline.config import TrainConfig
from pipeline.errors import StageError, UserError
from pipeline.models.loading import State
from pipeline.training.distributed import sharded
from pipeline.training.distributed.collectives import gather_logps
from pipeline.training.monitoring import early_stopping
from pipeline.training.monitoring.best_weights import BestWeights
from pipeline.training.monitoring.callbacks import drop_lines_after, report_phase
from pipeline.training.monitoring.early_stopping import CHOSEN_LOGP_DROP, KL
from pipeline.training.monitoring.eval_generations import EvalGenerations, record_answers

if TYPE_CHECKING:
    import polars as pl

DEV_PAIRS = 64  # dev pairs whose chosen answers' log-probability is measured
CHOSEN_LOGP = "eval_chosen_logp"  # nats per token


class Guards(TrainerCallback):
    """Comes after `FiniteGuard` and `MetricsLog`. Call `attach` once the trainer exists."""

    def __init__(
        self,
        cfg: TrainConfig,
        generations: EvalGenerations | None,
        dev_pairs: dict[str, list[Any]],
        out: Path,
    ):
        self.cfg, self.generations, self.pairs = cfg, generations, dev_pairs
        self.answers = out / "answers.jsonl"
        self.weights = BestWeights(out / "scratch" / "kept")
        # As training.json publishes it: by the name of the block, wherever that is mounted.
        self.stop_reason: str | None = None

    def attach(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            drop_lines_after(self.answers, state.global_step)
            self.weights.drop_after(state.global_step)
        if not state.global_step and self.trainer.eval_dataset is not None:
            self.trainer.evaluate()  # the baseline of all later evaluations

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log_evaluation(state)
        evaluations = early_stopping.merge_evaluations(state.log_history)
        if not evaluations:  # without dev pairs, where no dev prompt leaves room for an answer
            return
        self._warn_of_drift(evaluations)
        self._check_stop_metric(evaluations[-1])
        if state.global_step and self.cfg.guards.may_stop_early:
            if early_stopping.choose_step(self.cfg.guards, evaluations) == state.global_step:
                trained = sharded.select_trained(self.trainer, sharded.gather_weights(self.trainer))
                if state.is_world_process_zero:
                    self.weights.save(trained, state.global_step)
            self.stop_reason = early_stopping.find_stop_reason(self.cfg.guards, evaluations)
        if self.stop_reason:
            control.should_training_stop = True
            control.should_save = False  # a training resumed from here would take one more step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.secure_newest()

    def _log_evaluation(self, state: Any) -> None:
        """Log without `trainer.log`, which would flush the training figures gathered so far."""
        figures = self._measure_chosen_logp(state)
        if self.generations:
            measured, answers = self.generations.evaluate(self.trainer)
            figures |= measured
            if state.is_world_process_zero:
                record_answers(state.global_step, answers, self.answers)
        if figures:
            should_log = self.trainer.control.should_log
            state.log_history.append({**figures, "step": state.global_step})
            self.trainer.callback_handler.on_log(
                self.trainer.args, state, self.trainer.control, figures
            )
            self.trainer.control.should_log = should_log

    def _measure_chosen_logp(self, state: Any) -> dict[str, float]:
        """The chosen answers' log-probability per token, and its drop since the start."""
        if not self.pairs["answers"]:
            return {}
        step = self.trainer.state.global_step
        report_phase(f"evaluation at step {step}: the chosen answers of dev pairs")
        module = self.trainer.model.eval()
        with self.trainer.compute_loss_context_manager():
            sums = gather_logps(
                module, self.pairs["prompts"], self.pairs["answers"], self.cfg.max_length
            )
        now = sum(sums) / sum(map(len, self.pairs["answers"]))
        known = (row[CHOSEN_LOGP] for row in state.log_history if CHOSEN_LOGP in row)
        start = next(known, now)
        return {CHOSEN_LOGP: now, CHOSEN_LOGP_DROP: start - now}

    def _warn_of_drift(self, evaluations: list[early_stopping.Evaluation]) -> None:
        """Warn at the evaluation where a figure first passes its limit."""
        cfg, guards, last = self.cfg, self.cfg.guards, evaluations[-1]
        before = evaluations[-2] if len(evaluations) > 1 else {}
        if before.get(KL, 0.0) <= guards.warn_kl < last.get(KL, 0.0):
            warn(
                f"step {last['step']}: KL to the reference is {last[KL]:.3g} nats, over "
                f"{cfg.knob}.guards.warn_kl={guards.warn_kl:g}: {_explain_drift(cfg, last['step'])}"
            )
        if (
            before.get(CHOSEN_LOGP_DROP, 0.0)
            <= guards.warn_chosen_logp_drop
            < last.get(CHOSEN_LOGP_DROP, 0.0)
        ):
            warn(
                f"step {last['step']}: chosen answers lost {last[CHOSEN_LOGP_DROP]:.3g} nats per "
                f"token, over {cfg.knob}.guards.warn_chosen_logp_drop="
                f"{guards.warn_chosen_logp_drop:g}: likelihood is displaced to answers in no pair."
                f" Take {cfg.mount}=rpo (the chosen answer's own loss), raise {cfg.knob}.beta where"
                " the loss has a reference, or drop near-equal pairs (pair.filters)"
                f"{_offer_budget(cfg, 'max_chosen_logp_drop')}"
            )

    def _check_stop_metric(self, evaluation: early_stopping.Evaluation) -> None:
        """On unpaired answers TRL logs a margin only where a batch holds good and bad ones."""
        stop_on, knob = self.cfg.guards.stop_on, f"{self.cfg.knob}.guards.stop_on"
        if stop_on and early_stopping.METRIC_KEYS[stop_on] not in evaluation:
            raise StageError(
                f"{knob}={stop_on}: the evaluation at step {evaluation['step']} has "
                f"no such figure, since no batch of unpaired dev answers holds good and bad ones.\n"
                f"  Give {knob}=loss, or a larger pair.dev.min."
            )

    def restore_weights(self, step: int, history: list[dict[str, Any]], trained: State) -> int:
        """Replace the last weights by those to publish. Returns the step that they are of."""
        guards, knob = self.cfg.guards, self.cfg.knob
        evaluations = early_stopping.merge_evaluations(history)
        if not guards.may_stop_early or not evaluations:
            return step
        kept = early_stopping.choose_step(guards, evaluations)
        reason = early_stopping.find_stop_reason(guards, evaluations, knob)
        if kept is None:
            remedy = (
                "The start itself is over it: raise the budget, or measure from the start by "
                "reference.model=init."
                if early_stopping.starts_over_budget(guards, evaluations)
                else f"Lower {knob}.learning_rate or {knob}.eval_every, or raise the budget."
            )
            raise StageError(
                f"{reason}, at the first evaluation after the start (step "
                f"{evaluations[-1]['step']}): no weights within the budget are known, and nothing "
                f"is published.\n  {remedy}"
            )
        if self.stop_reason:
            published = f"The weights of step {kept} are published"
            warn(f"stopped at step {step}: {reason}. {published}")
        if kept != step:
            self.weights.restore(trained, kept)
        return kept


def build_guards(
    cfg: TrainConfig,
    init: Model,
    reference: Model | None,
    dev: Prompts | None,
    pairs: "pl.DataFrame",
    out: Path,
    processes: int = 1,
) -> Guards:
    """`pairs` is the trainer's dev table. Without a reference, KL is measured to `init`."""
    guards, knob = cfg.guards, f"{cfg.knob}.guards"
    if guards.may_stop_early and not pairs.height:
        raise UserError(
            f"{knob}: a training without dev pairs is never evaluated.\n"
            "  Give pair.dev.share above 0."
        )
    if processes > 1 and not cfg.runtime.eval_when_distributed:
        return _build_distributed_guards(cfg, pairs, out, processes)
    generations = None
    if dev and guards.prompts and pairs.height:
        generations = EvalGenerations(cfg, init, reference or init, dev)
    if generations is not None and not generations.rows:
        warn(
            f"no dev prompt leaves room for {guards.tokens} tokens ({knob}.tokens): KL is "
            "not measured"
        )
        generations = None
    if generations is None and guards.needs_generations:
        raise UserError(
            f"{knob}.kl_budget and {knob}.stop_on=score need dev prompts, and there is none to"
            " answer."
        )
    return Guards(cfg, generations, _select_chosen(pairs), out)


def _explain_drift(cfg: TrainConfig, step: int) -> str:
    if step == 0:
        return (
            "training starts this far from its reference. reference.model=init measures from the "
            "start"
        )
    return (
        f"the policy moves away from its reference. Lower {cfg.knob}.learning_rate, or raise"
        f" {cfg.knob}.beta where the loss has a reference{_offer_budget(cfg, 'kl_budget')}"
    )


def _offer_budget(cfg: TrainConfig, name: str) -> str:
    """What is given already is not offered."""
    return "" if getattr(cfg.guards, name) else f"; {cfg.knob}.guards.{name} stops there"


def _build_distributed_guards(
    cfg: TrainConfig, pairs: "pl.DataFrame", out: Path, processes: int
) -> Guards:
    """By default only evaluate what the trainer gathers: generating keeps every device waiting."""
    warn(
        f"{processes} processes train together: KL, generated answers and the drop of the chosen "
        f"answers' log-probability are not measured "
        f"({cfg.knob}.runtime.eval_when_distributed=true measures them)"
    )
    return Guards(cfg, None, _select_chosen(pairs.clear()), out)


def _select_chosen(pairs: "pl.DataFrame") -> dict[str, list[Any]]:
    """The chosen answers of pairs, or the good ones of unpaired answers."""
    good = pairs.filter("label") if "label" in pairs.columns else pairs
    answer = "completion_ids" if "label" in pairs.columns else "chosen_ids"
    if answer not in pairs.columns:  # online training knows no answer to its dev prompts
        return {"prompts": [], "answers": []}
    return {
        "prompts": good["prompt_ids"].head(DEV_PAIRS).to_list(),
        "answers": good[answer].head(DEV_PAIRS).to_list(),
    }


def warn(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"! train: {text}.", file=sys.stderr, flush=True)
