"""The whole algorithm on one page. It builds Steps and runs nothing; read this first.

A Step is one stage on given inputs (see step.py). The plan is the returned Step and its ancestors.
"""

from typing import NamedTuple

from pipeline.config import (
    POOL,
    REVISED,
    Config,
    RewardTraining,
    ServedMember,
    SftTraining,
)
from pipeline.evals import EvalPlan, EvalSteps
from pipeline.step import Input, Part, Step


def plan(cfg: Config) -> Step:
    prompts = Step("prompts", cfg.prompts)
    train = prompts / "train"
    ngrams = prompts / "decontamination"  # of dev and test: no training data may have them
    base = Step("base", cfg.base) if cfg.base else None
    sft = plan_sft(cfg, base, ngrams)
    reward = plan_reward(cfg, base, sft, ngrams) if cfg.reward else None
    offline, prior = plan_offline(cfg, sft, ngrams)
    members = plan_members(cfg, sft)

    evals = EvalPlan(cfg, prompts, sft, reward)
    policy, models, pairs = sft, {"sft": sft}, list[Step]()
    dev_evals: dict[str, EvalSteps] = {}  # what the gate compares, planned once for each model
    for r in range(1, cfg.rounds + 1):
        samples, scores = plan_samples(cfg, r, policy, train, reward)
        revised = plan_revision(cfg, r, policy, samples)
        pool = plan_pool(cfg, r, members, sft, train, reward, revised)
        own = plan_steps(cfg, r, policy, samples, scores, train, reward)
        pair = Step(
            "pair",
            cfg.pair.for_round(r, cfg.scores_samples, cfg.steps.cut if cfg.steps else None),
            at=r,
            policy=policy,
            offline=offline,
            prior=prior,
            pool=pool.samples,
            pool_logps=pool.logps,
            samples=own.samples,
            scores=[*pool.scores, *own.scores],
            earlier=list(pairs) if cfg.pair.budget.per_prompt else None,
            steps=own.steps,
            prompts=train if cfg.pair.needs_prompt_columns else None,
        )
        pairs += [pair]

        best_of_n = plan_best_of_n(cfg, r, policy, samples, scores, revised, train, reward)
        init = {"previous": policy, "sft": sft, "best_of_n": best_of_n}[cfg.init]
        references = {"previous": policy, "sft": sft, "init": init}
        reference = references[cfg.reference.model] if cfg.train.reference_logps != "none" else None
        trained = pairs if cfg.train_on == "all" else [pair]
        logps = plan_logps(cfg, r, reference, trained)
        policy = Step(
            "train",
            cfg.train,
            at=r,
            init=init,
            pairs=trained,
            reference=reference,
            logps=logps,
            dev=prompts / "dev",
            decontamination=ngrams if cfg.train.rehearsal else None,
        )
        models[f"round-{r}"] = policy
        if cfg.gate:  # the next round starts from the best model so far
            new = [name for name in models if name not in dev_evals]
            dev_evals |= {name: evals.plan_eval(name, models[name], "dev") for name in new}
            policy = Step("gate", cfg.gate, at=r, evals=dict(dev_evals))

    models = {"base": base, **models} if base else models
    return plan_report(cfg, evals, models, policy, pairs, prompts)


def plan_sft(cfg: Config, base: Step | None, ngrams: Part) -> Step:
    """The user's SFT checkpoint, or one trained here from the base model."""
    if isinstance(cfg.sft, SftTraining):
        return Step("sft", cfg.sft, base=base, decontamination=ngrams)
    return Step("sft", cfg.sft)


def plan_reward(cfg: Config, base: Step | None, sft: Step, ngrams: Part) -> Step:
    """The user's reward model, or one trained here on preferences clean of dev and test prompts."""
    assert cfg.reward
    if not isinstance(cfg.reward, RewardTraining):
        return Step("reward", cfg.reward)
    start = cfg.reward.start
    model = {"sft": sft, "base": base}[start] if isinstance(start, str) else Step("base", start)
    return Step("reward", cfg.reward, start=model, decontamination=ngrams)


def plan_offline(cfg: Config, sft: Step, ngrams: Part) -> tuple[Step | None, Step | None]:
    """Offline rows, and their log-probabilities under SFT where a filter reads them."""
    if not cfg.offline:
        return None, None
    offline = Step("offline", cfg.offline, policy=sft, decontamination=ngrams)
    return offline, plan_reference(cfg, 1, sft, offline) if cfg.pair.needs_sft_logps else None


def plan_samples(
    cfg: Config, r: int, policy: Step, prompts: Part, reward: Step | None
) -> tuple[list[Step], list[Step]]:
    """The round's samples and scores, wave by wave.

    The first wave samples every prompt; each later one those whose scores so far all tie.
    """
    samples, scores = list[Step](), list[Step]()
    waves = cfg.sample.request_waves(r, cfg.pair.scorer) if cfg.samples_policy else []
    for request in waves:
        wave = Step("sample", request, at=r, policy=policy, prompts=prompts, scores=scores)
        samples += [wave]
        scores += plan_scores(cfg, r, wave, prompts, reward)
    return samples, scores


def plan_revision(cfg: Config, r: int, policy: Step, samples: list[Step]) -> Step | None:
    """The revised first answers of the first wave."""
    if not cfg.revise or not samples:
        return None
    return Step("revise", cfg.revise.for_round(r), at=r, policy=policy, samples=samples[0])


