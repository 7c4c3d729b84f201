"""The whole algorithm on one page. It builds Steps and runs nothing; read this first.

A Step is one stage on given inputs (see step.py). The plan is the returned Step and its ancestors.
"""

from collections.abc import Mapping

from pipeline.config import (
    BEST_OF,
    CONTROL,
    Config,
    Draw,
    DuelConfig,
    OtherModel,
    Questions,
    RewardTraining,
    ScoreConfig,
    ServedModel,
    SftTraining,
)
from pipeline.step import Input, Part, Step


def plan(cfg: Config) -> Step:
    prompts = Step("prompts", cfg.prompts)
    base = Step("base", cfg.base) if cfg.base else None
    trains = isinstance(cfg.sft, SftTraining)
    sft = Step("sft", cfg.sft, base=base, fence=prompts / "fence") if trains else Step("sft", cfg.sft)

    reward = reward_model(cfg, base, sft, prompts / "fence") if cfg.reward else None
    offline = Step("offline", cfg.offline, policy=sft, fence=prompts / "fence") if cfg.offline else None
    prior = Step("refer", cfg.refer, at=1, model=sft, rows=offline) if offline and cfg.pair.asks_prior else None

    dev = prompts / "dev"
    policy, models, pairs = sft, {"sft": sft}, []
    watched: dict[str, dict[str, Input]] = {}  # the gate's exams, each model's once
    for r in range(1, cfg.rounds + 1):
        samples: list[Step] = []
        scores: list[Step] = []
        waves = cfg.sample.waves(r, cfg.pair.scorer) if cfg.pair.mix.on_policy else []
        asked = reward if cfg.score.asks_reward else None
        for draw in waves:  # the first draws for every prompt, later ones where all scores so far tie
            samples += [Step("sample", draw, at=r, policy=policy, prompts=prompts / "train", scores=scores)]
            scores += [Step("score", cfg.score, at=r, samples=samples[-1], prompts=prompts / "train", reward=asked)]
        gold = prompts / "train" if cfg.pair.asks_prompts else None
        rows: dict[str, Input] = dict(offline=offline, prior=prior, samples=samples, scores=scores, prompts=gold)
        pairs += [Step("pair", cfg.pair.of(r), at=r, policy=policy, **rows)]

        refit = Step("sft", cfg.refit, at=r, base=policy, samples=samples, scores=scores) if cfg.refit else None
        init = {"previous": policy, "sft": sft, "refit": refit}[cfg.init]  # refit: SFT on each prompt's best sample
        reference = {"previous": policy, "sft": sft, "init": init}[cfg.reference] if cfg.train.logps != "none" else None
        latest = pairs if cfg.data == "all" else pairs[-1:]
        logps = [Step("refer", cfg.refer, at=r, model=reference, rows=p) for p in latest if cfg.train.logps == "ready"]
        fence = prompts / "fence" if cfg.train.rehearsal else None
        held: dict[str, Input] = dict(reference=reference, logps=logps, dev=dev, fence=fence)
        policy = Step("train", cfg.train, at=r, init=init, pairs=latest, **held)
        models[f"round-{r}"] = policy
        if cfg.gate:  # points to the best model so far, which may be an earlier one: the next round goes on from it
            news = [name for name in models if name not in watched]
            watched |= {name: exam(cfg, sft, reward, name, models[name], dev) for name in news}
            policy = Step("gate", cfg.gate, at=r, exams=dict(watched))

    models = {"base": base, **models} if base else models
    part, asks = prompts / cfg.exam.split, dict[str, Input]()
    exams = {name: exam(cfg, sft, reward, name, model, part) for name, model in models.items()}
    if cfg.exam.split == "test":
        exams |= {name: other(cfg, sft, reward, name, model, part) for name, model in cfg.exam.others.items()}
        asks = {name: chat(cfg, reward, name, exams) for name in cfg.exam.chats}
        exams |= {name: again(cfg, sft, reward, name, draw, part) for name, draw in cfg.exam.rows()}
    fought = duels(cfg, cfg.exam.duels, exams, part) if cfg.exam.split == "test" else None
    story: dict[str, Input] = dict(exams=exams, chosen=policy, pairs=pairs, duels=fought, chats=asks)
    return Step("evaluate", cfg.evaluate.told(cfg.pair.scorer, cfg.exam.gold), at="report", prompts=part, **story)


def reward_model(cfg: Config, base: Step | None, sft: Step, fence: Part) -> Step:
    """As it is, or trained from a model: never on anything that `test` or `dev` holds."""
    assert cfg.reward
    if not isinstance(cfg.reward, RewardTraining):
        return Step("reward", cfg.reward)
    start = cfg.reward.start
    model = {"sft": sft, "base": base}[start] if isinstance(start, str) else Step("base", start)
    return Step("reward", cfg.reward, start=model, fence=fence)


