"""Leases: one holder at a time, taken over from the dead, never published by two."""

import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import store
from pipeline.artifacts import write_json, write_text
from pipeline.errors import StageError
from pipeline.resources import leases
from pipeline.resources.leases import EXPIRY, Heart, Observer, describe_holder, read_result


class Clock:
    """A machine's own clock: `skew` seconds off, and faster or slower than others by `rate`."""

    def __init__(self, skew: float = 0.0, rate: float = 1.0):
        self.now, self.rate = 1000.0 + skew, rate

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds * self.rate


def elsewhere(clock: Clock, name: str = "far") -> Observer:
    """A process of another machine."""
    holder = {"machine": [name, "boot", ""], "pid": 1, "started": "1", "since": "today"}
    return Observer(clock, lambda: holder)


def test_one_holder_until_it_is_released(tmp_path):
    first, second = Observer(), Observer()
    lease = first.try_acquire(tmp_path / "a")
    assert second.try_acquire(tmp_path / "a") is None
    assert f"pid {os.getpid()} on " in describe_holder(tmp_path / "a")
    lease.release()
    assert describe_holder(tmp_path / "a") is None
    again = second.try_acquire(tmp_path / "a")
    assert not again.may_be_contested and again.is_current() and not lease.is_current()
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["000002"]


def test_what_is_finished_is_never_taken_again(tmp_path):
    Observer().try_acquire(tmp_path / "a").finish({"rows": 3})
    assert Observer().try_acquire(tmp_path / "a") is None
    assert read_result(tmp_path / "a") == {"rows": 3}
    assert read_result(tmp_path / "b") is None


def act_before_the_next_file(monkeypatch, act) -> None:
    """What others do between a process's look at a lease and the file that it creates."""
    create, pending = leases._create, [act]

    def create_late(file: Path, record: dict) -> bool:
        if pending:
            pending.pop()()
        return create(file, record)

    monkeypatch.setattr(leases, "_create", create_late)


def test_who_looked_before_two_others_came_and_went_has_nothing(tmp_path, monkeypatch):
    """Its file has a number that is free again; the newest one has not."""
    holders = []

    def take_twice() -> None:
        Observer().try_acquire(tmp_path).release()
        holders.append(Observer().try_acquire(tmp_path))

    Observer().try_acquire(tmp_path).release()
    act_before_the_next_file(monkeypatch, take_twice)
    assert Observer().try_acquire(tmp_path) is None
    assert holders[0].is_current() and [one.name for one in tmp_path.iterdir()] == ["000003"]


def test_work_that_is_finished_while_another_takes_it_over_stays_finished(tmp_path, monkeypatch):
    clock = Clock()
    far, near = elsewhere(clock), elsewhere(clock, "near")
    held = far.try_acquire(tmp_path)
    near.try_acquire(tmp_path)
    clock.now += EXPIRY + 1
    act_before_the_next_file(monkeypatch, lambda: held.finish({"rows": 3}))
    assert near.try_acquire(tmp_path) is None
    assert read_result(tmp_path) == {"rows": 3}


def test_a_process_of_this_machine_that_ended_holds_nothing(tmp_path):
    ended = subprocess.Popen(["sleep", "60"])
    holder = leases.describe_process() | {
        "pid": ended.pid,
        "started": leases.find_start_time(ended.pid),
    }
    Observer(me=lambda: holder).try_acquire(tmp_path)
    assert leases.is_held(tmp_path) and Observer().try_acquire(tmp_path) is None
    ended.kill()
    while leases.find_start_time(ended.pid):  # it is dead before it is waited for
        time.sleep(0.01)
    taken = Observer().try_acquire(tmp_path)
    ended.wait()
    assert taken and not taken.may_be_contested


def test_a_number_that_another_process_has_now_holds_nothing(tmp_path):
    holder = leases.describe_process() | {"started": "1"}
    Observer(me=lambda: holder).try_acquire(tmp_path)
    assert Observer().try_acquire(tmp_path)


def test_another_machine_is_given_time_by_the_watcher_s_own_clock(tmp_path):
    clock = Clock()
    far, near = elsewhere(clock), elsewhere(clock, "near")
    held = far.try_acquire(tmp_path)
    os.utime(held.file, (0, 0))  # its clock may be years behind
    for _ in range(3):
        assert near.try_acquire(tmp_path) is None
        clock.now += EXPIRY - 1
        held.beat()
    assert near.try_acquire(tmp_path) is None
    clock.now += EXPIRY + 1
    taken = near.try_acquire(tmp_path)
    assert taken.may_be_contested and not held.is_current()


def test_a_holder_that_died_before_it_wrote_its_record_is_given_time_too(tmp_path):
    clock = Clock()
    (tmp_path / "000001").touch()
    near = elsewhere(clock)
    assert near.try_acquire(tmp_path) is None
    clock.now += EXPIRY + 1
    assert near.try_acquire(tmp_path).generation == 2


