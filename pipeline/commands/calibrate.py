"""`strop calibrate FILE [scorer=NAME,…] [key=value …]`: scorers against annotators' verdicts.

A scorer is one of score.scorers: from a recipe, or added by `+scorer@score.scorers.judge=FILE`. Two
baselines read nothing: the longer answer wins, and a coin. Prints a table and writes it to
calibration.json (out=PATH).
"""

import hashlib
import shlex
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_json, write_json
from pipeline.commands.table import parse_words, reports_errors
from pipeline.config import Block, EnsembleScorer, RewardConfig, ScoreConfig
from pipeline.config.compose import Arguments, compose_block
from pipeline.data.human_pairs import HumanComparison, read_human_comparisons
from pipeline.errors import UserError, pluralize, suggest
from pipeline.preflight.qualification import fill_reward_model
from pipeline.report.analysis.agreement import (
    Calibration,
    LabelledPair,
    calibrate,
    calibrate_annotators,
    estimate_gain,
)
from pipeline.report.analysis.statistics import Estimate
from pipeline.report.formatting import (
    UNKNOWN,
    format_interval,
    format_number,
    format_share,
    format_signed,
)
from pipeline.scorers import Answer, Score, open_scorer
from pipeline.scorers.ensemble import combine_scores

LONGER, COIN, ANNOTATORS = "longer wins", "random", "annotators"

Verdicts = dict[str, float | None]


class CalibrateConfig(Block):
    score: ScoreConfig
    reward: RewardConfig | None


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("calibrate", arguments)
    file, out = words.place(0), Path(words.knob("out"))
    names = [name for name in words.knob("scorer").split(",") if name]
    check_out(out, file)
    judged = read_human_comparisons(file)
    blocks = compose_block(Arguments.parse(words.overrides), CalibrateConfig)
    check_scorers(names, blocks.score)
    filled = fill_reward_model(blocks.score.scorers, blocks.reward)
    cfg = blocks.score.model_copy(update={"scorers": filled})
    verdicts = {name: collect_verdicts(cfg, name, judged) for name in names}
    results = summarize_calibration(judged, verdicts)
    write_json(out, {"file": file.name, **results})
    print("\n".join([*format_lines(results), str(out)]))
    return 0


def check_scorers(names: Iterable[str], cfg: ScoreConfig) -> None:
    """Refuse an unknown name before any scorer is asked: the first may be slow, or paid for."""
    for name in names:
        if name not in cfg.scorers:
            known = suggest(name, list(cfg.scorers))
            raise UserError(f"scorer={name}: score.scorers has no such scorer. {known}")


def check_out(out: Path, file: Path) -> None:
    """Refuse to overwrite anything but the table of an earlier call with the same file."""
    if out.is_dir() or not out.name:
        raise UserError(
            f"out={out}: this is a folder, and a file is needed.\n"
            "  Give a new file: out=calibration.json"
        )
    if out.exists():
        try:
            table = read_json(out)
        except UserError:
            table = None
        if not isinstance(table, dict) or not {"annotators_prefer", "scorers"} <= table.keys():
            raise UserError(
                f"out={out}: this file is not from calibrate. Nothing was written.\n"
                "  Give a new file: out=calibration.json"
            )
        if table.get("file", file.name) != file.name:
            new = shlex.quote(f"out=calibration-{file.stem}.json")
            raise UserError(
                f"out={out}: this is the table of {table['file']}. Nothing was written.\n"
                f"  Give a new file: {new}"
            )


# ── verdicts of a scorer ──────────────────────────────────────────────────────────────────────────


def collect_verdicts(
    cfg: ScoreConfig, name: str, judged: list[HumanComparison]
) -> tuple[Verdicts, Verdicts]:
    """A scorer's verdicts with the answers in the file's order, and with each pair swapped."""
    answers = [answer for pair in judged for answer in make_answers(pair)]
    swapped = [answer for pair in judged for answer in reversed(make_answers(pair))]
    scores, swapped_scores = (collect_scores(cfg, name, each) for each in (answers, swapped))
    return derive_verdicts(scores, judged), derive_verdicts(swapped_scores, judged)


def make_answers(pair: HumanComparison) -> list[Answer]:
    """One prompt id for each pair, so that a scorer of candidates compares just these two."""
    texts = {"first": pair.first, "second": pair.second}
    return [
        Answer(f"{pair.key}/{side}", pair.key, pair.prompt, text, {})
        for side, text in texts.items()
    ]


def collect_scores(cfg: ScoreConfig, name: str, answers: list[Answer]) -> dict[str, Score]:
    scorer = cfg.scorers[name]
    if isinstance(scorer, EnsembleScorer):
        members = {member: collect_scores(cfg, member, answers) for member in scorer.members}
        return {score.sample_id: score for score in combine_scores(scorer, answers, members)}
    with closing(open_scorer(scorer, knob=f"score.scorers.{name}")) as opened:
        return {score.sample_id: score for score in opened.score(answers) if not score.criterion}


def derive_verdicts(scores: dict[str, Score], judged: list[HumanComparison]) -> Verdicts:
    def verdict(pair: HumanComparison) -> float | None:
        first, second = (scores[f"{pair.key}/{side}"].score for side in ("first", "second"))
        if first is None or second is None:
            return None
        return 0.5 if first == second else float(first > second)

    return {pair.key: verdict(pair) for pair in judged}


