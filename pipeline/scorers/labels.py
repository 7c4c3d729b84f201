"""What people said, as scores: their own numbers, or how often they preferred an answer to others of its prompt.

An answer that nobody was asked about, or about which people agree too little, has no score, and that is no failure.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import LabelsScorer
from pipeline.scorers import Answer, Score
from pipeline.scorers.label_files import Duel, Rating, read_labels

Votes = Mapping[str, float]  # annotator → value


@dataclass(frozen=True)
class Opinion:
    score: float | None
    detail: str


class Labels:
    def __init__(self, cfg: LabelsScorer):
        self.cfg = cfg
        self._opinions: dict[str, Opinion] | None = None

    def mark(self, answers: list[Answer]) -> Iterator[Score]:
        if self._opinions is None:
            self._opinions = opinions(self.cfg)
        for answer in answers:
            known = self._opinions.get(answer.sample_id, NOT_ASKED)
            yield Score(
                answer.sample_id, known.score, detail=known.detail, abstained=known.score is None
            )

    def close(self) -> None:
        pass


NOT_ASKED = Opinion(None, "nobody labelled it")


def opinions(cfg: LabelsScorer) -> dict[str, Opinion]:
    rows = read_labels(Path(cfg.path))
    everybody = sorted({row.annotator for row in rows})
    ratings = [row for row in rows if isinstance(row, Rating)]
    found = (
        _of_ratings(cfg, ratings)
        if ratings
        else _of_duels(cfg, [row for row in rows if isinstance(row, Duel)])
    )
    return {
        key: Opinion(score, _detail(score, votes, everybody))
        for key, (score, votes) in found.items()
    }


def _of_ratings(cfg: LabelsScorer, ratings: list[Rating]) -> dict[str, tuple[float | None, Votes]]:
    votes: dict[str, dict[str, float]] = defaultdict(dict)
    for rating in ratings:
        votes[rating.sample_id][rating.annotator] = rating.score
    return {key: (settled(cfg, list(told.values())), told) for key, told in votes.items()}


def _of_duels(cfg: LabelsScorer, duels: list[Duel]) -> dict[str, tuple[float | None, Votes]]:
    """An answer's score is its mean over the pairs that were settled: 1 won, 0 lost, a tie in between."""
    votes: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for duel in duels:
        votes[duel.a_id, duel.b_id][duel.annotator] = duel.a_wins
    scores: dict[str, list[float]] = defaultdict(list)
    told: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (a, b), by_annotator in votes.items():
        won = settled(cfg, list(by_annotator.values()))
        for key, sign in ((a, 1), (b, -1)):
            scores[key] += [] if won is None else [_of_side(won, sign)]
            for annotator, vote in by_annotator.items():
                told[key][annotator].append(_of_side(vote, sign))
    return {
        key: (
            _mean(scores[key]),
            {annotator: sum(own) / len(own) for annotator, own in told[key].items()},
        )
        for key in told
    }


def _of_side(a_wins: float, sign: int) -> float:
    return a_wins if sign > 0 else 1 - a_wins


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def settled(cfg: LabelsScorer, votes: list[float]) -> float | None:
    """What annotators say together, or None where too few agree or no value has the majority."""
    ranked = Counter(votes).most_common()
    if ranked[0][1] / len(votes) < cfg.min_agreement:
        return None
    if cfg.combine == "mean":
        return sum(votes) / len(votes)
    split = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
    return None if split else ranked[0][0]


def _detail(score: float | None, votes: Votes, everybody: list[str]) -> str:
    """`annotators` in one order for all answers, for the noise of pairs; a lone one has nobody to agree with."""
    if score is None:
        return "its annotators agree too little"
    if len(votes) < 2:
        return ""
    agreement = max(Counter(votes.values()).values()) / len(votes)
    return json.dumps(
        {"annotators": [votes.get(name) for name in everybody], "agreement": round(agreement, 6)}
    )
