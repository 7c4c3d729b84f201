"""What people said of two examined models' answers, as a judge's contests; and how far the judges agree with them.

An answer is known by its sample id, whichever side it was shown on. A verdict that joins no two models' answers to one
prompt is left out, counted and named.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.errors import pluralize
from pipeline.report.analysis.aggregate import Duel
from pipeline.report.analysis.agreement import Pair, calibration, people_s_own
from pipeline.report.analysis.eval_results import EvalResult, by_prompt
from pipeline.report.analysis.judges import POINTS
from pipeline.report.analysis.statistics import BootstrapConfig, contest, length_adjusted

NAMED = 3  # ids of what was left out


class Vote(NamedTuple):
    """One annotator's word on two answers: 1 where a is better, 0 where b is, 0.5 for a tie."""

    a_id: str
    b_id: str
    a_wins: float
    annotator: str


@dataclass
class Heard:
    """Of one pair of models: prompt → pair of answers → votes for the newer model's."""

    a: EvalResult
    b: EvalResult
    votes: dict[str, dict[tuple[str, str], list[float]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    annotators: set[str] = field(default_factory=set)

    def add(self, prompt: str, ids: tuple[str, str], points: float, annotator: str) -> None:
        self.votes[prompt].setdefault(ids, []).append(points)
        self.annotators.add(annotator)

    def points(self) -> dict[str, float]:
        """A pair's votes are averaged first, then a prompt's pairs."""
        return {
            prompt: _mean(_mean(votes) for votes in pairs.values())
            for prompt, pairs in sorted(self.votes.items())
        }

    def told(self) -> dict[str, Pair]:
        """A prompt as people see it: by its majority, with the two models' mean lengths."""
        lengths = [by_prompt(model.answers, "tokens") for model in (self.a, self.b)]
        found = {}
        for prompt, pairs in sorted(self.votes.items()):
            votes = [vote for told in pairs.values() for vote in told]
            found[prompt] = Pair(
                prompt, _majority(votes), votes, *(round(of[prompt]) for of in lengths)
            )
        return found


@dataclass
class Said:
    """By people, of these models: contests, how far the judges agree with them, and what was left out."""

    duels: list[Duel] = field(default_factory=list)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)


def said_of(
    examined: Sequence[EvalResult],
    votes: Mapping[str, Sequence[Vote]],
    fought: Sequence[Duel],
    draw: BootstrapConfig,
    on: str | None = None,
) -> Said:
    """`votes` by who gave them, `fought` the judges' contests; `on` names the set of questions, None is the exam's."""
    said = Said()
    for name, given in votes.items():
        found, lost = heard(given, examined)
        said.duels += [duel_of_people(name, one, draw) for one in found]
        said.agreement += [{**agreement_row(name, one, fought), "on": on} for one in found]
        said.missing += [{"model": name, "what": what} for what in lost]
    return said


def heard(votes: Sequence[Vote], examined: Sequence[EvalResult]) -> tuple[list[Heard], list[str]]:
    """The verdicts by the two models they are on, and what is said of those that are on none."""
    owner = {
        sample: (order, prompt)
        for order, model in enumerate(examined)
        for sample, prompt in model.answers.select("sample_id", "prompt_id").iter_rows()
    }
    found: dict[tuple[int, int], Heard] = {}
    lost: dict[str, list[str]] = defaultdict(list)
    for vote in votes:
        ids = vote.a_id, vote.b_id
        known = [owner[name] for name in ids if name in owner]
        if fault := _fault(ids, known):
            lost[fault].append(next((name for name in ids if name not in owner), " and ".join(ids)))
            continue
        (a, prompt), (b, _) = known
        newer, older, points = (a, b, vote.a_wins) if a > b else (b, a, 1 - vote.a_wins)
        here = found.setdefault((newer, older), Heard(examined[newer], examined[older]))
        here.add(prompt, ids if a > b else ids[::-1], points, vote.annotator)
    said = [
        f"{len(names)} of {pluralize(len(votes), 'verdict')} {fault}: {_named(names)}"
        for fault, names in lost.items()
    ]
    return [found[key] for key in sorted(found)], said


def _fault(ids: tuple[str, str], known: Sequence[tuple[int, str]]) -> str | None:
    if len(known) < len(ids):
        return "are on answers that no model of this exam gave and are left out"
    if known[0][0] == known[1][0]:
        return "are on two answers of one model and are left out"
    return "are on answers to two prompts and are left out" if known[0][1] != known[1][1] else None


def _named(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    return ", ".join(different[:NAMED]) + (
        f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
    )


def duel_of_people(judge: str, of: Heard, draw: BootstrapConfig) -> Duel:
    points = of.points()
    against = {key: 1 - value for key, value in points.items()}
    gaps = {key: float(pair.first - pair.second) for key, pair in of.told().items()}
    found = contest(points, against, len(points), draw)
    return Duel(
        of.a, of.b, judge, found, (points, against), length_adjusted(points, gaps, draw.level)
    )


def agreement_row(judge: str, of: Heard, fought: Sequence[Duel]) -> dict[str, Any]:
    """People against every judge and scorer of the same contest, on the prompts that people judged."""
    pairs = of.told()
    rivals = [duel for duel in fought if (duel.a.name, duel.b.name) == (of.a.name, of.b.name)]
    own = people_s_own(pairs)
    return {
        "people": judge,
        "a": of.a.name,
        "b": of.b.name,
        "prompts": len(pairs),
        "pairs": sum(len(told) for told in of.votes.values()),
        "annotators": len(of.annotators),
        "judges": {duel.judge: _calibrated(pairs, duel) for duel in rivals},
        "among_themselves": own.told() if own else None,
    }


def _calibrated(pairs: Mapping[str, Pair], duel: Duel) -> dict[str, Any]:
    verdicts = {
        key: POINTS[verdict] for key, verdict in duel.contest.verdicts.items() if key in pairs
    }
    return calibration(pairs, verdicts).told()


def _majority(votes: Sequence[float]) -> float | None:
    ranked = Counter(votes).most_common(2)
    return None if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def _mean(values: Iterable[float]) -> float:
    told = list(values)
    return sum(told) / len(told)
