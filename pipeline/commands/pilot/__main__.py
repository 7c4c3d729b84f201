"""`strop pilot`: runs two pilots, prints the estimate and writes it beside the larger one."""

import functools
import sys
import time
from pathlib import Path

from pipeline.artifacts import write_json
from pipeline.commands.pilot.estimate import estimate
from pipeline.commands.pilot.seen import measure_overhead, measure_steps
from pipeline.commands.pilot.words import format_lines
from pipeline.config import Config
from pipeline.config.compose import Arguments, compose
from pipeline.driver.run import Interrupted, interrupt_on_signals, run_point
from pipeline.errors import DONE, INTERRUPTED, USER_ERROR, UserError
from pipeline.hashing import resolve_commit
from pipeline.step import pin_revisions

FEW, MANY = 10, 50  # prompts of a round and of the exam


def main(words: list[str]) -> int:
    interrupt_on_signals()
    try:
        return run_pilot(words)
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return USER_ERROR
    except Interrupted:
        return INTERRUPTED


def run_pilot(words: list[str]) -> int:
    """The exit code of the pilot's own runs; its estimate is printed and lies with the larger one's story."""
    whole = compose_one(words)
    small, large = (compose_one([*words, *lower_sizes(whole, prompts)]) for prompts in (FEW, MANY))
    whole, small, large = (
        pin_revisions(cfg, functools.cache(resolve_commit)) for cfg in (whole, small, large)
    )
    started = time.monotonic()
    for cfg in (small.model_copy(update={"until": "train@1"}), large):
        if code := run_point(cfg):
            return code
    if large.dry_run:
        return DONE
    seen = [*measure_steps(small), *measure_steps(large)]
    told = estimate(whole, large, seen, measure_overhead(large, time.monotonic() - started))
    file = find_latest(large.runs) / "pilot.json"
    write_json(file, told)
    print("\n".join([*format_lines(told), str(file)]))
    return DONE


def find_latest(runs: Path) -> Path:
    """The newest run's own folder, as the person named the folder of all runs."""
    return runs / (runs / "latest").resolve().relative_to(runs.resolve())


def compose_one(words: list[str]) -> Config:
    points, several = compose(Arguments.parse(words))
    if several:
        raise UserError(
            "pilot: it measures one run, not a sweep. Leave out -m, or choose the recipe of one point."
        )
    if points[0].until:
        raise UserError(f"until={points[0].until}: a pilot goes through every stage. Leave it out.")
    return points[0]


def lower_sizes(whole: Config, prompts: int) -> list[str]:
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
