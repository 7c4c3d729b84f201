"""Is the chosen model better than SFT? The answer, its figures and the knob to turn next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.analysis.statistics import TIE
from pipeline.report.formatting import (
    ReportRow,
    explain_spread,
    format_interval,
    format_level,
    format_number,
    format_signed,
)

MIN_PROMPTS = 30
# Beyond the first bound the policy has left what SFT knows; below the second it has hardly learned.
FAR_NATS, NEAR_NATS = 5.0, 0.1

UNCHANGED = (
    "{} weights are byte for byte those that its training started from: no step changed them. "
    "Give it more steps (more pairs, a smaller train.batch, more train.epochs) or a higher "
    "train.learning_rate. Where train.dtype is bfloat16, train.dtype=float32 rounds far fewer "
    "steps away."
)
STAY_CLOSER = "lower train.learning_rate or, where a reference holds it, raise train.beta"

Better = Literal["yes", "no", "unclear"]


@dataclass(frozen=True)
class VerdictBasis:
    """What the verdict is based on; `chosen` is None when the chosen model was not evaluated.

    `training` is the scorer that made the pairs (None: no scorer did); `gold` scorers made none.
    `members`: the scorers that `training` combines, where it is an ensemble.
    `unchanged`: training changed no weight of the chosen model, or of the last round if sft won.
    """

    split: str
    prompts: int
    scorer: str
    level: float
    chosen: str | None
    training: str | None = None
    gold: tuple[str, ...] = ()
    unchanged: bool = False
    members: tuple[str, ...] = ()


def reach_verdict(
    basis: VerdictBasis,
    models: Sequence[ReportRow],
    differences: Sequence[ReportRow],
    gate: ReportRow | None = None,
) -> dict[str, str]:
    """`gate`: the last one, where the run has gates."""
    better, why = _decide(basis, models, differences, gate or {})
    return {"better": better, "why": why}


def _decide(
    basis: VerdictBasis,
    models: Sequence[ReportRow],
    differences: Sequence[ReportRow],
    gate: ReportRow,
) -> tuple[Better, str]:
    if basis.chosen is None:
        return "unclear", "The chosen model was not evaluated, so it has no verdict."
    if basis.chosen == "sft":
        why = "The chosen model is sft itself: no trained model was preferred to it."
        return "no", why + _explain_sft_chosen(basis, models, differences, gate)
    key = basis.chosen, basis.scorer
    gap = next((row for row in differences if (row["model"], row["scorer"]) == key), None)
    if gap is None or not gap["n"]:
        return "unclear", (
            f"No {basis.split} prompt has a score of {basis.scorer} for both {basis.chosen} and sft"
            ": see what is missing, and how many scores failed in the table of models."
        )
    if gap["n"] < MIN_PROMPTS:
        return "unclear", _explain_too_few(basis, gap)
    by_name = {model["name"]: model for model in models}
    return _decide_by_interval(basis, gap, by_name, _select_other_scorers(basis, differences))


def _select_other_scorers(basis: VerdictBasis, differences: Sequence[ReportRow]) -> list[ReportRow]:
    """The chosen model's differences by the other scorers, without their criteria."""
    return [
        row
        for row in differences
        if row["model"] == basis.chosen
        and row["n"] >= MIN_PROMPTS
        and row["scorer"] != basis.scorer
        and "/" not in row["scorer"]
    ]


def _decide_by_interval(
    basis: VerdictBasis, gap: ReportRow, models: dict[str, ReportRow], others: Sequence[ReportRow]
) -> tuple[Better, str]:
    chosen = models[basis.chosen or ""]
    figures = _describe_difference(basis, gap, chosen, models["sft"])
    if gap["low"] > 0 and (flat := _find_flat_gold(basis, others)):
        return "unclear", f"{figures} {_explain_flat_gold(basis, flat)}"
    if gap["low"] > 0:
        not_better = [_describe_no_gain(row) for row in others if row["low"] <= 0]
        return "yes", " ".join([figures, *not_better])
    better: Better = "no" if gap["high"] < 0 else "unclear"
    if basis.unchanged:
        return better, f"{figures} {UNCHANGED.format('Its')}"
    risen = [row for row in others if row["low"] > 0]
    by_training = [row for row in risen if row["scorer"] == basis.training]
    if by_training:
        return better, f"{figures} {_explain_over_optimisation(basis, gap, by_training[0])}"
    gains = [f"{_describe_gain(row)}." for row in risen]
    advice = (
        _advise_after_no(basis, chosen)
        if better == "no"
        else _advise_after_unclear(basis, gap, chosen)
    )
    return better, " ".join([figures, *gains, advice])


