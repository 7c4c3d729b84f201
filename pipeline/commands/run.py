"""`strop run`, `strop plan` and `strop sweep`: compose → Config → plan → run, or a run for each point of a grid."""

import sys

from pipeline.config.compose import Arguments, compose
from pipeline.driver.run import Stopped, drive, stop_on_signals
from pipeline.errors import REFUSED, STOPPED, Refusal, exit_on_signals, explain_disk_fault


def main(words: list[str]) -> int:
    try:
        arguments = Arguments.parse(words)
        points, several = compose(arguments)
        stop_on_signals()
        if not several:
            return drive(points[0])
        from pipeline.driver.sweep import sweep

        return sweep(arguments, points)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return REFUSED
    except OSError as error:
        if not (said := explain_disk_fault(error)):
            raise
        print(said, file=sys.stderr)
        return REFUSED
    except Stopped:
        return STOPPED
    finally:
        exit_on_signals()
