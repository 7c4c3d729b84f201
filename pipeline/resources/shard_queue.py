"""The shards of a step that processes of any machine may take: a folder that all of them see.

`queue.json` lists the shards. A shard is taken by a lease, and its result is the lease's. Only the
stage itself, which holds the step's lease, puts files into the step: what others write is in
`others/`, until the stage moves it into place with `collect`.
"""

import json
import os
import random
import secrets
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import hardware
from pipeline.artifacts import write_json
from pipeline.resources import leases
from pipeline.resources.leases import Heart, Lease, Observer

QUEUE = "scratch/queue"  # in the folder of a step's unfinished work
LEASES, OTHERS = "leases", "others"  # in the queue
QUEUE_FILE = "queue.json"
Result = dict[str, Any]


class ShardQueue:
    """`take` a shard, and then `finish` it or `give_back`; `collect` what others have finished."""

    def __init__(self, folder: Path, shards: list[str]):
        self.folder = folder
        self._left, self._others = deque(shards), deque[str]()
        self._held: dict[str, Lease] = {}
        self._observer, self._heart = Observer(), Heart(self._lose)

    def take(self) -> str | None:
        """A shard that is free, which is ours now; None if others have all that is left."""
        while self._left:
            shard = self._left.popleft()
            if lease := self._observer.try_acquire(self._lease_folder(shard)):
                self._hold(shard, lease)
                return shard
            self._others.append(shard)
        return None

    def give_back(self, shards: list[str]) -> None:
        """Ours, to be taken first."""
        for shard in shards:
            if lease := self._drop(shard):
                lease.release()
        self._left.extendleft(reversed(shards))

    def finish(self, shard: str, result: Result | None = None) -> None:
        """`result`: what the stage needs to collect it; None where it has all itself."""
        if lease := self._drop(shard):
            lease.finish(result or {})

    def collect(self) -> Iterator[tuple[str, Result]]:
        """What others have finished since the last call. Their expired shards are free again."""
        for _ in range(len(self._others)):
            shard = self._others.popleft()
            folder = self._lease_folder(shard)
            result = leases.read_result(folder)
            if result is not None:
                yield shard, result
            elif lease := self._observer.try_acquire(folder):
                lease.release()
                self._left.append(shard)
            else:
                self._others.append(shard)

    def is_left(self) -> bool:
        """Whether a shard is free, or with others, who may give it back."""
        return bool(self._left or self._others)

    def count_others(self) -> int:
        return len(self._others)

    def list_unfinished(self) -> list[str]:
        return [*self._held, *self._left, *self._others]

    def close(self) -> None:
        self._heart.stop()
        for shard in [*self._held]:
            if lease := self._drop(shard):
                lease.release()

    def _lease_folder(self, shard: str) -> Path:
        return self.folder / LEASES / f"{shard}.lease"

    def _hold(self, shard: str, lease: Lease) -> None:
        self._held[shard] = lease
        self._heart.add(lease)

    def _drop(self, shard: str) -> Lease | None:
        lease = self._held.pop(shard, None)
        if lease:
            self._heart.remove(lease)
        return lease

    def _lose(self, lease: Lease) -> None:
        """Others have it now: they took us for dead. What we make of it is not needed."""
        self._held.pop(lease.folder.name.removesuffix(".lease"), None)


class OwnQueue(ShardQueue):
    """The queue as the stage sees it, which opens it for others."""

    def __init__(self, work: Path, shards: list[str], about: dict[str, Any] | None):
        """`about`: what others must have in common with us. None: no others may join."""
        super().__init__(work / QUEUE, shards)
        self._work = work
        for name in (LEASES, OTHERS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for shard in shards:
            self._forget_earlier(shard)
        if about is not None:
            write_json(self.folder / QUEUE_FILE, {"shards": shards, **about})

    def close(self) -> None:
        """Others take nothing more. What they finish now waits for the next attempt."""
        (self.folder / QUEUE_FILE).unlink(missing_ok=True)
        super().close()

    def _forget_earlier(self, shard: str) -> None:
        """A shard that an earlier attempt finished is asked for again; what waits here is not."""
        folder = self._lease_folder(shard)
        result = leases.read_result(folder)
        if result is not None and not self._has_files(result):
            shutil.rmtree(folder)

    def _has_files(self, result: Result) -> bool:
        files = result.get("files", {})
        return bool(files) and all((self._work / written).exists() for written in files.values())

    def collect(self) -> Iterator[tuple[str, Result]]:
        """Moves the files of others into place."""
        self._notice_taken()
        for shard, result in super().collect():
            if not self._has_files(result):
                shutil.rmtree(self._lease_folder(shard))
                self._left.append(shard)
                continue
            for final, written in result["files"].items():
                (self._work / final).parent.mkdir(parents=True, exist_ok=True)
                (self._work / written).replace(self._work / final)
            yield shard, result

    def _notice_taken(self) -> None:
        """Others take from our end as well, where we would find that out last."""
        if not self._left:
            return
        leased = {folder.name for folder in (self.folder / LEASES).iterdir()}
        begun = [shard for shard in self._left if self._lease_folder(shard).name in leased]
        if theirs := {shard for shard in begun if not leases.is_free(self._lease_folder(shard))}:
            self._left = deque(shard for shard in self._left if shard not in theirs)
            self._others.extend(sorted(theirs))


class JoinedWorker:
    """A worker of another process, perhaps of another machine. See `worker_pool.Worker`."""

    def __init__(self, work: Path, shards: list[str]):
        mixed = random.sample(shards, len(shards))  # so that many do not try the same one
        self._work, self._queue = work, ShardQueue(work / QUEUE, mixed)
        name = f"{leases.describe_machine()[0]}-{os.getpid()}-{secrets.token_hex(3)}"
        self._folder = work / QUEUE / OTHERS / name
        self._files: dict[str, dict[str, str]] = {}
        self._figures: dict[str, float] = {}
        self._device = hardware.describe_device()
        self.finished = 0

    def sees_free_shard(self) -> bool:
        """Whether it is worth opening a model."""
        shard = self.claim()
        if shard is not None:
            self._queue.give_back([shard])
        return shard is not None

    def claim(self, wait: bool = True) -> str | None:
        """None: nothing is free now. Who joined leaves then, and may join again."""
        for _ in self._queue.collect():
            continue
        return self._queue.take()

    def output(self, shard: str, file: Path) -> Path:
        written = self._folder / f"{shard}-{file.name}"
        written.parent.mkdir(exist_ok=True)
        places = self._files.setdefault(shard, {})
        places[file.relative_to(self._work).as_posix()] = written.relative_to(self._work).as_posix()
        return written

    def finish(self, shard: str, entry: Any = None) -> None:
        result = {"entry": entry, "files": self._files.pop(shard, {}), "figures": self._figures}
        self._queue.finish(shard, {**result, "device": self._device})
        self._figures = {}
        self.finished += 1

    def report(self, **figures: float) -> None:
        for name, figure in figures.items():
            self._figures[name] = self._figures.get(name, 0) + figure

    def close(self) -> None:
        self._queue.close()


def read_queue(work: Path) -> dict[str, Any] | None:
    """What a step's queue says; None where no step with shards for others is in the making."""
    with suppress(OSError, ValueError):
        return json.loads((work / QUEUE / QUEUE_FILE).read_text())
    return None