def _describe_difference(
    basis: VerdictBasis, gap: ReportRow, chosen: ReportRow, sft: ReportRow
) -> str:
    """With both means, unless a mean is over other prompts than the difference is."""
    difference = (
        f"{format_signed(gap['mean'])}, {format_level(basis.level)} "
        f"{format_interval(gap, format_signed)}."
    )
    if "between" in gap:
        difference = f"{difference} {explain_spread(gap)}"
    metrics = [model["metrics"][basis.scorer] for model in (chosen, sft)]
    if any(metric["n"] != gap["n"] for metric in metrics):
        return (
            f"On the {gap['n']} {basis.split} prompts where both have a score of {basis.scorer}, "
            f"{basis.chosen} differs from sft by {difference}"
        )
    means = [format_number(metric["mean"]) for metric in metrics]
    return (
        f"On {gap['n']} {basis.split} prompts {basis.chosen} scores {means[0]} against sft's "
        f"{means[1]} by {basis.scorer}: a difference of {difference}"
    )


def _find_flat_gold(basis: VerdictBasis, others: Sequence[ReportRow]) -> ReportRow | None:
    """A gold scorer that does not see the gain which the scorer that made the pairs sees."""
    if basis.scorer != basis.training:
        return None
    return next((row for row in others if row["scorer"] in basis.gold and row["low"] <= 0), None)


def _explain_flat_gold(basis: VerdictBasis, gold: ReportRow) -> str:
    return (
        f"But {basis.scorer} made the pairs, and {gold['scorer']}, which made none, "
        f"{phrase_gold(gold)}: "
        f"{format_signed(gold['mean'])}, {format_interval(gold, format_signed)}. "
        f"It {phrase_over_optimisation(basis.scorer, gold)}. "
        f"{advise_staying_close(basis.chosen)}, or fix {basis.scorer}."
    )


def phrase_gold(gold: ReportRow) -> str:
    """How a gold score that does not surely rise compares with a gain by the training scorer."""
    return "does not follow" if (gold["mean"] or 0) <= 0 else "does not clearly follow"


def phrase_over_optimisation(training: str, gold: ReportRow) -> str:
    """A gold score that rose too little to be sure of leaves over-optimisation open."""
    return f"{'learned' if (gold['mean'] or 0) <= 0 else 'may have learned'} to please {training}"


def advise_staying_close(chosen: str | None) -> str:
    """What keeps a model closer to SFT; round 1 has no earlier round to take."""
    if chosen == "round-1":
        return f"{STAY_CLOSER[0].upper()}{STAY_CLOSER[1:]}"
    return f"Take an earlier round, {STAY_CLOSER}"


def _describe_no_gain(row: ReportRow) -> str:
    word = "worse" if row["high"] < 0 else "not clearly better"
    ends = format_interval(row, format_signed)
    return f"By {row['scorer']} it is {word}: {format_signed(row['mean'])}, {ends}."


def _describe_gain(row: ReportRow) -> str:
    ends = format_interval(row, format_signed)
    return f"By {row['scorer']} it rose by {format_signed(row['mean'])}, {ends}"


def _explain_over_optimisation(basis: VerdictBasis, gap: ReportRow, row: ReportRow) -> str:
    return (
        f"{_describe_gain(row)}: it {phrase_over_optimisation(row['scorer'], gap)}, "
        f"which made the pairs, and {basis.scorer} {phrase_gold(gap)}. "
        f"{advise_staying_close(basis.chosen)}, or fix {row['scorer']}."
    )


