"""Every verdict that was ever paid for: store/verdicts.sqlite, shared by processes, a row written as it arrives.

The first reply to a question stands: a process that asked the same meanwhile takes over what it finds.
"""

import json
import shlex
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Refusal
from pipeline.scorers.judging import Question, Reply

WAIT = 60_000  # milliseconds for another process's write
AT_ONCE = 500  # keys of one lookup
SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, judge TEXT, revision TEXT, template TEXT, texts TEXT, asked TEXT,
    reply TEXT NOT NULL, first TEXT, model TEXT, tokens_in INTEGER, tokens_out INTEGER
) WITHOUT ROWID;
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


class VerdictStore:
    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.file = sqlite3.connect(path, timeout=WAIT / 1000, isolation_level=None)
            self.file.execute(f"PRAGMA busy_timeout={WAIT}")
            self.file.execute("PRAGMA journal_mode=WAL")
            self.file.execute("PRAGMA synchronous=NORMAL")
            self.file.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise Refusal(
                f"{path}: cannot be opened as the database of verdicts ({error}).\n"
                "  Restore it from a copy, so that what was paid for is not asked again; or move it away to begin anew:"
                f" {shlex.join(['mv', str(path), f'{path}.broken'])}"
            ) from error

    def known(self, keys: Iterable[str]) -> dict[str, Reply]:
        wanted = list(keys)
        found: dict[str, Reply] = {}
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self.file.execute(
                f"SELECT key, reply, first, model, tokens_in, tokens_out FROM verdicts WHERE key IN ({marks})", some
            )
            found |= {key: Reply(text, _loaded(first), *rest) for key, text, first, *rest in rows}
        return found

    def keep(self, key: str, who: Asker, question: Question, reply: Reply) -> Reply:
        """Write a reply down and give back the one that stands. One without text is counted, not kept."""
        with _whole(self.file):
            self.file.execute(
                "INSERT INTO spent VALUES (?, 1, ?, ?) ON CONFLICT (judge) DO UPDATE SET requests = requests + 1,"
                " tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out",
                (who.judge, reply.tokens_in, reply.tokens_out),
            )
            if reply.text is None:
                return reply
            told = (who.judge, who.revision, who.template, question.texts, question.order)
            said = (reply.text, _dumped(reply.first), reply.model, reply.tokens_in, reply.tokens_out)
            written = self.file.execute(
                "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (key, *told, *said)
            )
            return reply if written.rowcount else self.known([key])[key]

    def spent(self, judge: str) -> Spent:
        row = self.file.execute("SELECT requests, tokens_in, tokens_out FROM spent WHERE judge = ?", (judge,))
        return Spent(*(row.fetchone() or ()))

    def close(self) -> None:
        self.file.close()


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
