"""Every response ever paid for, in store/verdicts.sqlite: a row is written as it arrives.

Several processes share the file. A request is claimed before it is sent, so that two processes pay
for it once: a process that finds it claimed waits for the response. A claim is valid while its
owner holds a lock on a file next to the verdicts. The system frees the lock when the owner dies,
and another process then takes the claim over. The first response to a request that gives a verdict
is final. One that gives none is requested again by the next run.
"""

import fcntl
import functools
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pipeline.errors import UserError, format_move
from pipeline.scorers.judging import JudgeRequest, Response

BUSY_TIMEOUT = 60_000  # milliseconds to wait for another process's write
KEYS_PER_QUERY = 500
BATCH = " by batch"  # ends the name of a model in `spent`, where its batches are counted
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
class Spending:
    """What this store has ever sent to one model and received from it."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class VerdictSource:
    """Who gives a verdict, by name and revision, and the hash of the template that asks for it."""

    judge: str
    revision: str
    template: str


Method = TypeVar("Method", bound=Callable[..., Any])


def explain_damage(method: Method) -> Method:
    """Turn a damaged database, which any page of it may reveal, into a UserError with a remedy."""

    @functools.wraps(method)
    def call_explained(self: "VerdictStore", *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{self.path}: cannot be used as the database of verdicts ({error}).\n"
                "  Restore it from a copy, so that nothing is paid for again;"
                f" or move it away to begin anew: {format_move(self.path, 'broken')}"
            ) from error

    return cast(Method, call_explained)


class VerdictStore:
    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._owner: ClaimOwner | None = None
        self._open()

    @explain_damage
    def _open(self) -> None:
        self.file = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT / 1000, isolation_level=None)
        self.file.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT}")
        self._refuse_other_database()
        self._write_ahead()
        self.file.execute("PRAGMA synchronous=NORMAL")
        self.file.executescript(SCHEMA)

    def _write_ahead(self) -> None:
        """For this one change of a new file SQLite does not wait for another process: we do."""
        deadline = time.monotonic() + BUSY_TIMEOUT / 1000
        while True:
            try:
                self.file.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def _refuse_other_database(self) -> None:
        """Refuse a database of something else, before anything is written to it."""
        rows = self.file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        if rows and ("verdicts",) not in rows:
            self.file.close()
            raise UserError(
                f"{self.path}: this database is not of verdicts. Nothing was written.\n"
                "  Give a new file as the engine's runtime.verdicts."
            )

    @explain_damage
    def load_responses(self, keys: Iterable[str]) -> dict[str, Response]:
        """The known responses among `keys`."""
        wanted = list(keys)
        found: dict[str, Response] = {}
        for start in range(0, len(wanted), KEYS_PER_QUERY):
            batch = wanted[start : start + KEYS_PER_QUERY]
            rows = self.file.execute(
                "SELECT key, reply, first, model, tokens_in, tokens_out FROM verdicts"
                f" WHERE key IN ({','.join('?' * len(batch))})",
                batch,
            )
            found |= {
                key: Response(text, _load_probabilities(first), *rest)
                for key, text, first, *rest in rows
            }
        return found

    @explain_damage
    def forget(self, responses: Mapping[str, Response]) -> None:
        """Remove these, unless another process has replaced them by now."""
        with Transaction(self.file):
            self.file.executemany(
                "DELETE FROM verdicts WHERE key = ? AND reply = ?",
                [(key, response.text) for key, response in responses.items()],
            )

    @explain_damage
    def save(
        self, key: str, source: VerdictSource, request: JudgeRequest, response: Response
    ) -> Response:
        """Write a response down and return the one that is final.

        One without text is counted, not kept.
        """
        with Transaction(self.file):
            return self.write_response(key, source, request, response)

    def write_response(
        self,
        key: str,
        source: VerdictSource,
        request: JudgeRequest,
        response: Response,
        batch: bool = False,
    ) -> Response:
        """As `save`, within a transaction. `batch`: it was paid for at the price of a batch."""
        self.file.execute(
            "INSERT INTO spent VALUES (?, 1, ?, ?) ON CONFLICT (judge) DO UPDATE SET"
            " requests = requests + 1, tokens_in = tokens_in + excluded.tokens_in,"
            " tokens_out = tokens_out + excluded.tokens_out",
            (f"{source.judge}{BATCH * batch}", response.tokens_in, response.tokens_out),
        )
        self.file.execute("DELETE FROM claims WHERE key = ?", (key,))
        if response.text is None:
            return response
        asked = (source.judge, source.revision, source.template)
        judged = (request.texts_hash, request.order)
        answer = (response.text, _dump_probabilities(response.first_token), response.model)
        tokens = (response.tokens_in, response.tokens_out)
        written = self.file.execute(
            "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (key, *asked, *judged, *answer, *tokens),
        )
        return response if written.rowcount else self.load_responses([key])[key]

    @explain_damage
    def claim(self, key: str) -> Response | bool:
        """Whether this process is to send the request.

        If another process has sent it by now, its response is returned instead.
        """
        owner = self.register_owner()
        with Transaction(self.file):
            if known := self.load_responses([key]):
                return known[key]
            row = self.file.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
            if row and row[0] != owner and is_alive(self.path, row[0]):
                return False
            self.file.execute("INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, owner))
            return True

    def register_owner(self) -> str:
        """This process's name, as the others see it."""
        self._owner = self._owner or self._register_owner()
        return self._owner.name

    def _register_owner(self) -> "ClaimOwner":
        """Show this process to the others, and remove what dead processes have left."""
        owner = ClaimOwner(self.path)
        for (name,) in self.file.execute("SELECT DISTINCT owner FROM claims").fetchall():
            if not is_alive(self.path, name):
                self.file.execute("DELETE FROM claims WHERE owner = ?", (name,))
        for lock in self.path.parent.glob(get_lock_path(self.path, "*").name):
            is_alive(self.path, lock.name.split(".")[-2])
        return owner

    @explain_damage
    def release_claims(self) -> None:
        """Let any process take what this one claimed without getting a response."""
        if self._owner:
            self.file.execute("DELETE FROM claims WHERE owner = ?", (self._owner.name,))

    @explain_damage
    def read_spending(self, judge: str) -> Spending:
        row = self.file.execute(
            "SELECT requests, tokens_in, tokens_out FROM spent WHERE judge = ?", (judge,)
        )
        return Spending(*(row.fetchone() or ()))

    def close(self) -> None:
        self.release_claims()
        self.file.close()
        if self._owner:
            self._owner.release()


class ClaimOwner:
    """This process, as the others see it: a locked file.

    The lock of a dead process is free at once.
    """

    def __init__(self, path: Path):
        self.name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._lock = get_lock_path(path, self.name)
        self._file = self._lock.open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def release(self) -> None:
        self._lock.unlink(missing_ok=True)
        self._file.close()


def get_lock_path(path: Path, owner: str) -> Path:
    return path.with_name(f".{path.name}.{owner}.asks")


def is_alive(path: Path, owner: str) -> bool:
    """Whether a process holds the owner's lock. The file of a dead owner is removed."""
    lock = get_lock_path(path, owner)
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held by its owner
        return True
    lock.unlink(missing_ok=True)
    return False


class Transaction:
    """All of it is written, or nothing."""

    def __init__(self, file: sqlite3.Connection):
        self.file = file

    def __enter__(self) -> None:
        self.file.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self.file.execute("ROLLBACK" if kind else "COMMIT")


def _dump_probabilities(first_token: Mapping[str, float] | None) -> str | None:
    if first_token is None:
        return None
    return json.dumps(first_token, sort_keys=True, ensure_ascii=False)


def _load_probabilities(text: str | None) -> dict[str, float] | None:
    return None if text is None else json.loads(text)
