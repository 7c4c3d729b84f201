"""Leases: who builds a step or processes a shard, among processes of any number of machines.

A lease is a folder with numbered files, its generations. Each is created exclusively, and the
newest one says who holds the lease: its holder's process, and whether it was released or its work
is finished. The holder touches its file every `BEAT` seconds. Others may take the lease over

- at once, where the holder was a process of this machine that has ended;
- after `EXPIRY` seconds without a touch, where it is on another machine and may still run.

Clocks of machines may differ: nothing is compared but a file's own times, with the clock of the
process that watches it. A holder that was suspended for too long finds a newer generation. It must
not publish anything then, so work that is taken over from a holder that may still run gets another
name (see `store.claim_work_folder`).

Locks of the kernel (flock) would not do: many network file systems keep them on one machine.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

BEAT = 15.0  # seconds between two touches
# Seconds without a touch. A network file system may show another machine's touch a minute late.
EXPIRY = 150.0
PAUSE = 0.2  # seconds between two looks at the lease of another process
HELD, RELEASED, FINISHED = "held", "released", "finished"
Record = dict[str, Any]


@cache
def describe_machine() -> list[str]:
    """Where a process id has a meaning: host, its boot, and the container's process namespace."""
    return [socket.gethostname(), _read_or_blank("/proc/sys/kernel/random/boot_id"), _namespace()]


def _namespace() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _read_or_blank(file: str) -> str:
    with suppress(OSError):
        return Path(file).read_text().strip()
    return ""


