"""The whole algorithm on one page. It builds Steps and runs nothing; read this first.

A Step is one stage on given inputs (see step.py). The plan is the returned Step and its ancestors.
"""

from typing import Any

from pipeline.config import Config, RewardTraining, SftTraining
from pipeline.evals import EvalPlan, EvalSteps
from pipeline.step import Input, Part, Step


def plan(cfg: Config) -> Step:
    prompts = Step("prompts", cfg.prompts)
    base = Step("base", cfg.base) if cfg.base else None
    trains = isinstance(cfg.sft, SftTraining)
    sft = (
        Step("sft", cfg.sft, base=base, fence=prompts / "fence") if trains else Step("sft", cfg.sft)
    )

    reward = reward_model(cfg, base, sft, prompts / "fence") if cfg.reward else None
    offline = (
        Step("offline", cfg.offline, policy=sft, fence=prompts / "fence") if cfg.offline else None
    )
    prior = (
        Step("refer", cfg.refer, at=1, model=sft, rows=offline)
        if offline and cfg.pair.needs_sft_logps
        else None
    )

    exams = EvalPlan(cfg, prompts, sft, reward)
    policy, models, pairs = sft, {"sft": sft}, []
    watched: dict[str, EvalSteps] = {}  # the gate's exams, each model's once
    for r in range(1, cfg.rounds + 1):
        samples: list[Step] = []
        scores: list[Step] = []
        waves = cfg.sample.request_waves(r, cfg.pair.scorer) if cfg.pair.mix.on_policy else []
        asked = reward if cfg.score.uses_reward_stage else None
        for (
            draw
        ) in waves:  # the first draws for every prompt, later ones where all scores so far tie
            samples += [
                Step("sample", draw, at=r, policy=policy, prompts=prompts / "train", scores=scores)
            ]
            scores += [
                Step(
                    "score",
                    cfg.score,
                    at=r,
                    samples=samples[-1],
                    prompts=prompts / "train",
                    reward=asked,
                )
            ]
        gold = prompts / "train" if cfg.pair.needs_prompt_columns else None
        rows: dict[str, Any] = dict(
            offline=offline, prior=prior, samples=samples, scores=scores, prompts=gold
        )
        pairs += [Step("pair", cfg.pair.for_round(r), at=r, policy=policy, **rows)]

        refit = (
            Step("sft", cfg.refit, at=r, base=policy, samples=samples, scores=scores)
            if cfg.refit
            else None
        )
        init = {"previous": policy, "sft": sft, "refit": refit}[
            cfg.init
        ]  # refit: SFT on each prompt's best sample
        reference = (
            {"previous": policy, "sft": sft, "init": init}[cfg.reference]
            if cfg.train.logps != "none"
            else None
        )
        latest = pairs if cfg.data == "all" else pairs[-1:]
        logps = [
            Step("refer", cfg.refer, at=r, model=reference, rows=p)
            for p in latest
            if cfg.train.logps == "ready"
        ]
        fence = prompts / "fence" if cfg.train.rehearsal else None
        held: dict[str, Any] = dict(
            reference=reference, logps=logps, dev=prompts / "dev", fence=fence
        )
        policy = Step("train", cfg.train, at=r, init=init, pairs=latest, **held)
        models[f"round-{r}"] = policy
        if cfg.gate:  # points to the best model so far, which may be an earlier one: the next round goes on from it
            news = [name for name in models if name not in watched]
            watched |= {name: exams.of(name, models[name], "dev") for name in news}
            policy = Step("gate", cfg.gate, at=r, exams=dict(watched))

    models = {"base": base, **models} if base else models
    split = cfg.exam.split
    examined = {name: exams.of(name, model, split) for name, model in models.items()}
    chats: dict[str, Input] = {}
    duels: Input = None
    if split == "test":  # a sweep's points are held to dev alone
        examined |= exams.others()
        chats = {name: exams.chat(name, examined) for name in cfg.exam.chats}
        examined |= exams.redrawn()
        duels = exams.duels(cfg.exam.duels, examined, prompts / split)
    story: dict[str, Any] = dict(
        exams=examined, chosen=policy, pairs=pairs, duels=duels, chats=chats
    )
    told = cfg.evaluate.with_scorers(cfg.pair.pairing_scorer, cfg.exam.gold_scorers)
    return Step("evaluate", told, at="report", prompts=prompts / split, **story)


def reward_model(cfg: Config, base: Step | None, sft: Step, fence: Part) -> Step:
    """As it is, or trained from a model: never on anything that `test` or `dev` holds."""
    assert cfg.reward
    if not isinstance(cfg.reward, RewardTraining):
        return Step("reward", cfg.reward)
    start = cfg.reward.start
    model = {"sft": sft, "base": base}[start] if isinstance(start, str) else Step("base", start)
    return Step("reward", cfg.reward, start=model, fence=fence)
