"""When training stops and which weights it keeps: pure functions of what was seen at each look.

They read the trainer's own history, so that a run that was killed and resumed decides as one that was not.
"""

from itertools import takewhile
from typing import Any

from pipeline.config import GuardsConfig
from pipeline.errors import pluralize

Look = dict[str, Any]  # everything that was measured at one step, under its name in metrics.jsonl

KL, FALL, TOKENS, SCORE = "eval_kl", "eval_chosen_fall", "eval_tokens", "eval_score"
RISES = {"loss": False, "accuracy": True, "margin": True, "score": True}  # which way is better
COLUMN = {
    "loss": "eval_loss",
    "accuracy": "eval_rewards/accuracies",
    "margin": "eval_rewards/margins",
    "score": SCORE,
}


def looks(history: list[dict[str, Any]]) -> list[Look]:
    """One entry for each step that was looked at; the trainer and the guards log theirs apart."""
    merged: dict[int, Look] = {}
    for entry in history:
        if any(name.startswith("eval_") for name in entry):
            merged.setdefault(entry["step"], {}).update(entry)
    return [merged[step] for step in sorted(merged)]


def kept(cfg: GuardsConfig, seen: list[Look]) -> int | None:
    """The step whose weights are published when training ends here; None: not one look was within the budgets."""
    inside = [
        look for look in takewhile(lambda look: _over(cfg, look) is None, seen) if look["step"] > 0
    ]
    if not inside:
        return None
    return inside[_best(cfg, inside)]["step"] if cfg.stop_on else inside[-1]["step"]


def reason_to_stop(cfg: GuardsConfig, seen: list[Look]) -> str | None:
    """Why no further step is taken; None: go on."""
    if over := _over(cfg, seen[-1]):
        return over
    if cfg.stop_on is None or len(seen) < 2:
        return None
    since = len(seen) - 1 - _best(cfg, seen)
    if since < cfg.patience:
        return None
    best = seen[-1 - since]
    return (
        f"{cfg.stop_on} was not better than {best[COLUMN[cfg.stop_on]]:.4g} (step {best['step']}) for"
        f" {pluralize(since, 'look')} (train.guards.patience={cfg.patience})"
    )


def _over(cfg: GuardsConfig, look: Look) -> str | None:
    if cfg.kl_budget is not None and look[KL] > cfg.kl_budget:
        return f"KL to the reference is {look[KL]:.3g} nats, over train.guards.kl_budget={cfg.kl_budget:g}"
    if cfg.fall_budget is not None and look[FALL] > cfg.fall_budget:
        return f"chosen answers lost {look[FALL]:.3g} nats per token, over train.guards.fall_budget={cfg.fall_budget:g}"
    return None


def _best(cfg: GuardsConfig, seen: list[Look]) -> int:
    """The first of the best."""
    assert cfg.stop_on
    values = [look[COLUMN[cfg.stop_on]] for look in seen]
    return values.index(max(values) if RISES[cfg.stop_on] else min(values))
