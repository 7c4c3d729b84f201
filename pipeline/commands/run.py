"""`strop run`, `strop plan`, `strop sweep`: compose → Config → plan → run, or one run a grid point.

`pipeline.__main__` prints the errors.
"""

from pipeline.config.compose import Arguments, compose
from pipeline.driver.run import RunInterrupted, interrupt_on_signals, run_point
from pipeline.errors import INTERRUPTED, exit_on_signals


def main(words: list[str]) -> int:
    try:
        arguments = Arguments.parse(words)
        points, several = compose(arguments)
        interrupt_on_signals()
        if not several:
            return run_point(points[0])
        from pipeline.driver.sweep import run_sweep

        return run_sweep(arguments, points)
    except RunInterrupted:
        return INTERRUPTED
    finally:
        exit_on_signals()
