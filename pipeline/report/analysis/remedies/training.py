"""What training did: how far the policy went, what its curves show, what became of its answers."""

from collections.abc import Iterator

from pipeline.report.analysis.remedies.finished_run import Advice, FinishedRun
from pipeline.report.analysis.verdict import FAR_NATS, NEAR_NATS, STAY_CLOSER
from pipeline.report.formatting import format_number, format_share, format_signed

LONGER, SHORTER = 1.3, 0.6  # the model's tokens by SFT's
ODD_RATE = 5.0  # times the typical learning rate, or a fifth of it
SEPARATED = 0.9  # the share of pairs that training tells apart
MORE_REPETITION = 0.05  # share of repeated trigrams above SFT's
LENGTH_SYMPTOM = "answers have grown past 1.5 times their length"  # as training names it
CHOSEN_LOGP_DROP = "eval_chosen_logp_drop"  # in metrics.jsonl


def check_symptoms(run: FinishedRun) -> Iterator[Advice]:
    """What each training noticed in its own curves."""
    for training in run.trainings:
        for row in training.symptoms:
            where = f"round {training.round}: " if len(run.trainings) > 1 else ""
            yield Advice(f"{where}{row['symptom']}: {row['cause']}", row["knob"])


def check_distance(run: FinishedRun) -> Iterator[Advice]:
    model = run.model
    nats = model["kl"]["mean"] if model else None
    if model is None or nats is None:
        return
    train = run.config["train"]
    now = f"(now {train['learning_rate']:g})"
    if nats > FAR_NATS:
        yield Advice(
            f"{model['name']} is {format_number(nats, 1)} nats from sft, over {FAR_NATS:g}: it has"
            " left what sft knows",
            f"lower train.learning_rate {now} or raise train.beta (now {train['beta']:g});"
            f" train.guards.kl_budget={FAR_NATS:g} stops there",
        )
    elif abs(nats) < NEAR_NATS:
        yield Advice(
            f"{model['name']} hardly moved: {format_number(nats, 2)} nats from sft",
            f"raise train.learning_rate {now}, train.epochs (now {train['epochs']:g}) or lower"
            f" train.beta (now {train['beta']:g})",
        )


def check_displacement(run: FinishedRun) -> Iterator[Advice]:
    limit = run.config["train"]["guards"]["warn_chosen_logp_drop"]
    for training in run.trainings:
        drops = [row[CHOSEN_LOGP_DROP] for row in training.metrics if CHOSEN_LOGP_DROP in row]
        if drops and drops[-1] > limit:
            yield Advice(
                f"round {training.round}: chosen answers lost {format_number(drops[-1], 2)} nats"
                f" per token (train.guards.warn_chosen_logp_drop={limit:g}): likelihood went to"
                " answers in no pair",
                "train=rpo, a higher train.beta, or fewer near-equal pairs"
                " (pair.filters.min_margin)",
            )


def check_separation(run: FinishedRun) -> Iterator[Advice]:
    """Training separates the pairs, and the score does not follow."""
    model, gap = run.model, run.gap
    curves = next(
        (row for row in run.report["training"] if model and row["round"] == model["name"]), None
    )
    if curves is None or gap is None or gap["low"] is None or gap["low"] > 0:
        return
    accuracy, margin = curves["accuracy"], curves["margin"]
    if accuracy is None or margin is None or accuracy < SEPARATED:
        return
    yield Advice(
        f"training tells {format_share(accuracy)} of its pairs apart (margin"
        f" {format_number(margin, 2)}) and the {run.split} score does not follow"
        f" ({format_signed(gap['mean'])})",
        "lower train.learning_rate or train.epochs, give more prompts (sample.per_round), or pairs"
        " that differ in what counts (pair.filters.min_margin)",
    )


def check_rate(run: FinishedRun) -> Iterator[Advice]:
    train = run.config["train"]
    rate, typical = train["learning_rate"], train["runtime"]["typical_learning_rate"]
    times = rate / typical
    if not run.is_better and not 1 / ODD_RATE < times < ODD_RATE:
        small = "; a model below a billion parameters takes more (docs/understand/rate.md)"
        yield Advice(
            f"the learning rate is {format_number(times, 2)} times the typical one",
            f"train.learning_rate={typical:g} (now {rate:g}){small if times > 1 else ''}",
        )


def check_early_stop(run: FinishedRun) -> Iterator[Advice]:
    for training in run.trainings:
        summary = training.summary
        if summary.get("stopped") and summary.get("kept", 0) <= summary.get("planned", 0) / 4:
            yield Advice(
                f"round {training.round} stopped early and kept step {summary['kept']} of"
                f" {summary['planned']}: {summary['stopped']}",
                "lower train.learning_rate, or evaluate more often (train.eval_every)",
            )


def check_length(run: FinishedRun) -> Iterator[Advice]:
    model, sft = run.model, run.find_model("sft")
    before = sft["tokens"]["mean"] if sft else None
    after = model["tokens"]["mean"] if model else None
    is_noticed = any(
        row["symptom"] == LENGTH_SYMPTOM for training in run.trainings for row in training.symptoms
    )
    if not before or after is None or is_noticed or SHORTER <= after / before <= LONGER:
        return
    longer = [pairs["chosen_longer"] for pairs in run.pairs[-1:] if pairs.get("chosen_longer")]
    why = f"; chosen is the longer one in {format_share(longer[0])} of the pairs" if longer else ""
    yield Advice(
        f"answers went from {format_number(before, 1)} to {format_number(after, 1)} tokens{why}",
        "pair=length_matched, pair.filters.max_length_ratio, or a loss per token"
        " (train=sigmoid_norm); see the length-adjusted win rates",
    )


def check_repetition(run: FinishedRun) -> Iterator[Advice]:
    model, sft = run.model, run.find_model("sft")
    after = model["repetition"] if model else None
    before = sft["repetition"] if sft else None
    if after is None or before is None or after - before <= MORE_REPETITION:
        return
    yield Advice(
        f"answers repeat themselves more: {format_share(before)} of their trigrams before,"
        f" {format_share(after)} now",
        f"{STAY_CLOSER}, or have chosen answers imitated too (train=rpo)",
    )