def find_start_time(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None if it has ended.

    A number may be given to a new process, which began at another time.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _find_without_proc(pid)
    fields = status.rpartition(")")[2].split()
    is_dead = fields[0] in "ZX"
    return None if is_dead else fields[19]


def _find_without_proc(pid: int) -> str | None:
    """Without /proc, as on macOS, only whether a process has this number."""
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""


@dataclass(eq=False)
class Lease:
    """A lease that this process holds, as far as it knows: `is_current` asks the folder."""

    folder: Path
    generation: int
    may_be_contested: bool  # whether the holder before may still run

    @property
    def file(self) -> Path:
        return self.folder / _name(self.generation)

    def is_current(self) -> bool:
        return _find_newest(self.folder) == self.generation

    def beat(self) -> None:
        """Show that we are alive. Does not bring back a file that was removed."""
        os.utime(self.file)

    def release(self) -> None:
        self._replace({"state": RELEASED})

    def finish(self, result: Any) -> None:
        """Release for good: no process takes it again, and all can read its result."""
        self._replace({"state": FINISHED, "result": result})

    def _replace(self, record: Record) -> None:
        """Only we write this generation's file. If it was taken over, no one reads this."""
        scratch = self.folder / f".{_name(self.generation)}.tmp"
        with suppress(FileNotFoundError):  # the folder is gone: so is what was leased
            scratch.write_text(json.dumps(record))
            scratch.rename(self.file)


@dataclass
class Observer:
    """Takes leases, and remembers when it saw the others' files change.

    `clock` is monotonic. A test gives its own.
    """

    clock: Callable[[], float] = time.monotonic
    me: Callable[[], Record] = field(default=lambda: describe_process())
    _seen: dict[Path, tuple[int, float]] = field(default_factory=dict)

    def try_acquire(self, folder: Path) -> Lease | None:
        """Take a lease that is free or has expired; None while another process holds it.

        The folder that holds the leases has to exist: it is not made anew after it was removed.
        """
        folder.mkdir(exist_ok=True)
        newest = _find_newest(folder)
        before = _read(folder, newest)
        if before["state"] == FINISHED:
            return None
        may_run = False
        if before["state"] == HELD:
            if not self._has_expired(folder / _name(newest), before):
                return None
            may_run = not _is_here(before)
        lease = Lease(folder, newest + 1, may_run)
        record = {"state": HELD, **self.me()}
        if not _create(lease.file, record):
            return None
        # Between our look and our file others may have taken it, or its holder may have finished.
        is_ours = lease.is_current() and _read(folder, newest)["state"] != FINISHED
        if not is_ours:
            lease.file.unlink(missing_ok=True)
            return None
        self._seen.pop(folder / _name(newest), None)
        for number in _list_generations(folder):
            if number < lease.generation:
                (folder / _name(number)).unlink(missing_ok=True)
        return lease

    def _has_expired(self, file: Path, record: Record) -> bool:
        if _is_here(record):
            return find_start_time(record["pid"]) != record["started"]
        try:
            touched = file.stat().st_mtime_ns
        except FileNotFoundError:
            return False  # a newer one has come
        before = self._seen.get(file)
        if before is None or before[0] != touched:
            self._seen[file] = touched, self.clock()
            return False
        return self.clock() - before[1] > EXPIRY


def describe_process() -> Record:
    pid = os.getpid()
    return {
        "machine": describe_machine(),
        "pid": pid,
        "started": find_start_time(pid),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": secrets.token_hex(4),
    }


def read_result(folder: Path) -> Any:
    """What `Lease.finish` was given; None while the work is not finished."""
    return _read(folder, _find_newest(folder)).get("result")


def is_free(folder: Path) -> bool:
    """Whether no process holds it and its work is not finished, as its newest file says."""
    return bool(_read(folder, _find_newest(folder))["state"] == RELEASED)


def describe_holder(folder: Path) -> str | None:
    """The process that holds a lease, for a message; None where none does."""
    record = _read(folder, _find_newest(folder))
    if record["state"] != HELD:
        return None
    if "pid" not in record:
        return "another process"
    return f"pid {record['pid']} on {record['machine'][0]} since {record['since']}"


def is_held(folder: Path) -> bool:
    """Whether a process holds it that lives, as far as this shows.

    The age of another machine's touch is by the clock of the disk, which dates a probe as well.
    """
    newest = _find_newest(folder)
    record = _read(folder, newest)
    if record["state"] != HELD:
        return False
    if _is_here(record):
        return find_start_time(record["pid"]) == record["started"]
    probe = folder / f".probe-{secrets.token_hex(4)}"
    try:
        probe.touch()
        return probe.stat().st_mtime - (folder / _name(newest)).stat().st_mtime <= EXPIRY
    except OSError:
        return True  # it cannot be known now
    finally:
        probe.unlink(missing_ok=True)


class Heart:
    """A thread that touches the leases of this process, and says when one of them is lost."""

    def __init__(self, on_loss: Callable[[Lease], None]):
        self._on_loss, self._leases = on_loss, dict[Lease, float]()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases[lease] = time.monotonic()
        if not self._thread.is_alive() and not self._stopped.is_set():
            self._thread.start()

    def remove(self, lease: Lease) -> None:
        with self._lock:
            self._leases.pop(lease, None)

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(BEAT):
            with self._lock:
                leases = [*self._leases]
            for lease in leases:
                self._beat(lease)

    def _beat(self, lease: Lease) -> None:
        """A disk that does not answer is borne for as long as others wait for us."""
        try:
            lease.beat()
            is_lost = not lease.is_current()
            touched = time.monotonic()
        except FileNotFoundError:
            is_lost, touched = True, 0.0
        except OSError:
            touched = self._leases.get(lease, 0.0)
            is_lost = time.monotonic() - touched > EXPIRY
        with self._lock:
            if lease not in self._leases:  # it was given back meanwhile
                return
            self._leases[lease] = touched
            if is_lost:
                del self._leases[lease]
        if is_lost:
            self._on_loss(lease)


def _ignore(*_: Any) -> None:
    pass


@contextmanager
def hold(
    folder: Path,
    on_wait: Callable[[str], None] = _ignore,
    on_loss: Callable[[Lease], None] = _ignore,
) -> Iterator[Lease]:
    """Wait for a lease, and keep it. `on_wait` gets its holder, again and again."""
    observer, heart = Observer(), Heart(on_loss)
    while (lease := observer.try_acquire(folder)) is None:
        on_wait(describe_holder(folder) or "another process")
        time.sleep(PAUSE)
    heart.add(lease)
    try:
        yield lease
    finally:
        heart.stop()
        heart.remove(lease)  # it may be in the middle of a beat
        lease.release()


# ── generations ───────────────────────────────────────────────────────────────────────────────────


def _name(generation: int) -> str:
    return f"{generation:06d}"


def _list_generations(folder: Path) -> list[int]:
    try:
        return [int(file.name) for file in folder.iterdir() if file.name.isdigit()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _find_newest(folder: Path) -> int:
    """0: it was never held. The newest is removed only after a newer one has come."""
    return max(_list_generations(folder), default=0)


def _read(folder: Path, generation: int) -> Record:
    """A file that has no record yet, or is gone meanwhile, counts as held by a stranger."""
    if not generation:
        return {"state": RELEASED}
    try:
        record = json.loads((folder / _name(generation)).read_bytes())
    except (OSError, ValueError):
        return {"state": HELD}
    return record if isinstance(record, dict) and "state" in record else {"state": HELD}


def _is_here(record: Record) -> bool:
    return record.get("machine") == describe_machine()


def _create(file: Path, record: Record) -> bool:
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as output:
            output.write(json.dumps(record))
    except OSError:  # a full disk
        file.unlink(missing_ok=True)
        raise
    return True