def exam(cfg: Config, sft: Step, reward: Step | None, name: str, model: Step, prompts: Part) -> dict[str, Input]:
    """The same stages on other prompts. Only the label knows the round: a model is examined once, whoever asks."""
    label = f"{prompts.part} {name}"
    _, scorers = cfg.marking_on(prompts.part)
    benchmarks = cfg.benchmark if prompts.part == "test" else {}
    asked = reward if scorers.asks_reward else None
    samples = Step("sample", cfg.exam.sample.draw("exam"), at=label, policy=model, prompts=prompts)
    return {
        "model": model,
        "logps": Step("refer", cfg.exam.refer, at=label, model=sft, rows=samples),  # first: what sft is refused for
        "metrics": {each: Step("benchmark", b, at=f"{label} {each}", model=model) for each, b in benchmarks.items()},
        "samples": samples,
        "scores": Step("score", scorers, at=label, samples=samples, prompts=prompts, reward=asked),
    }


def other(
    cfg: Config, sft: Step, reward: Step | None, name: str, brought: OtherModel, prompts: Part
) -> dict[str, Input]:
    """A model of somebody else's, asked and marked as ours are; what a server holds is measured in sft's tokens."""
    label = f"{prompts.part} {name}"
    asked = reward if cfg.exam.score.asks_reward else None
    model = Step("base", brought, at=label, like=sft if isinstance(brought, ServedModel) else None)
    samples = Step("sample", cfg.exam.sample.answers_of(brought), at=label, policy=model, prompts=prompts)
    scores = Step("score", cfg.exam.score, at=label, samples=samples, prompts=prompts, reward=asked)
    return {"model": model, "samples": samples, "scores": scores}


def chat(cfg: Config, reward: Step | None, name: str, exams: dict[str, dict[str, Input]]) -> dict[str, Input]:
    """A set of questions beside the test prompts, asked of every model of the table."""
    block = cfg.exam.chats[name]
    questions = Step("prompts", Questions(rows=cfg.prompts.evaluation[name]), at=f"test {name}") / "test"
    asked = reward if block.score and block.score.asks_reward else None
    told: dict[str, dict[str, Input]] = {}
    for of, exam in exams.items():
        label, draw = f"test {of} {name}", cfg.exam.sample.conversation(block.turns, cfg.exam.others.get(of))
        samples = Step("sample", draw, at=label, policy=exam["model"], prompts=questions)
        told[of] = {"model": exam["model"], "samples": samples}
        if block.score:
            marking: dict[str, Input] = dict(samples=samples, prompts=questions, reward=asked)
            told[of]["scores"] = Step("score", block.score, at=label, **marking)
    return {"prompts": questions, "exams": told, "duels": duels(cfg, block.duels, told, questions, f" {name}")}


def again(cfg: Config, sft: Step, reward: Step | None, name: str, draw: Draw, prompts: Part) -> dict[str, Input]:
    """SFT once more, drawn otherwise: the A/A control, the best of n by the scorer that makes pairs, with a prompt."""
    label = f"{prompts.part} {name}"
    samples = Step("sample", draw, at=label, policy=sft, prompts=prompts)
    marking: dict[str, Input] = dict(samples=samples, prompts=prompts)
    scorers: ScoreConfig = cfg.exam.score
    best: Step | None = None
    if name.startswith(BEST_OF):
        asked = reward if cfg.score.asks_reward else None
        best = Step("score", cfg.score, at=label, reward=asked, **marking)
        scorers = scorers.of_best(cfg.pair.scorer)
    asked = reward if scorers.asks_reward else None
    return {
        "model": sft,
        "samples": samples,
        "scores": Step("score", scorers, at=label, reward=asked, best=best, **marking),
    }


def duels(
    cfg: Config, judges: Mapping[str, DuelConfig], exams: dict[str, dict[str, Input]], prompts: Part, on: str = ""
) -> dict[str, dict[str, dict[str, Step]]]:
    """Judge → newer model → older: rounds meet sft and the round before, others sft and the last round."""
    line = [name for name in exams if name == "sft" or name.startswith("round-")]
    contests = dict.fromkeys([*((new, "sft") for new in line[1:]), *zip(line[1:], line, strict=False)])
    contests |= dict.fromkeys((name, old) for name in cfg.exam.others for old in dict.fromkeys(("sft", line[-1])))
    contests |= {(CONTROL, "sft"): None} if CONTROL in exams else {}
    fought: dict[str, dict[str, dict[str, Step]]] = {judge: {} for judge in judges}
    for judge, block in judges.items():
        for new, old in contests:
            label = f"test {new} {old}{on}"
            sides = {"a": exams[new]["samples"], "b": exams[old]["samples"]}
            fought[judge].setdefault(new, {})[old] = Step("duel", block, at=label, prompts=prompts, **sides)
    return fought
