"""Scores that a judge gives: mark by mark after a rubric, or by comparing a prompt's answers two by two."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby

from pipeline.artifacts import draw_key
from pipeline.config import PairwiseScorer, RubricScorer
from pipeline.hashing import hash_json
from pipeline.scorers import Answer, Score
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.pairwise import NEEDS, Bout, Verdict, fought
from pipeline.scorers.judging.parsing import Reading
from pipeline.scorers.judging.template import RUBRIC_NEEDS, conversation


class Rubric:
    """A row for each criterion (the expected mark; the mark itself where no probabilities are known) and their mean."""

    def __init__(self, cfg: RubricScorer, knob: str):
        self.cfg = cfg
        self.court = CachedJudge(cfg, RUBRIC_NEEDS, knob)
        self.labels = tuple(str(mark) for mark in range(cfg.scale.low, cfg.scale.high + 1))

    def mark(self, answers: list[Answer]) -> Iterator[Score]:
        criteria = self.cfg.asked
        asked = [
            self.court.wording.question(
                {
                    "question": conversation(answer.prompt),
                    "answer": self.court.shown(answer.completion),
                },
                self.labels,
                criterion=text,
                low=self.cfg.scale.low,
                high=self.cfg.scale.high,
            )
            for answer in answers
            for text in criteria.values()
        ]
        readings = iter(self.court.readings(asked))
        for answer in answers:
            yield from _by_criterion(answer.sample_id, {name: next(readings) for name in criteria})

    def cost(self) -> dict[str, float]:
        return self.court.budget.cost()

    def close(self) -> None:
        self.court.close()


def _by_criterion(sample_id: str, readings: dict[str, Reading]) -> Iterator[Score]:
    scores = {name: _expected(reading) for name, reading in readings.items()}
    known = [score for score in scores.values() if score is not None]
    faults = [f"{name}: {reading.fault}" for name, reading in readings.items() if reading.fault]
    models = _models(reading.model for reading in readings.values())
    if faults:
        yield Score(sample_id, None, detail=faults[0])
    else:
        yield Score(sample_id, sum(known) / len(known), detail=json.dumps({"model": models}))
    for name, reading in readings.items():
        yield Score(
            sample_id, scores[name], name, reading.fault or json.dumps({"model": reading.model})
        )


def _expected(reading: Reading) -> float | None:
    return (
        None
        if reading.fault
        else sum(int(mark) * chance for mark, chance in reading.chances.items())
    )


class Pairwise:
    """An answer's score is its mean probability of winning. One with a failed comparison has no score: the others'
    means are over all that they met, and its own would not be."""

    def __init__(self, cfg: PairwiseScorer, knob: str):
        self.cfg = cfg
        self.court = CachedJudge(cfg, NEEDS, knob)

    def mark(self, answers: list[Answer]) -> Iterator[Score]:
        prompts = [
            list(group) for _, group in groupby(answers, key=lambda answer: answer.prompt_id)
        ]
        met = [opponents(rows, self.cfg.opponents, self.cfg.seed) for rows in prompts]
        bouts = [
            self._bout(rows[i], rows[j])
            for rows, pairs in zip(prompts, met, strict=True)
            for i, j in pairs
        ]
        verdicts = iter(fought(self.court, bouts))
        for rows, pairs in zip(prompts, met, strict=True):
            yield from _standings(rows, {pair: next(verdicts) for pair in pairs})

    def _bout(self, a: Answer, b: Answer) -> Bout:
        return Bout(
            conversation(a.prompt), self.court.shown(a.completion), self.court.shown(b.completion)
        )

    def cost(self) -> dict[str, float]:
        return self.court.budget.cost()

    def close(self) -> None:
        self.court.close()


def opponents(answers: list[Answer], wanted: int | None, seed: int) -> list[tuple[int, int]]:
    """Who meets whom, as places in `answers`: all, or neighbours on a circle in hash order, so that all meet equally
    many (one more where the numbers are odd)."""
    n = len(answers)
    circle = sorted(
        range(n), key=lambda place: hash_json([seed, draw_key(answers[place].sample_id)])
    )
    most = n - 1 if wanted is None else min(wanted, n - 1)
    steps = {*range(1, most // 2 + 1), *([n // 2] if most % 2 else [])}
    pairs = {
        tuple(sorted((circle[at], circle[(at + step) % n]))) for step in steps for at in range(n)
    }
    return sorted((i, j) for i, j in pairs)


def _standings(answers: list[Answer], verdicts: dict[tuple[int, int], Verdict]) -> Iterator[Score]:
    whole = [verdict for verdict in verdicts.values() if not verdict.fault]
    asked = [verdict for verdict in whole if verdict.asked]
    flip_rate = sum(verdict.flipped for verdict in asked) / len(asked) if asked else 0.0
    models = _models(side.model for verdict in whole for side in (verdict.ab, verdict.ba))
    detail = json.dumps({"flip_rate": round(flip_rate, 6), "model": models})
    for place, answer in enumerate(answers):
        own = {pair: verdict for pair, verdict in verdicts.items() if place in pair}
        fault = next((verdict.fault for verdict in own.values() if verdict.fault), "")
        if not own or fault:
            yield Score(
                answer.sample_id,
                None,
                detail=fault or "its prompt has no other answer to compare it with",
            )
            continue
        chances = [
            (p if place == i else 1 - p)
            for (i, _), v in own.items()
            if (p := v.probability) is not None
        ]
        yield Score(answer.sample_id, sum(chances) / len(chances), detail=detail)


def _models(names: Iterable[str]) -> str:
    return ", ".join(sorted({name for name in names if name}))
