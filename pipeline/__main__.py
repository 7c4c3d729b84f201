"""compose → Config → plan → run: `python -m pipeline [recipes=NAME] [key=value …]`, `-m` for a sweep."""

import sys

from pipeline.errors import REFUSED, STOPPED, Refusal, exit_on_signals, explain_disk_fault


def main() -> int:
    exit_on_signals()  # before the imports, which take most of the first second
    from pipeline.config.compose import Arguments, compose
    from pipeline.driver.run import Stopped, drive, stop_on_signals

    try:
        arguments = Arguments.parse(sys.argv[1:])
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


if __name__ == "__main__":
    sys.exit(main())
