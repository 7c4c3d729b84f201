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
from pipeline.config.compose import Arguments, block
from pipeline.errors import FAILED, USER_ERROR, StageError, UserError, pluralize, suggest
from pipeline.report.analysis.agreement import Pair, calibration, gain, people_s_own
from pipeline.report.analysis.statistics import Estimate
from pipeline.report.formatting import UNKNOWN, interval, number, share, signed
from pipeline.scorers import Answer, Score, open_scorer
from pipeline.scorers.ensemble import combined
from pipeline.scorers.human_pairs import Judged, read_judged

USAGE = "strop calibrate FILE [scorer=NAME,…] [out=calibration.json] [recipes=NAME] [key=value …]"
LONGER, COIN, ANNOTATORS = "longer wins", "random", "people"

Verdicts = dict[str, float | None]


class CalibrateConfig(Block):
    score: ScoreConfig


def main(arguments: list[str]) -> int:
    try:
        file, names, out, overrides = parse_arguments(arguments)
        check_out(out)
        judged = read_judged(file)
        cfg = block(Arguments.parse(overrides), CalibrateConfig).score
        told = summarize_calibration(
            judged, {name: collect_verdicts(cfg, name, judged) for name in names}
        )
    except (UserError, StageError) as fault:
        print(fault, file=sys.stderr)
        return USER_ERROR if isinstance(fault, UserError) else FAILED
    write_json(out, {"file": file.name, **told})
    print_lines([*format_lines(told), str(out)])
    return 0


def print_lines(told: list[str]) -> None:
    """A reader that has seen enough, such as `head`, is no fault."""
    try:
        print("\n".join(told), flush=True)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # for what Python itself writes at its end


def parse_arguments(arguments: list[str]) -> tuple[Path, list[str], Path, list[str]]:
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


def collect_verdicts(
    cfg: ScoreConfig, name: str, judged: list[Judged]
) -> tuple[Verdicts, Verdicts]:
    """In the file's order of answers, and as said of that order when each pair is asked the other way round."""
    if name not in cfg.scorers:
        raise UserError(
            f"scorer={name}: there is no such scorer in score.scorers. {suggest(name, list(cfg.scorers))}"
        )
    answers = [answer for pair in judged for answer in make_answers(pair)]
    turned = [answer for pair in judged for answer in reversed(make_answers(pair))]
    return derive_verdicts(collect_scores(cfg, name, answers), judged), derive_verdicts(
        collect_scores(cfg, name, turned), judged
    )


def make_answers(pair: Judged) -> list[Answer]:
    """A prompt of its own for each pair, so that a scorer which compares candidates compares these two."""
    texts = {"first": pair.first, "second": pair.second}
    return [
        Answer(f"{pair.key}/{side}", pair.key, pair.prompt, text, {})
        for side, text in texts.items()
    ]


def collect_scores(cfg: ScoreConfig, name: str, answers: list[Answer]) -> dict[str, Score]:
    scorer = cfg.scorers[name]
    if isinstance(scorer, EnsembleScorer):
        members = {member: collect_scores(cfg, member, answers) for member in scorer.members}
        return {mark.sample_id: mark for mark in combined(scorer, answers, members)}
    with closing(open_scorer(scorer, knob=f"score.scorers.{name}")) as opened:
        return {mark.sample_id: mark for mark in opened.mark(answers) if not mark.criterion}


def derive_verdicts(marks: dict[str, Score], judged: list[Judged]) -> Verdicts:
    def verdict(pair: Judged) -> float | None:
        first, second = marks[f"{pair.key}/first"].score, marks[f"{pair.key}/second"].score
        if first is None or second is None:
            return None
        return 0.5 if first == second else float(first > second)

    return {pair.key: verdict(pair) for pair in judged}


def toss_coin(pair: Judged) -> float:
    return float(hashlib.sha256(f"{pair.key} {pair.asked}".encode()).digest()[0] % 2)


# ── what is said of them ──────────────────────────────────────────────────────────────────────────────────────────


