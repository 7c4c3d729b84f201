"""The pairs: too many ties, too few pairs, samples and pairs that were lost on the way."""

from collections.abc import Iterator, Mapping

from pipeline.report.analysis.remedies.finished_run import Advice, FinishedRun
from pipeline.report.analysis.verdict import STAY_CLOSER
from pipeline.report.formatting import format_count, format_share

MANY_TIES = 0.3  # prompts whose samples all score alike
MANY_TRUNCATED = 0.1  # answers that reach the token limit
MANY_FILTERED = 0.5  # of samples, prompts or pairs, by one filter
FEW_STEPS, FEW_PAIRS = 10, 100  # of one training
# The filter that gives a reason, by its knob in pair.filters.
FILTERS = {
    "margin too small": "min_margin",
    "chosen score too low": "min_chosen",
    "rejected score too high": "max_rejected",
    "length ratio": "max_length_ratio",
    "chosen too much longer": "max_token_gap",
    "excluded word": "excluded_words",
    "scorers disagree": "max_disagreement",
    "judge flips": "max_flip_rate",
    "refusal": "allow_refusals",
    "other language": "languages",
    "pass rate outside the band": "pass_rate",
    "unlikely under the reference": "min_reference",
    "nearly equal answers": "near_duplicate_threshold",
    "near another pair": "near_duplicate_threshold",
}


def check_ties(run: FinishedRun) -> Iterator[Advice]:
    for pairs in run.pairs[-1:]:
        ties, asked = pairs["ties"]["prompts"], pairs["prompts_in"]
        if not asked or ties / asked <= MANY_TIES:
            continue
        symptom = (
            f"all samples score alike on {format_share(ties / asked)} of round"
            f" {pairs['round']}'s {format_count(asked)} prompts, which make no pair"
        )
        yield Advice(symptom, _advise_ties(run, pairs["ties"]))


def _advise_ties(run: FinishedRun, ties: Mapping[str, int]) -> str:
    name, setting = run.setting
    more = (
        f"sample.settings.{name}.n={2 * setting['n']} (now {setting['n']}), a higher"
        f" sample.settings.{name}.temperature (now {setting['temperature']:g}), or"
        " sample.resample_ties=[4] for these alone"
    )
    if ties["all_hard"] > ties["prompts"] / 2:
        return f"{ties['all_hard']} score lowest throughout: give easier prompts; or {more}"
    if ties["all_easy"] > ties["prompts"] / 2:
        return f"{ties['all_easy']} score highest throughout: give harder prompts; or {more}"
    return f"{more}; a finer scorer ties less (pair.scorer)"


def check_pairs(run: FinishedRun) -> Iterator[Advice]:
    steps = {row["round"]: row["planned"] or row["steps"] for row in run.report["training"]}
    for pairs in run.pairs[-1:]:
        taken = steps.get(f"round-{pairs['round']}")
        if pairs["train"] >= FEW_PAIRS and (taken is None or taken >= FEW_STEPS):
            continue
        in_steps = f" in {taken} steps" if taken else ""
        per_round, train = run.config["sample"]["per_round"], run.config["train"]
        yield Advice(
            f"round {pairs['round']} trained on {pairs['train']} pairs{in_steps}",
            f"give more prompts (sample.per_round, now {per_round or 'all'}), pairs of each"
            f" (pair.pairs_per_prompt), or more steps: a smaller train.batch (now"
            f" {train['batch']}), more train.epochs",
        )


def check_filters(run: FinishedRun) -> Iterator[Advice]:
    """One filter that takes most of what it sees. Ties and truncated samples have checks here."""
    for pairs in run.pairs[-1:]:
        for kind in ("samples", "prompts", "pairs"):
            for reason, count in pairs[f"dropped_{kind}"].items():
                share = count / max(pairs[f"{kind}_in"], 1)
                if reason in FILTERS and share > MANY_FILTERED:
                    knob = FILTERS[reason]
                    now = run.config["pair"]["filters"][knob]
                    yield Advice(
                        f"{format_share(share)} of round {pairs['round']}'s {kind} were dropped:"
                        f" {reason}",
                        f"loosen pair.filters.{knob} (now {now})",
                    )


def check_truncation(run: FinishedRun) -> Iterator[Advice]:
    """Of the samples that pairs are made of."""
    limit = run.config["limits"]["completion"]
    lost = "" if run.config["pair"]["filters"]["allow_truncated"] else " and make no pairs"
    for samples in run.report["funnel"]["samples"]:
        share = samples["truncated"] / max(samples["completions"], 1)
        if isinstance(samples["label"], int) and share > MANY_TRUNCATED:
            yield Advice(
                f"{format_share(share)} of round {samples['label']}'s samples reach the limit of"
                f" {limit} tokens{lost}",
                _advise_length(limit),
            )
            return


def _advise_length(limit: int) -> str:
    return f"raise limits.completion={2 * limit} (now {limit}), or end answers by a stop string"


def check_answers_end(run: FinishedRun) -> Iterator[Advice]:
    """A model that is cut where SFT ended its answers does not need a higher limit."""
    if any(check_truncation(run)):
        return
    limit = run.config["limits"]["completion"]
    model, sft = run.model, run.find_model("sft")
    share = (model["truncated"] if model else None) or 0.0
    before = (sft["truncated"] if sft else None) or 0.0
    if model and share > MANY_TRUNCATED:
        runs_on = share - before > MANY_TRUNCATED
        yield Advice(
            f"{format_share(share)} of {model['name']}'s {run.split} answers reach the limit of"
            f" {limit} tokens (sft: {format_share(before)})",
            f"{STAY_CLOSER}: it no longer ends its answers" if runs_on else _advise_length(limit),
        )
