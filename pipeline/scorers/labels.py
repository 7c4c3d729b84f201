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
from pipeline.data.label_files import Label, find_majority, read_sample_labels
from pipeline.scorers import Answer, Score

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
    """An answer's score is its rating, or its mean over the decided pairs: 1 won, 0 lost."""
    labels = read_sample_labels(Path(cfg.path))
    annotators = sorted({label.annotator for label in labels})
    scores: dict[str, list[float]] = defaultdict(list)
    votes: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for ids, group in _group_labels(labels).items():
        decision = aggregate_votes(cfg, [label.value for label in group])
        for key in ids:
            is_first = key == ids[0]
            scores[key] += [] if decision is None else [_points_of(decision, is_first)]
            for label in group:
                votes[key][label.annotator].append(_points_of(label.value, is_first))
    opinions = {}
    for key, own in votes.items():
        means = {annotator: sum(values) / len(values) for annotator, values in own.items()}
        score = sum(scores[key]) / len(scores[key]) if scores[key] else None
        opinions[key] = Opinion(score, _format_detail(score, means, annotators))
    return opinions


def _group_labels(labels: list[Label]) -> dict[tuple[str, ...], list[Label]]:
    """The labels of each answer, or of each pair in the order of its ids."""
    groups: dict[tuple[str, ...], list[Label]] = defaultdict(list)
    for label in labels:
        in_order = label if label.ids == tuple(sorted(label.ids)) else label.swap()
        groups[in_order.ids].append(in_order)
    return groups


def _points_of(value: float, is_first: bool) -> float:
    return value if is_first else 1 - value


def aggregate_votes(cfg: LabelsScorer, votes: list[float]) -> float | None:
    """The annotators' common value; None where too few agree or no value has the majority."""
    if max(Counter(votes).values()) / len(votes) < cfg.min_agreement:
        return None
    return sum(votes) / len(votes) if cfg.combine == "mean" else find_majority(votes)


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
