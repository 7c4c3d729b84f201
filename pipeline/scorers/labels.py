"""Annotators' labels as scores: their own numbers, or how often they preferred an answer.

A preference is over another answer to the same prompt. An answer that no annotator saw, or about
which they agree too little, has no score. That is not a failure.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import LabelsScorer
from pipeline.scorers import Answer, Score
from pipeline.scorers.label_files import Preference, Rating, read_labels

Votes = Mapping[str, float]  # annotator → value


@dataclass(frozen=True)
class Opinion:
    score: float | None
    detail: str


class Labels:
    def __init__(self, cfg: LabelsScorer):
        self.cfg = cfg
        self._opinions: dict[str, Opinion] | None = None

    def score(self, answers: list[Answer]) -> Iterator[Score]:
        if self._opinions is None:
            self._opinions = load_opinions(self.cfg)
        for answer in answers:
            opinion = self._opinions.get(answer.sample_id, NOT_LABELLED)
            abstained = opinion.score is None
            yield Score(answer.sample_id, opinion.score, detail=opinion.detail, abstained=abstained)

    def close(self) -> None:
        pass


NOT_LABELLED = Opinion(None, "no annotator labelled it")


def load_opinions(cfg: LabelsScorer) -> dict[str, Opinion]:
    rows = read_labels(Path(cfg.path))
    annotators = sorted({row.annotator for row in rows})
    if ratings := [row for row in rows if isinstance(row, Rating)]:
        combined = _combine_ratings(cfg, ratings)
    else:
        combined = _combine_preferences(cfg, [row for row in rows if isinstance(row, Preference)])
    return {
        key: Opinion(score, _format_detail(score, votes, annotators))
        for key, (score, votes) in combined.items()
    }


def _combine_ratings(
    cfg: LabelsScorer, ratings: list[Rating]
) -> dict[str, tuple[float | None, Votes]]:
    votes: dict[str, dict[str, float]] = defaultdict(dict)
    for rating in ratings:
        votes[rating.sample_id][rating.annotator] = rating.score
    return {key: (aggregate_votes(cfg, list(own.values())), own) for key, own in votes.items()}


def _combine_preferences(
    cfg: LabelsScorer, preferences: list[Preference]
) -> dict[str, tuple[float | None, Votes]]:
    """An answer's score is its mean over the decided pairs: 1 won, 0 lost, a tie in between."""
    by_pair: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for one in preferences:
        by_pair[one.a_id, one.b_id][one.annotator] = one.a_wins
    scores: dict[str, list[float]] = defaultdict(list)
    votes: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (a, b), by_annotator in by_pair.items():
        decision = aggregate_votes(cfg, list(by_annotator.values()))
        for key, is_a in ((a, True), (b, False)):
            scores[key] += [] if decision is None else [_points_of(decision, is_a)]
            for annotator, vote in by_annotator.items():
                votes[key][annotator].append(_points_of(vote, is_a))
    means = {
        key: {annotator: sum(own) / len(own) for annotator, own in by_annotator.items()}
        for key, by_annotator in votes.items()
    }
    return {key: (_mean(scores[key]), means[key]) for key in votes}


def _points_of(a_wins: float, is_a: bool) -> float:
    return a_wins if is_a else 1 - a_wins


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def aggregate_votes(cfg: LabelsScorer, votes: list[float]) -> float | None:
    """The annotators' common value; None where too few agree or no value has the majority."""
    ranked = Counter(votes).most_common()
    if ranked[0][1] / len(votes) < cfg.min_agreement:
        return None
    if cfg.combine == "mean":
        return sum(votes) / len(votes)
    is_split = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
    return None if is_split else ranked[0][0]


def _format_detail(score: float | None, votes: Votes, annotators: list[str]) -> str:
    """Votes in one order of annotators for all answers, for the noise of pairs.

    One vote alone has no agreement.
    """
    if score is None:
        return "its annotators agree too little"
    if len(votes) < 2:
        return ""
    agreement = max(Counter(votes.values()).values()) / len(votes)
    in_order = [votes.get(name) for name in annotators]
    return json.dumps({"annotators": in_order, "agreement": round(agreement, 6)})
