"""What no block of the config can know alone: who asks for what nobody gives. Every mismatch is said at once."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.judge import PairwiseScorer
from pipeline.config.models import SftTraining
from pipeline.config.reward import RewardTraining
from pipeline.config.sample import ANSWER
from pipeline.config.score import EnsembleScorer
from pipeline.config.training import FullAdapter
from pipeline.errors import suggest

if TYPE_CHECKING:
    from pipeline.config import Config


def mismatches(cfg: "Config") -> Iterator[str]:
    yield from _unmarked(cfg)
    yield from _incomparable(cfg)
    yield from _ungated(cfg)
    yield from _unretained(cfg)
    yield from _unmixable(cfg)
    yield from _alone(cfg)
    yield from _unfit(cfg)
    if cfg.exam.sample.more:
        yield "exam.sample.more: every model answers as often as the others. Give exam.sample.more=[]"
    yield from _rewardless(cfg)
    yield from _unserved(cfg)
    yield from _misplaced_gold(cfg)
    yield from _nameless(cfg)
    if cfg.rounds > 1 and cfg.sample.per_round is None:
        yield f"rounds={cfg.rounds} draw fresh prompts each: give sample.per_round=N, the prompts of one round."
    yield from _off_at_step_0(cfg)
    yield from _untrainable(cfg)
    yield from _nested_folders(cfg)


def _nested_folders(cfg: "Config") -> Iterator[str]:
    """A run's folder in the store could be taken for a step's, and whoever removes the runs would remove the store."""
    store, runs = cfg.store.resolve(), cfg.runs.resolve()
    if store.is_relative_to(runs) or runs.is_relative_to(store):
        yield (
            f"store={cfg.store} runs={cfg.runs}: one is inside the other, or they are the same folder."
            " Give two folders side by side, such as store=store runs=runs"
        )


def _unmarked(cfg: "Config") -> Iterator[str]:
    """Scorers that something goes by, and that mark nothing there."""
    _, marking = cfg.marking
    for knob, name, scorers in (
        ("pair.scorer", cfg.pair.scorer, cfg.score.scorers),
        ("evaluate.scorer", cfg.evaluate.scorer, marking.scorers),
    ):
        if name not in scorers and name in cfg.score.scorers:
            yield (
                f"{knob}={name}: it marks samples, and no exams. Give +scorer@exam.score.scorers.{name}=FILE as well,"
                f" or {knob}=ANOTHER. {suggest(name, list(scorers))}"
            )
        elif name not in scorers:
            yield f"{knob}={name}: there is no such scorer. {suggest(name, list(scorers))}"


def _incomparable(cfg: "Config") -> Iterator[str]:
    """A score among a prompt's own answers says nothing of two models: its mean is a half for both."""
    where, marking = cfg.marking
    apart = " Mark dev by others: +score@exam.dev_score=rules." if cfg.exam.split == "dev" else ""
    for name, scorer in marking.scorers.items():
        if isinstance(scorer, PairwiseScorer):
            yield (
                f"{where}.scorers.{name} compares a model's answers with each other, and would mark this exam"
                f" (exam.split={cfg.exam.split}).{apart} Compare models on test by +duel@exam.duels.{name}=default"
            )
    chief = marking.scorers.get(cfg.evaluate.scorer)
    if isinstance(chief, EnsembleScorer) and chief.within_prompt:
        knob = f"{where}.scorers.{cfg.evaluate.scorer}.combine"
        yield (
            f"evaluate.scorer={cfg.evaluate.scorer}: {knob}={chief.combine} compares the answers of one model to one"
            f" prompt and cannot tell models apart. Give a single scorer, or {knob}=min."
        )


def _ungated(cfg: "Config") -> Iterator[str]:
    """The gate compares models by what marks their dev exams."""
    if cfg.gate is None:
        return
    where, marking = cfg.marking_on("dev")
    chief = marking.scorers.get(cfg.gate.scorer)
    if chief is None:
        known = suggest(cfg.gate.scorer, [*marking.scorers])
        yield f"gate.scorer={cfg.gate.scorer}: {where} has no such scorer. {known}"
    elif isinstance(chief, PairwiseScorer) or (
        isinstance(chief, EnsembleScorer) and chief.within_prompt
    ):
        yield (
            f"gate.scorer={cfg.gate.scorer} compares a model's answers with each other and cannot tell models apart."
            " Give gate.scorer=ANOTHER, and +score@exam.dev_score=FILE where no other marks dev."
        )


