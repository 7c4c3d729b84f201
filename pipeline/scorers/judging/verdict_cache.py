"""Every verdict that was ever paid for: store/verdicts.sqlite, shared by processes, a row written as it arrives.

A question is claimed before it is asked, so that two processes pay for it once: who finds it claimed waits for the
answer. A claim is worth as much as its owner's lock, a file beside the verdicts, which the system frees when its owner
dies: another process then takes the claim over. The first reply to a question stands.
"""

import fcntl
import functools
import json
import os
import secrets
import shlex
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pipeline.errors import UserError
from pipeline.scorers.judging import Question, Reply

WAIT = 60_000  # milliseconds for another process's write
AT_ONCE = 500  # keys of one lookup
SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, judge TEXT, revision TEXT, template TEXT, texts TEXT, asked TEXT,
    reply TEXT NOT NULL, first TEXT, model TEXT, tokens_in INTEGER, tokens_out INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    judge TEXT PRIMARY KEY, requests INTEGER, tokens_in INTEGER, tokens_out INTEGER
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Spent:
    """What this store has ever sent to one model and got back."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Asker:
    """Who answers, by name and revision, and in which words it is asked."""

    judge: str
    revision: str
    template: str


Method = TypeVar("Method", bound=Callable[..., Any])


def explain_damage(method: Method) -> Method:
    """A method of the store that may find its file damaged, at any page, says so in words."""

    @functools.wraps(method)
    def explained(self: "VerdictStore", *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path}: cannot be used as the database of verdicts ({error}).\n"
                "  Restore it from a copy, so that what was paid for is not asked again; or move it away to begin anew:"
                f" {shlex.join(['mv', str(self.path), f'{self.path}.broken'])}"
            ) from error

    return cast(Method, explained)


class VerdictStore:
    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._owner: Owner | None = None
        self._open()

    @explain_damage
    def _open(self) -> None:
        self.file = sqlite3.connect(self.path, timeout=WAIT / 1000, isolation_level=None)
        self.file.execute(f"PRAGMA busy_timeout={WAIT}")
        self.file.execute("PRAGMA journal_mode=WAL")
        self.file.execute("PRAGMA synchronous=NORMAL")
        self.file.executescript(SCHEMA)

    @explain_damage
    def known(self, keys: Iterable[str]) -> dict[str, Reply]:
        wanted = list(keys)
        found: dict[str, Reply] = {}
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self.file.execute(
                f"SELECT key, reply, first, model, tokens_in, tokens_out FROM verdicts WHERE key IN ({marks})",
                some,
            )
            found |= {key: Reply(text, _loaded(first), *rest) for key, text, first, *rest in rows}
        return found

    @explain_damage
    def keep(self, key: str, who: Asker, question: Question, reply: Reply) -> Reply:
        """Write a reply down and give back the one that stands. One without text is counted, not kept."""
        with _whole(self.file):
            self.file.execute(
                "INSERT INTO spent VALUES (?, 1, ?, ?) ON CONFLICT (judge) DO UPDATE SET requests = requests + 1,"
                " tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out",
                (who.judge, reply.tokens_in, reply.tokens_out),
            )
            self.file.execute("DELETE FROM claims WHERE key = ?", (key,))
            if reply.text is None:
                return reply
            told = (who.judge, who.revision, who.template, question.texts, question.order)
            said = (
                reply.text,
                _dumped(reply.first),
                reply.model,
                reply.tokens_in,
                reply.tokens_out,
            )
            written = self.file.execute(
                "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, *told, *said),
            )
            return reply if written.rowcount else self.known([key])[key]

    @explain_damage
    def claim(self, key: str) -> Reply | bool:
        """Whether this process is to ask it now; another one does otherwise, or has done: here is its answer."""
        self._owner = self._owner or self._enrolled()
        with _whole(self.file):
            if known := self.known([key]):
                return known[key]
            row = self.file.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
            if row and row[0] != self._owner.name and alive(self.path, row[0]):
                return False
            self.file.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, self._owner.name)
            )
            return True

    def _enrolled(self) -> "Owner":
        """From now on others see us; what dead processes have left goes."""
        owner = Owner(self.path)
        for (name,) in self.file.execute("SELECT DISTINCT owner FROM claims").fetchall():
            if not alive(self.path, name):
                self.file.execute("DELETE FROM claims WHERE owner = ?", (name,))
        for place in self.path.parent.glob(lock_of(self.path, "*").name):
            alive(self.path, place.name.split(".")[-2])
        return owner

    @explain_damage
    def give_up(self) -> None:
        """What was claimed and not asked, or not answered, is anybody's again."""
        if self._owner:
            self.file.execute("DELETE FROM claims WHERE owner = ?", (self._owner.name,))

    @explain_damage
    def spent(self, judge: str) -> Spent:
        row = self.file.execute(
            "SELECT requests, tokens_in, tokens_out FROM spent WHERE judge = ?", (judge,)
        )
        return Spent(*(row.fetchone() or ()))

    def close(self) -> None:
        self.give_up()
        self.file.close()
        if self._owner:
            self._owner.end()


class Owner:
    """This process, as the others see it: a locked file. Locks of a dead process are free at once."""

    def __init__(self, path: Path):
        self.name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._place = lock_of(path, self.name)
        self._file = self._place.open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def end(self) -> None:
        self._place.unlink(missing_ok=True)
        self._file.close()


def lock_of(path: Path, owner: str) -> Path:
    return path.with_name(f".{path.name}.{owner}.asks")


def alive(path: Path, owner: str) -> bool:
    """Whether somebody holds its lock; the file of a dead one is removed."""
    place = lock_of(path, owner)
    try:
        with place.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held by its owner
        return True
    place.unlink(missing_ok=True)
    return False


class _whole:
    """One transaction: all of it is written, or nothing."""

    def __init__(self, file: sqlite3.Connection):
        self.file = file

    def __enter__(self) -> None:
        self.file.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self.file.execute("ROLLBACK" if kind else "COMMIT")


def _dumped(first: Mapping[str, float] | None) -> str | None:
    return None if first is None else json.dumps(first, sort_keys=True, ensure_ascii=False)


def _loaded(text: str | None) -> dict[str, float] | None:
    return None if text is None else json.loads(text)
