"""Checks across blocks of the config: a block that needs what another does not provide."""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.base import list_stores
from pipeline.config.evaluate import PANEL, list_retention_names
from pipeline.config.judge import PairwiseScorer
from pipeline.config.models import SftTraining
from pipeline.config.online import find_online_faults
from pipeline.config.pool_checks import find_pool_faults
from pipeline.config.reward import RewardTraining
from pipeline.config.sample import ANSWER, KL
from pipeline.config.score import EnsembleScorer, list_criteria
from pipeline.config.training import FullAdapter, LoraAdapter, TrainConfig
from pipeline.errors import suggest

if TYPE_CHECKING:
    from pipeline.config import Config


def find_mismatches(cfg: "Config") -> Iterator[str]:
    yield from _check_scorers(cfg)
    yield from _check_comparability(cfg)
    yield from _check_merge(cfg)
    yield from _check_gate(cfg)
    yield from _check_retention(cfg)
    yield from _check_expect(cfg)
    yield from _check_mix(cfg)
    yield from _check_edits(cfg)
    yield from _check_rounds(cfg)
    for train in {each.knob: each for each in cfg.trainings}.values():
        yield from _check_training(cfg, train)
    if cfg.makes_pairs:
        yield from _check_samples_per_prompt(cfg)
    yield from find_pool_faults(cfg)
    yield from _check_best_of_n(cfg)
    yield from _check_revise(cfg)
    yield from _check_steps(cfg)
    if cfg.evaluate.sample.resample_ties:
        yield (
            "evaluate.sample.resample_ties: all models give equally many answers."
            " Give evaluate.sample.resample_ties=[]"
        )
    yield from _check_reward(cfg)
    yield from _check_endpoints(cfg)
    yield from _check_gold(cfg)
    yield from _check_names(cfg)
    yield from _check_panel(cfg)
    if cfg.rounds > 1 and cfg.sample.per_round is None and not cfg.sample.reuse_prompts:
        yield (
            f"rounds={cfg.rounds} need fresh prompts each:"
            " give sample.per_round=N, the prompts of one round, or sample.reuse_prompts=true."
        )
    yield from _check_sft(cfg)
    yield from _check_folders(cfg)


def _check_folders(cfg: "Config") -> Iterator[str]:
    """A run inside the store looks like a step; a store inside runs/ is removed along with runs."""
    for store in list_stores(cfg.store):
        if _overlap(store, cfg.runs):
            yield (
                f"store={store} runs={cfg.runs}: one is inside the other, or they are the same."
                " Give two separate folders, such as store=store runs=runs"
            )
    for one, other in combinations(list_stores(cfg.store), 2):
        if _overlap(one, other):
            yield (
                f"store=[{one},{other}]: one is inside the other, or they are the same."
                " Give separate folders, such as store=[mine,team]"
            )


def _overlap(one: Path, other: Path) -> bool:
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def _check_scorers(cfg: "Config") -> Iterator[str]:
    """The scorers that pairs and the report go by have to score there."""
    _, scoring = cfg.eval_scoring
    for knob, name, scorers in (
        ("pair.scorer", cfg.pair.scorer, cfg.score.scorers),
        ("evaluate.scorer", cfg.evaluate.scorer, scoring.scorers),
    ):
        if name in scorers:
            continue
        known = suggest(name, list(scorers))
        if name in cfg.score.scorers:
            yield (
                f"{knob}={name}: it scores the training samples, and not the evaluations."
                f" Give {knob}=ANOTHER, and +scorer@evaluate.score.scorers.NAME=FILE where"
                f" no other scores them. {known}"
            )
        else:
            yield f"{knob}={name}: there is no such scorer. {known}"


def _check_comparability(cfg: "Config") -> Iterator[str]:
    """Scores that only rank one model's answers cannot compare models: their mean is constant."""
    where, scoring = cfg.eval_scoring
    on_dev = cfg.evaluate.split == "dev"
    instead = " Score dev by other scorers: +score@evaluate.dev_score=rules." if on_dev else ""
    for name, scorer in scoring.scorers.items():
        if isinstance(scorer, PairwiseScorer):
            yield (
                f"{where}.scorers.{name} compares a model's answers with each other, and would"
                f" score this evaluation (evaluate.split={cfg.evaluate.split}).{instead}"
                f" Compare models on test by +duel@evaluate.duels.{name}=default"
            )
    chief = scoring.scorers.get(cfg.evaluate.scorer)
    if isinstance(chief, EnsembleScorer) and chief.is_within_prompt:
        knob = f"{where}.scorers.{cfg.evaluate.scorer}.combine"
        yield (
            f"evaluate.scorer={cfg.evaluate.scorer}: {knob}={chief.combine} compares one model's"
            " answers to one prompt and cannot tell models apart."
            f" Give a single scorer, or {knob}=mean or min."
        )


