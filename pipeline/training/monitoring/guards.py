"""Looks at the policy before the first step and at each evaluation, says what is wrong, stops, keeps the right weights.

It holds no state of its own: every decision is read from the trainer's history, which checkpoints carry.
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
from pipeline.training.distributed.collectives import logps_of_all
from pipeline.training.monitoring import early_stopping
from pipeline.training.monitoring.best_weights import BestWeights
from pipeline.training.monitoring.callbacks import keep_until, phase
from pipeline.training.monitoring.early_stopping import FALL, KL
from pipeline.training.monitoring.eval_generations import EvalGenerations, show

if TYPE_CHECKING:
    import polars as pl

PAIRS = 64  # dev pairs whose chosen answers are followed
CHOSEN = "eval_chosen_logp"  # nats per token


class Guards(TrainerCallback):
    """Comes after `FiniteGuard` and `MetricsLog`. `watch` names the trainer, which has to exist first."""

    def __init__(
        self,
        cfg: TrainConfig,
        own: EvalGenerations | None,
        dev_pairs: dict[str, list[Any]],
        out: Path,
    ):
        self.cfg, self.own, self.pairs = cfg, own, dev_pairs
        self.answers = out / "answers.jsonl"
        self.weights = BestWeights(out / "scratch" / "kept")
        self.stopped: str | None = None

    def watch(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            keep_until(self.answers, state.global_step)
            self.weights.forget_after(state.global_step)
        if not state.global_step and self.trainer.eval_dataset is not None:
            self.trainer.evaluate()  # what everything later is compared with

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._look(state)
        seen = early_stopping.looks(state.log_history)
        self._warn(seen)
        self._check_measured(seen[-1])
        if state.global_step and self.cfg.guards.may_stop_early:
            if early_stopping.kept(self.cfg.guards, seen) == state.global_step:
                trained = sharded.trained(self.trainer, sharded.gathered(self.trainer))
                if state.is_world_process_zero:
                    self.weights.save(trained, state.global_step)
            self.stopped = early_stopping.reason_to_stop(self.cfg.guards, seen)
        if self.stopped:
            control.should_training_stop = True
            control.should_save = False  # resumed from here, one more step would be taken

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.secure()

    def _look(self, state: Any) -> None:
        """Not through the trainer's own log, which would take the training figures gathered so far along."""
        figures = self._chosen(state)
        if self.own:
            known, shown = self.own.look(self.trainer)
            figures |= known
            if state.is_world_process_zero:
                show(state.global_step, shown, self.answers)
        if figures:
            asked = self.trainer.control.should_log
            state.log_history.append({**figures, "step": state.global_step})
            self.trainer.callback_handler.on_log(
                self.trainer.args, state, self.trainer.control, figures
            )
            self.trainer.control.should_log = asked

    def _chosen(self, state: Any) -> dict[str, float]:
        """The log-probability of the chosen answers per token, and how far it has fallen since the start."""
        if not self.pairs["answers"]:
            return {}
        phase(f"looking at step {self.trainer.state.global_step}: the chosen answers of dev pairs")
        module = self.trainer.model.eval()
        with self.trainer.compute_loss_context_manager():
            sums = logps_of_all(
                module, self.pairs["prompts"], self.pairs["answers"], self.cfg.max_length
            )
        now = sum(sums) / sum(map(len, self.pairs["answers"]))
        start = next((look[CHOSEN] for look in state.log_history if CHOSEN in look), now)
        return {CHOSEN: now, FALL: start - now}

    def _warn(self, seen: list[early_stopping.Look]) -> None:
        guards, last = self.cfg.guards, seen[-1]
        before = seen[-2] if len(seen) > 1 else {}
        if before.get(KL, 0.0) <= guards.warn_kl < last.get(KL, 0.0):
            say(
                f"step {last['step']}: KL to the reference is {last[KL]:.3g} nats, over train.guards.warn_kl="
                f"{guards.warn_kl:g}: the policy leaves its reference. Lower train.learning_rate, raise train.beta "
                f"where the loss has a reference, or give train.guards.kl_budget, which stops there"
            )
        if before.get(FALL, 0.0) <= guards.warn_fall < last.get(FALL, 0.0):
            say(
                f"step {last['step']}: chosen answers lost {last[FALL]:.3g} nats per token, over "
                f"train.guards.warn_fall={guards.warn_fall:g}: likelihood is displaced to answers nobody saw. Take "
                f"train=rpo (the chosen answer's own loss), raise train.beta where the loss has a reference, drop "
                f"near-equal pairs (pair.filters), or give train.guards.fall_budget"
            )

    def _check_measured(self, look: early_stopping.Look) -> None:
        """Thumbs alone have a margin where both kinds share a batch, and may not."""
        stop_on = self.cfg.guards.stop_on
        if stop_on and early_stopping.COLUMN[stop_on] not in look:
            raise StageError(
                f"train.guards.stop_on={stop_on}: the look at step {look['step']} knows no such figure, since no batch "
                f"of dev thumbs holds both kinds.\n  Give train.guards.stop_on=loss, or a larger pair.dev.least."
            )

    def finish(self, step: int, history: list[dict[str, Any]], trained: State) -> int:
        """Puts the weights to be published in the place of the last ones; answers the step that they are of."""
        guards, seen = self.cfg.guards, early_stopping.looks(history)
        if not guards.may_stop_early or not seen:
            return step
        kept = early_stopping.kept(guards, seen)
        if kept is None:
            raise StageError(
                f"{self.stopped}, at the first look (step {seen[-1]['step']}): no weights within it are known, and "
                f"nothing is published.\n  Lower train.learning_rate or train.eval_every, or raise the budget."
            )
        if self.stopped:
            say(f"stopped at step {step}: {self.stopped}. The weights of step {kept} are published")
        if kept != step:
            self.weights.restore(trained, kept)
        return kept


