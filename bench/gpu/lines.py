"""One JSON line for each figure of a GPU, written as it comes."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measure import read_versions
from pipeline import hardware

Values = dict[str, Any]


def write_line(file: Path, check: str, values: Values, seconds: float) -> None:
    """Append a line and force it to disk: whatever ends this process later, the line stays."""
    line = {
        "check": check,
        "values": values,
        "seconds": round(seconds, 1),
        "card": hardware.describe_device(),
        "versions": read_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with file.open("a") as lines:
        lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


@contextmanager
def time_line(file: Path, check: str) -> Iterator[Values]:
    """A line of what the block puts into the dict. An error of the block leaves no line."""
    values: Values = {}
    started = time.monotonic()
    yield values
    write_line(file, check, values, time.monotonic() - started)


def read_lines(file: Path) -> list[Values]:
    return [json.loads(line) for line in file.read_text().splitlines()]
