"""How models are evaluated: the second half of the algorithm. Like plan.py it only builds Steps.

An evaluation is the stages of a round on dev or test prompts. Its label names the model, not the
round, so each model is evaluated once on each split.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config import (
    BEST_OF_PREFIX,
    CONTROL,
    EVAL_PURPOSE,
    Config,
    DuelConfig,
    EvaluationQuestions,
    OtherModel,
    SampleRequest,
    ScoreConfig,
    TextModel,
    is_merged,
    shift_seed,
)
from pipeline.step import Input, Part, Step

EvalSteps = dict[str, Input]
Duels = dict[str, dict[str, dict[str, Step]]]  # judge → newer model → older model


@dataclass(frozen=True)
class EvalPlan:
    cfg: Config
    prompts: Step
    sft: Step
    reward: Step | None

    def plan_eval(
        self, name: str, model: Step, split: Literal["dev", "test"], shift: int = 0
    ) -> EvalSteps:
        """A model of this run: its answers, their scores, what its KL needs, and its benchmarks.

        A replicate's answers have a shifted seed. It has no benchmarks.
        """
        cfg, part, label = self.cfg.evaluate, self.prompts / split, f"{split} {name}"
        request = cfg.sample.request(EVAL_PURPOSE)
        request = request.model_copy(update={"seed": shift_seed(request.seed, shift)})
        samples = Step(
            "sample", request, at=label, knob="evaluate.sample", policy=model, prompts=part
        )
        # The KL from SFT is estimated from SFT's log-probabilities of the model's samples.
        logps = Step(
            "reference",
            cfg.reference,
            at=label,
            knob="evaluate.reference",
            model=self.sft,
            rows=samples,
        )
        tasks = self.cfg.benchmark if split == "test" and not shift else {}
        metrics = {
            task: Step(
                "benchmark", block, at=f"{label} {task}", knob=f"benchmark.{task}", model=model
            )
            for task, block in tasks.items()
        }
        knob, scorers = self.cfg.scoring_on(split)
        return {
            "model": model,
            "logps": logps,
            "metrics": metrics,
            "samples": samples,
            "scores": self.plan_scores(knob, scorers, label, samples, part),
        }

    def plan_scores(
        self,
        knob: str,
        scorers: ScoreConfig,
        label: str,
        samples: Step,
        prompts: Part,
        best: Step | None = None,
    ) -> Step:
        return Step(
            "score",
            scorers,
            at=label,
            knob=knob,
            samples=samples,
            prompts=prompts,
            reward=self.reward if scorers.uses_reward_stage else None,
            best=best,
        )

    def plan_baselines(self) -> dict[str, EvalSteps]:
        """Models to compare with, which this run neither started from nor trained."""
        baselines = self.cfg.evaluate.baselines
        return {name: self.plan_baseline(name, model) for name, model in baselines.items()}

    def plan_controls(self) -> dict[str, EvalSteps]:
        """SFT once more: as an A/A control, as best of n, and with a prompt."""
        return {
            name: self.plan_control(name, request)
            for name, request in self.cfg.evaluate.variant_requests()
        }

    def plan_baseline(self, name: str, config: OtherModel) -> EvalSteps:
        """Sampled and scored like the models of this run.

        Answers that come as text are counted in SFT's tokens: the model's own are not known.
        """
        part, label, knob = self.prompts / "test", f"test {name}", f"evaluate.baselines.{name}"
        tokenizer = self.sft if isinstance(config, TextModel) else None
        model = Step("base", config, at=label, knob=knob, like=tokenizer)
        request, asks = (
            self.cfg.evaluate.sample.request_baseline_answers(config),
            self.find_sampler_knob(name),
        )
        samples = Step("sample", request, at=label, knob=asks, policy=model, prompts=part)
        scores = self.plan_scores(*self.cfg.scoring_on("test"), label, samples, part)
        return {"model": model, "samples": samples, "scores": scores}

    def find_sampler_knob(self, name: str) -> str:
        """Which block of the config samples a model: its own where nothing is sampled here."""
        is_text = isinstance(self.cfg.evaluate.baselines.get(name), TextModel)
        return f"evaluate.baselines.{name}" if is_text else "evaluate.sample"

    def plan_control(self, name: str, request: SampleRequest) -> EvalSteps:
        """SFT's answers to `request`. Best of n is chosen by the scorer that also chooses pairs."""
        part, label = self.prompts / "test", f"test {name}"
        samples = Step(
            "sample", request, at=label, knob="evaluate.sample", policy=self.sft, prompts=part
        )
        (knob, scorers), best = self.cfg.scoring_on("test"), None
        if name.startswith(BEST_OF_PREFIX):
            best = self.plan_scores("score", self.cfg.score, label, samples, part)
            scorers = scorers.for_best_answers(self.cfg.pair.scorer)
        scores = self.plan_scores(knob, scorers, label, samples, part, best)
        return {"model": self.sft, "samples": samples, "scores": scores}

    def plan_chat(self, name: str, evals: Mapping[str, EvalSteps]) -> dict[str, Input]:
        """A chat benchmark: a set of questions, other than the test prompts, for every model."""
        block, knob = self.cfg.evaluate.chats[name], f"evaluate.chats.{name}"
        rows = self.cfg.prompts.evaluation[name]
        set_of_questions = EvaluationQuestions(rows=rows, references=block.references)
        rows_knob = f"prompts.evaluation.{name}"
        questions = Step("prompts", set_of_questions, at=f"test {name}", knob=rows_knob) / "test"
        answered: dict[str, EvalSteps] = {}
        for model_name, steps in evals.items():
            label, model = f"test {model_name} {name}", steps["model"]
            baseline = self.cfg.evaluate.baselines.get(model_name)
            samples = Step(
                "sample",
                self.cfg.evaluate.sample.request_conversation(block.turns, baseline),
                at=label,
                knob=self.find_sampler_knob(model_name),
                policy=model,
                prompts=questions,
            )
            answered[model_name] = {"model": model, "samples": samples}
            if block.score:
                answered[model_name]["scores"] = self.plan_scores(
                    f"{knob}.score", block.score, label, samples, questions
                )
        duels = self.plan_duels(block.duels, answered, questions, knob, name)
        return {"prompts": questions, "evals": answered, "duels": duels}

    def plan_duels(
        self,
        judges: Mapping[str, DuelConfig],
        evals: Mapping[str, EvalSteps],
        prompts: Part,
        knob: str = "evaluate",
        chat: str = "",
    ) -> Duels:
        """Rounds meet SFT and the round before; merged models and baselines SFT and the last."""
        line = [name for name in evals if name == "sft" or name.startswith("round-")]
        matches = [(new, "sft") for new in line[1:]]
        matches += zip(line[1:], line, strict=False)
        guests = [*filter(is_merged, evals), *self.cfg.evaluate.baselines]
        matches += [(name, old) for name in guests for old in ("sft", line[-1])]
        matches += [(CONTROL, "sft")] if CONTROL in evals else []
        duels: Duels = {judge: {} for judge in judges}
        for judge, block in judges.items():
            for new, old in dict.fromkeys(matches):
                duels[judge].setdefault(new, {})[old] = Step(
                    "duel",
                    block,
                    at=f"test {new} {old} {chat}".rstrip(),
                    knob=f"{knob}.duels.{judge}",
                    prompts=prompts,
                    a=evals[new]["samples"],
                    b=evals[old]["samples"],
                )
        return duels
