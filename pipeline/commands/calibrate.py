"""`strop calibrate FILE [scorer=NAME,…] [key=value …]`: scorers against people's verdicts on pairs.

A scorer is one of score.scorers (`+scorer@score.scorers.judge=FILE` mounts one, a recipe may bring it). Beside it stand
two who read nothing: longer wins, and a coin. Prints a table, writes calibration.json (out=PATH).
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_json, write_json
from pipeline.config import Block, EnsembleScorer, ScoreConfig
from pipeline.config.compose import Arguments, compose_block
from pipeline.errors import BROKE, REFUSED, StageError, UserError, many, nearest
from pipeline.report.analysis.agreement import (
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
from pipeline.scorers.human_pairs import HumanComparison, read_human_comparisons

USAGE = "strop calibrate FILE [scorer=NAME,…] [out=calibration.json] [recipes=NAME] [key=value …]"
LONGER, COIN, PEOPLE = "longer wins", "random", "people"

Verdicts = dict[str, float | None]


class Calibrated(Block):
    score: ScoreConfig


def main(arguments: list[str]) -> int:
    try:
        file, names, out, overrides = parsed(arguments)
        check_out(out)
        judged = read_human_comparisons(file)
        cfg = compose_block(Arguments.parse(overrides), Calibrated).score
        told = calibrated(judged, {name: verdicts_by(cfg, name, judged) for name in names})
    except (UserError, StageError) as fault:
        print(fault, file=sys.stderr)
        return REFUSED if isinstance(fault, UserError) else BROKE
    write_json(out, {"file": file.name, **told})
    show([*lines(told), str(out)])
    return 0


def show(told: list[str]) -> None:
    """A reader that has seen enough, such as `head`, is no fault."""
    try:
        print("\n".join(told), flush=True)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # for what Python itself writes at its end


def parsed(arguments: list[str]) -> tuple[Path, list[str], Path, list[str]]:
    own = {
        key: value
        for word in arguments
        for key, _, value in [word.partition("=")]
        if key in ("scorer", "out")
    }
    rest = [word for word in arguments if word.partition("=")[0] not in ("scorer", "out")]
    if not rest or "=" in rest[0]:
        raise UserError(f"Give the file of people's verdicts first: {USAGE}")
    names = [name for name in own.get("scorer", "").split(",") if name]
    return Path(rest[0]), names, Path(own.get("out", "calibration.json")), rest[1:]


def check_out(out: Path) -> None:
    """A table of an earlier call is written over; anything else that lies there is somebody's."""
    if out.is_dir() or not out.name:
        raise UserError(
            f"out={out}: a folder is there, and one file is written. Give a new file: out=calibration.json"
        )
    if out.exists():
        try:
            told = read_json(out)
        except UserError:
            told = None
        if not isinstance(told, dict) or not {"people_prefer", "scorers"} <= told.keys():
            raise UserError(
                f"out={out}: it is there already, and is no table that calibrate wrote. Nothing was written.\n"
                "  Give a new file: out=calibration.json"
            )


# ── verdicts of a scorer ──────────────────────────────────────────────────────────────────────────────────────────


def verdicts_by(
    cfg: ScoreConfig, name: str, judged: list[HumanComparison]
) -> tuple[Verdicts, Verdicts]:
    """In the file's order of answers, and as said of that order when each pair is asked the other way round."""
    if name not in cfg.scorers:
        raise UserError(
            f"scorer={name}: there is no such scorer in score.scorers. {nearest(name, list(cfg.scorers))}"
        )
    answers = [answer for pair in judged for answer in answers_to(pair)]
    turned = [answer for pair in judged for answer in reversed(answers_to(pair))]
    return compared(marks_by(cfg, name, answers), judged), compared(
        marks_by(cfg, name, turned), judged
    )


def answers_to(pair: HumanComparison) -> list[Answer]:
    """A prompt of its own for each pair, so that a scorer which compares candidates compares these two."""
    texts = {"first": pair.first, "second": pair.second}
    return [
        Answer(f"{pair.key}/{side}", pair.key, pair.prompt, text, {})
        for side, text in texts.items()
    ]


def marks_by(cfg: ScoreConfig, name: str, answers: list[Answer]) -> dict[str, Score]:
    scorer = cfg.scorers[name]
    if isinstance(scorer, EnsembleScorer):
        members = {member: marks_by(cfg, member, answers) for member in scorer.members}
        return {mark.sample_id: mark for mark in combine_scores(scorer, answers, members)}
    with closing(open_scorer(scorer, knob=f"score.scorers.{name}")) as opened:
        return {mark.sample_id: mark for mark in opened.score(answers) if not mark.criterion}


