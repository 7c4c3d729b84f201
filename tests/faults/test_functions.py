"""The user's functions: what they return, raise and print; hangs. A fault costs its rows."""

import os
import re
import time
from contextlib import closing, contextmanager
from pathlib import Path

import polars as pl
import pytest

from pipeline.backends import api_client
from pipeline.config import FunctionScorer
from pipeline.errors import UserError
from pipeline.scorers import Answer, open_scorer
from pipeline.scorers.function import MAX_FAILURES_IN_A_ROW, CallFailed, FunctionProcess
from tests.faults.planted import Fault, World, hold

pytestmark = pytest.mark.long  # each starts processes, and some wait until they are ended

KEY = "sk-planted-0123456789"
SHORT_KEY = "abcde"
ODD = """
import os, sys, time, ctypes

class Raises:
    def __float__(self): raise RuntimeError("no float")
    def __repr__(self): raise RuntimeError("no repr")

class Leaves:
    def __float__(self): sys.exit(3)

class Endless(Exception):
    def __str__(self): raise RuntimeError("no str")

def at(prompts): return int(prompts[0][-1]["content"])

def huge(completions, **_): return [10 ** 400, 10 ** 5000]
def float_raises(completions, **_): return [Raises(), Leaves()]
def odd_types(completions, **_): return [{}, [1.0]]
def surrogate(completions, **_): raise ValueError("half \\ud800 and \\0")
def long_message(completions, **_): raise ValueError("x" * 100_000)
def str_raises(completions, **_): raise Endless()
def leaves(completions, **_): raise KeyboardInterrupt
def takes_text(completions, **_): return [len(answer.split()) for answer in completions]
def endless(completions, **_):
    while True: yield 1.0
def no_list(completions, **_): return 3
def dies(prompts, completions, **_):
    if at(prompts) == 1: os._exit(7)
    return [1.0] * len(completions)
def crashes(completions, **_): ctypes.string_at(0)
def sleeps(prompts, completions, **_):
    if at(prompts) == 1: time.sleep(600)
    return [1.0] * len(completions)
def holds_the_gil(prompts, completions, **_):
    if at(prompts) == 1: ctypes.PyDLL(None).sleep(600)
    return [1.0] * len(completions)
def hangs_outside(completions, **_): os.system("sleep 654")
def always_sleeps(completions, **_): time.sleep(600)
def recurses(completions, **_): return recurses(completions)
def prints(completions, **_):
    print(dict(os.environ)); print("\\u2717 not the stage's word")
    print("\\ud800", "y" * 5_000_000, file=sys.stderr)
    os.system("env")
    raise ValueError(f"with {os.environ['JUDGE']} and {os.environ['HF_TOKEN']}")
"""


@pytest.fixture
def odd(tmp_path) -> Path:
    path = tmp_path / "odd.py"
    path.write_text(ODD)
    return path


@contextmanager
def opened(path: Path, name: str, timeout: float = 60):
    knobs = {
        "kind": "function",
        "function": f"{path}:{name}",
        "gold": False,
        "runtime": {"timeout": timeout},
    }
    with closing(
        open_scorer(FunctionScorer.model_validate(knobs), knob="score.scorers.mine")
    ) as scorer:
        yield scorer


def two(number: int) -> list[Answer]:
    asked = [{"role": "user", "content": str(number)}]
    return [Answer(f"{number}/{i}", f"p{number}", asked, "text", {}) for i in range(2)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("huge", ["1000", "type int whose repr raises ValueError"]),
        ("float_raises", ["type Raises whose repr raises RuntimeError", "which is not a number"]),
        (
            "odd_types",
            ["the function gave {}, which is not a number", r"gave \[1.0\], which is not a number"],
        ),
        ("surrogate", [r"ValueError: half \\ud800 and \\0"] * 2),
        ("long_message", ["ValueError: xxx"] * 2),
        ("str_raises", ["Endless"] * 2),
        ("leaves", ["KeyboardInterrupt"] * 2),
        ("takes_text", [r"text of an answer is answer\[-1\]\['content'\]"] * 2),
        ("endless", ["the function gave 3 scores for 2 completions"] * 2),
        ("no_list", ["TypeError: .*not iterable"] * 2),
        ("recurses", ["RecursionError"] * 2),
    ],
)
def test_what_a_function_gives_or_raises_costs_its_rows_and_no_more(odd, name, said):
    with opened(odd, name) as scorer:
        found = [*scorer.score(two(1)), *scorer.score(two(2))]
    assert [mark.score for mark in found] == [None] * 4 and not any(
        mark.abstained for mark in found
    )
    for mark, pattern in zip(found, said * 2, strict=True):
        pl.DataFrame({"detail": [mark.detail]})  # half a character would not go in
        assert len(mark.detail) <= 301
        assert re.search(pattern, mark.detail), mark.detail


@pytest.mark.parametrize(
    ("name", "why"),
    [("sleeps", "longer than 2 s"), ("holds_the_gil", "longer than 2 s"), ("dies", "exit code 7")],
)
def test_a_call_that_hangs_or_dies_costs_its_rows_and_the_next_one_is_made(odd, name, why):
    began = time.monotonic()
    with opened(odd, name, timeout=2) as scorer:
        found = [*scorer.score([*two(0), *two(1), *two(2)])]
    assert [mark.score for mark in found] == [1.0, 1.0, None, None, 1.0, 1.0]
    assert why in found[2].detail and time.monotonic() - began < 30


