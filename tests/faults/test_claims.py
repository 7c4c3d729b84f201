"""Two processes that ask one judge the same pay once, and neither waits for a dead one."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.scorers.judging import Response
from pipeline.scorers.judging.verdict_cache import VerdictSource, VerdictStore
from tests.faults.odd_server import Odd, chat, serving
from tests.scorers.test_judge import KEY
from tests.support.house import HOUSE

PROMPTS = 8  # each two answers, in both orders: twice as many questions
ASKS = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from tests.scorers.test_judge import answers, config, run_scorer

url, folder, prompts = sys.argv[1:4]
given = [one for at in range(int(prompts)) for one in answers("good", "bad", prompt=f"p{at}")]
knobs = {"concurrency": 2, "retries": 0, "timeout": 60}
cfg = config(SimpleNamespace(url=url), Path(folder), **knobs)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([mark.score for mark in run_scorer(cfg, given)]))
"""


def asker(url: str, folder: Path, prompts: int = PROMPTS) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", ASKS, url, str(folder), str(prompts)],
        cwd=HOUSE,
        env={**os.environ, "JUDGE_KEY": KEY},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def scores(process: "subprocess.Popen[str]") -> list[float | None]:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def leftovers(folder: Path) -> list[str]:
    claims = (
        sqlite3.connect(folder / "verdicts.sqlite").execute("SELECT key FROM claims").fetchall()
    )
    return [*(key for (key,) in claims), *(path.name for path in folder.glob(".*.asks"))]


@pytest.mark.long
def test_two_processes_pay_for_each_question_once(tmp_path):
    with serving(lambda body: Odd(chat(), wait=0.3)) as server:
        both = [asker(server.url, tmp_path) for _ in range(2)]
        go(*both)
        assert [scores(process) for process in both] == [[0.5] * 2 * PROMPTS] * 2
        asked = [json.dumps(body["messages"]) for body in server.requests]
    assert len(asked) == 2 * PROMPTS == len(set(asked))
    assert leftovers(tmp_path) == []


@pytest.mark.long
def test_a_killed_asker_s_questions_are_taken_over_within_seconds(tmp_path):
    """It is killed with two questions in flight, whose answers are never read."""
    with serving(lambda body: Odd(chat(), wait=20 if len(server.requests) <= 2 else 0.1)) as server:
        killed, other = asker(server.url, tmp_path), asker(server.url, tmp_path)
        go(killed)
        while len(server.requests) < 2:
            time.sleep(0.02)
        go(other)
        while len(server.requests) < 2 * PROMPTS:  # the other has asked all but those two
            time.sleep(0.02)
        time.sleep(1)
        assert other.poll() is None and len(server.requests) == 2 * PROMPTS, (
            "it waits for those two"
        )
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        began = time.monotonic()
        assert scores(other) == [0.5] * 2 * PROMPTS
        assert time.monotonic() - began < 5
        assert len(server.requests) == 2 * PROMPTS + 2
    assert leftovers(tmp_path) == []


@pytest.mark.long
def test_what_fails_in_one_process_is_asked_by_the_other(tmp_path):
    """The first request ends without a verdict; both processes have a score or one has none."""
    with serving(lambda body: Odd(chat() if len(server.requests) > 1 else [], wait=0.3)) as server:
        both = [asker(server.url, tmp_path, prompts=1) for _ in range(2)]
        go(*both)
        found = [scores(process) for process in both]
        assert sorted(str(one) for one in found) == ["[0.5, 0.5]", "[None, None]"]
        assert len(server.requests) == 3
    assert leftovers(tmp_path) == []


def test_a_claim_ends_with_its_answer_its_owner_or_its_owner_s_life(tmp_path):
    one, other = (VerdictStore(tmp_path / "verdicts.sqlite") for _ in range(2))
    assert one.claim("a") is True and one.claim("a") is True and other.claim("a") is False
    assert other.claim("b") is True and one.claim("b") is False
    one.save("a", VerdictSource("m", "", ""), QUESTION, Response("A"))
    answer = other.claim("a")
    assert isinstance(answer, Response) and answer.text == "A"
    other.save("b", VerdictSource("m", "", ""), QUESTION, Response(None, fault="no verdict"))
    assert one.claim("b") is True
    one.close()
    assert other.claim("b") is True
    other.close()
    assert leftovers(tmp_path) == []


class QUESTION:
    texts_hash, order = "t", ""
