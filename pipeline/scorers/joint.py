"""Scores that are computed from the scores of other scorers of the same block."""

from collections.abc import Iterator

from pipeline.config import EnsembleScorer, RefusalScorer
from pipeline.scorers import Answer, Score
from pipeline.scorers.ensemble import ScoresByMember, combine_scores
from pipeline.scorers.refusal import score_by_guard


def score_jointly(
    cfg: EnsembleScorer | RefusalScorer, answers: list[Answer], whole: ScoresByMember
) -> Iterator[Score]:
    """`whole`: every single scorer's overall scores."""
    if isinstance(cfg, EnsembleScorer):
        return combine_scores(cfg, answers, whole)
    assert cfg.refused_by is not None
    return score_by_guard(cfg, answers, whole[cfg.refused_by])
