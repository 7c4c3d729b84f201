"""Scoring by rules begins while the answers are still sampled, on the shards that are finished.

What it makes is kept in the run's folder, each table under the hash of the answers that it scores.
The Step itself runs as always once the samples are published, and takes what fits.
"""

import json
from pathlib import Path

from pipeline import store
from pipeline.config import (
    ConversationRequest,
    LabelsScorer,
    PairwiseScorer,
    RubricScorer,
    ScoreConfig,
)
from pipeline.step import Step

EARLY_FOLDER = "early"  # in the run's folder
NOT_EARLY = (LabelsScorer, RubricScorer, PairwiseScorer)  # judges are paid; labels take no time


def can_score_early(step: Step) -> bool:
    """Whether a Step scores samples by rules alone, shard by shard."""
    cfg = step.config
    if not isinstance(cfg, ScoreConfig) or cfg.local_model_scorers:
        return False
    if step.inputs.keys() - {"samples", "prompts"}:  # a reward model, or which answers are best
        return False
    if isinstance(step.inputs["samples"].config, ConversationRequest):
        return False
    return not any(isinstance(one, NOT_EARLY) for one in cfg.scorers.values())


def has_shards_to_score(samples: Path) -> bool:
    """Whether some shards are finished and others are not. `samples`: the published folder."""
    work = store.find_work_folder(samples)
    try:
        finished = len(json.loads((work / "shards.json").read_text()))
        return finished < sum(1 for _ in (work / "scratch" / "asked").glob("*.parquet"))
    except (OSError, ValueError):  # not begun, or published in this moment
        return False