def test_a_function_that_only_hangs_is_refused_and_leaves_no_process(odd):
    with opened(odd, "hangs_outside", timeout=0.5) as scorer:
        marks = scorer.score(
            [answer for number in range(MAX_FAILURES_IN_A_ROW) for answer in two(number)]
        )
        with pytest.raises(UserError, match=r"score\.scorers\.mine\.runtime\.timeout=0\.5"):
            list(marks)
    assert [pid for pid in Path("/proc").glob("[0-9]*") if b"sleep\x00654" in command_of(pid)] == []


def command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_crash_in_every_call_is_refused(odd):
    with opened(odd, "crashes") as scorer, pytest.raises(UserError, match="SIGSEGV"):
        list(
            scorer.score(
                [answer for number in range(MAX_FAILURES_IN_A_ROW) for answer in two(number)]
            )
        )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import time; time.sleep(600)", "longer than 1 s"),
        ("import os; os._exit(4)", "exit code 4"),
        ("raise SystemExit('\\ud800' + 'x' * 100_000)", "cannot be imported"),
        ("def score(: pass", "SyntaxError"),
    ],
)
def test_an_import_that_hangs_or_ends_is_refused(tmp_path, source, said):
    path = tmp_path / "odd.py"
    path.write_text(source)
    with (
        opened(path, "score", timeout=1) as scorer,
        pytest.raises(UserError, match=said) as refusal,
    ):
        list(scorer.score(two(1)))
    assert len(str(refusal.value)) < 1000
    str(refusal.value).encode()


def test_keys_of_the_environment_are_masked_in_what_is_printed_and_kept(odd, monkeypatch, capfd):
    monkeypatch.setenv("JUDGE", SHORT_KEY)  # named by the config alone
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setenv("SOME_KEY", "word")  # too short to be one
    monkeypatch.setenv(api_client.KEY_NAMES_VARIABLE, "")
    api_client.register_key_names({"evaluate": [{"engine": {"runtime": {"api_key_env": "JUDGE"}}}]})
    with opened(odd, "prints") as scorer:
        found = [*scorer.score(two(1))]
    printed = capfd.readouterr().err
    for text in (printed, found[0].detail):
        assert (
            KEY not in text and SHORT_KEY not in text and "[HF_TOKEN]" in text and "[JUDGE]" in text
        )
    assert api_client.mask_secrets("a word") == "a word"
    assert len(printed) < 100_000 and all(line.startswith("| ") for line in printed.splitlines())


def test_a_process_that_takes_no_message_is_lost_in_time():
    process = FunctionProcess()
    os.kill(process._process.pid, 19)  # SIGSTOP
    began = time.monotonic()
    with pytest.raises(CallFailed, match="longer than 1 s"):
        process.call({"path": ["x" * (1 << 20)]}, 1)
    assert time.monotonic() - began < 5
    process.stop()


# ── through the command ───────────────────────────────────────────────────────────────────────────

SCORED = [
    "prompts=playground",
    "sft.model=hub/model",
    f"sft.revision={'0' * 40}",
    "sample.per_round=20",
    "until=score",
]
SCORED += ["backend@sample.backend=scripted", "sample.shard=10", "score.max_failed=1"]


def function(name: str, *words: str, **environment: str):
    def plant(world: World) -> None:
        world.write("odd.py", ODD)
        own = [
            "score=own",
            "+scorer@score.scorers.mine=function",
            f"score.scorers.mine.function=./odd.py:{name}",
        ]
        world.words = [
            *SCORED,
            *own,
            "+scorer@evaluate.score.scorers.mine=length",
            "pair.scorer=mine",
            *words,
        ]
        world.environment |= environment

    return plant


def all_failed(world: World) -> None:
    [folder] = (world.folder / "store" / "score").glob("*/scores")
    table = pl.concat([pl.read_parquet(path) for path in folder.glob("*.parquet")])
    assert set(table["status"]) == {"failed"} and table.height == 160


FAULTS = [
    Fault("a function that raises with 100 kB", function("long_message"), 0, kept=all_failed),
    Fault("a function whose values raise", function("float_raises"), 0, kept=all_failed),
    Fault("a function that gives 10**400", function("huge", "sample.settings.draw.n=2"), 0),
    Fault("a function that hangs",
          function("always_sleeps", "score.scorers.mine.runtime.timeout=2"), 2,
          says=("score.scorers.mine.runtime.timeout=2",)),
    Fault("a function that prints the environment",
          function("prints", "+scorer@evaluate.score.scorers.j=rubric",
                   "evaluate.score.scorers.j.engine.model=m",
                   "evaluate.score.scorers.j.engine.runtime.api_key_env=JUDGE",
                   JUDGE="odd-planted", HF_TOKEN=KEY),
          0, never=("odd-planted", KEY), kept=all_failed),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_functions(fault, tmp_path):
    hold(fault, tmp_path)
