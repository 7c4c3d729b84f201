"""Shards that several processes share: each is done once, and again where its worker crashed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import StageError, UserError
from pipeline.resources import gpu_sets, open_models, worker_pool
from pipeline.resources.gpu_sets import worker_environments
from pipeline.resources.worker_pool import Worker, run_shards
from tests.support.house import HOUSE

SHARDS = [f"shard-{at:02d}" for at in range(12)]


def write(
    folder: Path, worker: Worker, pause: float = 0.0, dies: str = "", faulty: str = ""
) -> None:
    """A stage's work in small: a file for each shard. One process, the first to get there, dies at
    its shard."""
    (folder / f"opened-{os.getpid()}").touch()
    while shard := worker.claim():
        if shard == dies and not (folder / "died").exists():
            (folder / "died").touch()
            print("these are my last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if shard == faulty:
            raise UserError("the prompts are bad")
        time.sleep(pause)
        with (folder / shard).open("a") as file:
            file.write(f"{shard} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}\n")
        worker.report(done=1)
        worker.finish(shard, len(shard))


def die(worker: Worker) -> None:
    worker.claim()
    print("out of memory", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


class Seen:
    """What the stage receives."""

    def __init__(self):
        self.finished: dict[str, int] = {}
        self.reported = 0.0

    def finish(self, shard: str, entry: int) -> None:
        assert shard not in self.finished
        self.finished[shard] = entry

    def report(self, figures: dict[str, float]) -> None:
        self.reported += figures["done"]


def have_done(folder: Path, workers: list[dict[str, str]], **how) -> Seen:
    seen = Seen()
    run_shards(SHARDS, partial(write, folder, **how), workers, folder, seen.finish, seen.report)
    assert seen.finished == dict.fromkeys(SHARDS, 8)
    assert seen.reported == 12
    return seen


@pytest.mark.parametrize("count", [1, 2])
def test_every_shard_is_done_once_and_every_hand_opens_once(tmp_path, count, monkeypatch):
    """Two engines that share two GPUs each see those and no other, in processes of their own."""
    monkeypatch.delenv(
        "CUDA_VISIBLE_DEVICES", raising=False
    )  # training sets it for its whole process
    there = ["4", "5", "6", "7", "8"] if count > 1 else []
    monkeypatch.setattr(gpu_sets, "visible_gpus", lambda: there)
    workers = worker_environments("auto", "sample.runtime.workers", count)
    have_done(tmp_path, workers, pause=0.1 if count > 1 else 0.0)
    lines = [(tmp_path / shard).read_text() for shard in SHARDS]
    seen = {line.partition(" ")[2].strip() for line in lines}
    assert seen == ({"4,5", "6,7"} if there else {""})
    assert all(line.count("\n") == 1 for line in lines)
    opened = {int(path.name.split("-")[1]) for path in tmp_path.glob("opened-*")}
    assert len(opened) == count
    assert (os.getpid() in opened) == (count == 1)


def test_a_killed_hand_gives_its_shard_back_even_the_last(tmp_path, capfd):
    have_done(tmp_path, [{}, {}], pause=0.02, dies=SHARDS[-1])
    assert all((tmp_path / shard).read_text().count("\n") == 1 for shard in SHARDS)
    errors = capfd.readouterr().err
    assert "was killed by SIGKILL and gives back 1 shard." in errors
    assert "these are my last words" in errors


def test_when_all_are_killed_their_last_words_are_told(tmp_path):
    with pytest.raises(
        StageError,
        match=r"none of 2 workers is left, and 12 shards still to do \(shard-0"
        r".*\n.*killed by SIG(.|\n)*out of memory",
    ):
        run_shards(SHARDS, die, [{}, {}], tmp_path)


def test_a_refusal_of_one_hand_is_the_stage_s_own(tmp_path):
    with pytest.raises(UserError, match="the prompts are bad"):
        have_done(tmp_path, [{}, {}], faulty=SHARDS[4])


def test_a_hand_that_cannot_be_started_leaves_no_other_behind(tmp_path, monkeypatch):
    started = []

    class Member(worker_pool.WorkerProcess):
        def __init__(self, number: int, environment: dict[str, str]):
            if number == 1:
                raise OSError("no more processes")
            super().__init__(number, environment)
            started.append(self.process)

    monkeypatch.setattr(worker_pool, "WorkerProcess", Member)
    with pytest.raises(OSError, match="no more processes"):
        run_shards(SHARDS, partial(write, tmp_path, pause=60), [{}, {}], tmp_path)
    assert [process.is_alive() for process in started] == [False]


PARENT = """
import sys
from functools import partial
from pathlib import Path
from pipeline.resources.worker_pool import run_shards
from tests.resources import test_worker_pool as t
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_shards(t.SHARDS, partial(t.write, folder, pause=60), [{}, {}], folder)
"""


def test_hands_die_with_their_stage(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
        stderr=subprocess.DEVNULL,
    )
    while len(workers := list(tmp_path.glob("opened-*"))) < 2:
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while any(alive(int(path.name.split("-")[1])) for path in workers):
        assert time.monotonic() < deadline, "a worker outlived its stage"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ── which GPUs ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("there", "workers", "each", "expected"),
    [
        ("", "auto", 1, [None]),
        ("", 3, 1, [None] * 3),
        ("0,1,2,3", "auto", 1, ["0", "1", "2", "3"]),
        ("0,1,2,3", "auto", 2, ["0,1", "2,3"]),
        ("4,5,7", "auto", 2, ["4,5"]),
        ("GPU-3a,GPU-9c", "auto", 1, ["GPU-3a", "GPU-9c"]),
        ("GPU-3a,GPU-9c", 1, 1, [None]),
        ("0,1,2,3", 1, 2, ["0,1"]),
    ],
)
def test_each_hand_gets_gpus_of_its_own(monkeypatch, there, workers, each, expected):
    monkeypatch.setattr(gpu_sets, "visible_gpus", lambda: [gpu for gpu in there.split(",") if gpu])
    found = worker_environments(workers, "sample.runtime.workers", each)
    assert [worker.get("CUDA_VISIBLE_DEVICES") for worker in found] == expected


@pytest.mark.parametrize(
    ("there", "workers", "each"), [("0,1", "auto", 4), ("0,1", 2, 2), ("0", 2, 1), ("", "auto", 2)]
)
def test_more_gpus_than_there_are_is_refused(monkeypatch, there, workers, each):
    monkeypatch.setattr(gpu_sets, "visible_gpus", lambda: [gpu for gpu in there.split(",") if gpu])
    with pytest.raises(
        UserError, match=rf"sample.runtime.workers={workers}: .* GPU.*\n.*Give fewer workers"
    ):
        worker_environments(workers, "sample.runtime.workers", each)


def open_once(folder: Path, worker: Worker) -> None:
    """A stage's work with a model that the next Step can use."""
    model = open_models.borrow("the model", partial(note_opening, folder))
    while shard := worker.claim():
        (folder / f"{shard}-{model}").touch()
        time.sleep(0.05)
        worker.finish(shard)
    open_models.park("the model", model, partial((folder / f"closed-{model}").touch))


