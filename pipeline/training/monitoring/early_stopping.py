"""When training stops and which weights it keeps: pure functions of the evaluations so far.

They read the trainer's own history, so a killed and resumed run decides as an uninterrupted one.
"""

from itertools import takewhile
from typing import Any

from pipeline.config import GuardsConfig
from pipeline.errors import pluralize

Evaluation = dict[str, Any]  # everything measured at one step, under its names in metrics.jsonl

KL, CHOSEN_LOGP_DROP, TOKENS, SCORE = (
    "eval_kl",
    "eval_chosen_logp_drop",
    "eval_tokens",
    "eval_score",
)
HIGHER_IS_BETTER = {"loss": False, "accuracy": True, "margin": True, "score": True}
METRIC_KEYS = {
    "loss": "eval_loss",
    "accuracy": "eval_rewards/accuracies",
    "margin": "eval_rewards/margins",
    "score": SCORE,
}


def merge_evaluations(history: list[dict[str, Any]]) -> list[Evaluation]:
    """One entry per evaluated step: the trainer and the guards log separate entries for a step."""
    merged: dict[int, Evaluation] = {}
    for entry in history:
        if any(name.startswith("eval_") for name in entry):
            merged.setdefault(entry["step"], {}).update(entry)
    return [merged[step] for step in sorted(merged)]


def choose_step(cfg: GuardsConfig, evaluations: list[Evaluation]) -> int | None:
    """The step whose weights are published if training ends now.

    None: no evaluation was within the budgets. That of the start counts for nothing: its weights
    are never published.
    """
    trained = [entry for entry in evaluations if entry["step"] > 0]
    candidates = [*takewhile(lambda entry: _describe_excess(cfg, entry) is None, trained)]
    if not candidates:
        return None
    return candidates[_find_best(cfg, candidates) if cfg.stop_on else -1]["step"]


def starts_over_budget(cfg: GuardsConfig, evaluations: list[Evaluation]) -> bool:
    """Whether a budget was exceeded before the first step."""
    return evaluations[0]["step"] == 0 and _describe_excess(cfg, evaluations[0]) is not None


def find_stop_reason(
    cfg: GuardsConfig, evaluations: list[Evaluation], knob: str = "train"
) -> str | None:
    """Why training takes no further step; None: continue. `knob` is that of the training."""
    if exceeded := _describe_excess(cfg, evaluations[-1], knob):
        return exceeded
    if cfg.stop_on is None or len(evaluations) < 2:
        return None
    since = len(evaluations) - 1 - _find_best(cfg, evaluations)
    if since < cfg.patience:
        return None
    best = evaluations[-1 - since]
    return (
        f"{cfg.stop_on} was not better than {best[METRIC_KEYS[cfg.stop_on]]:.4g} (step "
        f"{best['step']}) for {pluralize(since, 'evaluation')}"
        f" ({knob}.guards.patience={cfg.patience})"
    )


def _describe_excess(cfg: GuardsConfig, evaluation: Evaluation, knob: str = "train") -> str | None:
    """Which budget this evaluation exceeds, as a reason to stop."""
    if cfg.kl_budget is not None and evaluation[KL] > cfg.kl_budget:
        return (
            f"KL to the reference is {evaluation[KL]:.3g} nats, over "
            f"{knob}.guards.kl_budget={cfg.kl_budget:g}"
        )
    if (
        cfg.max_chosen_logp_drop is not None
        and evaluation[CHOSEN_LOGP_DROP] > cfg.max_chosen_logp_drop
    ):
        return (
            f"chosen answers lost {evaluation[CHOSEN_LOGP_DROP]:.3g} nats per token, over "
            f"{knob}.guards.max_chosen_logp_drop={cfg.max_chosen_logp_drop:g}"
        )
    return None


def _find_best(cfg: GuardsConfig, evaluations: list[Evaluation]) -> int:
    """The index of the best evaluation, the first of equal ones."""
    assert cfg.stop_on
    values = [evaluation[METRIC_KEYS[cfg.stop_on]] for evaluation in evaluations]
    return values.index(max(values) if HIGHER_IS_BETTER[cfg.stop_on] else min(values))
