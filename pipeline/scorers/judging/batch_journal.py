"""Which requests wait in a service's batch: written before it is submitted, in the verdicts' file.

A batch is known by a token of ours until the service has named it. A process that ends in between
leaves the token, by which the next one finds the batch at the service. A request is in one batch at
a time, whichever process asks for it.

What was collected without a verdict is final for as long as any batch waits: the command that waits
comes again, and would ask for it anew each time.
"""

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.scorers.judging import JudgeRequest, Response
from pipeline.scorers.judging.verdict_cache import (
    KEYS_PER_QUERY,
    Transaction,
    VerdictSource,
    VerdictStore,
    explain_damage,
    is_alive,
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    token TEXT PRIMARY KEY, judge TEXT NOT NULL, owner TEXT NOT NULL, id TEXT, created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batched (
    key TEXT PRIMARY KEY, token TEXT NOT NULL, revision TEXT, template TEXT, texts TEXT, asked TEXT,
    tries INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batched_by_token ON batched (token);
CREATE TABLE IF NOT EXISTS collected (key TEXT PRIMARY KEY, fault TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class BatchedRequest:
    """A request that waits: what is saved with its response, and how often it was tried."""

    key: str
    source: VerdictSource
    texts_hash: str
    order: str
    tries: int


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """`id` is None until the service has named the batch."""

    token: str
    owner: str
    id: str | None
    created: float  # seconds since 1970
    requests: Mapping[str, BatchedRequest]  # by key


class BatchJournal:
    def __init__(self, store: VerdictStore):
        self.store, self.path, self.file = store, store.path, store.file
        self._create_tables()
        self._forget_collected()

    @explain_damage
    def _create_tables(self) -> None:
        self.file.executescript(SCHEMA)

    @explain_damage
    def _forget_collected(self) -> None:
        """Where no batch waits, no command is to come again: a new one asks for all it lacks."""
        self.file.execute("DELETE FROM collected WHERE NOT EXISTS (SELECT 1 FROM batches)")

    @explain_damage
    def load_collected(self, keys: Iterable[str]) -> dict[str, str]:
        """Those that were collected while a batch waits, each with its fault if it has one."""
        wanted, found = list(keys), dict[str, str]()
        for start in range(0, len(wanted), KEYS_PER_QUERY):
            part = wanted[start : start + KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, fault FROM collected WHERE key IN ({marks})"
            found |= dict(self.file.execute(query, part).fetchall())
        return found

    @explain_damage
    def list_batches(self, keys: Iterable[str]) -> list[BatchEntry]:
        """The batches that hold any of these requests."""
        wanted, tokens = list(keys), dict[str, None]()
        for start in range(0, len(wanted), KEYS_PER_QUERY):
            part = wanted[start : start + KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            rows = self.file.execute(f"SELECT token FROM batched WHERE key IN ({marks})", part)
            tokens |= dict.fromkeys(token for (token,) in rows)
        return [batch for token in tokens if (batch := self._read_batch(token))]

    def _read_batch(self, token: str) -> BatchEntry | None:
        """None where another process has closed it meanwhile."""
        row = self.file.execute(
            "SELECT judge, owner, id, created FROM batches WHERE token = ?", (token,)
        ).fetchone()
        if row is None:
            return None
        judge, owner, batch_id, created = row
        rows = self.file.execute(
            "SELECT key, revision, template, texts, asked, tries FROM batched WHERE token = ?",
            (token,),
        )
        requests = {
            key: BatchedRequest(key, VerdictSource(judge, revision, template), *rest)
            for key, revision, template, *rest in rows
        }
        return BatchEntry(token, owner, batch_id, created, requests)

    @explain_damage
    def list_ids(self) -> set[str]:
        """Of all batches that the service has named."""
        rows = self.file.execute("SELECT id FROM batches WHERE id IS NOT NULL")
        return {batch_id for (batch_id,) in rows}

    def is_being_submitted(self, batch: BatchEntry) -> bool:
        """Whether another process is about to learn its id."""
        own = batch.owner == self.store.register_owner()
        return batch.id is None and not own and is_alive(self.path, batch.owner)

    @explain_damage
    def open_batch(
        self, source: VerdictSource, requests: Mapping[str, JudgeRequest], tries: Mapping[str, int]
    ) -> tuple[str, dict[str, JudgeRequest]]:
        """A token, and those requests that no other batch holds and that have no response yet."""
        token, owner = secrets.token_hex(8), self.store.register_owner()
        with Transaction(self.file):
            taken = {key for batch in self.list_batches(requests) for key in batch.requests}
            taken |= self.store.load_responses(requests).keys()
            free = {key: request for key, request in requests.items() if key not in taken}
            if free:
                self.file.execute(
                    "INSERT INTO batches VALUES (?, ?, ?, NULL, ?)",
                    (token, source.judge, owner, time.time()),
                )
            for key, request in free.items():
                saved = (token, source.revision, source.template, request.texts_hash, request.order)
                self.file.execute(
                    "INSERT INTO batched VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (key, *saved, tries.get(key, 0) + 1),
                )
        return token, free

    @explain_damage
    def name_batch(self, token: str, batch_id: str) -> None:
        self.file.execute("UPDATE batches SET id = ? WHERE token = ?", (batch_id, token))

    @explain_damage
    def settle(self, request: BatchedRequest, response: Response | None) -> bool:
        """It waits no more. Its response, if there is one, is saved in the same transaction.

        False where another process has settled it.
        """
        asked = JudgeRequest((), (), request.texts_hash, request.order)
        with Transaction(self.file):
            found = self.file.execute("DELETE FROM batched WHERE key = ?", (request.key,))
            if found.rowcount and response:
                self.store.write_response(request.key, request.source, asked, response, batch=True)
                row = request.key, response.fault
                self.file.execute("INSERT OR REPLACE INTO collected VALUES (?, ?)", row)
        return bool(found.rowcount)

    @explain_damage
    def close_batch(self, token: str) -> None:
        """Forget a batch, and let its requests be sent again that are still waiting."""
        with Transaction(self.file):
            self.file.execute("DELETE FROM batched WHERE token = ?", (token,))
            self.file.execute("DELETE FROM batches WHERE token = ?", (token,))
