"""Who is examined around the rounds, and how: the second half of the algorithm, like plan.py it only builds Steps.

An exam is the same stages on other prompts. Only its label knows the round: a model is examined once, whoever asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config import BEST_OF, CONTROL, Config, Draw, DuelConfig, OtherModel, Questions, ScoreConfig, ServedModel
from pipeline.step import Input, Part, Step

ExamSteps = dict[str, Input]


@dataclass(frozen=True)
class Exams:
    cfg: Config
    prompts: Step
    sft: Step
    reward: Step | None

    def of(self, name: str, model: Step, split: Literal["dev", "test"]) -> ExamSteps:
        part, label = self.prompts / split, f"{split} {name}"
        tasks = self.cfg.benchmark if split == "test" else {}
        samples = Step("sample", self.cfg.exam.sample.draw("exam"), at=label, policy=model, prompts=part)
        return {
            "model": model,
            "logps": Step("refer", self.cfg.exam.refer, at=label, model=self.sft, rows=samples),
            "metrics": {task: Step("benchmark", b, at=f"{label} {task}", model=model) for task, b in tasks.items()},
            "samples": samples,
            "scores": self.marks(self.cfg.marking_on(split)[1], label, samples, part),
        }

    def marks(self, scorers: ScoreConfig, label: str, samples: Step, part: Part, best: Step | None = None) -> Step:
        reward = self.reward if scorers.asks_reward else None
        return Step("score", scorers, at=label, samples=samples, prompts=part, reward=reward, best=best)

    def others(self) -> dict[str, ExamSteps]:
        return {name: self.other(name, brought) for name, brought in self.cfg.exam.others.items()}

    def redrawn(self) -> dict[str, ExamSteps]:
        return {name: self.again(name, draw) for name, draw in self.cfg.exam.rows()}

    def other(self, name: str, brought: OtherModel) -> ExamSteps:
        """Asked and marked as ours are; the answers of a model that a server holds are measured in sft's tokens."""
        part, label = self.prompts / "test", f"test {name}"
        like = self.sft if isinstance(brought, ServedModel) else None
        model = Step("base", brought, at=label, like=like)
        samples = Step("sample", self.cfg.exam.sample.answers_of(brought), at=label, policy=model, prompts=part)
        return {"model": model, "samples": samples, "scores": self.marks(self.cfg.exam.score, label, samples, part)}

    def again(self, name: str, draw: Draw) -> ExamSteps:
        """SFT once more: the A/A control, the best of n by the scorer that makes pairs, with a prompt."""
        part, label = self.prompts / "test", f"test {name}"
        samples = Step("sample", draw, at=label, policy=self.sft, prompts=part)
        scorers, best = self.cfg.exam.score, None
        if name.startswith(BEST_OF):
            best = self.marks(self.cfg.score, label, samples, part)
            scorers = scorers.of_best(self.cfg.pair.scorer)
        return {"model": self.sft, "samples": samples, "scores": self.marks(scorers, label, samples, part, best)}

    def chat(self, name: str, exams: Mapping[str, ExamSteps]) -> dict[str, Input]:
        """A set of questions beside the test prompts, asked of every model of the table."""
        block = self.cfg.exam.chats[name]
        questions = Step("prompts", Questions(rows=self.cfg.prompts.evaluation[name]), at=f"test {name}") / "test"
        told: dict[str, ExamSteps] = {}
        for of, exam in exams.items():
            draw = self.cfg.exam.sample.conversation(block.turns, self.cfg.exam.others.get(of))
            label, model = f"test {of} {name}", exam["model"]
            samples = Step("sample", draw, at=label, policy=model, prompts=questions)
            marks = {"scores": self.marks(block.score, label, samples, questions)} if block.score else {}
            told[of] = {"model": model, "samples": samples, **marks}
        return {"prompts": questions, "exams": told, "duels": self.duels(block.duels, told, questions, f" {name}")}

    def duels(
        self, judges: Mapping[str, DuelConfig], exams: Mapping[str, ExamSteps], part: Part, on: str = ""
    ) -> dict[str, dict[str, dict[str, Step]]]:
        """Judge → newer model → older: rounds meet sft and the round before, others sft and the last round."""
        line = [name for name in exams if name == "sft" or name.startswith("round-")]
        contests = dict.fromkeys([*((new, "sft") for new in line[1:]), *zip(line[1:], line, strict=False)])
        contests |= dict.fromkeys(
            (name, old) for name in self.cfg.exam.others for old in dict.fromkeys(("sft", line[-1]))
        )
        contests |= {(CONTROL, "sft"): None} if CONTROL in exams else {}
        fought: dict[str, dict[str, dict[str, Step]]] = {judge: {} for judge in judges}
        for judge, block in judges.items():
            for new, old in contests:
                sides = {"a": exams[new]["samples"], "b": exams[old]["samples"]}
                duel = Step("duel", block, at=f"test {new} {old}{on}", prompts=part, **sides)
                fought[judge].setdefault(new, {})[old] = duel
        return fought