def summarize_calibration(
    judged: list[Judged], scorers: dict[str, tuple[Verdicts, Verdicts]]
) -> dict[str, Any]:
    pairs = {
        pair.key: Pair(
            pair.asked, pair.verdict, list(pair.votes.values()), len(pair.first), len(pair.second)
        )
        for pair in judged
    }
    longer: Verdicts = {key: pair.longer for key, pair in pairs.items()}
    rows = {name: calibration(pairs, *asked) for name, asked in scorers.items()}
    rows |= {
        LONGER: calibration(pairs, longer),
        COIN: calibration(pairs, {pair.key: toss_coin(pair) for pair in judged}),
    }
    if among := people_s_own(pairs):
        rows[ANNOTATORS] = among
    gains = {name: gain(pairs, asked[0], longer) for name, asked in scorers.items()}
    truth = calibration(pairs, {key: pair.verdict for key, pair in pairs.items()})
    return {
        "pairs": len(pairs),
        "prompts": len({pair.asked for pair in pairs.values()}),
        "decided": truth.decided,
        "split": sum(pair.verdict is None for pair in pairs.values()),
        "people_prefer": {
            "first": truth.prefers_first,
            "longer": truth.prefers_longer,
            "ties": truth.ties,
        },
        "scorers": {name: row.told() for name, row in rows.items()},
        "warnings": [
            warning for name, one in gains.items() for warning in list_warnings(name, one.estimate)
        ],
    }


def list_warnings(name: str, gained: Estimate) -> Iterator[str]:
    if gained.mean is None:
        yield (
            f"{name} could mark no two answers of any pair. These files hold texts alone: a scorer that reads the"
            " prompts' columns cannot be calibrated on them."
        )
    elif gained.low is None or gained.low <= 0:
        yield (
            f"{name} does not beat '{LONGER}': {signed(gained.mean)} agreement by prompt"
            f" ({interval(asdict(gained), signed)}). Do not trust it on texts like these."
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


def format_lines(told: dict[str, Any]) -> Iterator[str]:
    rows = told["scorers"]
    people = told["people_prefer"]
    yield (
        f"{pluralize(told['pairs'], 'pair')} of {pluralize(told['prompts'], 'prompt')} judged by people:"
        f" {told['decided']} decided, {told['split']} without a majority"
    )
    yield (
        f"people prefer the first answer in {share(people['first'])} and the longer one in {share(people['longer'])}"
        " of their decisions"
    )
    yield "agreement where people decided, a tie is half right: by prompt (the mean of each prompt's own pairs, with"
    yield "its interval) and by pair (all decided pairs alike, which is what others publish; pairs of one prompt are no"
    yield "independent evidence, so it has no interval)"
    if ANNOTATORS in rows:
        yield f"{ANNOTATORS}: each annotator of a pair held against each other one, so a pair counts once for each such two"
    yield ""
    yield from align_columns([HEAD, *(format_cells(name, row) for name, row in rows.items())])
    yield ""
    yield "agreement by pair, by how long the answer is that people prefer, against the other (pairs)"
    kinds = rows[LONGER]["by_length"]  # of all pairs: a scorer may have failed at some
    table = [["", *(f"{kind} ({row['pairs']})" for kind, row in kinds.items())]]
    for name, row in rows.items():
        table.append([name, *(number(cell["agreement"]) for cell in row["by_length"].values())])
    yield from align_columns(table)
    for warning in told["warnings"]:
        yield f"\n! {warning}"


def format_cells(name: str, row: dict[str, Any]) -> list[str]:
    shares = [share(row[key]) for key in ("ties", "prefers_first", "prefers_longer", "order_flips")]
    mean = row["agreement"]["mean"]
    return [
        name,
        UNKNOWN if mean is None else number(mean),
        interval(row["agreement"]),
        number(row["pair_agreement"]),
        str(row["decided"]),
        number(row["exact"]),
        number(row["kappa"]),
        *shares,
        str(row["failed"]),
    ]


def align_columns(table: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        first, *rest = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
