"""Records of `strop qualify` in the store, and whether the scorer of the pairs has one.

A record belongs to one scorer: its name is a hash of all that the scorer's verdicts depend on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_object, write_json
from pipeline.config import (
    EnsembleScorer,
    Judge,
    PairRound,
    RewardCheckpoint,
    RewardModelScorer,
    RewardTraining,
    ScoreConfig,
    ScorerConfig,
)
from pipeline.errors import UserError, collect_faults
from pipeline.status import RunPlan
from pipeline.step import Identity, Step, is_floating

FOLDER = "qualified"  # in the store
# Who reads the scores, and the seed of opponents and delimiters: neither makes a judge better.
OUTSIDE = {"gold", "seed"}


def fill_reward_model(
    scorers: Mapping[str, ScorerConfig], reward: object
) -> dict[str, ScorerConfig]:
    """Scorers by the run's reward model as scorers by its checkpoint; all others as they are."""
    if not isinstance(reward, RewardCheckpoint):
        return dict(scorers)
    own = {name: getattr(reward, name) for name in ("model", "revision", "trust")}
    return {
        name: scorer.model_copy(update=own) if _uses_stage(scorer) else scorer
        for name, scorer in scorers.items()
    }


def _uses_stage(scorer: ScorerConfig) -> bool:
    """Whether it uses the reward model from the stage `reward`."""
    return isinstance(scorer, RewardModelScorer) and scorer.model is None


def select_scorers(scorers: Mapping[str, ScorerConfig], name: str) -> dict[str, ScorerConfig]:
    """A scorer and, of an ensemble, its members after it."""
    scorer = scorers[name]
    members = scorer.members if isinstance(scorer, EnsembleScorer) else []
    return {each: scorers[each] for each in (name, *members)}


def needs_record(scorers: Mapping[str, ScorerConfig]) -> bool:
    """Whether a model scores: a rule or a function is what its author made it."""
    return any(isinstance(scorer, Judge | RewardModelScorer) for scorer in scorers.values())


def hash_scorer(scorers: Mapping[str, ScorerConfig], identity: Identity, knob: str) -> str:
    """`scorers`: as `select_scorers` gives them, the scorer itself first."""
    name, *members = scorers
    blocks = [scorers[name], {member: scorers[member] for member in members}]
    return identity.hash_config([_drop_outside(block) for block in blocks], knob)


def _drop_outside(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _drop_outside(item) for name, item in value.items()}
    hidden = value.outside_identity | OUTSIDE | {"runtime"}
    return {name: item for name, item in value if name not in hidden}


def locate_record(store: Path, scorer_hash: str) -> Path:
    return store / FOLDER / f"{scorer_hash}.json"


def write_record(store: Path, scorer_hash: str, record: dict[str, Any]) -> Path:
    path = locate_record(store, scorer_hash)
    write_json(path, {"identity": scorer_hash, **record})
    return path


# ── a run's scorer ────────────────────────────────────────────────────────────────────────────────


def list_checks(run_plan: RunPlan, coming: Iterable[Step]) -> Iterator[Callable[[], object]]:
    """Refuse the pairs of a scorer that has not qualified."""
    for step in coming:
        if isinstance(step.config, PairRound) and step.config.unqualified == "refuse":
            yield partial(check_qualified, run_plan, step, step.config)


def warn_of_unqualified(run_plan: RunPlan, coming: Iterable[Step]) -> Iterator[str]:
    checks = [
        partial(check_qualified, run_plan, step, step.config)
        for step in coming
        if isinstance(step.config, PairRound) and step.config.unqualified == "warn"
    ]
    yield from (f"! {fault}" for fault in collect_faults(checks))


def check_qualified(run_plan: RunPlan, pair: Step, cfg: PairRound) -> None:
    name, scores = cfg.pairing_scorer, pair.inputs.get("scores")
    if cfg.min_scorer_accuracy is None or name is None or not scores:
        return
    scoring: ScoreConfig = scores[0].config
    step = scores[0].inputs.get("reward")
    reward = step.config if step else None
    scorers = select_scorers(fill_reward_model(scoring.scorers, reward), name)
    if not needs_record(scorers):
        return
    asks = f"pair.min_scorer_accuracy={cfg.min_scorer_accuracy:g}"
    if isinstance(reward, RewardTraining) and any(map(_uses_stage, scorers.values())):
        folder = run_plan.folder(step) / "weights"  # as models.checkpoint.save_weights names it
        raise UserError(
            f"pair.scorer={name}: this run trains its reward model, which has no record of strop"
            f" qualify, and {asks} asks for one.\n"
            f"  Train it first (until=reward) and qualify {folder}:"
            f" strop qualify FILE score.scorers.{name}.model={folder};\n"
            f"  then give reward=checkpoint reward.model={folder}"
        )
    if any(is_floating(scorer) for scorer in scorers.values()):
        return  # `strop plan` asks no hub for a commit: the run checks it
    scorer_hash = hash_scorer(scorers, run_plan.identity, f"{scores[0].knob}.scorers.{name}")
    paths = [locate_record(root, scorer_hash) for root in run_plan.roots]
    path = next((path for path in paths if path.exists()), paths[0])
    if not path.exists():
        raise UserError(
            f"pair.scorer={name}: {path.parent} has no record of strop qualify for it as it is"
            f" configured here, and {asks} asks for one.\n"
            f"  Type `strop qualify FILE scorer={name}` with this run's words,"
            " or give pair.unqualified=warn."
        )
    record = read_object(path, accuracy=dict, files=dict)
    low = record["accuracy"].get("low")
    if not isinstance(low, float) or low < cfg.min_scorer_accuracy:
        raise UserError(
            f"pair.scorer={name}: {_describe_accuracy(record)}, and {asks} asks for a lower end of"
            f" its interval that reaches this ({path}).\n"
            "  Give another scorer or another model for it, more rows to qualify it on,"
            " or pair.unqualified=warn."
        )


def _describe_accuracy(record: dict[str, Any]) -> str:
    figures = [record["accuracy"].get(name) for name in ("mean", "low", "high")]
    mean, low, high = (f"{one:.3f}" if isinstance(one, float) else "unknown" for one in figures)
    return f"its accuracy on {', '.join(record['files'])} is {mean} (95 %: {low} to {high})"
