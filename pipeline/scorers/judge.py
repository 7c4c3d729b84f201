"""Scores by a judge: against a rubric, or by comparing a prompt's answers in pairs."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby

from pipeline.artifacts import draw_key
from pipeline.config import PairwiseScorer, RubricScorer
from pipeline.hashing import hash_json
from pipeline.scorers import Answer, Score
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.pairwise import (
    PAIRWISE_FIELDS,
    Comparison,
    PairVerdict,
    judge_comparisons,
)
from pipeline.scorers.judging.parsing import Verdict
from pipeline.scorers.judging.template import RUBRIC_FIELDS, format_conversation


class Rubric:
    """A row per criterion, and their mean.

    A criterion's score is the expected grade, or the grade itself where the judge gives no
    probabilities.
    """

    def __init__(self, cfg: RubricScorer, knob: str):
        self.cfg = cfg
        self.judge = CachedJudge(cfg, RUBRIC_FIELDS, knob)
        self.labels = tuple(str(grade) for grade in range(cfg.scale.low, cfg.scale.high + 1))

    def score(self, answers: list[Answer]) -> Iterator[Score]:
        criteria = self.cfg.active_criteria
        requests = [
            self.judge.template.build_request(
                {
                    "question": format_conversation(answer.prompt),
                    "answer": self.judge.prepare_answer(answer.completion),
                },
                self.labels,
                criterion=text,
                low=self.cfg.scale.low,
                high=self.cfg.scale.high,
            )
            for answer in answers
            for text in criteria.values()
        ]
        verdicts = iter(self.judge.get_verdicts(requests))
        for answer in answers:
            yield from _score_criteria(
                answer.sample_id, {name: next(verdicts) for name in criteria}
            )

    def get_cost(self) -> dict[str, float]:
        return self.judge.budget.get_cost()

    def close(self) -> None:
        self.judge.close()


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
    """An answer's score is its mean probability of winning.

    An answer with a failed comparison has no score: the means of the others are over all their
    opponents, and its own would not be.
    """

    def __init__(self, cfg: PairwiseScorer, knob: str):
        self.cfg = cfg
        self.judge = CachedJudge(cfg, PAIRWISE_FIELDS, knob)

    def score(self, answers: list[Answer]) -> Iterator[Score]:
        prompts = [
            list(group) for _, group in groupby(answers, key=lambda answer: answer.prompt_id)
        ]
        pairings = [pair_opponents(rows, self.cfg.opponents, self.cfg.seed) for rows in prompts]
        comparisons = [
            self._build_comparison(rows[i], rows[j])
            for rows, pairs in zip(prompts, pairings, strict=True)
            for i, j in pairs
        ]
        verdicts = iter(judge_comparisons(self.judge, comparisons))
        for rows, pairs in zip(prompts, pairings, strict=True):
            yield from _score_by_wins(rows, {pair: next(verdicts) for pair in pairs})

    def _build_comparison(self, a: Answer, b: Answer) -> Comparison:
        return Comparison(
            format_conversation(a.prompt),
            self.judge.prepare_answer(a.completion),
            self.judge.prepare_answer(b.completion),
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
        wins = {}
        for (i, j), verdict in own.items():
            if (probability := verdict.probability) is not None:
                opponent = answers[j if index == i else i].sample_id
                wins[opponent] = probability if index == i else 1 - probability
        rounded = {opponent: round(probability, 6) for opponent, probability in wins.items()}
        detail = json.dumps({**facts, "wins": rounded})
        yield Score(answer.sample_id, sum(wins.values()) / len(wins), detail=detail)


def _join_names(names: Iterable[str]) -> str:
    return ", ".join(sorted({name for name in names if name}))
