"""`strop doctor RUN`: what went wrong in a run, or what to try next, in at most ten lines.

A finished run is judged by its report, a broken one by its ledger and the log of the step that
failed. Reads files alone and loads no model.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path

from pipeline import store
from pipeline.artifacts import Model, read_object
from pipeline.commands.table import parse_words, reports_errors
from pipeline.driver.failures import explain_failure
from pipeline.driver.run_index import SHARED, is_point
from pipeline.driver.run_record import RunState, read_state, sum_seconds
from pipeline.errors import DONE, UserError, describe_place, pluralize
from pipeline.report.analysis.remedies import find_advice
from pipeline.report.analysis.remedies.finished_run import FinishedRun, RoundTraining
from pipeline.report.analysis.verdict import write_headline
from pipeline.report.formatting import (
    format_duration,
    format_interval,
    format_number,
    format_signed,
)

MAX_LINES = 10
TRAINING = "training.json"
REPORT_PARTS = {"evaluation": dict, "verdict": dict, "models": list, "differences": list}
REPORT_PARTS |= {"funnel": dict, "training": list, "duels": list, "retention": list}


@reports_errors
def main(arguments: list[str]) -> int:
    print("\n".join(diagnose_run(parse_words("doctor", arguments).place(0))))
    return DONE


def diagnose_run(run: Path) -> list[str]:
    check_is_run(run)
    state = read_state(run)
    if state.status == "running":
        return [f"{run}: running. {_describe_progress(state)}"]
    if state.status != "finished":
        head = f"{run}: {state.status}. {_describe_progress(state)}"
        return [head, *explain_failure(state)][:MAX_LINES]
    if not (run / "report.json").is_file():
        return [
            f"{run}: finished without a report, after {pluralize(len(state.ledger), 'step')}.",
            "Type its command without until= to evaluate the model: what is built is kept.",
        ]
    return describe_finished(read_finished_run(run), run)


def check_is_run(run: Path) -> None:
    if (run / store.PLAN).is_file():
        return
    points = sorted(path.parent for path in run.glob(f"*/{store.PLAN}") if is_point(path.parent))
    points = [point for point in points if point.name != SHARED]
    if points:
        states = [f"{point} ({read_state(point).status})" for point in points[:4]]
        raise UserError(
            f"{run}: a sweep of {pluralize(len(points), 'run')}. Give one of them:"
            f" {', '.join(states)}."
        )
    raise UserError(
        f"{run}: no run here{describe_place(run)}. Give one as strop doctor runs/RECIPE/TIME, or"
        " runs/latest. runs/index.html lists them all."
    )


def _describe_progress(state: RunState) -> str:
    """How far it is: `Step 3 of 16, sample round 1, after 2 min 05 s; 2 steps are built.`"""
    built = pluralize(sum(line["sign"] != "✗" for line in state.ledger), "step")
    spent = format_duration(sum_seconds(state.ledger))
    if state.broken is None:
        return f"{built} built in {spent}."
    of_all = f" of {state.steps}" if state.steps else ""
    where = f"Step {state.broken.number}{of_all}, {state.broken.name}"
    return f"{where}; {built} before it took {spent} and are kept."


# ── a finished run ───────────────────────────────────────────────────────────────────────────────


def read_finished_run(run: Path) -> FinishedRun:
    import yaml

    report = read_object(run / "report.json", **REPORT_PARTS)
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"{run / 'config.yaml'}: cannot be read ({str(error).splitlines()[0]}).\n"
            "  Type the run's command again: what is built is kept."
        ) from error
    links = sorted((run / "store").glob("[0-9]*-train-[0-9]*"))  # not the replicates
    own = {str(number) for number in config.get("train_in_round") or ()}
    return FinishedRun(
        report, config, [read_training(link, own) for link in links if has_record(link)]
    )


def has_record(step: Path) -> bool:
    """Not where a training was pruned or the store was moved."""
    return (step / TRAINING).is_file()


def read_training(step: Path, own_rounds: Collection[str]) -> RoundTraining:
    """`own_rounds`: those with a training of their own. What is published says `train` of all."""
    recorded, number = read_object(step / TRAINING), step.name.rpartition("-")[2]
    if number in own_rounds:
        knob = f"train_in_round.{number}"
        text = re.sub(r"\btrain(?=\.\w)", knob, json.dumps(recorded, ensure_ascii=False))
        recorded = json.loads(re.sub(r"\btrain=", f"train@{knob}=", text))
    return RoundTraining(number, recorded, Model(step).read_metrics())


def describe_finished(run: FinishedRun, folder: Path) -> list[str]:
    try:
        head = f"{folder}: finished. {write_headline(run.report)} {_describe_gain(run)}".rstrip()
        advice = find_advice(run)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / 'report.json'}: of another version ({error!r}).\n"
            f"  Write it again by the present code: strop report {folder}"
        ) from error
    links = (folder / "store").glob("[0-9]*-train-*")
    if not all(map(has_record, links)):
        head += " The trainings' own records were pruned, so their curves are not judged."
    shown = advice[: MAX_LINES - 2]
    lines = [
        f"{number}. {each.symptom}. Try: {each.remedy}." for number, each in enumerate(shown, 1)
    ]
    return [head, *lines, _describe_rest(len(advice) - len(shown), bool(advice), folder)]


def _describe_gain(run: FinishedRun) -> str:
    model, sft, gap = run.model, run.find_model("sft"), run.gap
    if not (model and sft and gap) or gap["mean"] is None:
        return ""
    means = [each["metrics"].get(run.scorer, {}).get("mean") for each in (sft, model)]
    before, after = map(format_number, means)
    ends = format_interval(gap, format_signed)
    return (
        f"{model['name']} scores {after} and sft {before} by {run.scorer} on {run.split}"
        f" ({format_signed(gap['mean'])}, {ends})."
    )


def _describe_rest(left: int, has_advice: bool, folder: Path) -> str:
    if left:
        return f"{left} more in {folder / 'report.html'}."
    if has_advice:
        return f"The report: {folder / 'report.html'}"
    return f"Nothing in its figures asks for a change. The report: {folder / 'report.html'}"