def note_opening(folder: Path) -> int:
    (folder / f"opened-{os.getpid()}").touch()
    return os.getpid()


@pytest.fixture
def several_steps():
    """This process builds several Steps, as a worker of the driver does."""
    open_models.keep_between_steps()
    yield
    open_models.close_parked()
    open_models._keeps = False


def test_where_steps_follow_each_other_the_workers_stay_with_their_models(tmp_path, several_steps):
    for step in ("first", "second"):
        shards = [f"{step}-{shard}" for shard in SHARDS]
        run_shards(shards, partial(open_once, tmp_path), [{}, {}], tmp_path / step)
    opened = {path.name.split("-")[1] for path in tmp_path.glob("opened-*")}
    assert len(opened) == 2
    for step in ("first", "second"):
        assert {path.name.split("-")[-1] for path in tmp_path.glob(f"{step}-*")} == opened
    assert not list(tmp_path.glob("closed-*"))
    open_models.close_parked()
    assert {path.name.split("-")[1] for path in tmp_path.glob("closed-*")} == opened
    assert multiprocessing.active_children() == []


def test_after_a_crash_the_next_step_has_new_workers(tmp_path, several_steps):
    have_done(tmp_path, [{}, {}], pause=0.02, dies=SHARDS[-1])
    for shard in SHARDS:
        (tmp_path / shard).unlink()
    have_done(tmp_path, [{}, {}], pause=0.02)
    assert len(list(tmp_path.glob("opened-*"))) == 4