def test_a_dead_machine_s_lease_does_not_count_as_work_for_ever(tmp_path):
    held = elsewhere(Clock()).try_acquire(tmp_path)
    assert leases.is_held(tmp_path)
    long_ago = time.time() - EXPIRY - 5
    os.utime(held.file, (long_ago, long_ago))
    assert not leases.is_held(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["000001"], "no probe is left"


def test_a_removed_folder_is_not_made_anew(tmp_path):
    with pytest.raises(FileNotFoundError):
        Observer().try_acquire(tmp_path / "queue" / "shard")
    assert not (tmp_path / "queue").exists()


def test_a_lost_lease_is_noticed_before_a_step_is_sealed(tmp_path):
    lease = Observer().try_acquire(tmp_path)
    store.check_held(lease)
    (tmp_path / "000002").write_text(json.dumps({"state": "held"}))
    with pytest.raises(StageError, match="another process has taken this step over"):
        store.check_held(lease)


def test_the_heart_touches_and_notices_what_was_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    lost = []
    heart = Heart(lost.append)
    kept, taken = (Observer().try_acquire(tmp_path / name) for name in ("kept", "taken"))
    os.utime(kept.file, (0, 0))
    heart.add(kept)
    heart.add(taken)
    (taken.folder / "000002").write_text(json.dumps({"state": "held"}))
    deadline = time.monotonic() + 10
    while (not lost or not kept.file.stat().st_mtime) and time.monotonic() < deadline:
        time.sleep(0.01)
    heart.stop()
    assert lost == [taken] and kept.file.stat().st_mtime > 0


# ── who was suspended must not publish ────────────────────────────────────────────────────────────


class Builder:
    """A process on a machine of its own that builds one step, as the worker does."""

    def __init__(self, number: int, final: Path, clock: Clock):
        self.number, self.final, self.clock = number, final, clock
        self.observer = elsewhere(clock, f"machine-{number}")
        self.lease, self.work, self.left = None, None, 0
        self.files, self.is_sealed = None, False
        self.has_crashed = self.has_published = self.is_done = False

    def go_on(self) -> None:
        """The next thing that it does; every file operation may find others' traces."""
        if self.is_done or self.has_crashed:
            return
        if self.lease is None:
            self.lease = self.observer.try_acquire(store.lease_folder(self.final))
            if self.lease and store.read_manifest(self.final):
                self.is_done = True
                self.lease.release()
            elif self.lease:
                self.work = store.claim_work_folder(self.final, self.lease)
                self.work.mkdir(exist_ok=True)
                self.left = 2
        elif self.left:
            self.left -= 1
            with suppress(FileNotFoundError):
                (self.work / f"part-{self.number}").write_text("written")
        else:
            self._finish_next()

    def _finish_next(self) -> None:
        """As the worker does, and suspended at the worst times: right after it looked at its lease.

        It lists its files and looks; seals and looks again; publishes.
        """
        try:
            if self.files is None:
                self.files = store.list_files(self.work)
                store.check_held(self.lease)
                return
            if not self.is_sealed:
                manifest = {"stage": "sample", "fingerprint": "a" * 12, "inputs": {}, "config": {}}
                store.seal(self.work, {**manifest, "files": self.files, "cost": {}, "seconds": 0})
                store.check_held(self.lease)
                self.is_sealed = True
                return
            store.publish(self.work, self.final)
            self.has_published = True
        except (OSError, StageError):
            pass  # its work is another's by now
        self.is_done = True
        self.lease.release()

    def beat(self) -> None:
        """Some disks date a touch by the clock of the machine that touches."""
        if self.lease and not self.has_crashed and not self.is_done:
            with suppress(FileNotFoundError):
                os.utime(self.lease.file, (self.clock.now, self.clock.now))
            if not self.lease.is_current():
                self.has_crashed = True  # as the worker does: it ends


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["go on", "go on", "beat", "crash", "time"]), st.integers(0, 2)),
    max_size=60,
)


CLOCKS = st.lists(
    st.tuples(st.floats(-900, 900), st.floats(0.9, 1.1)), min_size=3, max_size=3
)  # minutes apart, and drifting


@settings(max_examples=400, deadline=None)
@given(actions=ACTIONS, clocks=CLOCKS)
def test_whatever_is_suspended_or_crashes_one_publishes_and_the_step_gets_built(
    tmp_path_factory, actions, clocks
):
    folder, clock = tmp_path_factory.mktemp("store"), Clock()
    final = folder / "sample" / ("a" * 12)
    store.lease_folder(final).parent.mkdir(parents=True)
    builders = [Builder(number, final, Clock(*clocks[number])) for number in range(3)]
    for action, number in actions:
        if action == "time":
            for one in builders:
                one.clock.advance(EXPIRY / 2 * (number + 1))
        elif action == "crash":
            builders[number].has_crashed = True
        elif action == "beat":
            builders[number].beat()
        else:
            builders[number].go_on()
    last = Builder(9, final, clock)  # who comes later is never stuck
    for _ in range(20):
        clock.now += EXPIRY
        last.go_on()
    assert last.is_done and store.read_manifest(final)
    assert sum(one.has_published for one in [*builders, last]) == 1
    assert store.find_damage(final, store.read_manifest(final), verify=True) is None


def test_work_that_is_taken_over_goes_on_under_another_name(tmp_path):
    clock, final = Clock(), tmp_path / "sample" / ("a" * 12)
    store.lease_folder(final).parent.mkdir(parents=True)
    far, near = elsewhere(clock), elsewhere(clock, "near")
    lease = far.try_acquire(store.lease_folder(final))
    work = store.claim_work_folder(final, lease)
    write_text(work / "shard", "half done")
    assert near.try_acquire(store.lease_folder(final)) is None
    clock.now += EXPIRY + 1
    ours = store.claim_work_folder(final, near.try_acquire(store.lease_folder(final)))
    assert (ours / "shard").read_text() == "half done" and not work.exists()
    assert store.find_work_folder(final) == ours
    with pytest.raises(StageError, match="another process has taken this step over"):
        store.publish(work, final)
    write_json(ours / store.STEP, {})
    store.publish(ours, final)
    assert (final / "shard").exists()
