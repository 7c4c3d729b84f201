"""The whole algorithm on one page. It builds Steps and runs nothing; read this first.

A Step is one stage on given inputs (see step.py). The plan is the returned Step and its ancestors.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.config import (
    MERGED,
    POOL,
    REVISED,
    BestOfNConfig,
    Config,
    OnlineTraining,
    RewardTraining,
    ServedMember,
    SftTraining,
    TrainConfig,
    shift_seed,
)
from pipeline.evals import EvalPlan, EvalSteps
from pipeline.step import Input, Part, Step


def plan(cfg: Config) -> Step:
    prompts = Step("prompts", cfg.prompts)
    ngrams = prompts / "decontamination"  # of dev and test: no training data may have them
    base = Step("base", cfg.base) if cfg.base else None
    sft = plan_sft(cfg, base, ngrams)
    reward = plan_reward(cfg, base, sft, ngrams) if cfg.reward else None
    offline, prior = plan_offline(cfg, sft, ngrams)
    members = plan_members(cfg, sft)

    evals = EvalPlan(cfg, prompts, sft, reward)
    rounds = RoundPlan(cfg, prompts, sft, reward, members, offline, prior)
    policy, models, pairs = sft, {"sft": sft}, list[Step]()
    dev_evals: dict[str, EvalSteps] = {}  # what the gate compares, planned once for each model
    for r in range(1, cfg.rounds + 1):
        train = cfg.training(r)
        if isinstance(train, OnlineTraining):  # it samples and scores while it trains
            policy = rounds.plan_online(r, train, policy)
        else:
            pair, best_of_n = rounds.plan_pairs(r, policy, pairs)
            pairs += [pair]
            init = {"previous": policy, "sft": sft, "best_of_n": best_of_n}[cfg.init]
            references = {"previous": policy, "sft": sft, "init": init}
            reference = references[cfg.reference.model]
            trained = pairs if cfg.train_on == "all" else [pair]
            policy = rounds.plan_training(r, train, init, reference, trained)
        models[f"round-{r}"] = policy
        if cfg.gate:  # the next round starts from the best model so far
            new = [name for name in models if name not in dev_evals]
            dev_evals |= {name: evals.plan_eval(name, models[name], "dev") for name in new}
            policy = Step("gate", cfg.gate, at=r, evals=dict(dev_evals))

    merged = plan_merged(cfg, sft, models)
    models |= merged
    policy = choose_result(cfg, evals, dev_evals, merged, policy)
    models = {"base": base, **models} if base else models
    return plan_report(cfg, evals, models, policy, pairs, prompts)


class PoolSteps(NamedTuple):
    samples: dict[str, list[Step]]
    scores: list[Step]
    logps: list[Step]  # of all answers under SFT, where a filter reads them

    def select(self, source: str) -> tuple[list[Step], list[Step]]:
        """The answers of one source, and their scores."""
        samples = self.samples.get(source, [])
        return samples, [score for score in self.scores if score.inputs["samples"] in samples]


class Candidates(NamedTuple):
    """What pairs are made of: the inputs of `pair` by their names."""

    pool: dict[str, list[Step]]
    pool_logps: list[Step]
    samples: list[Step]  # the policy's own: after the pool's, so that `until` means these
    scores: list[Step]
    steps: Step | None = None


@dataclass(frozen=True)
class RoundPlan:
    """The Steps of a round. The fields are what is made once, before the rounds."""

    cfg: Config
    prompts: Step
    sft: Step
    reward: Step | None
    members: dict[str, Step]
    offline: Step | None
    prior: Step | None  # the offline rows' log-probabilities under SFT

    def plan_pairs(self, r: int, policy: Step, earlier: list[Step]) -> tuple[Step, Step | None]:
        """The round's samples, their scores and the pairs that these make; SFT on the best ones."""
        cfg = self.cfg
        samples, scores = self.plan_samples(r, policy)
        pool = self.plan_pool(r, policy, samples)
        candidates = self.plan_candidates(r, policy, samples, scores, pool)
        pair = Step(
            "pair",
            cfg.pair.for_round(r, cfg.scores_samples, cfg.steps.cut if cfg.steps else None),
            at=r,
            policy=policy,
            offline=self.offline,
            prior=self.prior,
            **candidates._asdict(),
            earlier=list(earlier) if cfg.pair.budget.per_prompt else None,
            prompts=self.prompts / "train" if cfg.pair.needs_prompt_columns else None,
        )
        return pair, plan_best_of_n(cfg.best_of_n, r, policy, samples, scores, pool)

    def plan_training(
        self,
        r: int,
        train: TrainConfig,
        init: Step | None,
        reference: Step | None,
        pairs: list[Step],
    ) -> Step:
        """A training on pairs; before it, the reference's values where they can be precomputed."""
        if train.reference_logps == "none":
            reference = None
        logps = list[Step]()
        if reference and train.reference_logps == "precomputed":
            logps = [plan_reference(self.cfg, r, reference, rows) for rows in pairs]
        return Step(
            "train",
            train,
            at=r,
            knob=train.knob,
            init=init,
            pairs=list(pairs),
            reference=reference,
            logps=logps,
            dev=self.prompts / "dev",
            decontamination=self.prompts / "decontamination" if train.rehearsal else None,
        )

    def plan_online(self, r: int, train: OnlineTraining, policy: Step) -> Step:
        """A training on the policy's answers to the prompts that the round would have sampled."""
        init = self.sft if self.cfg.init == "sft" else policy
        references = {"previous": policy, "sft": self.sft, "init": init}
        reference = references[self.cfg.reference.model]
        return Step(
            "train",
            train,
            at=r,
            knob=train.knob,
            init=init,
            reference=reference if train.reference_logps == "online" else None,
            prompts=self.prompts / "train",
            dev=self.prompts / "dev",
            reward=self.reward if train.score.uses_reward_stage else None,
        )

    def plan_samples(self, r: int, policy: Step) -> tuple[list[Step], list[Step]]:
        """The policy's samples and scores, wave by wave.

        The first wave samples every prompt; each later one those whose scores so far all tie.
        """
        cfg, prompts = self.cfg, self.prompts / "train"
        samples, scores = list[Step](), list[Step]()
        waves = cfg.sample.request_waves(r, cfg.pair.scorer) if cfg.samples_policy else []
        for request in waves:
            wave = Step("sample", request, at=r, policy=policy, prompts=prompts, scores=scores)
            samples += [wave]
            scores += self.plan_scores(r, wave)
        return samples, scores

    def plan_pool(self, r: int, policy: Step, samples: list[Step]) -> PoolSteps:
        """Answers of the pool's members, in SFT's tokens, which are the policy's; revised ones."""
        cfg, prompts = self.cfg, self.prompts / "train"
        answers = {
            name: Step(
                "sample",
                cfg.sample.request_member(name, r),
                at=r,
                knob=f"sample.pool.{name}",
                policy=model,
                prompts=prompts,
                tokens_of=self.sft,
            )
            for name, model in self.members.items()
        }
        if cfg.revise and samples:
            revision = cfg.revise.for_round(r)
            answers[REVISED] = Step("revise", revision, at=r, policy=policy, samples=samples[0])
        logps = list[Step]()
        if cfg.pair.needs_sft_logps:
            logps = [plan_reference(cfg, r, self.sft, each) for each in answers.values()]
        scores = [score for each in answers.values() for score in self.plan_scores(r, each)]
        return PoolSteps({name: [each] for name, each in answers.items()}, scores, logps)

    def plan_candidates(
        self, r: int, policy: Step, samples: list[Step], scores: list[Step], pool: PoolSteps
    ) -> Candidates:
        """Whole answers; or steps, where solutions go wrong: how the policy continues there."""
        cfg = self.cfg
        if cfg.steps is None:
            return Candidates(pool.samples, pool.logps, samples, [*pool.scores, *scores])
        steps = Step(
            "steps",
            cfg.steps.search(cfg.pair.scorer),
            at=r,
            policy=policy,
            samples=samples,
            scores=scores,
            prompts=self.prompts / "train",
        )
        request = cfg.sample.request_continuations(r, cfg.steps.sampling)
        continued = Step("sample", request, at=r, policy=policy, prompts=steps)
        return Candidates({}, [], [continued], [self._plan_score(r, continued, steps)], steps)

    def plan_scores(self, r: int, samples: Step) -> list[Step]:
        """None where pairs are made without scores."""
        if not self.cfg.scores_samples:
            return []
        return [self._plan_score(r, samples, self.prompts / "train")]

    def _plan_score(self, r: int, samples: Step, prompts: Step | Part) -> Step:
        reward = self.reward if self.cfg.score.uses_reward_stage else None
        return Step("score", self.cfg.score, at=r, samples=samples, prompts=prompts, reward=reward)


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


