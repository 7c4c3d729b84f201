"""Scores by a judge: against a rubric, or by comparing a prompt's answers in pairs."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby

from pipeline.artifacts import draw_key
from pipeline.config import AnswerJudge, PairwiseScorer, RubricScorer
from pipeline.hashing import hash_json
from pipeline.scorers import Answer, Score
from pipeline.scorers.judging import JudgeRequest
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.columns import PromptGuide, count_turns, read_guide
from pipeline.scorers.judging.pairwise import (
    PAIRWISE_FIELDS,
    Comparison,
    PairVerdict,
    judge_comparisons,
)
from pipeline.scorers.judging.parsing import Verdict
from pipeline.scorers.judging.template import RUBRIC_FIELDS, format_conversation


class Rubric:
    """A row per criterion, and their mean; or the weighted mean over the prompt's own rubric.

    A criterion's score is the expected grade, or the grade itself where the judge gives no
    probabilities.
    """

    def __init__(self, cfg: RubricScorer, knob: str):
        self.cfg, self.knob = cfg, knob
        self.judge = CachedJudge(cfg, RUBRIC_FIELDS, knob)
        self.labels = tuple(str(grade) for grade in range(cfg.scale.low, cfg.scale.high + 1))

    def score(self, answers: list[Answer]) -> Iterator[Score]:
        guides = [find_guide(self.cfg, self.knob, answer) for answer in answers]
        requests = [
            request
            for answer, guide in zip(answers, guides, strict=True)
            for request in self._build_requests(answer, guide)
        ]
        verdicts = iter(self.judge.get_verdicts(requests))
        for answer, guide in zip(answers, guides, strict=True):
            if guide.missing:
                yield skip_answer(answer, guide)
            elif guide.items:
                marks = [next(verdicts) for _ in guide.items]
                yield _weigh_marks(answer.sample_id, guide, marks)
            else:
                by_criterion = {name: next(verdicts) for name in self.cfg.active_criteria}
                yield from _score_criteria(answer.sample_id, by_criterion)

    def _build_requests(self, answer: Answer, guide: PromptGuide) -> Iterator[JudgeRequest]:
        if guide.missing:
            return
        judged = {
            "question": format_conversation(answer.prompt),
            "answer": self.judge.prepare_answer(answer.completion),
        }
        scale = {"low": self.cfg.scale.low, "high": self.cfg.scale.high}
        items = [item.criterion for item in guide.items]
        for text in items or self.cfg.active_criteria.values():
            yield self.judge.build_request(
                judged, guide.reference, self.labels, criterion=text, **scale
            )

    def get_cost(self) -> dict[str, float]:
        return self.judge.budget.get_cost()

    def close(self) -> None:
        self.judge.close()


def find_guide(cfg: AnswerJudge, knob: str, answer: Answer) -> PromptGuide:
    turns = count_turns(answer.columns, answer.prompt)
    return read_guide(cfg, knob, answer.prompt_id, answer.columns, turns)


def skip_answer(answer: Answer, guide: PromptGuide) -> Score:
    """The judge was not asked: an abstention and not a failure."""
    return Score(answer.sample_id, None, detail=guide.missing, abstained=True)


def _weigh_marks(sample_id: str, guide: PromptGuide, verdicts: list[Verdict]) -> Score:
    """The weighted mean over the prompt's rubric; its items have no rows, as others have others."""
    faults = [
        f"item {place}: {verdict.fault}"
        for place, verdict in enumerate(verdicts, 1)
        if verdict.fault
    ]
    if faults:
        return Score(sample_id, None, detail=faults[0])
    grades = [_expect_grade(verdict) or 0.0 for verdict in verdicts]
    weights = [item.weight for item in guide.items]
    weighted = sum(weight * grade for weight, grade in zip(weights, grades, strict=True))
    models = _join_names(verdict.model for verdict in verdicts)
    detail = {"model": models, "marks": [round(grade, 6) for grade in grades]}
    return Score(sample_id, weighted / sum(weights), detail=json.dumps(detail))


def _score_criteria(sample_id: str, verdicts: dict[str, Verdict]) -> Iterator[Score]:
    scores = {name: _expect_grade(verdict) for name, verdict in verdicts.items()}
    known = [score for score in scores.values() if score is not None]
    faults = [f"{name}: {verdict.fault}" for name, verdict in verdicts.items() if verdict.fault]
    models = _join_names(verdict.model for verdict in verdicts.values())
    if faults:
        yield Score(sample_id, None, detail=faults[0])
    else:
        yield Score(sample_id, sum(known) / len(known), detail=json.dumps({"model": models}))
    for name, verdict in verdicts.items():
        detail = verdict.fault or json.dumps({"model": verdict.model})
        yield Score(sample_id, scores[name], name, detail)