def toss_coin(pair: HumanComparison) -> float:
    return float(hashlib.sha256(f"{pair.key} {pair.prompt_key}".encode()).digest()[0] % 2)


# ── summary ───────────────────────────────────────────────────────────────────────────────────────


def summarize_calibration(
    judged: list[HumanComparison], scorers: dict[str, tuple[Verdicts, Verdicts]]
) -> dict[str, Any]:
    pairs = {
        pair.key: LabelledPair(
            pair.prompt_key, list(pair.votes.values()), len(pair.first), len(pair.second)
        )
        for pair in judged
    }
    longer: Verdicts = {key: pair.longer for key, pair in pairs.items()}
    tosses: Verdicts = {pair.key: toss_coin(pair) for pair in judged}
    rows = {name: calibrate(pairs, *verdicts) for name, verdicts in scorers.items()}
    rows |= {LONGER: calibrate(pairs, longer), COIN: calibrate(pairs, tosses)}
    if agreement := calibrate_annotators(pairs):
        rows[ANNOTATORS] = agreement
    gains = {name: estimate_gain(pairs, verdicts[0], longer) for name, verdicts in scorers.items()}
    truth = calibrate(pairs, {key: pair.verdict for key, pair in pairs.items()})
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs.values()}),
        "decided": truth.decided,
        "split": sum(pair.verdict is None for pair in pairs.values()),
        "annotators_prefer": {
            "first": truth.prefers_first,
            "longer": truth.prefers_longer,
            "ties": truth.ties,
        },
        "scorers": {name: row.to_dict() for name, row in rows.items()},
        "warnings": [
            warning
            for name, gain in gains.items()
            for warning in list_warnings(name, gain.estimate, rows[name], truth.decided)
        ],
    }


def list_warnings(name: str, advantage: Estimate, own: Calibration, decided: int) -> Iterator[str]:
    """`own`: the scorer's figures; `decided`: how many pairs annotators decided."""
    if not decided:
        yield f"annotators decided no pair, so {name} cannot be compared with '{LONGER}'."
    elif advantage.mean is None and not own.ties and own.prefers_first is None:
        yield (
            f"{name} could not score both answers of any pair. These files have texts alone: a"
            " scorer that reads the prompts' columns cannot be calibrated on them."
        )
    elif advantage.mean is None:
        yield f"{name} has no verdict on a pair that annotators decided."
    elif advantage.low is None:
        yield f"One prompt is too few to tell whether {name} beats '{LONGER}'."
    elif advantage.low <= 0:
        clearly = "clearly " if advantage.mean > 0 else ""
        yield (
            f"{name} does not {clearly}beat '{LONGER}': {format_signed(advantage.mean)} agreement"
            f" by prompt ({format_interval(asdict(advantage), format_signed)}). Do not trust it on"
            " texts like these."
        )


HEAD = [
    "",
    "by prompt",
    "95 %",
    "by pair",
    "pairs",
    "exact",
    "κ",
    "ties",
    "first",
    "longer",
    "flips",
    "failed",
]


def format_lines(results: dict[str, Any]) -> Iterator[str]:
    rows, prefer = results["scorers"], results["annotators_prefer"]
    pairs, prompts = pluralize(results["pairs"], "pair"), pluralize(results["prompts"], "prompt")
    yield (
        f"{pairs} of {prompts} judged by annotators:"
        f" {results['decided']} decided, {results['split']} without a majority"
    )
    yield (
        f"annotators prefer the first answer in {format_share(prefer['first'])} of their decisions,"
        f" and the longer one in {format_share(prefer['longer'])} of those between answers of"
        " different length"
    )
    yield "agreement on decided pairs, where a tie counts one half:"
    yield "  by prompt: the mean over prompts of each prompt's pairs, with its interval"
    yield "  by pair: all decided pairs alike, as usually published; without an interval, since"
    yield "  pairs of one prompt are not independent"
    if ANNOTATORS in rows:
        yield f"{ANNOTATORS}: each annotator against each other; each two count in both directions"
    yield ""
    yield from align_columns([HEAD, *(format_cells(name, row) for name, row in rows.items())])
    yield ""
    yield "agreement by pair, by the length of the preferred answer relative to the other (pairs)"
    kinds = rows[LONGER]["by_length"]  # of all pairs: a scorer may have failed at some
    table = [["", *(f"{kind} ({row['pairs']})" for kind, row in kinds.items())]]
    for name, row in rows.items():
        table.append(
            [name, *(format_number(cell["agreement"]) for cell in row["by_length"].values())]
        )
    yield from align_columns(table)
    for warning in results["warnings"]:
        yield f"\n! {warning}"


def format_cells(name: str, row: dict[str, Any]) -> list[str]:
    shares = [
        format_share(row[key]) for key in ("ties", "prefers_first", "prefers_longer", "order_flips")
    ]
    mean = row["agreement"]["mean"]
    return [
        name,
        UNKNOWN if mean is None else format_number(mean),
        format_interval(row["agreement"]),
        format_number(row["pair_agreement"]),
        str(row["decided"]),
        format_number(row["exact"]),
        format_number(row["kappa"]),
        *shares,
        str(row["failed"]),
    ]


def align_columns(table: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        first, *rest = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()
