"""Human verdicts on two models' answers, as a judge's contests; and how far the judges agree.

An answer is known by its sample id, whichever side it was shown on. A verdict that does not join
two models' answers to one prompt is left out, counted and named.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.label_files import Label
from pipeline.errors import pluralize
from pipeline.report.analysis.aggregate import ModelDuel
from pipeline.report.analysis.agreement import LabelledPair, calibrate, calibrate_annotators
from pipeline.report.analysis.eval_results import EvalResult, mean_by_prompt
from pipeline.report.analysis.judges import POINTS, build_duel
from pipeline.report.analysis.statistics import BootstrapConfig

MAX_IDS_SHOWN = 3  # of what was left out


@dataclass
class HumanVotes:
    """On one pair of models: prompt → pair of answers → votes for the newer model's."""

    a: EvalResult
    b: EvalResult
    votes: dict[str, dict[tuple[str, ...], list[float]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    annotators: set[str] = field(default_factory=set)

    def add(self, prompt: str, vote: Label) -> None:
        """`vote` has the newer model's answer first."""
        self.votes[prompt].setdefault(vote.ids, []).append(vote.value)
        self.annotators.add(vote.annotator)

    def average_points(self) -> dict[str, float]:
        """A pair's votes are averaged first, then a prompt's pairs."""
        return {
            prompt: _mean(_mean(votes) for votes in pairs.values())
            for prompt, pairs in sorted(self.votes.items())
        }

    def to_pairs(self) -> dict[str, LabelledPair]:
        """Each prompt with its majority verdict and the two models' mean lengths."""
        lengths = [mean_by_prompt(model.answers, "tokens") for model in (self.a, self.b)]
        labelled = {}
        for prompt, pairs in sorted(self.votes.items()):
            votes = [vote for of_pair in pairs.values() for vote in of_pair]
            first, second = (round(of_model[prompt]) for of_model in lengths)
            labelled[prompt] = LabelledPair(prompt, votes, first, second)
        return labelled


@dataclass
class HumanResults:
    """Contests by human verdicts, how far the judges agree with them, and what was left out."""

    duels: list[ModelDuel] = field(default_factory=list)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)


def collect_human_results(
    results: Sequence[EvalResult],
    votes: Mapping[str, Sequence[Label]],
    duels: Sequence[ModelDuel],
    bootstrap: BootstrapConfig,
    on: str | None = None,
) -> HumanResults:
    """`votes` by label file, `duels` of the judges; `on` names a question set, if any."""
    human = HumanResults()
    for name, of_file in votes.items():
        by_models, faults = group_votes(of_file, results)
        human.duels += [score_human_duel(name, one, bootstrap) for one in by_models]
        human.agreement += [{**describe_agreement(name, one, duels), "on": on} for one in by_models]
        human.missing += [{"model": name, "what": what} for what in faults]
    return human


def group_votes(
    votes: Sequence[Label], results: Sequence[EvalResult]
) -> tuple[list[HumanVotes], list[str]]:
    """The votes by the two models that they compare, and a sentence per kind of unusable vote."""
    owner = {
        sample: (order, prompt)
        for order, model in enumerate(results)
        for sample, prompt in model.answers.select("sample_id", "prompt_id").iter_rows()
    }
    by_models: dict[tuple[int, int], HumanVotes] = {}
    unusable: dict[str, list[str]] = defaultdict(list)
    for vote in votes:
        known = [owner[name] for name in vote.ids if name in owner]
        if fault := _find_fault(vote.ids, known):
            unknown = next((name for name in vote.ids if name not in owner), None)
            unusable[fault].append(" and ".join(vote.ids) if unknown is None else unknown)
            continue
        (a, prompt), (b, _) = known
        from_newer, newer, older = (vote, a, b) if a > b else (vote.swap(), b, a)
        here = by_models.setdefault((newer, older), HumanVotes(results[newer], results[older]))
        here.add(prompt, from_newer)
    faults = [
        f"{len(names)} of {pluralize(len(votes), 'verdict')} {fault}: {_list_ids(names)}"
        for fault, names in unusable.items()
    ]
    return [by_models[key] for key in sorted(by_models)], faults


def _find_fault(ids: tuple[str, ...], known: Sequence[tuple[int, str]]) -> str | None:
    if len(known) < len(ids):
        return "are on answers that no evaluated model gave and are left out"
    if known[0][0] == known[1][0]:
        return "are on two answers of one model and are left out"
    return "are on answers to two prompts and are left out" if known[0][1] != known[1][1] else None


def _list_ids(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    hidden = len(different) - MAX_IDS_SHOWN
    return ", ".join(different[:MAX_IDS_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")


def score_human_duel(judge: str, votes: HumanVotes, bootstrap: BootstrapConfig) -> ModelDuel:
    points = votes.average_points()
    return build_duel(judge, votes.a, votes.b, points, len(points), bootstrap)


def describe_agreement(judge: str, votes: HumanVotes, duels: Sequence[ModelDuel]) -> dict[str, Any]:
    """Annotators against every judge and scorer of the same contest, on the prompts they judged."""
    pairs = votes.to_pairs()
    models = votes.a.name, votes.b.name
    rivals = [duel for duel in duels if (duel.a.name, duel.b.name) == models]
    own = calibrate_annotators(pairs)
    return {
        "name": judge,
        "a": votes.a.name,
        "b": votes.b.name,
        "prompts": len(pairs),
        "pairs": sum(len(of_prompt) for of_prompt in votes.votes.values()),
        "annotators": len(votes.annotators),
        "judges": {duel.judge: _calibrate_duel(pairs, duel) for duel in rivals},
        "among_themselves": own.to_dict() if own else None,
    }


def _calibrate_duel(pairs: Mapping[str, LabelledPair], duel: ModelDuel) -> dict[str, Any]:
    verdicts = {
        key: POINTS[verdict] for key, verdict in duel.contest.verdicts.items() if key in pairs
    }
    return calibrate(pairs, verdicts).to_dict()


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)
