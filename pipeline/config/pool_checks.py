"""Checks of the pool of models that answer training prompts, and of the pairs made by source."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.judge import PairwiseScorer
from pipeline.config.pair import BySource
from pipeline.config.pool import ServedMember
from pipeline.config.revise import REVISED
from pipeline.config.sample import POLICY, EndpointBackend
from pipeline.config.score import EnsembleScorer
from pipeline.errors import pluralize, suggest

if TYPE_CHECKING:
    from pipeline.config import Config

# What a side of a pair is called that no model of the pool has written, and the policy's name.
TAKEN = {POLICY, "offline", "demonstration", "edited", REVISED}


def find_pool_faults(cfg: "Config") -> Iterator[str]:
    yield from _check_names(cfg)
    yield from _check_use(cfg)
    yield from _check_shares(cfg)
    yield from _check_backends(cfg)
    yield from _check_scorer(cfg)


def _check_names(cfg: "Config") -> Iterator[str]:
    pool = cfg.sample.pool
    for taken in sorted(TAKEN & pool.keys()):
        yield (
            f"sample.pool.{taken}: answers of another source have this name."
            " Give the model another one: +member@sample.pool.NAME=checkpoint."
        )
    strategy = cfg.pair.strategy
    sides = dict(strategy) if isinstance(strategy, BySource) else {}
    named = {
        "pair.at_least_one": cfg.pair.at_least_one,
        "pair.strategy.chosen": sides.get("chosen"),
        "pair.strategy.rejected": sides.get("rejected"),
    }
    answering = [POLICY, *pool, *([REVISED] if cfg.revise else [])]
    for knob, name in named.items():
        if name == REVISED and not cfg.revise:
            yield f"{knob}={REVISED}: nothing is revised. Give revise=default too."
        elif name and name not in answering:
            add = f" To add it: +member@sample.pool.{name}=checkpoint sample.pool.{name}.model=…"
            yield (
                f"{knob}={name}: no model of this name answers. {suggest(name, answering)}."
                f"{'' if name in TAKEN else add}"
            )
    needed, sources = cfg.pair.at_least_one, cfg.pair.sources
    if needed and sources and needed not in sources:
        yield (
            f"pair.at_least_one={needed}: the strategy pairs {sources[0]} with {sources[1]} alone."
            " Give pair.at_least_one=null, or one side as null."
        )


def _check_use(cfg: "Config") -> Iterator[str]:
    """A member whose answers can be in no pair is sampled for nothing."""
    if cfg.sample.pool and not cfg.pair.mix.on_policy:
        yield (
            "sample.pool: pair.mix.on_policy=0 samples nothing."
            " Give pair.mix.on_policy above 0, or no pool."
        )
    sources = cfg.pair.sources
    reads_revised = cfg.best_of_n and cfg.best_of_n.answers == "revised"
    if cfg.revise and sources and REVISED not in sources and not reads_revised:
        yield (
            f"revise: the strategy pairs {' with '.join(sources)} alone, so the revised answers are"
            f" in no pair. Give revise=none, or pair.strategy.chosen={REVISED}."
        )
    known = {POLICY, REVISED, *cfg.sample.pool}
    for name in cfg.sample.pool:
        if sources and name not in sources and known.issuperset(sources):  # none is a typing error
            yield (
                f"sample.pool.{name}: the strategy pairs {' with '.join(sources)} alone, so its"
                f" answers are in no pair. Leave it out (~sample.pool.{name}), or choose"
                " another strategy."
            )


def _check_shares(cfg: "Config") -> Iterator[str]:
    pool, each = cfg.sample.pool, cfg.sample.models_per_prompt
    if each is None:
        return
    if sources := cfg.pair.sources:
        yield (
            f"sample.models_per_prompt={each}: each pair needs answers of {' and '.join(sources)}"
            " to one prompt. Give sample.models_per_prompt=null."
        )
    if each > len(pool) + 1:
        known = f"the policy and {pluralize(len(pool), 'member')} of sample.pool"
        yield (
            f"sample.models_per_prompt={each}: there are {known}."
            f" Give {len(pool) + 1} or less, or more members."
        )
    for name, member in pool.items():
        if member.share < 1:
            yield (
                f"sample.pool.{name}.share={member.share:g}: sample.models_per_prompt={each}"
                f" chooses who answers. Give sample.pool.{name}.share=1,"
                " or sample.models_per_prompt=null."
            )


def _check_backends(cfg: "Config") -> Iterator[str]:
    policy = cfg.sample.backend
    for name, member in cfg.sample.pool.items():
        knob = f"sample.pool.{name}"
        if isinstance(policy, EndpointBackend) and member.backend == policy:
            yield (
                f"{knob}.backend: the endpoint of sample.backend serves the policy."
                f" Give backend@{knob}.backend=vllm, or +member@sample.pool.{name}=served."
            )
        text_only = isinstance(member, ServedMember) or (
            isinstance(member.backend, EndpointBackend) and not member.backend.require_token_ids
        )
        given = [setting for setting, one in member.settings.items() if one.min_p]
        if text_only and given:
            at = f"{knob}.settings.{given[0]}"
            yield f"{at}.min_p: not every server knows it. Give {at}.min_p=0."


def _check_scorer(cfg: "Config") -> Iterator[str]:
    """Scores that only rank one model's answers cannot compare those of several."""
    if not (cfg.sample.pool or cfg.revise) or cfg.pairing_scorer is None:
        return
    several = "sample.pool has several models" if cfg.sample.pool else "revised ones are another's"
    chief = cfg.score.scorers.get(cfg.pairing_scorer)
    is_joint = isinstance(chief, EnsembleScorer) and chief.is_within_prompt
    if isinstance(chief, PairwiseScorer) or is_joint:
        yield (
            f"pair.scorer={cfg.pairing_scorer}: it compares the answers of one model with each"
            f" other, and {several}. Give a scorer of single answers, such as"
            " score=reward or score=rubric."
        )
