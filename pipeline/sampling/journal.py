"""Completions written down as they come, for backends where each is paid for: a killed run asks for none again.

One file of JSON lines for each block under way. It goes when its block has all come, which is then a finished shard.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from pipeline.backends import Backend, Billed, Completion, Failed, Request


class Journal:
    def __init__(self, folder: Path):
        self._folder = folder
        self._file_of: dict[
            str, Path
        ] = {}  # sample id → the file of its block, for what has not come yet
        self._left: Counter[Path] = Counter()
        self._found: list[Completion] = []

    def through(
        self, backend: Backend, blocks: Iterable[list[Request]]
    ) -> Iterator[Completion | Failed]:
        """What was written down before, and what the backend gives for the rest."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for drawn in backend.generate(self._unanswered(blocks)):
            yield from self._again()
            if isinstance(drawn, Completion):
                self._write(drawn)
            yield drawn
            self._settle(drawn)
        yield from self._again()

    def _unanswered(self, blocks: Iterable[list[Request]]) -> Iterator[list[Request]]:
        for block in blocks:
            file = self._folder / f"{block[0].sample_id}.jsonl"
            known = _read(file) if file.exists() else {}
            self._file_of |= {request.sample_id: file for request in block}
            self._left[file] = len(block)
            self._found += [
                known[request.sample_id] for request in block if request.sample_id in known
            ]
            yield [request for request in block if request.sample_id not in known]

    def _again(self) -> Iterator[Completion]:
        while self._found:
            completion = self._found.pop()
            yield completion
            self._settle(completion)

    def _write(self, completion: Completion) -> None:
        with self._file_of[completion.sample_id].open("a") as file:
            file.write(json.dumps(asdict(completion)) + "\n")

    def _settle(self, drawn: Completion | Failed) -> None:
        """It has been taken. A block that lost one stays: its shard is drawn again, from what is here."""
        file = self._file_of.pop(drawn.sample_id)
        self._left[file] -= isinstance(drawn, Completion)
        if not self._left[file]:
            file.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Completion]:
    """Whole lines alone: the last may have been cut short by a kill, and goes where it lies."""
    written = file.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    os.truncate(file, len(whole))
    lines = whole.splitlines()
    return {
        row["sample_id"]: Completion(**row | {"billed": Billed(**row["billed"])})
        for row in map(json.loads, lines)
    }
