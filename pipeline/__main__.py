"""compose → Config → plan → run: `python -m pipeline [recipes=NAME] [key=value …]`, `-m` for a sweep."""

import sys

from pipeline.compose import Arguments, compose
from pipeline.drive import Stopped, drive, stop_on_signals
from pipeline.errors import REFUSED, STOPPED, Refusal


def main() -> int:
    stop_on_signals()
    try:
        arguments = Arguments.parse(sys.argv[1:])
        points, several = compose(arguments)
        if not several:
            return drive(points[0])
        from pipeline.sweep import sweep

        return sweep(arguments, points)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return REFUSED
    except Stopped:
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
