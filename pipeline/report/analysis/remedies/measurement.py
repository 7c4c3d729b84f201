"""Can the figures be trusted: unstable or missing scores, flipping judges, a pleased scorer."""

from collections.abc import Iterator

from pipeline.config import CONTROL
from pipeline.report.analysis.remedies.finished_run import Advice, FinishedRun
from pipeline.report.analysis.verdict import STAY_CLOSER
from pipeline.report.formatting import format_count, format_share, format_signed

MANY_FAILED = 0.05  # answers without a score, per prompt
MANY_FLIPS = 0.3  # verdicts that change with the order of the answers


def check_control(run: FinishedRun) -> Iterator[Advice]:
    control = run.report["control"]
    if control and control["stable"] is False:
        gaps = [row for row in run.report["differences"] if row["model"] == CONTROL]
        own = next((row for row in gaps if row["scorer"] == run.scorer), None)
        figure = f" ({format_signed(own['mean'])} by {run.scorer})" if own else ""
        yield Advice(
            f"sft sampled again differs from itself{figure}: no difference of this size counts",
            "find what is unstable (a judge's temperature, a changing server), or give more"
            f" prompts (prompts.split.{run.split})",
        )


def check_failed_scores(run: FinishedRun) -> Iterator[Advice]:
    for name in ("sft", run.model["name"] if run.model else "sft"):
        model = run.find_model(name)
        metric = model["metrics"].get(run.scorer) if model else None
        if metric and metric["failed"] > MANY_FAILED * max(metric["n"], 1):
            yield Advice(
                f"{format_count(metric['failed'])} answers of {name} have no score by"
                f" {run.scorer}, on {metric['n']} prompts with one",
                _advise_scorer(run, "evaluate.score", run.scorer),
            )
            return
    for pairs in run.pairs[-1:]:
        lost = pairs["dropped_samples"].get("no score", 0)
        if lost > MANY_FAILED * max(pairs["samples_in"], 1):
            scorer = pairs.get("scorer") or "the scorer"
            yield Advice(
                f"{format_share(lost / pairs['samples_in'])} of round {pairs['round']}'s samples"
                f" have no score by {scorer}, so they make no pairs",
                _advise_scorer(run, "score", scorer),
            )


def _advise_scorer(run: FinishedRun, place: str, scorer: str) -> str:
    block = run.config["evaluate"]["score"] if place == "evaluate.score" else run.config["score"]
    config = block["scorers"].get(scorer, {})
    reason = "strop trace PROMPT_ID shows each answer's status"
    if "engine" not in config:
        return f"{reason}; correct {place}.scorers.{scorer} or the columns that it reads"
    knob, engine = f"{place}.scorers.{scorer}.engine", config["engine"]
    room = f"{knob}.max_tokens (now {engine.get('max_tokens')})"
    if "timeout" not in engine.get("runtime", {}):
        return f"raise {room}; {reason}"
    return f"raise {room} or {knob}.runtime.timeout (now {engine['runtime']['timeout']}); {reason}"


def check_judges(run: FinishedRun) -> Iterator[Advice]:
    rates: dict[str, float] = {}
    for duel in run.report["duels"]:
        if duel["flip_rate"] is not None:
            rates[duel["judge"]] = max(duel["flip_rate"], rates.get(duel["judge"], 0.0))
    for judge, rate in rates.items():
        if rate > MANY_FLIPS:
            yield Advice(
                f"{judge} changes its verdict with the order of the answers on"
                f" {format_share(rate)} of the prompts",
                f"give it a stronger model (evaluate.duels.{judge}.engine.model) or a reason before"
                f" its verdict (evaluate.duels.{judge}.form=json), and test it: strop calibrate",
            )


def check_over_optimisation(run: FinishedRun) -> Iterator[Advice]:
    proxy = run.report["proxy"]
    model = run.model["name"] if run.model else None
    for row in proxy["rounds"] if proxy else ():
        if row["model"] == model and row["over_optimised"]:
            yield Advice(
                f"{model} gained {format_signed(row['proxy']['mean'])} by {proxy['training']},"
                f" which made the pairs, and {format_signed(row['gold']['mean'])} by"
                f" {row['scorer']}, which made none: it learned to please {proxy['training']}",
                f"{STAY_CLOSER}; take an earlier round (rounds), or correct the scorer",
            )


def check_retention(run: FinishedRun) -> Iterator[Advice]:
    for row in run.report["retention"]:
        if row["state"] == "lost":
            yield Advice(
                f"{row['name']} was lost: it fell by more than evaluate.retention allows",
                f"{STAY_CLOSER}, or train demonstrations along"
                " (+rehearsal@train.rehearsal=default)",
            )