class OwnSteps(NamedTuple):
    samples: list[Step]
    scores: list[Step]
    steps: Step | None  # whose beginnings the samples continue


def plan_steps(
    cfg: Config,
    r: int,
    policy: Step,
    samples: list[Step],
    scores: list[Step],
    prompts: Part,
    reward: Step | None,
) -> OwnSteps:
    """The policy's answers for pairs.

    With `steps`: where solutions go wrong, and how the policy continues from before that.
    """
    if cfg.steps is None:
        return OwnSteps(samples, scores, None)
    steps = Step(
        "steps",
        cfg.steps.search(cfg.pair.scorer),
        at=r,
        policy=policy,
        samples=samples,
        scores=scores,
        prompts=prompts,
    )
    request = cfg.sample.request_continuations(r, cfg.steps.sampling)
    continued = Step("sample", request, at=r, policy=policy, prompts=steps)
    scorer = reward if cfg.score.uses_reward_stage else None
    scored = Step("score", cfg.score, at=r, samples=continued, prompts=steps, reward=scorer)
    return OwnSteps([continued], [scored], steps)


def plan_members(cfg: Config, sft: Step) -> dict[str, Step]:
    """The models that answer training prompts as well as the policy."""
    return {
        name: Step(
            "base",
            member.model_block,
            at=f"{POOL} {name}",
            knob=f"sample.pool.{name}",
            like=sft if isinstance(member, ServedMember) else None,
        )
        for name, member in cfg.sample.pool.items()
    }


class PoolSteps(NamedTuple):
    samples: dict[str, Input]
    scores: list[Step]
    logps: list[Step]  # of all answers under SFT, where a filter reads them


def plan_pool(
    cfg: Config,
    r: int,
    members: dict[str, Step],
    sft: Step,
    prompts: Part,
    reward: Step | None,
    revised: Step | None,
) -> PoolSteps:
    """The answers of each member of the pool, in SFT's tokens, and the revised ones.

    Pairs of steps are of the policy's own.
    """
    samples = {
        name: Step(
            "sample",
            cfg.sample.request_member(name, r),
            at=r,
            knob=f"sample.pool.{name}",
            policy=model,
            prompts=prompts,
            tokens_of=sft,
        )
        for name, model in members.items()
    }
    if revised and not cfg.steps:
        samples[REVISED] = revised
    logps = list[Step]()
    if cfg.pair.needs_sft_logps:
        logps = [plan_reference(cfg, r, sft, each) for each in samples.values()]
    scores = [plan_scores(cfg, r, each, prompts, reward) for each in samples.values()]
    named: dict[str, Input] = {name: [each] for name, each in samples.items()}
    return PoolSteps(named, [score for each in scores for score in each], logps)


def plan_scores(
    cfg: Config, r: int, samples: Step, prompts: Part, reward: Step | None
) -> list[Step]:
    """None where pairs are made without scores."""
    if not cfg.scores_samples:
        return []
    scorer = reward if cfg.score.uses_reward_stage else None
    return [Step("score", cfg.score, at=r, samples=samples, prompts=prompts, reward=scorer)]


def plan_reference(cfg: Config, r: int, model: Step, rows: Step) -> Step:
    """The rows' log-probabilities under the reference model."""
    return Step("reference", cfg.reference.logps, at=r, model=model, rows=rows)


def plan_logps(cfg: Config, r: int, reference: Step | None, trained: list[Step]) -> list[Step]:
    """The pairs' log-probabilities under the reference model, where training reads them."""
    if reference is None or cfg.train.reference_logps != "precomputed":
        return []
    return [plan_reference(cfg, r, reference, rows) for rows in trained]


def plan_best_of_n(
    cfg: Config,
    r: int,
    policy: Step,
    samples: list[Step],
    scores: list[Step],
    revised: Step | None,
    prompts: Part,
    reward: Step | None,
) -> Step | None:
    """SFT of the policy on each prompt's best sample, or on its revised answer."""
    if cfg.best_of_n is None:
        return None
    if revised and cfg.best_of_n.answers == "revised":
        samples, scores = [revised], plan_scores(cfg, r, revised, prompts, reward)
    return Step("sft", cfg.best_of_n, at=r, base=policy, samples=samples, scores=scores)


def plan_report(
    cfg: Config,
    evals: EvalPlan,
    models: dict[str, Step],
    chosen: Step,
    pairs: list[Step],
    prompts: Step,
) -> Step:
    """Every model's evaluation and the report on all of them."""
    split = cfg.evaluate.split
    evaluated = {name: evals.plan_eval(name, model, split) for name, model in models.items()}
    chats: dict[str, Input] = {}
    duels: Input = None
    if split == "test":  # the points of a sweep are compared on dev alone
        evaluated |= evals.plan_baselines()
        chats = {name: evals.plan_chat(name, evaluated) for name in cfg.evaluate.chats}
        evaluated |= evals.plan_controls()
        duels = evals.plan_duels(cfg.evaluate.duels, evaluated, prompts / split)
    return Step(
        "evaluate",
        cfg.evaluate.for_report(cfg.pairing_scorer, cfg.expect),
        at="report",
        prompts=prompts / split,
        evals=evaluated,
        chosen=chosen,
        pairs=pairs,
        duels=duels,
        chats=chats,
    )