def _explain_too_few(basis: VerdictBasis, gap: ReportRow) -> str:
    prompts = f"{gap['n']} {basis.split} prompt{'s are' if gap['n'] != 1 else ' is'}"
    remedy = (
        "The other prompts lack a score for one of the two models: "
        "see what is missing, and how many scores failed."
        if basis.prompts >= MIN_PROMPTS
        else f"Give more {basis.split} prompts: prompts.split.{basis.split}."
    )
    return (
        f"{prompts} too few to tell: {basis.chosen} differs from sft by "
        f"{format_signed(gap['mean'])} in {basis.scorer}, "
        f"and a verdict needs at least {MIN_PROMPTS}. {remedy}"
    )


def _explain_sft_chosen(
    basis: VerdictBasis,
    models: Sequence[ReportRow],
    differences: Sequence[ReportRow],
    gate: ReportRow,
) -> str:
    """By the last round. A round that is surely better here was rejected for another reason."""
    rounds = [model for model in models if model["name"].startswith("round-")]
    if not rounds:
        return ""
    name, nats = rounds[-1]["name"], rounds[-1]["kl"]["mean"]
    gaps = {
        row["model"]: row
        for row in differences
        if row["scorer"] == basis.scorer and row["n"] >= MIN_PROMPTS
    }
    known = [gaps[model["name"]] for model in rounds if model["name"] in gaps]
    better = [gap for gap in known if gap["low"] > 0]
    last = gaps.get(name)
    if basis.unchanged:
        return f" {UNCHANGED.format(f'The {name} model’s')}"
    if too_far := _explain_too_far(name, gate):
        return f" {too_far}"
    if _is_near(nats):
        return f" {_describe_small_move(name, nats)}"
    if _is_far(nats) or (last and last["high"] < 0 and not better):
        return f" {_advise_after_no(basis, rounds[-1], name)}"
    if better:
        return (
            f" Yet by {basis.scorer} {better[-1]['model']} scores better than sft on {basis.split}:"
            f" {format_signed(better[-1]['mean'])}, {format_interval(better[-1], format_signed)}."
            " See why the gate rejected it: gate.scorer, gate.min_gain, gate.kl_budget."
        )
    remedies = ["train further (rounds, train.learning_rate)"]
    remedies += ["give clearer pairs (pair.filters.min_margin)"] if basis.training else []
    remedies += ["lower gate.min_gain"] if gate.get("min_gain") else []
    return f" {_describe_indistinguishable(basis, name, last)} Next: {', or '.join(remedies)}."


def _explain_too_far(name: str, gate: ReportRow) -> str | None:
    """The gate's budget where it rejected the model for its distance."""
    row = next((row for row in gate.get("candidates", ()) if row["model"] == name), None)
    if row is None or row["outcome"] != "too far":
        return None
    budget = gate.get("kl_budget")
    knob = "gate.kl_budget" if budget is None else f"gate.kl_budget={budget:g}"
    return (
        f"The gate rejected {name}: on dev it is {format_number(row['kl'], 2)} nats from sft, over"
        f" {knob}. Raise gate.kl_budget, {STAY_CLOSER}."
    )


def _describe_indistinguishable(basis: VerdictBasis, name: str, gap: ReportRow | None) -> str:
    if gap is None:
        return (
            f"Too few {basis.split} prompts have a score of {basis.scorer}"
            f" to distinguish {name} from sft."
        )
    return (
        f"By {basis.scorer} {name} cannot be distinguished from sft on {basis.split} either:"
        f" {format_signed(gap['mean'])}, {format_interval(gap, format_signed)}."
    )


def _is_near(nats: float | None) -> bool:
    """An estimate may fall below zero. Further below than this it is noise and shows nothing."""
    return nats is not None and abs(nats) < NEAR_NATS


def _is_far(nats: float | None) -> bool:
    return nats is not None and nats > FAR_NATS


def _advise_clearer_pairs(basis: VerdictBasis) -> str:
    """Pairs that no scorer made have no margin to raise."""
    if basis.training is None:
        return "Correct them: strop edit writes them to a file for pair.edits"
    return "Raise pair.filters.min_margin, or score pairs by another pair.scorer"