def compared(marks: dict[str, Score], judged: list[HumanComparison]) -> Verdicts:
    def verdict(pair: HumanComparison) -> float | None:
        first, second = marks[f"{pair.key}/first"].score, marks[f"{pair.key}/second"].score
        if first is None or second is None:
            return None
        return 0.5 if first == second else float(first > second)

    return {pair.key: verdict(pair) for pair in judged}


def coin(pair: HumanComparison) -> float:
    return float(hashlib.sha256(f"{pair.key} {pair.prompt_key}".encode()).digest()[0] % 2)


# ── what is said of them ──────────────────────────────────────────────────────────────────────────────────────────


def calibrated(
    judged: list[HumanComparison], scorers: dict[str, tuple[Verdicts, Verdicts]]
) -> dict[str, Any]:
    pairs = {
        pair.key: LabelledPair(
            pair.prompt_key,
            pair.majority,
            list(pair.votes.values()),
            len(pair.first),
            len(pair.second),
        )
        for pair in judged
    }
    longer: Verdicts = {key: pair.longer for key, pair in pairs.items()}
    rows = {name: calibrate(pairs, *asked) for name, asked in scorers.items()}
    rows |= {
        LONGER: calibrate(pairs, longer),
        COIN: calibrate(pairs, {pair.key: coin(pair) for pair in judged}),
    }
    if among := calibrate_annotators(pairs):
        rows[PEOPLE] = among
    gains = {name: estimate_gain(pairs, asked[0], longer) for name, asked in scorers.items()}
    truth = calibrate(pairs, {key: pair.verdict for key, pair in pairs.items()})
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs.values()}),
        "decided": truth.decided,
        "split": sum(pair.verdict is None for pair in pairs.values()),
        "people_prefer": {
            "first": truth.prefers_first,
            "longer": truth.prefers_longer,
            "ties": truth.ties,
        },
        "scorers": {name: row.to_dict() for name, row in rows.items()},
        "warnings": [
            warning for name, one in gains.items() for warning in distrusted(name, one.estimate)
        ],
    }


def distrusted(name: str, gained: Estimate) -> Iterator[str]:
    if gained.mean is None:
        yield (
            f"{name} could mark no two answers of any pair. These files hold texts alone: a scorer that reads the"
            " prompts' columns cannot be calibrated on them."
        )
    elif gained.low is None or gained.low <= 0:
        yield (
            f"{name} does not beat '{LONGER}': {format_signed(gained.mean)} agreement by prompt"
            f" ({format_interval(asdict(gained), format_signed)}). Do not trust it on texts like these."
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


def lines(told: dict[str, Any]) -> Iterator[str]:
    rows = told["scorers"]
    people = told["people_prefer"]
    yield (
        f"{many(told['pairs'], 'pair')} of {many(told['prompts'], 'prompt')} judged by people:"
        f" {told['decided']} decided, {told['split']} without a majority"
    )
    yield (
        f"people prefer the first answer in {format_share(people['first'])} and the longer one in {format_share(people['longer'])}"
        " of their decisions"
    )
    yield "agreement where people decided, a tie is half right: by prompt (the mean of each prompt's own pairs, with"
    yield "its interval) and by pair (all decided pairs alike, which is what others publish; pairs of one prompt are no"
    yield "independent evidence, so it has no interval)"
    if PEOPLE in rows:
        yield f"{PEOPLE}: each annotator of a pair held against each other one, so a pair counts once for each such two"
    yield ""
    yield from aligned([HEAD, *(cells(name, row) for name, row in rows.items())])
    yield ""
    yield "agreement by pair, by how long the answer is that people prefer, against the other (pairs)"
    kinds = rows[LONGER]["by_length"]  # of all pairs: a scorer may have failed at some
    table = [["", *(f"{kind} ({row['pairs']})" for kind, row in kinds.items())]]
    for name, row in rows.items():
        table.append(
            [name, *(format_number(cell["agreement"]) for cell in row["by_length"].values())]
        )
    yield from aligned(table)
    for warning in told["warnings"]:
        yield f"\n! {warning}"


def cells(name: str, row: dict[str, Any]) -> list[str]:
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


def aligned(table: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        first, *rest = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