def _unretained(cfg: "Config") -> Iterator[str]:
    """What may not be lost has to be measured."""
    _, marking = cfg.marking
    known = [*cfg.benchmark, *marking.scorers]
    for name in cfg.evaluate.retention:
        scorer = name.partition("/")[0]  # or one of its criteria
        if name not in cfg.benchmark and scorer not in marking.scorers:
            yield f"evaluate.retention.{name}: no benchmark and no scorer has this name. {suggest(name, known)}"
        elif cfg.exam.split != "test" and name in cfg.benchmark:
            yield f"evaluate.retention.{name}: benchmarks belong to exams on test. Give exam.split=test"


def _misplaced_gold(cfg: "Config") -> Iterator[str]:
    """What chooses, pairs or points of a sweep, never sees the scorer that tells whether choosing overdid it."""
    for where, choosing in (("score", cfg.score), ("exam.dev_score", cfg.exam.dev_score)):
        for name, scorer in choosing.scorers.items() if choosing else ():
            if scorer.gold:
                knob = f"{where}.scorers.{name}.gold=true"
                yield f"{knob}: a gold scorer marks exams on test alone; move it to exam.score.scorers."


def _unserved(cfg: "Config") -> Iterator[str]:
    """An endpoint serves one model that nobody here restarts: who would be drawn from it under another's name."""
    if cfg.exam.sample.backend.kind == "endpoint":
        yield (
            "backend@exam.sample.backend=endpoint: a server has one model, and exams are of base, sft and each round."
            " Give backend@exam.sample.backend=vllm or transformers."
        )
    others = [name for name, other in cfg.exam.others.items() if other.kind == "served"]
    if others and cfg.exam.sample.settings[ANSWER].min_p:
        yield f"exam.others.{others[0]}: not every server knows min_p. Give exam.sample.settings.{ANSWER}.min_p=0."
    served = cfg.sample.backend
    cut = [
        f"sample.settings.{name}.min_p"
        for name, setting in cfg.sample.settings.items()
        if setting.min_p
    ]
    if cut and served.kind == "endpoint" and not served.require_token_ids:
        yield f"{cut[0]}: not every server knows it. Give {cut[0]}=0, or sample.backend.require_token_ids=true."
    if cfg.rounds > 1 and cfg.sample.backend.kind == "endpoint" and cfg.pair.mix.on_policy:
        yield (
            f"rounds={cfg.rounds}: round 2 draws from the model that round 1 trained, which the endpoint does not"
            " serve. Give rounds=1, or backend@sample.backend=vllm or transformers."
        )


def _nameless(cfg: "Config") -> Iterator[str]:
    """Names in the exam that stand for something elsewhere: a set of questions, and people beside judges."""
    for name in cfg.exam.chats:
        if name not in cfg.prompts.evaluation:
            yield (
                f"exam.chats.{name}: prompts.evaluation has no set of that name. Give prompts.evaluation.{name}=FILE,"
                " which keeps its questions out of training as well (prompts=file or hub)."
            )
    for name in cfg.evaluate.labels:
        judges = {judge for chat in cfg.exam.chats.values() for judge in chat.duels}
        if name in {*judges, *cfg.exam.duels, *cfg.marking[1].scorers}:
            yield f"evaluate.labels.{name}: a judge or scorer of that name marks this exam. Give people another name."


def _unmixable(cfg: "Config") -> Iterator[str]:
    """Offline rows and rounds: who asks for what nobody gives."""
    mix = cfg.pair.mix
    if mix.offline and cfg.offline is None:
        yield f"pair.mix.offline={mix.offline:g}: there are no offline rows. Give offline=file offline.source.path=FILE"
    if cfg.offline and not mix.offline:
        yield (
            "offline: pair.mix.offline=0 takes none of its rows."
            " Give pair.mix.on_policy=0.5 pair.mix.offline=0.5, or offline=none."
        )
    if cfg.rounds > 1 and not mix.on_policy:
        yield f"rounds={cfg.rounds}: with offline rows only, every round would train on the same rows. Give rounds=1."
    if cfg.rounds > 1 and mix.on_policy and mix.offline and mix.per_round is None:
        yield f"rounds={cfg.rounds}: each round takes a block of offline rows of its own. Give pair.mix.per_round=ROWS."
    if not mix.offline and cfg.pair.asks_prior:
        yield "pair.filters.min_reference: it is asked of offline rows alone, and pair.mix.offline=0 takes none."


