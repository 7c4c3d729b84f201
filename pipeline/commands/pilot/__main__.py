"""`strop pilot`: runs two pilots, prints the estimate and writes it beside the larger one."""

import functools
import sys
import time
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.commands.pilot.estimate import estimate
from pipeline.commands.pilot.seen import between, measured
from pipeline.commands.pilot.words import lines
from pipeline.config import Config
from pipeline.config.compose import Arguments, compose
from pipeline.driver.run import Stopped, drive, stop_on_signals
from pipeline.errors import DONE, REFUSED, STOPPED, UserError
from pipeline.hashing import commit_of
from pipeline.step import pinned

FEW, MANY = 10, 50  # prompts of a round and of the exam


def main(words: list[str]) -> int:
    stop_on_signals()
    try:
        return pilot(words)
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return REFUSED
    except Stopped:
        return STOPPED


def pilot(words: list[str]) -> int:
    """The exit code of the pilot's own runs; its estimate is printed and lies with the larger one's story."""
    whole = one(words)
    small, large = (one([*words, *lowered(whole, prompts)]) for prompts in (FEW, MANY))
    whole, small, large = (pinned(cfg, functools.cache(commit_of)) for cfg in (whole, small, large))
    started = time.monotonic()
    for cfg in (small.model_copy(update={"until": "train@1"}), large):
        if code := drive(cfg):
            return code
    if large.dry_run:
        return DONE
    seen = [*measured(small), *measured(large)]
    told = estimate(whole, large, seen, between(large, time.monotonic() - started))
    file = latest(large.runs) / "pilot.json"
    write_json(file, told)
    print("\n".join([*lines(told), str(file)]))
    return DONE


def latest(runs: Path) -> Path:
    """The newest run's own folder, as the person named the folder of all runs."""
    return runs / (runs / "latest").resolve().relative_to(runs.resolve())


def one(words: list[str]) -> Config:
    points, several = compose(Arguments.parse(words))
    if several:
        raise UserError(
            "pilot: it measures one run, not a sweep. Leave out -m, or choose the recipe of one point."
        )
    if points[0].until:
        raise UserError(f"until={points[0].until}: a pilot goes through every stage. Leave it out.")
    return points[0]


def lowered(whole: Config, prompts: int) -> list[str]:
    """One round and one exam, of so many prompts at most."""
    held = getattr(whole.prompts.split, whole.exam.split)
    drawn, asked = (block.per_round or prompts for block in (whole.sample, whole.exam.sample))
    exam = min(prompts, asked, held if isinstance(held, int) else asked)
    runs = f"runs={whole.runs / 'pilot'}"
    return [
        f"sample.per_round={min(prompts, drawn)}",
        f"exam.sample.per_round={exam}",
        "rounds=1",
        runs,
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
