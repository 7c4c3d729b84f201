"""Machines that train together: how the others find the training of the first one.

The first machine publishes an invitation in the step's scratch folder. Each other one takes a
number by a lease. Once all numbers are taken the first machine writes the order, by which every
launcher then meets the others.
"""

import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.artifacts import STEP_FILE, write_json
from pipeline.errors import StageError, pluralize
from pipeline.hashing import hash_code
from pipeline.progress import print_progress, print_warning
from pipeline.resources import leases

FOLDER = "machines"  # in scratch
INVITATION = "invitation.json"
ORDER = "order.json"
PATIENCE = 900  # seconds for machines that a cluster starts together
PAUSE = 0.5  # seconds between two looks at what others wrote


@dataclass(frozen=True)
class Invitation:
    """`attempt` is another one after each restart: a machine of the last one joins anew.

    Each machine runs as many `processes`.
    """

    folder: Path
    machines: int
    processes: int
    attempt: str
    code: str

    @property
    def order(self) -> Path:
        return self.folder.parent / ORDER

    def list_numbers(self) -> Iterator[Path]:
        """The leases of the machines after the first."""
        for number in range(1, self.machines):
            yield self.folder / self.attempt / str(number)

    def is_open(self) -> bool:
        try:
            return _read(self.folder) == self
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # it cannot be known now


def find_invitation(work: Path) -> Invitation | None:
    """That of the training in a step's folder, while it waits for machines or runs on them."""
    try:
        return _read(work / "scratch" / FOLDER)
    except OSError:
        return None


def _read(folder: Path) -> Invitation:
    """Another version of the software may have written other fields: its `code` is refused then."""
    call = json.loads((folder / INVITATION).read_text())
    names = [field.name for field in fields(Invitation) if field.name != "folder"]
    return Invitation(folder, **{name: call.get(name) for name in names})


# ── on the first machine ──────────────────────────────────────────────────────────────────────────


@contextmanager
def invite(out: Path, machines: int, processes: int) -> Iterator[str]:
    """Wait until the others are there; they may join until the end. Yields the attempt."""
    folder = out / "scratch" / FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    invitation = Invitation(folder, machines, processes, secrets.token_hex(4), hash_code())
    (folder / invitation.attempt).mkdir(parents=True)
    call = {name: value for name, value in vars(invitation).items() if name != "folder"}
    file = folder / INVITATION
    write_json(file, call)
    try:
        _wait_for_others(invitation, json.loads((out / STEP_FILE).read_text()))
        yield invitation.attempt
    finally:
        file.unlink(missing_ok=True)


def _wait_for_others(invitation: Invitation, step: dict[str, Any]) -> None:
    """Without end where a person starts them: on a cluster they have started already."""
    is_on_cluster, started, reported = step.get("is_on_cluster"), time.monotonic(), None
    while missing := sum(not leases.is_held(lease) for lease in invitation.list_numbers()):
        others = pluralize(missing, "more machine")
        if missing != reported:
            reported = missing
            print_progress(f"train waits for {others}")
            if not is_on_cluster:
                print_warning(f"train: type on {others}: strop work {step['story']}")
        if is_on_cluster and time.monotonic() - started > PATIENCE:
            raise StageError(
                f"train: {others} did not join within {PATIENCE // 60} minutes of the start.\n"
                f"  The logs *-partner*.log in {step['story']}/logs say why."
            )
        time.sleep(PAUSE)


# ── on another machine ────────────────────────────────────────────────────────────────────────────


def join(
    invitation: Invitation,
    launch: Callable[[Path, int], int],
    is_going_on: Callable[[], bool],
) -> bool:
    """Take a number, wait for the order and launch. Returns whether this machine took part."""
    if (lease := _take_number(invitation)) is None:
        return False
    heart = leases.Heart(lambda lost: None)  # the launcher ends with the training
    heart.add(lease)
    code = None
    try:
        while not _is_ordered(invitation):
            if not (is_going_on() and lease.is_current()):
                return False
            time.sleep(PAUSE)
        code = launch(invitation.order, int(lease.folder.name))
        return True
    finally:
        heart.stop()
        heart.remove(lease)
        if code is None:
            lease.release()
        else:
            lease.finish(code)  # its number is not taken again: the machines have met


_observer = leases.Observer()  # it remembers since when another machine's lease is not touched


def _take_number(invitation: Invitation) -> leases.Lease | None:
    for folder in invitation.list_numbers():
        with suppress(FileNotFoundError):  # the training was started anew
            if lease := _observer.try_acquire(folder):
                return lease
    return None


def _is_ordered(invitation: Invitation) -> bool:
    try:
        order: dict[str, Any] = json.loads(invitation.order.read_text())
    except (OSError, ValueError):
        return False
    return order.get("attempt") == invitation.attempt
