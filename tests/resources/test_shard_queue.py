"""Shards that processes of several machines take from one folder."""

import json
import multiprocessing
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import hardware
from pipeline.artifacts import DEVICES_FILE, write_text
from pipeline.driver import worker
from pipeline.resources import leases
from pipeline.resources.leases import EXPIRY
from pipeline.resources.shard_queue import JoinedWorker, OwnQueue, read_queue
from pipeline.resources.worker_pool import Worker, run_shards
from tests.resources.test_leases import Clock, elsewhere

SHARDS = [f"{at:05d}.txt" for at in range(40)]


def write(out: Path, worker: Worker, only: int = 1000) -> None:
    done = 0
    while done < only and (shard := worker.claim()):
        worker.output(shard, out / "rows" / shard).parent.mkdir(parents=True, exist_ok=True)
        worker.output(shard, out / "rows" / shard).write_text(f"rows of {shard}")
        worker.report(rows=1)
        worker.finish(shard, {shard: len(shard)})
        done += 1


def join(out: Path, only: int = 1000) -> int:
    worker = JoinedWorker(out, read_queue(out)["shards"])
    write(out, worker, only)
    worker.close()
    return worker.finished


def test_the_stage_collects_what_others_finish_and_does_the_rest(tmp_path):
    finished, rows = {}, []

    def work(worker: Worker) -> None:
        assert join(tmp_path, only=7) == 7
        assert not list(tmp_path.glob("rows/*")), "only the stage writes into its step"
        write(tmp_path, worker)

    on_finish = lambda shard, entry: finished.update(entry)  # noqa: E731
    run_shards(SHARDS, work, [{}], tmp_path, on_finish, lambda f: rows.append(f["rows"]))
    assert finished == dict.fromkeys(SHARDS, 9) and sum(rows) == 40
    written = {path.name: path.read_text() for path in (tmp_path / "rows").iterdir()}
    assert written == {shard: f"rows of {shard}" for shard in SHARDS}
    assert list(OwnQueue(tmp_path, SHARDS[:3], {}).collect()) == []


def test_the_stage_collects_what_others_finish_long_before_it_would_get_there(tmp_path):
    queue = OwnQueue(tmp_path, SHARDS, {})
    other = JoinedWorker(tmp_path, SHARDS[30:])

    def finish(shard: str, worker: JoinedWorker = other) -> None:
        worker.output(shard, tmp_path / shard).write_text("rows")
        worker.finish(shard)

    def collect() -> list[str]:
        return [shard for shard, _ in queue.collect()]

    first, second = other.claim(), other.claim()
    finish(first)
    assert collect() == [first] and queue.count_others() == 1
    assert queue.take() == SHARDS[0]
    queue.give_back([SHARDS[0]])
    assert queue.take() == SHARDS[0], "ours is no shard of others"
    finish(second)
    assert collect() == [second]
    third = other.claim()
    assert collect() == [] and queue.count_others() == 1
    other.close()  # it gives back what it has not finished
    assert collect() == [] and queue.count_others() == 0
    again = JoinedWorker(tmp_path, [third])
    assert again.sees_free_shard() and collect() == [] and again.claim() == third
    finish(third, again)
    assert collect() == [third], "also one that was free in between"
    left = [*iter(queue.take, None)]
    assert sorted(left) == sorted({*SHARDS[1:]} - {first, second, third})


def test_what_waited_for_a_killed_stage_is_taken_and_what_it_finished_itself_is_asked_for_anew(
    tmp_path,
):
    killed = OwnQueue(tmp_path, SHARDS, {})
    killed.finish(killed.take())  # its file was lost with the machine
    assert join(tmp_path, only=5) == 5
    finished = {}
    run_shards(SHARDS, partial(write, tmp_path), [{}], tmp_path, lambda s, e: finished.update(e))
    assert finished == dict.fromkeys(SHARDS, 9)
    assert len(list((tmp_path / "rows").iterdir())) == 40


def test_a_shard_that_another_kind_of_device_made_is_recorded(tmp_path, monkeypatch):
    def work(worker: Worker) -> None:
        for device, only in (("4 cores of sparc", 2), ("1 x NVIDIA H200", 3)):
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(hardware, "describe_device", lambda device=device: device)
                join(tmp_path, only=only)
        join(tmp_path, only=4)
        write(tmp_path, worker)

    run_shards(SHARDS, work, [{}], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / DEVICES_FILE).read_text().splitlines()]
    assert len({line["shard"] for line in lines}) == 5
    made = Counter(line["device"] for line in lines)
    assert made == {"4 cores of sparc": 2, "1 x NVIDIA H200": 3}
    with (tmp_path / DEVICES_FILE).open("a") as file:
        file.write('{"sha')  # an attempt that was killed
    devices = worker.list_devices({"device": "2 cores of x86_64"}, tmp_path)
    assert devices == ["2 cores of x86_64", "1 x NVIDIA H200", "4 cores of sparc"]


def count_taken(out: Path, ready, results) -> None:
    worker = JoinedWorker(out, SHARDS)
    ready.wait()
    taken = list(iter(worker.claim, None))
    for shard in taken:
        worker.finish(shard, shard)
    worker.close()
    results.put(taken)


