"""`strop run`, `strop plan` and `strop sweep`: compose → Config → plan → run, or a run for each point of a grid.

What it refuses, `pipeline.__main__` puts into words.
"""

from pipeline.config.compose import Arguments, compose
from pipeline.driver.run import Stopped, drive, stop_on_signals
from pipeline.errors import STOPPED, exit_on_signals


def main(words: list[str]) -> int:
    try:
        arguments = Arguments.parse(words)
        points, several = compose(arguments)
        stop_on_signals()
        if not several:
            return drive(points[0])
        from pipeline.driver.sweep import sweep

        return sweep(arguments, points)
    except Stopped:
        return STOPPED
    finally:
        exit_on_signals()