def guards_for(
    cfg: TrainConfig,
    init: Model,
    reference: Model | None,
    dev: Prompts | None,
    pairs: "pl.DataFrame",
    out: Path,
    processes: int = 1,
) -> Guards:
    """`pairs` is the trainer's dev table. An objective without reference is compared to where it starts."""
    guards = cfg.guards
    if guards.may_stop_early and not pairs.height:
        raise UserError(
            "train.guards: a training without dev pairs is never looked at. Give pair.dev.share above 0."
        )
    if processes > 1 and cfg.runtime.watch == "alone":
        return _of_several(cfg, pairs, out, processes)
    own = (
        EvalGenerations(cfg, init, reference or init, dev)
        if dev and guards.prompts and pairs.height
        else None
    )
    if own is not None and not own.rows:
        say(
            f"no dev prompt leaves room for {guards.tokens} tokens (train.guards.tokens): no KL is known"
        )
        own = None
    if own is None and guards.needs_generations:
        raise UserError(
            "train.guards.kl_budget and train.guards.stop_on=score need dev prompts, and there is none to answer."
        )
    return Guards(cfg, own, _chosen_of(pairs), out)


def _of_several(cfg: TrainConfig, pairs: "pl.DataFrame", out: Path, processes: int) -> Guards:
    """Unasked, only what the trainer gathers from all of them is looked at: own answers keep every device waiting."""
    say(
        f"{processes} processes train together: KL, own answers and the fall of chosen ones are not looked at "
        f"(train.runtime.watch=always does)"
    )
    return Guards(cfg, None, _chosen_of(pairs.clear()), out)


def _chosen_of(pairs: "pl.DataFrame") -> dict[str, list[Any]]:
    """Chosen answers of pairs, or thumbs up."""
    good = pairs.filter("label") if "label" in pairs.columns else pairs
    answer = "completion_ids" if "label" in pairs.columns else "chosen_ids"
    return {
        "prompts": good["prompt_ids"].head(PAIRS).to_list(),
        "answers": good[answer].head(PAIRS).to_list(),
    }


def say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"! train: {text}.", file=sys.stderr, flush=True)
