"""A process that has loaded the libraries of the stages, and forks a worker whenever we ask.

A worker then starts in a few milliseconds instead of the seconds that torch, transformers and TRL
take to load. What is loaded here must survive a fork: no thread pool that a worker needs, and no
GPU that is open. So polars and vLLM (which loads grpc) are left to the workers. pyarrow, which TRL
loads, starts its thread pools anew in a forked process.

Linux only: on macOS the system's own libraries do not survive a fork.
"""

import ctypes
import gc
import importlib
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
from typing import Any

from pipeline.driver.child_process import ENVIRONMENT, STAGES, StepWorker, start_worker, watch_end
from pipeline.step import Step

IS_SAFE = sys.platform == "linux"
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>: the signal that this process gets when its parent ends
MESSAGE_BYTES = 4096
# `is_available` of torch then asks the driver's library and does not open the GPU.
CUDA_CHECK = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


class PreparedParent:
    """The process as we see it. It starts to load at once, and ends with us."""

    def __init__(self, log: Path):
        self._started_with = dict(os.environ), Path.cwd()
        self._exit_codes: dict[int, int] = {}
        self._pids: list[int] = []
        self._is_loaded = False
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.driver.prepared_parent"],
                env={**ENVIRONMENT, **os.environ},
                stdin=theirs.fileno(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def is_loading(self) -> bool:
        with suppress(BlockingIOError, ConnectionResetError):
            while not self._is_loaded and self._receive(socket.MSG_DONTWAIT):
                continue
        return not self._is_loaded and self._process.poll() is None

    def fits(self) -> bool:
        """Whether it was started in the folder and with the environment that we have now."""
        return self._started_with == (dict(os.environ), Path.cwd())

    def fork_worker(self) -> StepWorker | None:
        """A new worker; None if this process has ended."""
        ours, theirs = socket.socketpair()
        with theirs, suppress(OSError):
            socket.send_fds(self._channel, [b"fork"], [theirs.fileno()])
            while not self._pids:
                if not self._receive():
                    break
            else:
                return StepWorker(ForkedProcess(self, self._pids.pop()), ours)
        ours.close()
        return None

    def _receive(self, flags: int = 0) -> bool:
        """One message. False: this process has ended, and so have its workers."""
        message = self._channel.recv(MESSAGE_BYTES, flags)
        if not message:
            return False
        news = json.loads(message)
        if "is_loaded" in news:
            self._is_loaded = True
        elif "code" in news:
            self._exit_codes[news["pid"]] = news["code"]
        else:
            self._exit_codes.pop(news["pid"], None)  # of an earlier process with this number
            self._pids.append(news["pid"])
        return True

    def find_exit_code(self, pid: int) -> int | None:
        """As Popen's: negative for a signal. None while the process runs."""
        with suppress(BlockingIOError, ConnectionResetError):
            while self._receive(socket.MSG_DONTWAIT):
                continue
            if pid not in self._exit_codes:  # its exit code is lost with this process
                _kill_group(pid)
                self._exit_codes[pid] = -signal.SIGKILL
        return self._exit_codes.get(pid)

    def close(self) -> None:
        self._channel.close()
        self._process.wait()


class ForkedProcess:
    """A worker that the prepared parent has forked, with the methods of Popen that we need."""

    def __init__(self, parent: PreparedParent, pid: int):
        self._parent, self._pid = parent, pid

    def poll(self) -> int | None:
        return self._parent.find_exit_code(self._pid)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, sig)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


_prepared: PreparedParent | None = None  # it serves all points of a sweep


class Workers:
    """Starts workers. While the prepared parent loads its libraries, the first one loads its own,
    and so do those whose Step needs few of them.
    """

    runs_side_by_side = False  # two Steps with models may not fit this machine's memory

    def __init__(self, logs: Path, preload: bool):
        self._logs, self._preload, self._has_started = logs, preload and IS_SAFE, False

    def should_wait(self) -> bool:
        """Whether it is quicker to wait for the libraries than to load them once more."""
        return self._preload and self._has_started and self._find_parent().is_loading()

    def start(self, log: Path, step: Step | None = None) -> StepWorker:
        worker = None
        if self._preload and not self._find_parent().is_loading():
            worker = self._find_parent().fork_worker()
        self._has_started = True
        return worker or start_worker(log)

    def close(self) -> None:
        """The parent stays, for the next point of a sweep."""

    def _find_parent(self) -> PreparedParent:
        global _prepared
        if _prepared is None or not _prepared.fits():
            if _prepared:
                _prepared.close()
            _prepared = PreparedParent(self._logs / "prepared_parent.log")
        return _prepared


# ── in the process itself ─────────────────────────────────────────────────────────────────────────


def load_libraries() -> None:
    """What the package of stages names. Ends this process if a library has opened a GPU."""
    stages = importlib.import_module(STAGES)
    for name in getattr(stages, "PRELOAD", ()):
        importlib.import_module(name)
    torch = sys.modules.get("torch")
    if torch and not torch.cuda.is_available():
        for name in getattr(stages, "PRELOAD_WITHOUT_GPU", ()):
            importlib.import_module(name)
    if torch and torch.cuda.is_initialized():
        sys.exit("A library has opened the GPU while it was loaded: workers load their own.")
    gc.collect()
    gc.freeze()  # a collection in a worker would copy the pages that all share


def serve_forks(driver: socket.socket) -> socket.socket | None:
    """Fork a worker for each socket that arrives. Returns twice: in each worker with its socket."""
    children, wakeup = socket.socketpair()
    for end in (children, wakeup):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup.fileno())
    while True:
        readable, _, _ = select.select([driver, children], [], [])
        if children in readable:
            children.recv(MESSAGE_BYTES)
            report_ended(driver)
        if driver in readable:
            message, descriptors, _, _ = socket.recv_fds(driver, MESSAGE_BYTES, 1)
            if not message:
                return None
            channel = socket.socket(fileno=descriptors[0])
            if not (pid := os.fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (driver, children, wakeup):
                    end.close()
                return channel
            channel.close()
            send(driver, pid=pid)


def report_ended(driver: socket.socket) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            send(driver, pid=pid, code=os.waitstatus_to_exitcode(status))


def send(driver: socket.socket, **news: Any) -> None:
    with suppress(BrokenPipeError):  # the driver has ended, and `serve_forks` is about to see it
        driver.send(json.dumps(news).encode())


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also while it loads
    with socket.socket(fileno=os.dup(0)) as driver:
        if watch_end(driver.fileno()).poll(0):  # before the line above: then no signal comes
            return
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= {name: value for name, value in CUDA_CHECK.items() if name not in os.environ}
        from pipeline.driver import worker  # a third of a second, which no worker spends again

        load_libraries()
        send(driver, is_loaded=True)
        channel = serve_forks(driver)
    if channel is None:
        return
    os.setsid()
    os.dup2(channel.detach(), 0)
    worker.serve_driver()


if __name__ == "__main__":
    main()