def _advise_after_no(basis: VerdictBasis, model: ReportRow, who: str = "It") -> str:
    nats = model["kl"]["mean"]
    if _is_far(nats):
        return _describe_large_move(who, nats)
    if _is_near(nats):
        return (
            f"{who} moved only {format_number(nats, 2)} nats away from sft: misleading pairs are"
            f" likelier than too large a step. {_advise_clearer_pairs(basis)}."
        )
    remedy = (
        "raise pair.filters.min_margin"
        if basis.training
        else "correct the pairs (strop edit, pair.edits)"
    )
    return (
        f"Too large a step or misleading pairs are likely: lower train.learning_rate or {remedy}."
    )


def _advise_after_unclear(basis: VerdictBasis, gap: ReportRow, chosen: ReportRow) -> str:
    nats, knob = chosen["kl"]["mean"], f"prompts.split.{basis.split}"
    if _is_near(nats):
        return _describe_small_move("It", nats)
    if _is_far(nats):
        return _describe_large_move("It", nats)
    if "between" in gap and gap["low"] < gap["high"]:
        more = f"seeds={2 * gap['between']['seeds']['n']}" if gap["wider"] == "seeds" else knob
        return f"Give more {gap['wider']} ({more}) or train further (rounds, train.learning_rate)."
    if is_flat(gap):
        return (
            f"{basis.scorer} gives both models the same score on every prompt: choose a scorer that"
            " distinguishes them (evaluate.scorer), or train further (rounds, train.learning_rate)."
        )
    return (
        f"This many prompts can detect a difference of {format_detectable(gap)}: evaluate on more"
        f" ({knob}) or train further (rounds, train.learning_rate)."
    )


def is_flat(gap: ReportRow) -> bool:
    """All paired differences are equal, so how small a difference could be detected is unknown."""
    return (gap["detectable"] or 0.0) <= TIE


def format_detectable(gap: ReportRow) -> str:
    return format_number(gap["detectable"])


def _describe_small_move(who: str, nats: float) -> str:
    return (
        f"{who} hardly moved from sft ({format_number(nats, 2)} nats): "
        "raise train.learning_rate or train.epochs."
    )


def _describe_large_move(who: str, nats: float) -> str:
    return f"{who} moved {format_number(nats, 1)} nats away from sft: {STAY_CLOSER}."


def _has_gained(report: ReportRow) -> bool:
    """On as many prompts as a verdict needs."""
    key = report["evaluation"]["chosen"], report["evaluation"]["scorer"]
    own = [row for row in report["differences"] if (row["model"], row["scorer"]) == key]
    return any(row["n"] >= MIN_PROMPTS and row["low"] > 0 for row in own)


def _pick_worst_gold(proxy: ReportRow, chosen: str) -> ReportRow:
    """Of the gold scorers that do not follow, the lowest."""
    rounds = [row for row in proxy["rounds"] if row["model"] == chosen and row["over_optimised"]]
    return min((row["gold"] for row in rounds), key=lambda gold: gold["mean"])


def write_headline(report: ReportRow) -> str:
    """The verdict in one short sentence."""
    chosen = report["evaluation"]["chosen"] or "the chosen model"
    better, proxy = report["verdict"]["better"], report["proxy"]
    if proxy and proxy["over_optimised"] and better != "yes":
        gold = _pick_worst_gold(proxy, chosen)
        pleased = phrase_over_optimisation(proxy["training"], gold)
        return f"{chosen} {pleased}; the gold score {phrase_gold(gold)}."
    lost, unknown = (_list_retained(report, state) for state in ("lost", "unknown"))
    if lost:
        return f"{chosen} lost {', '.join(lost)}."
    if unknown and better == "unclear" and _has_gained(report):
        return (
            f"{chosen} scores better than sft; whether {', '.join(unknown)} was kept is not known."
        )
    match better:
        case "yes":
            return f"{chosen} is better than sft."
        case "no" if chosen == "sft":
            return "No trained model was preferred to sft."
        case "no":
            return f"{chosen} is worse than sft."
        case _:
            return f"It is unclear whether {chosen} is better than sft."


def _list_retained(report: ReportRow, state: str) -> list[str]:
    return [row["name"] for row in report["retention"] if row["state"] == state]