def _check_merge(cfg: "Config") -> Iterator[str]:
    """Merging needs several models, and whole weights where the result is not an adapter."""
    if cfg.merge is None:
        return
    count = {"with_sft": 2, "rounds": cfg.rounds, "paths": 1 + len(cfg.merge.folders)}
    if cfg.merge.kind == "rounds" and cfg.rounds == 1:
        yield "merge=rounds: there is one round. Give rounds=2 or more, or merge=with_sft"
    if cfg.merge.method == "slerp" and count[cfg.merge.kind] > 2:
        yield (
            f"merge.method=slerp: an arc joins two models, and there are {count[cfg.merge.kind]}."
            " Give merge.method=linear"
        )
    merged = cfg.trainings if cfg.merge.kind == "rounds" else cfg.trainings[-1:]
    adapters = {train.knob: train.adapter for train in merged}
    lora = {knob: one for knob, one in adapters.items() if isinstance(one, LoraAdapter)}
    if not cfg.merge.densify and cfg.merge.kind == "rounds" and 0 < len(lora) < len(adapters):
        yield (
            "merge=rounds: some rounds train an adapter and others all weights."
            " Give merge.densify=true"
        )
        return
    if cfg.merge.densify:
        quantized = [train for train in merged if getattr(train.adapter, "quantization", None)]
        for train in quantized[:1]:
            yield (
                f"merge.densify=true: {train.knob}.adapter.quantization makes weights of few bits,"
                f" which cannot be added. Give merge.densify=false, or {train.adapter_mount}=lora"
            )
        return
    faults = [
        fault for knob, adapter in lora.items() for fault in _check_merging(cfg, adapter, knob)
    ]
    yield from dict.fromkeys(faults)


def _check_merging(cfg: "Config", adapter: LoraAdapter, knob: str) -> Iterator[str]:
    """What no adapter can express."""
    whole = "merge.method=linear" if adapter.quantization else "merge.densify=true"
    if cfg.merge and cfg.merge.method == "slerp":
        yield (
            "merge.method=slerp: a point on the arc between two adapters is not an adapter."
            f" Give {whole}"
        )
    if adapter.dora:
        yield (
            "merge: the sum of DoRA adapters is not an adapter. Give merge.densify=true, or"
            f" {knob}.adapter.dora=false"
        )
    if cfg.init == "best_of_n":
        yield (
            "merge: with init=best_of_n each round's adapter is on another model."
            f" Give {'init=previous' if adapter.quantization else 'merge.densify=true'}"
        )


def _check_gate(cfg: "Config") -> Iterator[str]:
    """The gate compares models by a scorer of the dev evaluations."""
    if cfg.gate is None:
        return
    where, scoring = cfg.scoring_on("dev")
    chief = scoring.scorers.get(cfg.gate.scorer)
    if chief is None:
        known = suggest(cfg.gate.scorer, [*scoring.scorers])
        yield f"gate.scorer={cfg.gate.scorer}: {where} has no such scorer. {known}"
    elif isinstance(chief, PairwiseScorer) or (
        isinstance(chief, EnsembleScorer) and chief.is_within_prompt
    ):
        yield (
            f"gate.scorer={cfg.gate.scorer} compares a model's answers with each other and cannot"
            " tell models apart. Give gate.scorer=ANOTHER, and +score@evaluate.dev_score=FILE where"
            " no other scorer scores dev."
        )


def _check_edits(cfg: "Config") -> Iterator[str]:
    """Edits of a round that this run does not have would be ignored."""
    for number in cfg.pair.edits:
        if number > cfg.rounds:
            yield (
                f"pair.edits.{number}: there is no round {number}, since rounds={cfg.rounds}."
                f" Give rounds={number}, or the number of the round whose pairs the file has."
            )
        elif cfg.trainings[number - 1].is_online:
            yield (
                f"pair.edits.{number}: round {number} trains by {cfg.trainings[number - 1].trainer}"
                " and makes no pairs. Leave it out."
            )


