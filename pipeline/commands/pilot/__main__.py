"""`strop pilot`: runs two pilots, prints the estimate and writes it to the larger one's folder."""

import functools
import sys
import time

from pipeline.artifacts import write_json
from pipeline.commands.pilot.estimate import estimate
from pipeline.commands.pilot.seen import measure_overhead, measure_steps
from pipeline.commands.pilot.words import format_lines
from pipeline.config import Config
from pipeline.config.compose import Arguments, compose
from pipeline.driver.run import RunInterrupted, interrupt_on_signals, make_run_dir, run_point
from pipeline.errors import DONE, INTERRUPTED, USER_ERROR, UserError
from pipeline.hashing import resolve_commit
from pipeline.step import pin_revisions

FEW, MANY = 10, 50  # prompts of a round and of an evaluation


def main(words: list[str]) -> int:
    interrupt_on_signals()
    try:
        return run_pilot(words)
    except UserError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    except RunInterrupted:
        return INTERRUPTED


def run_pilot(words: list[str]) -> int:
    """Run both pilots and estimate. Returns the exit code of the runs."""
    whole = compose_one(words)
    small, large = (compose_one([*words, *lower_sizes(whole, prompts)]) for prompts in (FEW, MANY))
    small = small.model_copy(update={"until": "train@1"})
    resolve = functools.cache(resolve_commit)
    whole, small, large = (pin_revisions(cfg, resolve) for cfg in (whole, small, large))
    started = time.monotonic()
    if code := run_point(small):
        return code
    run_dir = None if large.dry_run else make_run_dir(large)
    if code := run_point(large, run_dir):
        return code
    if run_dir is None:
        return DONE
    measured = [*measure_steps(small), *measure_steps(large)]
    results = estimate(whole, large, measured, measure_overhead(large, time.monotonic() - started))
    file = run_dir / "pilot.json"
    write_json(file, results)
    print("\n".join([*format_lines(results), str(file)]))
    return DONE


def compose_one(words: list[str]) -> Config:
    points, several = compose(Arguments.parse(words))
    if several:
        raise UserError(
            "pilot: it measures one run, not a sweep. Leave out -m, or choose one point's recipe."
        )
    if points[0].until:
        raise UserError(f"until={points[0].until}: a pilot runs every stage. Leave until out.")
    return points[0]


def lower_sizes(whole: Config, prompts: int) -> list[str]:
    """Overrides for one round and its evaluations, of at most so many prompts."""
    held_out = getattr(whole.prompts.split, whole.evaluate.split)
    trained = whole.sample.per_round or prompts
    evaluated = whole.evaluate.sample.per_round or prompts
    if isinstance(held_out, int):
        evaluated = min(evaluated, held_out)
    return [
        f"sample.per_round={min(prompts, trained)}",
        f"evaluate.sample.per_round={min(prompts, evaluated)}",
        "rounds=1",
        f"runs={whole.runs / 'pilot'}",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