def _alone(cfg: "Config") -> Iterator[str]:
    """A pair needs two samples, unless a prompt's own answer is one side or each sample is a thumb."""
    drawn = sum(setting.n for setting in cfg.sample.settings.values()) + sum(cfg.sample.more)
    lone = cfg.pair.strategy.kind == "demonstration" or cfg.pair.thumbs_at is not None
    if drawn == 1 and cfg.pair.mix.on_policy and not lone:
        yield (
            f"sample.settings.{next(iter(cfg.sample.settings))}.n=1: one sample of a prompt makes no pair."
            f" Give sample.settings.{next(iter(cfg.sample.settings))}.n=2 or more, or pair=demonstration."
        )


def _unfit(cfg: "Config") -> Iterator[str]:
    """`init: refit` and the block that it starts from."""
    if (cfg.init == "refit") != (cfg.refit is not None):
        given = (
            "init=refit: there is no refit block"
            if cfg.refit is None
            else f"refit: init={cfg.init} passes it by"
        )
        yield f"{given}. Give init=refit refit=best, or neither."
    if cfg.refit and cfg.refit.scorer not in cfg.score.scorers:
        known = suggest(cfg.refit.scorer, list(cfg.score.scorers))
        yield f"refit.scorer={cfg.refit.scorer}: there is no such scorer. {known}"
    if cfg.refit and not cfg.pair.mix.on_policy:
        yield "init=refit: with offline rows only, there are no samples to start from. Give init=sft refit=none."


def _rewardless(cfg: "Config") -> Iterator[str]:
    """The reward model: who asks for one that is not there, and one that nobody asks."""
    marking = {
        "score": cfg.score,
        "exam.score": cfg.exam.score,
        "exam.dev_score": cfg.exam.dev_score,
    }
    asking = [
        f"{place}.scorers" for place, scorers in marking.items() if scorers and scorers.asks_reward
    ]
    if asking and cfg.reward is None:
        yield (
            f"{asking[0]}: a scorer of kind reward_model has no model, and reward is none."
            " Give reward=checkpoint reward.model=NAME, reward=train, or that scorer a model of its own."
        )
    if cfg.reward and not asking:
        yield "reward: no scorer asks for it. Give score=reward, or +scorer@score.scorers.NAME=reward_model."
    if not isinstance(cfg.reward, RewardTraining):
        return
    if cfg.reward.start == "base" and cfg.base is None:
        yield "reward.start=base: base is none. Give base=checkpoint base.model=NAME, or reward.start=sft."
    if cfg.reward.fence.ngram != cfg.prompts.fence.ngram:
        yield (
            f"reward.fence.ngram={cfg.reward.fence.ngram} finds nothing in a fence of {cfg.prompts.fence.ngram} words."
            " Give prompts.fence.ngram alone, the others follow it."
        )


def _off_at_step_0(cfg: "Config") -> Iterator[str]:
    """Ready reference values have to come from the form of the model that the training holds them against."""
    if cfg.train.logps == "ready" and cfg.refer.dtype != cfg.train.dtype:
        yield (
            f"refer.dtype={cfg.refer.dtype} and train.dtype={cfg.train.dtype}: reference values of another dtype are"
            " off at step 0. Give both alike, as dtype=…"
        )
    quantization = (
        None if isinstance(cfg.train.adapter, FullAdapter) else cfg.train.adapter.quantization
    )
    if cfg.train.logps == "ready" and cfg.refer.quantization != quantization:
        yield (
            "refer.quantization: reference values of a base in another form than the policy's are off at step 0."
            " Leave it out: it follows train.adapter.quantization."
        )


def _untrainable(cfg: "Config") -> Iterator[str]:
    """What sft=train needs beside it."""
    if isinstance(cfg.sft, SftTraining) and cfg.sft.fence.ngram != cfg.prompts.fence.ngram:
        yield (
            f"sft.fence.ngram={cfg.sft.fence.ngram} finds nothing in a fence of {cfg.prompts.fence.ngram} words."
            " Give prompts.fence.ngram alone, the others follow it."
        )
    if isinstance(cfg.sft, SftTraining) and cfg.base is None:
        yield (
            "sft=train starts from a base model, and base is none."
            " Give base=checkpoint base.model=NAME, or sft=checkpoint sft.model=NAME."
        )