def _check_rounds(cfg: "Config") -> Iterator[str]:
    for number in cfg.train_in_round:
        if number > cfg.rounds:
            yield (
                f"train_in_round.{number}: there is no round {number}, since rounds={cfg.rounds}."
                f" Give rounds={number}, or the number of another round."
            )


def _check_training(cfg: "Config", train: TrainConfig) -> Iterator[str]:
    if train.is_online:
        yield from find_online_faults(cfg, train)
        return
    yield from _check_guards(cfg, train)
    yield from _check_pair_columns(cfg, train)
    yield from _check_reference(cfg, train)


def _check_guards(cfg: "Config", train: TrainConfig) -> Iterator[str]:
    """A guard that stops a training reads its evaluations, which need dev pairs."""
    dev = cfg.pair.dev
    if train.guards.may_stop_early and not (dev.max_share and (dev.share or dev.min)):
        yield (
            f"{train.knob}.guards: a training without dev pairs is never evaluated, so nothing can"
            " stop it. Give pair.dev.share above 0, or pair.dev.min, with pair.dev.max_share above"
            " 0."
        )


def _check_retention(cfg: "Config") -> Iterator[str]:
    """Retention needs one figure to watch."""
    yield from _check_metrics(cfg, "evaluate.retention", cfg.evaluate.retention)


def _check_expect(cfg: "Config") -> Iterator[str]:
    """A published figure is compared with one that this evaluation makes."""
    for fault in _check_metrics(cfg, "expect", cfg.expect or ()):
        yield f"{fault} To expect nothing, give expect=null."


def _check_metrics(cfg: "Config", knob: str, metrics: Iterable[str]) -> Iterator[str]:
    """Names of benchmarks, chat benchmarks and scorers of the evaluation, each of one figure."""
    _, scoring = cfg.eval_scoring
    own = [name for scorer in scoring.scorers for name in _list_rows(scorer, scoring.scorers)]
    chats = [*_list_chat_names(cfg)]
    for name in metrics:
        base = name.partition("/")[0]
        is_chat = _is_row(name, chats)
        if is_chat and base in scoring.scorers:
            yield (
                f"{knob}.{name}: a scorer and a chat benchmark are both named {base}."
                f" Give evaluate.chats.{base} another name."
            )
        elif not is_chat and name not in cfg.benchmark and not _is_row(name, own):
            known = [*cfg.benchmark, *chats, *own]
            yield (
                f"{knob}.{name}: no benchmark and no scorer has this name, nor a criterion of one."
                f" {suggest(name, known)}."
            )
        elif cfg.evaluate.split != "test" and (is_chat or name in cfg.benchmark):
            yield f"{knob}.{name}: benchmarks run on test alone. Give evaluate.split=test."


def _list_chat_names(cfg: "Config") -> Iterator[str]:
    """What evaluate.retention may call the scorers of chat benchmarks, and their criteria."""
    for name, chat in cfg.evaluate.chats.items():
        scorers = chat.score.scorers if chat.score else {}
        for scorer in scorers:
            for row in _list_rows(scorer, scorers):
                yield from list_retention_names(name, row, scorers)


def _list_rows(name: str, scorers: Mapping[str, object]) -> list[str]:
    """A scorer and its criteria."""
    return [name, *(f"{name}/{criterion}" for criterion in list_criteria(scorers[name]))]


def _is_row(name: str, rows: Iterable[str]) -> bool:
    return any(fnmatchcase(name, row) for row in rows)


def _check_gold(cfg: "Config") -> Iterator[str]:
    """A gold scorer shows over-optimisation, so it must not choose pairs or points of a sweep."""
    for where, choosing in (("score", cfg.score), ("evaluate.dev_score", cfg.evaluate.dev_score)):
        for name, scorer in choosing.scorers.items() if choosing else ():
            if scorer.gold:
                yield (
                    f"{where}.scorers.{name}.gold=true: a gold scorer scores test evaluations"
                    " alone; move it to evaluate.score.scorers."
                )
    chief = cfg.score.scorers.get(cfg.pairing_scorer or "")
    members = chief.members if isinstance(chief, EnsembleScorer) else []
    for name in cfg.evaluate.gold_scorers:
        if name in (cfg.pairing_scorer, *members):
            yield (
                f"evaluate.score.scorers.{name}.gold=true: {name} makes the pairs"
                f" (pair.scorer={cfg.pair.scorer}), and a gold scorer never does. Leave it out, or"
                " give pair.scorer=ANOTHER."
            )


