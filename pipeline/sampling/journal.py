"""Writes down completions as they arrive, for backends that charge for each: none is paid twice.

One file of JSON lines per block in flight. It is removed once its whole block has arrived, which is
then a finished shard.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from pipeline.backends import Backend, BilledTokens, Completion, CompletionRequest, FailedRequest


class Journal:
    def __init__(self, folder: Path):
        self._folder = folder
        # Sample id → the file of its block, for completions that are not delivered yet.
        self._file_of: dict[str, Path] = {}
        self._missing: Counter[Path] = Counter()
        self._known: list[Completion] = []

    def generate(
        self, backend: Backend, blocks: Iterable[list[CompletionRequest]]
    ) -> Iterator[Completion | FailedRequest]:
        """The completions of an earlier attempt, and the backend's for all other requests."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for result in backend.generate(self._skip_known(blocks)):
            yield from self._replay()
            if isinstance(result, Completion):
                self._write(result)
            yield result
            self._close_request(result)
        yield from self._replay()

    def _skip_known(
        self, blocks: Iterable[list[CompletionRequest]]
    ) -> Iterator[list[CompletionRequest]]:
        for block in blocks:
            file = self._folder / f"{block[0].sample_id}.jsonl"
            known = _read_completions(file) if file.exists() else {}
            self._file_of |= {request.sample_id: file for request in block}
            self._missing[file] = len(block)
            self._known += [
                known[request.sample_id] for request in block if request.sample_id in known
            ]
            yield [request for request in block if request.sample_id not in known]

    def _replay(self) -> Iterator[Completion]:
        while self._known:
            completion = self._known.pop()
            yield completion
            self._close_request(completion)

    def _write(self, completion: Completion) -> None:
        with self._file_of[completion.sample_id].open("a") as file:
            file.write(json.dumps(asdict(completion)) + "\n")

    def _close_request(self, result: Completion | FailedRequest) -> None:
        """Count a delivered result.

        The file of a block with a failure stays: its shard is sampled again, starting from it.
        """
        file = self._file_of.pop(result.sample_id)
        self._missing[file] -= isinstance(result, Completion)
        if not self._missing[file]:
            file.unlink(missing_ok=True)


def _read_completions(file: Path) -> dict[str, Completion]:
    """Whole lines alone: the last one may have been cut by a kill, and is removed from the file."""
    written = file.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    os.truncate(file, len(whole))
    rows = map(json.loads, whole.splitlines())
    return {
        row["sample_id"]: Completion(**row | {"billed": BilledTokens(**row["billed"])})
        for row in rows
    }
