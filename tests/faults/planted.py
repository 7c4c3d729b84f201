"""A fault, the world that it is planted in, and what has to hold after the command has met it."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.house import HOUSE, SMALL

TRACEBACK = "Traceback (most recent call last)"
SECONDS = 50  # of one fuzzing test under the marker `slow`; all of them take five minutes
SCRIPTED = ["backend@sample.backend=scripted", "backend@evaluate.sample.backend=scripted"]


@dataclass
class World:
    """A working directory and the command line that is typed there; `plant` changes either."""

    folder: Path
    words: list[str] = field(default_factory=lambda: [*SMALL, *SCRIPTED])
    environment: dict[str, str] = field(default_factory=dict)
    module: str = "pipeline"
    wait: float = 120

    def write(self, name: str, data: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
        return path

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", self.module, *self.words],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(HOUSE),
                "PIPELINE_STAGES": "tests.faults.stages",
                **self.environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def run(self) -> tuple[int, str]:
        process = self.start()
        try:
            output, _ = process.communicate(timeout=self.wait)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, output

    def logs(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")
            for path in self.folder.rglob("*.log")
            if path.is_file()
        )

    def holding(self, text: str) -> list[str]:
        """Files made by the command that have this text."""
        made = [
            p for part in ("store", "runs") for p in (self.folder / part).rglob("*") if p.is_file()
        ]
        return sorted(
            str(path.relative_to(self.folder))
            for path in made
            if text.encode() in path.read_bytes()
        )


def nothing(_: World) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    name: str
    plant: Callable[[World], None]
    code: int
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    kept: Callable[[World], None] = nothing


def hold(fault: Fault, folder: Path) -> str:
    """Plant it, run the command, and see that all of it holds; the output comes back."""
    world = World(folder)
    fault.plant(world)
    code, output = world.run()
    assert TRACEBACK not in output, output
    assert TRACEBACK not in world.logs(), world.logs()
    assert code == fault.code, output
    assert [text for text in fault.says if text not in output] == [], output
    for text in fault.never:
        assert text not in output, output
        assert world.holding(text) == []
    fault.kept(world)
    return output