def _check_endpoints(cfg: "Config") -> Iterator[str]:
    """An endpoint serves one fixed model, which must not answer under another model's name."""
    if cfg.evaluate.sample.backend.kind == "endpoint":
        yield (
            "evaluate.sample.backend is an endpoint: a server has one model, and evaluations need"
            " base, sft and each round. Give backend@evaluate.sample.backend=vllm or transformers."
        )
    others = [name for name, other in cfg.evaluate.baselines.items() if other.kind == "served"]
    if others and cfg.evaluate.sample.settings[ANSWER].min_p:
        yield (
            f"evaluate.baselines.{others[0]}: not every server knows min_p."
            f" Give evaluate.sample.settings.{ANSWER}.min_p=0."
        )
    backend, settings = cfg.sample.backend, cfg.sample.settings
    knobs = [f"sample.settings.{name}.min_p" for name, one in settings.items() if one.min_p]
    if knobs and backend.kind == "endpoint" and not backend.require_token_ids:
        yield (
            f"{knobs[0]}: not every server knows it."
            f" Give {knobs[0]}=0, or sample.backend.require_token_ids=true."
        )
    if cfg.rounds > 1 and backend.kind == "endpoint" and cfg.pair.mix.on_policy:
        yield (
            f"rounds={cfg.rounds}: round 2 samples from the model that round 1 trained, which the"
            " endpoint does not serve."
            " Give rounds=1, or backend@sample.backend=vllm or transformers."
        )


def _check_names(cfg: "Config") -> Iterator[str]:
    """Chats name a set of questions; annotators need a name that no judge or scorer has."""
    for name in cfg.evaluate.chats:
        if name not in cfg.prompts.evaluation:
            yield (
                f"evaluate.chats.{name}: prompts.evaluation has no set of that name."
                f" Give prompts.evaluation.{name}=FILE, which keeps its questions out of training"
                " as well (prompts=file or hub)."
            )
    judges = {judge for chat in cfg.evaluate.chats.values() for judge in chat.duels}
    for name in cfg.evaluate.labels:
        if name in {*judges, *cfg.evaluate.duels, *cfg.eval_scoring[1].scorers}:
            yield (
                f"evaluate.labels.{name}: this evaluation has a judge or scorer of that name."
                " Give the annotators another name."
            )


def _check_panel(cfg: "Config") -> Iterator[str]:
    """A panel has several judges, and a name that none of them has."""
    if cfg.evaluate.panel is None:
        return
    knob = f"evaluate.panel={cfg.evaluate.panel}"
    groups = [cfg.evaluate.duels, *(chat.duels for chat in cfg.evaluate.chats.values())]
    if all(len(judges) < 2 for judges in groups):
        yield (
            f"{knob}: a panel has at least two judges of the same answers."
            " Give +duel@evaluate.duels.NAME=default for each, or evaluate.panel=null."
        )
    names = {*cfg.evaluate.labels, *cfg.eval_scoring[1].scorers}.union(*groups)
    if PANEL in names:
        yield (
            f"{knob}: a judge, a scorer or a file of labels is named {PANEL} already, as this row"
            " of the table would be. Give it another name."
        )


def _check_mix(cfg: "Config") -> Iterator[str]:
    """Shares of offline rows need offline rows, and several rounds need new rows for each."""
    mix = cfg.pair.mix
    if mix.offline and cfg.offline is None:
        yield (
            f"pair.mix.offline={mix.offline:g}: there are no offline rows."
            " Give offline=file offline.source.path=FILE"
        )
    if cfg.offline and not mix.offline:
        yield (
            "offline: pair.mix.offline=0 takes none of its rows."
            " Give pair.mix.on_policy=0.5 pair.mix.offline=0.5, or offline=none."
        )
    pair_rounds = sum(not train.is_online for train in cfg.trainings)
    if pair_rounds > 1 and not mix.on_policy:
        yield (
            f"rounds={cfg.rounds}: with offline rows only, every round would train on the same"
            " rows. Give rounds=1."
        )
    if pair_rounds > 1 and mix.on_policy and mix.offline and mix.per_round is None:
        yield (
            f"rounds={cfg.rounds}: each round takes a separate block of offline rows."
            " Give pair.mix.per_round=ROWS."
        )
    has_others = mix.offline or cfg.sample.pool or cfg.revise
    if not has_others and cfg.pair.needs_sft_logps:
        yield (
            "pair.filters.min_reference: it filters answers of others, and there are none:"
            " pair.mix.offline=0 and sample.pool is empty."
        )