def plan_reference(cfg: Config, r: int, model: Step, rows: Step) -> Step:
    """The rows' log-probabilities under the reference model."""
    return Step("reference", cfg.reference.logps, at=r, model=model, rows=rows)


def plan_best_of_n(
    block: BestOfNConfig | None,
    r: int,
    policy: Step,
    samples: list[Step],
    scores: list[Step],
    pool: PoolSteps,
) -> Step | None:
    """SFT of the policy on each prompt's best sample, or on its revised answer."""
    if block is None:
        return None
    if block.answers == REVISED:
        samples, scores = pool.select(REVISED)
    return Step("sft", block, at=r, base=policy, samples=samples, scores=scores)


def plan_merged(cfg: Config, sft: Step, models: dict[str, Step]) -> dict[str, Step]:
    """Models whose weights are between those of the last round and others, by their names."""
    if cfg.merge is None:
        return {}
    *earlier, last = [models[f"round-{r}"] for r in range(1, cfg.rounds + 1)]
    others = {"with_sft": [sft], "rounds": earlier, "paths": []}[cfg.merge.kind]
    return {
        name: Step("merge", point, at=name, model=last, others=others)
        for name, point in cfg.merge.list_points()
    }


def choose_result(
    cfg: Config,
    evals: EvalPlan,
    dev_evals: dict[str, EvalSteps],
    merged: dict[str, Step],
    policy: Step,
) -> Step:
    """The gate's choice among all models; without a gate a single merged model, or the policy."""
    if cfg.gate and merged:
        new = {name: evals.plan_eval(name, model, "dev") for name, model in merged.items()}
        return Step("gate", cfg.gate, at=MERGED, evals=dev_evals | new)
    return next(iter(merged.values())) if len(merged) == 1 else policy


def plan_report(
    cfg: Config,
    evals: EvalPlan,
    models: dict[str, Step],
    chosen: Step,
    pairs: list[Step],
    prompts: Step,
) -> Step:
    """Every model's evaluation and the report on all of them."""
    split, last = cfg.evaluate.split, f"round-{cfg.rounds}"
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
        replicates=plan_replicates(cfg, evals, last, models[last]),
    )


def plan_replicates(cfg: Config, evals: EvalPlan, name: str, first: Step) -> dict[str, Input]:
    """The last round's training by other seeds, with all of its inputs, and their evaluations."""
    train, replicates = cfg.training(cfg.rounds), dict[str, Input]()
    for shift in range(1, cfg.seeds):
        seed = shift_seed(train.seed, shift)
        replicate = f"{name}-seed-{seed}"
        config = train.model_copy(update={"seed": seed})
        model = Step("train", config, at=replicate, knob=first.knob, **first.inputs)
        replicates[replicate] = evals.plan_eval(replicate, model, cfg.evaluate.split, shift)
    return replicates
