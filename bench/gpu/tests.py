"""The tests with the mark `gpu`, a line for each.

python -m bench.gpu.tests FILE DEADLINE
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.lines import Values, write_line

TESTS = Path(__file__).parents[2] / "tests" / "training" / "test_gpu.py"
# Without the plugins that the machine may have: this project's settings name the options of one.
OPTIONS = ["-q", "-p", "pytest_timeout", "-p", "no:cacheprovider", "-m", "gpu"]


class LineWriter:
    """A plugin of pytest that writes each test's outcome as it comes."""

    def __init__(self, file: Path):
        self.file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
            write_line(self.file, "test", {"name": name, **describe(report)}, report.duration)


def describe(report: Any) -> Values:
    if report.outcome == "skipped":
        return {"skipped": report.longrepr[2].removeprefix("Skipped: ")}
    if report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash else str(report.longrepr)
        return {"holds": False, "failed": message.splitlines()[0]}
    return {"holds": True}


if __name__ == "__main__":
    # Exit code 1 means that a test failed, which its line says.
    code = pytest.main([*OPTIONS, str(TESTS)], [LineWriter(Path(sys.argv[1]))])
    sys.exit(0 if code in (0, 1) else code)