def _check_pair_columns(cfg: "Config", train: TrainConfig) -> Iterator[str]:
    """What the training reads of the pairs has to be known of them."""
    column = train.weight.column
    if column == "weight" and cfg.pair.weight is None:
        yield (
            f"{train.knob}.weight.column=weight: pair.weight is null, so no pair has one."
            " Give pair.weight=margin, confidence or rows"
        )
    made_of = {"margin": "margin", "confidence": "p_chosen"}.get(cfg.pair.weight or "")
    read = {*train.pair_columns, made_of if column == "weight" else column}
    unknown = [name for name in ("margin", "p_chosen") if name in read]
    has_no_scores = cfg.pair.strategy.kind == "demonstration" or not cfg.scores_samples
    if unknown and has_no_scores and cfg.pair.mix.on_policy:
        yield (
            f"pair.strategy.kind={cfg.pair.strategy.kind}: nothing scores both sides, so its pairs"
            f" have no {unknown[0]}, which the training reads."
            f" Give pair=best_worst, or {train.mount}=dpo without {train.knob}.weight."
        )
    if "margin" in train.pair_columns and cfg.pair.edits:
        yield (
            f"pair.edits: a pair that a person changed has no margin, which {train.knob}.loss"
            f" reads. Give pair.edits={{}}, or {train.mount}=dpo."
        )


def _check_samples_per_prompt(cfg: "Config") -> Iterator[str]:
    """A pair needs two samples, unless a demonstration is one side or samples stay unpaired."""
    settings = cfg.sample.settings
    samples = sum(setting.n for setting in settings.values()) + sum(cfg.sample.resample_ties)
    samples += cfg.revise is not None
    one_is_enough = (
        cfg.pair.strategy.kind == "demonstration" or cfg.pair.unpaired_threshold is not None
    )
    if samples == 1 and cfg.samples_policy and not cfg.sample.pool and not one_is_enough:
        knob = f"sample.settings.{next(iter(settings))}.n"
        yield (
            f"{knob}=1: one sample of a prompt makes no pair."
            f" Give {knob}=2 or more, or pair=demonstration."
        )


def _check_best_of_n(cfg: "Config") -> Iterator[str]:
    """`init: best_of_n` and the block `best_of_n` need each other."""
    if (cfg.init == "best_of_n") != (cfg.best_of_n is not None):
        fault = (
            "init=best_of_n: there is no best_of_n block"
            if cfg.best_of_n is None
            else f"best_of_n: init={cfg.init} does not use it"
        )
        yield f"{fault}. Give init=best_of_n best_of_n=default, or neither."
    if cfg.best_of_n and cfg.best_of_n.scorer not in cfg.score.scorers:
        known = suggest(cfg.best_of_n.scorer, list(cfg.score.scorers))
        yield f"best_of_n.scorer={cfg.best_of_n.scorer}: there is no such scorer. {known}"
    if cfg.best_of_n and not cfg.pair.mix.on_policy:
        yield (
            "init=best_of_n: with offline rows only, there are no samples to start from."
            " Give init=sft best_of_n=none."
        )


def _check_revise(cfg: "Config") -> Iterator[str]:
    """What is revised is the first sample of a setting."""
    if cfg.revise is None:
        if cfg.best_of_n and cfg.best_of_n.answers == "revised":
            yield "best_of_n.answers=revised: nothing is revised. Give revise=default too."
        return
    if cfg.revise.setting not in cfg.sample.settings:
        known = suggest(cfg.revise.setting, [*cfg.sample.settings])
        yield f"revise.setting={cfg.revise.setting}: nothing is sampled by this setting. {known}"
    if not cfg.pair.mix.on_policy:
        yield (
            "revise: with offline rows only, there are no samples to revise."
            " Give revise=none, or pair.mix.on_policy above 0."
        )
    served = cfg.revise.backend.kind
    if served == "endpoint" and cfg.rounds > 1:
        yield (
            f"rounds={cfg.rounds}: round 2 revises by the model that round 1 trained, which the"
            " endpoint does not serve. Give rounds=1, or backend@revise.backend=vllm."
        )
    if served == "served" and cfg.revise.sampling.min_p:
        yield "revise.sampling.min_p: not every server knows it. Give revise.sampling.min_p=0."
    if cfg.revise.setting == KL:
        yield f"revise.setting={KL}: its samples are not scored. Give another setting."


