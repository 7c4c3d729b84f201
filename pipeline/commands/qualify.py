"""`strop qualify FILE … [scorer=NAME,…] [key=value …]`: how often a scorer is right, by subset.

The answers of a FILE are known to be right or wrong: RewardBench 2's shape, PandaLM's, LLMBar's, or
labels of your own. Prints the accuracy by subset, and writes it to the store, where a run with
pair.min_scorer_accuracy looks for it. (`strop calibrate` takes pairs alone, and tells how a scorer
agrees with annotators and what it favours.)
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.commands.calibrate import align_columns, check_scorers, collect_scores
from pipeline.commands.table import parse_words, reports_errors
from pipeline.config import Block, RewardConfig, ScoreConfig, StoreFolders, list_stores
from pipeline.config.compose import Arguments, compose_block
from pipeline.data.known_answers import KnownAnswers, read_known_answers
from pipeline.errors import StageError, UserError, pluralize
from pipeline.hashing import ContentCache, resolve_commit
from pipeline.preflight.prompts import check_columns
from pipeline.preflight.qualification import (
    fill_reward_model,
    hash_scorer,
    select_scorers,
    write_record,
)
from pipeline.report.analysis.accuracy import (
    Accuracy,
    ScoredAnswers,
    average_subsets,
    measure_accuracy,
)
from pipeline.report.analysis.statistics import Estimate
from pipeline.report.formatting import UNKNOWN, format_interval, format_number, format_share
from pipeline.scorers import Answer, Score
from pipeline.step import Identity, pin_revisions

HEAD = ["", "accuracy", "95 %", "prompts", "flips", ""]


class QualifyConfig(Block):
    score: ScoreConfig
    reward: RewardConfig | None
    store: StoreFolders


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("qualify", arguments)
    places = [Path(place) for place in words.places]
    files = {place: read_known_answers(place) for place in places}
    rows = [row for file in files.values() for row in file.rows]
    undecided = sum(file.undecided for file in files.values())
    if not rows:
        raise UserError(
            f"{', '.join(map(str, places))}: no row says which answer is right.\n"
            "  Give rows with chosen and rejected, or labels on which most annotators agree."
        )
    cfg = compose_block(Arguments.parse(words.overrides), QualifyConfig)
    names = [name for name in words.knob("scorer").split(",") if name]
    names = names or [next(iter(cfg.score.scorers))]
    check_scorers(names, cfg.score)
    asked = cfg.score.model_copy(update={"scorers": {n: cfg.score.scorers[n] for n in names}})
    check_columns(asked, {column for row in rows for column in row.columns})
    for name in names:
        hashes = ContentCache(list_stores(cfg.store)[0] / ".contents.json")
        scorer = _Scorer(cfg, name, hashes)
        subsets = measure_accuracy(scorer.score_rows(rows))
        record = {
            "scorer": name,
            "files": {str(place): hashes.hash_path(place) for place in places},
            "undecided": undecided,
            "accuracy": asdict(average_subsets(subsets)),
            "subsets": {subset: one.to_dict() for subset, one in subsets.items()},
        }
        path = write_record(list_stores(cfg.store)[0], scorer.hash, record)
        hashes.save()
        print("\n".join([*format_lines(name, subsets, undecided), str(path)]))
    return 0


class _Scorer:
    """One scorer, as a run would open it: with the commits of its models and the run's reward."""

    def __init__(self, cfg: QualifyConfig, name: str, hashes: ContentCache):
        self.name, knob = name, f"score.scorers.{name}"
        filled = fill_reward_model(cfg.score.scorers, cfg.reward)
        scorers = pin_revisions(select_scorers(filled, name), cache(resolve_commit))
        self.hash = hash_scorer(scorers, Identity(lambda path: hashes.hash_path(Path(path))), knob)
        self.cfg = cfg.score.model_copy(update={"scorers": scorers})

    def score_rows(self, rows: list[KnownAnswers]) -> Iterator[ScoredAnswers]:
        answers = [answer for row in rows for answer in make_answers(row)]
        scores = collect_scores(self.cfg, self.name, answers)
        self._check_failures(scores)
        for row in rows:
            own = [scores[answer.sample_id] for answer in make_answers(row)]
            values = [score.score for score in own]
            right = len(row.right)
            yield ScoredAnswers(
                row.subset,
                json.dumps(row.prompt),
                values[:right],
                values[right:],
                row.tie,
                read_flip_rate(own),
            )

    def _check_failures(self, scores: Mapping[str, Score]) -> None:
        failed = [score for score in scores.values() if score.score is None]
        if len(failed) > self.cfg.max_failed * len(scores):
            raise StageError(
                f"{self.name}: {len(failed)} of {pluralize(len(scores), 'score')} failed (such as:"
                f" {failed[0].detail}). The limit is score.max_failed={self.cfg.max_failed}.\n"
                "  Fix the scorer, or raise the limit, and run the same command again."
            )


def make_answers(row: KnownAnswers) -> list[Answer]:
    """The place comes first in the id, which a judge's choice of opponents depends on."""
    return [
        Answer(f"{at}/{row.key}", row.key, row.prompt, text, row.columns)
        for at, text in enumerate(row.answers)
    ]


def read_flip_rate(scores: Iterable[Score]) -> float | None:
    """Of a prompt, as a pairwise judge writes it into each score's detail."""
    for score in scores:
        detail = json.loads(score.detail) if score.detail.startswith("{") else {}
        if isinstance(rate := detail.get("flip_rate"), int | float):
            return float(rate)
    return None


def format_lines(name: str, subsets: Mapping[str, Accuracy], undecided: int) -> Iterator[str]:
    yield f"{name}: how often a right answer has the highest score"
    if undecided:
        yield f"left out: {pluralize(undecided, 'pair')} without a preferred answer"
    yield ""
    table = [HEAD, *(format_row(subset, one) for subset, one in subsets.items())]
    overall = average_subsets(subsets)
    if len(subsets) > 1:
        table.append([*_format_estimate("mean of the subsets", overall), "", ""])
    yield from align_columns(table)
    yield ""


def format_row(subset: str, one: Accuracy) -> list[str]:
    flips = UNKNOWN if one.flip_rate is None else format_share(one.flip_rate)
    counts = " · ".join(f"{count} {kind}" for kind, count in one.counts.items())
    return [*_format_estimate(subset, one.accuracy), flips, counts]


def _format_estimate(name: str, estimate: Estimate) -> list[str]:
    mean = UNKNOWN if estimate.mean is None else format_number(estimate.mean)
    interval: dict[str, Any] = asdict(estimate)
    return [name, mean, format_interval(interval), str(estimate.n)]