def test_many_processes_take_each_shard_once(tmp_path):
    queue = OwnQueue(tmp_path, SHARDS, {})
    context = multiprocessing.get_context("spawn")
    ready, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=count_taken, args=(tmp_path, ready, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    ready.set()
    taken = [shard for _ in processes for shard in results.get(timeout=120)]
    for process in processes:
        process.join()
    assert sorted(taken) == SHARDS
    queue.close()
    assert read_queue(tmp_path) is None, "nothing is taken from a stage that has ended"


# ── machines that are suspended, crash, or are ended ──────────────────────────────────────────────


FEW = SHARDS[:4]
STILL = SimpleNamespace(add=lambda _: None, remove=lambda _: None, stop=lambda: None)


class Member:
    """A joined worker on a machine of its own: every call may come after a long pause."""

    def __init__(self, out: Path, name: str, clock: Clock):
        self.clock, self.has_crashed = clock, False
        self._out, self._worker, self._shard = out, JoinedWorker(out, FEW), None
        self._worker._queue._observer, self._worker._queue._heart = elsewhere(clock, name), STILL

    def go_on(self) -> None:
        """Claim, or write, or finish."""
        worker, shard = self._worker, self._shard
        if shard is None:
            self._shard = worker.claim()
        elif shard not in worker._files:
            worker.output(shard, self._out / "rows" / shard).write_text(f"rows of {shard}")
        else:
            worker.finish(shard, shard)
            self._shard = None


class Stage:
    """The step's own process, which takes part and collects. Its successor finds what it left."""

    def __init__(self, out: Path, clock: Clock):
        self._out, self.published = out, Counter[str]()
        missing = [shard for shard in FEW if not (out / "rows" / shard).exists()]
        self._queue = OwnQueue(out, missing, {})
        self._queue._observer, self._queue._heart = elsewhere(clock, "stage"), STILL
        self._shard: str | None = None

    def go_on(self) -> None:
        if self._shard:
            write_text(self._out / "rows" / self._shard, f"rows of {self._shard}")
            self.published[self._shard] += 1
            self._queue.finish(self._shard)
            self._shard = None
        else:
            self.published.update(shard for shard, _ in self._queue.collect())
            self._shard = self._queue.take()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["go on", "go on", "go on", "stage", "time", "crash", "new stage"]),
        st.integers(0, 2),
    ),
    max_size=50,
)


@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS, skews=st.lists(st.floats(-900, 900), min_size=4, max_size=4))
def test_whoever_is_suspended_or_crashes_each_shard_is_published_once_and_none_is_stuck(
    tmp_path_factory, actions, skews
):
    out = tmp_path_factory.mktemp("step")
    clocks = [Clock(skew) for skew in skews]
    stage = Stage(out, clocks[3])
    members = [Member(out, f"machine-{at}", clocks[at]) for at in range(3)]
    published = Counter[str]()
    for action, number in actions:
        if action == "time":
            for clock in clocks:
                clock.advance(EXPIRY / 2 * (number + 1))
        elif action == "crash":
            members[number].has_crashed = True
        elif action == "new stage":
            published += stage.published
            stage = Stage(out, clocks[3])
        elif action == "stage":
            stage.go_on()
        elif not members[number].has_crashed:
            members[number].go_on()
    for _ in range(20):  # those that are suspended now never come back
        clocks[3].advance(EXPIRY)
        stage.go_on()
    published += stage.published
    assert published == dict.fromkeys(FEW, 1)
    assert {file.name: file.read_text() for file in (out / "rows").iterdir()} == {
        shard: f"rows of {shard}" for shard in FEW
    }


def take_on_a_machine(out: Path, name: str, finishes: int, is_lost: bool) -> None:
    """A process that others take for one of another machine. It holds one shard at its end."""
    leases.describe_machine = lambda: [name, "boot", ""]
    worker = JoinedWorker(out, SHARDS)
    for _ in range(finishes):
        shard = worker.claim()
        worker.output(shard, out / "rows" / shard).write_text(f"rows of {shard}")
        worker.finish(shard, {shard: name})
    write_text(out / f"held-{name}", worker.claim())
    if is_lost:
        time.sleep(600)
    worker.close()


def test_two_machines_take_each_shard_once_and_a_dead_one_s_shard_is_taken_over(
    tmp_path, monkeypatch
):
    """What it holds when it is killed is free after `EXPIRY`: from here it may still run."""
    monkeypatch.setattr(leases, "EXPIRY", 1.5)
    monkeypatch.setattr(leases, "BEAT", 0.2)
    made_by: dict[str, str] = {}
    rows = Counter[str]()

    def work(worker: Worker) -> None:
        context = multiprocessing.get_context("fork")
        far = context.Process(target=take_on_a_machine, args=(tmp_path, "far", 3, True))
        near = context.Process(target=take_on_a_machine, args=(tmp_path, "near", 20, False))
        far.start()
        near.start()
        while not (tmp_path / "held-far").exists() and far.is_alive():
            time.sleep(0.01)
        far.kill()
        far.join()
        near.join()
        assert near.exitcode == 0
        write(tmp_path, worker)

    def on_finish(shard: str, entry: dict) -> None:
        rows[shard] += 1
        made_by.update(entry)

    run_shards(SHARDS, work, [{}], tmp_path, on_finish)
    assert rows == dict.fromkeys(SHARDS, 1)
    makers = Counter(map(str, made_by.values()))
    assert (makers["far"], makers["near"], makers.total()) == (3, 20, 40)
    assert made_by[(tmp_path / "held-far").read_text()] != "far"
    assert {path.read_text() for path in (tmp_path / "rows").iterdir()} == {
        f"rows of {shard}" for shard in SHARDS
    }
