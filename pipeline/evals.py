"""Who is examined around the rounds, and how: the second half of the algorithm, like plan.py it only builds Steps.

An exam is the same stages on other prompts. Only its label knows the round: a model is examined once, whoever asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config import (
    BEST_OF_PREFIX,
    CONTROL,
    Config,
    DuelConfig,
    EvaluationQuestions,
    OtherModel,
    SampleRequest,
    ScoreConfig,
    ServedModel,
)
from pipeline.step import Input, Part, Step

EvalSteps = dict[str, Input]


@dataclass(frozen=True)
class EvalPlan:
    cfg: Config
    prompts: Step
    sft: Step
    reward: Step | None

    def of(self, name: str, model: Step, split: Literal["dev", "test"]) -> EvalSteps:
        part, label = self.prompts / split, f"{split} {name}"
        tasks = self.cfg.benchmark if split == "test" else {}
        asked = self.cfg.exam.sample.request("exam")
        samples = Step("sample", asked, at=label, knob="exam.sample", policy=model, prompts=part)
        return {
            "model": model,
            "logps": Step(
                "refer",
                self.cfg.exam.refer,
                at=label,
                knob="exam.refer",
                model=self.sft,
                rows=samples,
            ),
            "metrics": {
                task: Step(
                    "benchmark", block, at=f"{label} {task}", knob=f"benchmark.{task}", model=model
                )
                for task, block in tasks.items()
            },
            "samples": samples,
            "scores": self.marks(*self.cfg.scoring_on(split), label, samples, part),
        }

    def marks(
        self,
        knob: str,
        scorers: ScoreConfig,
        label: str,
        samples: Step,
        part: Part,
        best: Step | None = None,
    ) -> Step:
        reward = self.reward if scorers.uses_reward_stage else None
        return Step(
            "score",
            scorers,
            at=label,
            knob=knob,
            samples=samples,
            prompts=part,
            reward=reward,
            best=best,
        )

    def others(self) -> dict[str, EvalSteps]:
        return {name: self.other(name, brought) for name, brought in self.cfg.exam.others.items()}

    def redrawn(self) -> dict[str, EvalSteps]:
        return {name: self.again(name, draw) for name, draw in self.cfg.exam.variant_requests()}

    def other(self, name: str, brought: OtherModel) -> EvalSteps:
        """Asked and marked as ours are; the answers of a model that a server holds are measured in sft's tokens."""
        part, label, knob = self.prompts / "test", f"test {name}", f"exam.others.{name}"
        like = self.sft if isinstance(brought, ServedModel) else None
        model = Step("base", brought, at=label, knob=knob, like=like)
        asked = self.cfg.exam.sample.request_baseline_answers(brought)
        samples = Step("sample", asked, at=label, knob=self.asks(name), policy=model, prompts=part)
        scores = self.marks("exam.score", self.cfg.exam.score, label, samples, part)
        return {"model": model, "samples": samples, "scores": scores}

    def asks(self, name: str) -> str:
        """Where it stands who draws a model's answers: a server that holds it, or the exam's own engine."""
        return (
            f"exam.others.{name}"
            if isinstance(self.cfg.exam.others.get(name), ServedModel)
            else "exam.sample"
        )

    def again(self, name: str, draw: SampleRequest) -> EvalSteps:
        """SFT once more: the A/A control, the best of n by the scorer that makes pairs, with a prompt."""
        part, label = self.prompts / "test", f"test {name}"
        samples = Step("sample", draw, at=label, knob="exam.sample", policy=self.sft, prompts=part)
        scorers, best = self.cfg.exam.score, None
        if name.startswith(BEST_OF_PREFIX):
            best = self.marks("score", self.cfg.score, label, samples, part)
            scorers = scorers.for_best_answers(self.cfg.pair.scorer)
        scores = self.marks("exam.score", scorers, label, samples, part, best)
        return {"model": self.sft, "samples": samples, "scores": scores}

    def chat(self, name: str, exams: Mapping[str, EvalSteps]) -> dict[str, Input]:
        """A set of questions beside the test prompts, asked of every model of the table."""
        block, knob = self.cfg.exam.chats[name], f"exam.chats.{name}"
        rows = EvaluationQuestions(rows=self.cfg.prompts.evaluation[name])
        questions = (
            Step("prompts", rows, at=f"test {name}", knob=f"prompts.evaluation.{name}") / "test"
        )
        told: dict[str, EvalSteps] = {}
        for of, exam in exams.items():
            draw = self.cfg.exam.sample.request_conversation(
                block.turns, self.cfg.exam.others.get(of)
            )
            label, model = f"test {of} {name}", exam["model"]
            samples = Step(
                "sample", draw, at=label, knob=self.asks(of), policy=model, prompts=questions
            )
            told[of] = {"model": model, "samples": samples}
            if block.score:
                told[of]["scores"] = self.marks(
                    f"{knob}.score", block.score, label, samples, questions
                )
        return {
            "prompts": questions,
            "exams": told,
            "duels": self.duels(block.duels, told, questions, knob, name),
        }

    def duels(
        self,
        judges: Mapping[str, DuelConfig],
        exams: Mapping[str, EvalSteps],
        part: Part,
        knob: str = "exam",
        *on: str,
    ) -> dict[str, dict[str, dict[str, Step]]]:
        """Judge → newer model → older: rounds meet sft and the round before, others sft and the last round."""
        line = [name for name in exams if name == "sft" or name.startswith("round-")]
        contests = dict.fromkeys(
            [*((new, "sft") for new in line[1:]), *zip(line[1:], line, strict=False)]
        )
        contests |= dict.fromkeys(
            (name, old) for name in self.cfg.exam.others for old in dict.fromkeys(("sft", line[-1]))
        )
        contests |= {(CONTROL, "sft"): None} if CONTROL in exams else {}
        fought: dict[str, dict[str, dict[str, Step]]] = {judge: {} for judge in judges}
        for judge, block in judges.items():
            for new, old in contests:
                sides = {"a": exams[new]["samples"], "b": exams[old]["samples"]}
                label = " ".join(("test", new, old, *on))
                duel = Step(
                    "duel", block, at=label, knob=f"{knob}.duels.{judge}", prompts=part, **sides
                )
                fought[judge].setdefault(new, {})[old] = duel
        return fought
