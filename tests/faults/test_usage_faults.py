"""Faults in the arguments of commands other than `run`, and in where their output goes."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.faults.planted import TRACEBACK, Fault, World, hold
from tests.support.house import HOUSE

STEPS = "000-sample-1", "001-score-1", "002-pair-1"


def typed(*words: str) -> Callable[[World], None]:
    """A run whose steps were pruned, and a command that wants their tables."""

    def plant(world: World) -> None:
        for step in STEPS:
            world.write(f"runs/latest/store/{step}/manifest.json", "{}")
        world.words = [*words]

    return plant


def over(name: str) -> Callable[[World], None]:
    """What a scorer's calibration would be written over."""

    def plant(world: World) -> None:
        world.write("mine.md", "years")
        world.write("mine.json", '{"mine": "years"}')
        world.words = ["calibrate", "mine.md", f"out={name}"]

    return plant


def is_kept(world: World) -> None:
    assert (world.folder / "mine.md").read_text() == "years" and "years" in (
        world.folder / "mine.json"
    ).read_text()


def record(text: str, *words: str) -> Callable[[World], None]:
    """A run whose report's step.json is not what the driver wrote."""

    def plant(world: World) -> None:
        world.write("runs/latest/store/000-evaluate-report/step.json", text)
        world.words = [*words]

    return plant


COMPARE = "compare", "a=runs/latest", "b=runs/latest"
FAULTS = [
    Fault(
        "report of a record that is a list", record("[]", "report"), 2, ("step.json", "verify=true")
    ),
    Fault(
        "report of a record that was cut",
        record('{"inputs"', "report"),
        2,
        ("step.json", "verify=true"),
    ),
    Fault(
        "compare by a record that is a list",
        record("[]", *COMPARE),
        2,
        ("step.json", "verify=true"),
    ),
    Fault(
        "compare by a record of no models",
        record('{"inputs": {}, "config": {}}', *COMPARE),
        2,
        ("names no evaluated model",),
    ),
    Fault(
        "calibrate over what it reads",
        over("mine.md"),
        2,
        ("out=mine.md", "Nothing was written"),
        kept=is_kept,
    ),
    Fault(
        "calibrate over another record",
        over("mine.json"),
        2,
        ("out=mine.json", "Nothing was"),
        kept=is_kept,
    ),
    Fault(
        "calibrate into a folder",
        over("."),
        2,
        ("out=.: this is a folder", "out=calibration.json"),
        kept=is_kept,
    ),
    Fault(
        "trace of a pruned run", typed("trace", "p"), 2, ("001-score-1/scores/*.parquet", "again")
    ),
    Fault("label of a pruned run", typed("label"), 2, ("000-sample-1/samples/*.parquet", "again")),
    Fault("edit of a pruned run", typed("edit"), 2, ("002-pair-1/train.parquet", "again")),
    Fault("trace of no prompt", typed("trace", ""), 2, ("PROMPT_ID",)),
    Fault("trace of two runs", typed("trace", "p", "runs/latest", "x"), 2, ("PROMPT_ID",)),
    Fault(
        "edit of two rounds", typed("edit", "runs/latest", "1", "x"), 2, ("x: one word too many",)
    ),
    Fault("report of two runs", typed("report", "runs/latest", "x"), 2, ("x: one word too many",)),
    Fault(
        "label of a digit that is no number",
        typed("label", "runs/latest", "pairs=²"),
        2,
        ("pairs=²",),
    ),
    Fault(
        "label of too many digits",
        typed("label", "runs/latest", "pairs=" + "9" * 5000),
        2,
        ("pairs=999",),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_a_command_is_given(fault, tmp_path):
    hold(fault, tmp_path)


def run_shell(line: str, folder: str) -> subprocess.CompletedProcess[str]:
    """`strop` in a line of bash, and the code of the command before the pipe."""
    line = line.replace("strop", f"'{sys.executable}' -m pipeline") + "; exit ${PIPESTATUS[0]}"
    environment = {"PYTHONPATH": str(HOUSE), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_locale_of_another_encoding_changes_how_no_file_is_read():
    code = (
        "import sys; from pipeline.__main__ import use_utf8; use_utf8();"
        " print(sys.flags.utf8_mode, sys.argv[1])"
    )
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code, "a b"]
    done = subprocess.run(
        command, cwd=HOUSE, env=odd, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1 a b\n"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("strop | true", 0),
        ("strop run --help | true", 0),
        ("strop store | true", 0),
        ("strop store >&-", 0),
        ("strop plan recipes=smoke store=s >&-", 0),
        ("strop >/dev/full", 2),
        ("strop store >/dev/full", 2),
        ("PYTHONIOENCODING=ascii strop --help", 0),
    ],
)
def test_a_reader_that_leaves_is_no_fault_and_a_full_disk_is_named(tmp_path, line, code):
    (tmp_path / "store").mkdir()
    (tmp_path / "runs").mkdir()
    told = run_shell(line, str(tmp_path))
    assert (told.returncode, TRACEBACK in told.stderr) == (code, False), told.stderr
    assert code == 0 or "standard output: No space left" in told.stderr