def _expect_grade(verdict: Verdict) -> float | None:
    if verdict.fault:
        return None
    return sum(int(grade) * probability for grade, probability in verdict.probabilities.items())


class Pairwise:
    """An answer's score is its mean probability of winning; a strong verdict has more weight.

    An answer with a failed comparison has no score: the means of the others are over all their
    opponents, and its own would not be.
    """

    def __init__(self, cfg: PairwiseScorer, knob: str):
        self.cfg, self.knob = cfg, knob
        self.judge = CachedJudge(cfg, PAIRWISE_FIELDS, knob)

    def score(self, answers: list[Answer]) -> Iterator[Score]:
        prompts = [
            list(group) for _, group in groupby(answers, key=lambda answer: answer.prompt_id)
        ]
        guides = [find_guide(self.cfg, self.knob, rows[0]) for rows in prompts]
        pairings = [
            [] if guide.missing else pair_opponents(rows, self.cfg.opponents, self.cfg.seed)
            for rows, guide in zip(prompts, guides, strict=True)
        ]
        comparisons = [
            self._build_comparison(rows[i], rows[j], guide)
            for rows, guide, pairs in zip(prompts, guides, pairings, strict=True)
            for i, j in pairs
        ]
        verdicts = iter(judge_comparisons(self.judge, comparisons, self.cfg.levels))
        for rows, guide, pairs in zip(prompts, guides, pairings, strict=True):
            if guide.missing:
                yield from (skip_answer(answer, guide) for answer in rows)
            else:
                yield from _score_by_wins(rows, {pair: next(verdicts) for pair in pairs})

    def _build_comparison(self, a: Answer, b: Answer, guide: PromptGuide) -> Comparison:
        return Comparison(
            format_conversation(a.prompt),
            self.judge.prepare_answer(a.completion),
            self.judge.prepare_answer(b.completion),
            guide.reference,
        )

    def get_cost(self) -> dict[str, float]:
        return self.judge.budget.get_cost()

    def close(self) -> None:
        self.judge.close()


def pair_opponents(answers: list[Answer], wanted: int | None, seed: int) -> list[tuple[int, int]]:
    """Who is compared with whom, as indices into `answers`: all pairs, or neighbours on a circle.

    The circle is in hash order, so every answer has the same number of opponents (one more where
    the numbers are odd).
    """
    n = len(answers)
    circle = sorted(
        range(n), key=lambda index: hash_json([seed, draw_key(answers[index].sample_id)])
    )
    count = n - 1 if wanted is None else min(wanted, n - 1)
    # Each step along the circle gives every answer two opponents. An odd count takes the half
    # circle as well.
    steps = {*range(1, count // 2 + 1), *([n // 2] if count % 2 else [])}
    pairs = {
        tuple(sorted((circle[at], circle[(at + step) % n]))) for step in steps for at in range(n)
    }
    return sorted((i, j) for i, j in pairs)


def _score_by_wins(
    answers: list[Answer], verdicts: dict[tuple[int, int], PairVerdict]
) -> Iterator[Score]:
    complete = [verdict for verdict in verdicts.values() if not verdict.fault]
    judged = [verdict for verdict in complete if verdict.is_judged]
    flip_rate = sum(verdict.is_flipped for verdict in judged) / len(judged) if judged else 0.0
    models = _join_names(one.model for verdict in complete for one in (verdict.ab, verdict.ba))
    facts = {"flip_rate": round(flip_rate, 6), "model": models}
    for index, answer in enumerate(answers):
        own = {pair: verdict for pair, verdict in verdicts.items() if index in pair}
        fault = next((verdict.fault for verdict in own.values() if verdict.fault), "")
        if fault or not own:
            reason = fault or "its prompt has no other answer to compare it with"
            yield Score(answer.sample_id, None, detail=reason)
            continue
        wins, weights = dict[str, float](), dict[str, float]()
        for (i, j), verdict in own.items():
            if (probability := verdict.probability) is not None:
                opponent = answers[j if index == i else i].sample_id
                wins[opponent] = probability if index == i else 1 - probability
                weights[opponent] = verdict.weight
        rounded = {opponent: round(probability, 6) for opponent, probability in wins.items()}
        detail = json.dumps({**facts, "wins": rounded})
        weighted = sum(weights[opponent] * win for opponent, win in wins.items())
        yield Score(answer.sample_id, weighted / sum(weights.values()), detail=detail)


def _join_names(names: Iterable[str]) -> str:
    return ", ".join(sorted({name for name in names if name}))
