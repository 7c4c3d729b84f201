"""Worker processes: each in its own process group, asked for Steps one by one, ended with us."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

STAGES = os.environ.get("PIPELINE_STAGES", "pipeline.stages")  # tests name a package of toys
ENVIRONMENT = {
    # Threads that spin while they wait make torch ten times slower on a CPU that others use too.
    # torch reads this when it is loaded.
    "OMP_WAIT_POLICY": "passive",
    # glibc returns freed blocks to the machine at once only from this size on (in bytes), and by
    # itself raises it to 32 MiB: smaller tensors then stay in the process as holes. A training of
    # 135M parameters on a CPU took 3.90 GiB with the default and 2.92 GiB with this, equally fast.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}
GRACE = 10.0  # seconds from SIGTERM to SIGKILL


class Process(Protocol):
    """What `subprocess.Popen` and a process forked by the prepared parent have in common."""

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...


class StepWorker:
    """One worker process. It builds one Step after another and dies with us.

    Its standard input is a socket from us. A line of JSON asks for a Step; the Step's exit code
    comes back as one byte.
    """

    def __init__(self, process: Process, channel: socket.socket):
        self._process, self._channel = process, channel

    def start_step(self, record: Path, log: Path) -> None:
        log.write_bytes(b"")
        paths = {"record": str(record.absolute()), "log": str(log.absolute())}
        request = paths | {"asked_at": time.time()}
        try:
            self._channel.sendall(f"{json.dumps(request)}\n".encode())
        except (BrokenPipeError, ConnectionResetError):
            return  # it has ended: `poll` returns its exit code

    def poll(self) -> int | None:
        """The exit code of its Step, or of the process if that has ended; None while it builds."""
        ended = self._process.poll()
        try:
            reply = self._channel.recv(1, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):
            return ended
        return reply[0] if reply else ended

    def explain_wait(self) -> str | None:
        """What a Step waits for before it starts: nothing on this machine."""
        return None

    def end(self) -> None:
        """Ask for no more Steps: it closes its model and ends."""
        with suppress(OSError):  # it has ended
            self._channel.shutdown(socket.SHUT_WR)

    def wait(self) -> None:
        """After `end`, until its memory is free."""
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.stop()

    def stop(self) -> None:
        """Send SIGTERM, wait, then SIGKILL. The worker's watcher ends its children."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def start_worker(log: Path) -> StepWorker:
    """A worker that loads its libraries itself. Until its first Step it prints to `log`."""
    ours, theirs = socket.socketpair()
    with theirs, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.driver.worker", "--follow"],
            env={**ENVIRONMENT, **os.environ},
            stdin=theirs.fileno(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return StepWorker(process, ours)


def watch_end(socket_number: int) -> select.poll:
    """Its `poll` reports that the other end is closed, and nothing else."""
    watch = select.poll()
    watch.register(socket_number, 0)  # no event but the end, which is always reported
    return watch


def follow_driver() -> None:
    """Fork a watcher that kills this process group when the driver or this worker ends.

    Standard input is a socket from the driver: it is closed at both ends when the driver ends.
    """
    worker, group = os.getpid(), os.getpgid(0)
    if os.fork():
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        return
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    driver = watch_end(0)
    while os.getppid() == worker and not driver.poll(100):
        continue
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        os._exit(0)
    os._exit(0)