def _check_steps(cfg: "Config") -> Iterator[str]:
    """Steps are cut from the policy's solutions, whose results are right or wrong."""
    if cfg.steps is None:
        return
    scorer = cfg.score.scorers.get(cfg.pair.scorer)
    if scorer and scorer.kind not in ("math", "function"):
        yield (
            f"steps: pair.scorer={cfg.pair.scorer} is of kind {scorer.kind} and knows no result."
            " Give score=math with prompts that have a column of results, or score=function."
        )
    if not cfg.pair.mix.on_policy:
        yield "steps: pair.mix.on_policy=0 samples no solutions. Give steps=none."
    if cfg.pair.strategy.kind in ("demonstration", "by_source") or cfg.sample.pool:
        yield "steps: pairs are of the policy's own steps. Give pair=best_worst and no sample.pool."
    if cfg.pair.edits:
        yield "steps: edits are of whole answers. Give pair.edits={}."
    if cfg.pair.budget.balance or cfg.pair.budget.per_prompt:
        yield (
            "steps: a prompt of its pairs holds the beginning of a solution, so it has no columns"
            " and comes once. Give pair.budget.balance=null and pair.budget.per_prompt=null."
        )
    if cfg.revise and not (cfg.best_of_n and cfg.best_of_n.answers == "revised"):
        yield "steps: pairs of steps have no revised answers. Give revise=none or steps=none."


def _check_reward(cfg: "Config") -> Iterator[str]:
    """Scorers that need the run's reward model, and a reward model that no scorer uses."""
    blocks = {
        "score": cfg.score,
        "evaluate.score": cfg.evaluate.score,
        "evaluate.dev_score": cfg.evaluate.dev_score,
    }
    users = [
        f"{knob}.scorers" for knob, block in blocks.items() if block and block.uses_reward_stage
    ]
    if users and cfg.reward is None:
        yield (
            f"{users[0]}: a scorer of kind reward_model has no model, and reward is none."
            " Give reward=checkpoint reward.model=NAME, reward=train, or set that scorer's model."
        )
    if cfg.reward and not users:
        yield (
            "reward: no scorer uses it."
            " Give score=reward, or +scorer@score.scorers.NAME=reward_model."
        )
    if not isinstance(cfg.reward, RewardTraining):
        return
    if cfg.reward.start == "base" and cfg.base is None:
        yield (
            "reward.start=base: base is none."
            " Give base=checkpoint base.model=NAME, or reward.start=sft."
        )
    if cfg.reward.decontamination.ngram != cfg.prompts.decontamination.ngram:
        yield _describe_ngram_mismatch("reward", cfg.reward.decontamination.ngram, cfg)


def _check_reference(cfg: "Config", train: TrainConfig) -> Iterator[str]:
    """Precomputed reference values have to come from the model as the training loads it."""
    if train.reference_logps == "precomputed" and cfg.reference.dtype != train.dtype:
        yield (
            f"reference.dtype={cfg.reference.dtype} and {train.knob}.dtype={train.dtype}: reference"
            " values of another dtype are off at step 0. Give the same for both, as dtype=…"
        )
    adapter = train.adapter
    quantization = None if isinstance(adapter, FullAdapter) else adapter.quantization
    if train.reference_logps == "precomputed" and cfg.reference.quantization != quantization:
        remedy = "Leave it out: it follows train.adapter.quantization."
        if train.knob != "train":
            remedy = f"Give {train.knob}.reference_logps=online."
        yield (
            "reference.quantization: reference values of a base quantized unlike the policy's are"
            f" off at step 0. {remedy}"
        )


def _check_sft(cfg: "Config") -> Iterator[str]:
    """What sft=train needs from other blocks."""
    if (
        isinstance(cfg.sft, SftTraining)
        and cfg.sft.decontamination.ngram != cfg.prompts.decontamination.ngram
    ):
        yield _describe_ngram_mismatch("sft", cfg.sft.decontamination.ngram, cfg)
    if isinstance(cfg.sft, SftTraining) and cfg.base is None:
        yield (
            "sft=train starts from a base model, and base is none."
            " Give base=checkpoint base.model=NAME, or sft=checkpoint sft.model=NAME."
        )


def _describe_ngram_mismatch(block: str, ngram: int, cfg: "Config") -> str:
    """The evaluation prompts are hashed in n-grams of one length, and only those are found."""
    return (
        f"{block}.decontamination.ngram={ngram} finds no overlap, as evaluation prompts are hashed"
        f" in n-grams of {cfg.prompts.decontamination.ngram} words."
        " Give prompts.decontamination.ngram alone, the others follow it."
    )
