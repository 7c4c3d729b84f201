"""Toy stages: each makes small files from its config and inputs in no time, and does as the
environment says.

TOY_LOG: a file that gets a line for each thing done. TOY_SALT: enters what `sample` makes.
TOY_HANG=STAGE: makes the first shard, starts a child of its own, then waits to be killed.
TOY_PAUSE=STAGE:SECONDS. TOY_HOLD=STAGE:FILE waits until the file is there. TOY_WARN=STAGE: says a
warning. TOY_REFUSE, TOY_BREAK, TOY_FULL, TOY_WAIT=STAGE: ends the way that the name says.
TOY_IMPORT: modules that every stage needs.
"""

import errno
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, write_text
from pipeline.config import Block
from pipeline.errors import UserError, WorkPending
from pipeline.hashing import hash_file, hash_json

SHARDS = 3
PRELOAD = tuple(os.environ.get("TOY_IMPORT", "").split())
for name in PRELOAD:
    importlib.import_module(name)


def make(
    stage: str, cfg: Block, out: Path, inputs: dict[str, Any], parts: tuple[str, ...] = ("",)
) -> None:
    note(f"start {stage} {os.getpid()}")
    obey(stage)
    salt = os.environ.get("TOY_SALT", "") if stage == "sample" else ""
    seen = hash_json(
        [
            cfg.model_dump(mode="json"),
            {name: content(value) for name, value in inputs.items()},
            salt,
        ]
    )
    for part in parts:
        for shard in range(SHARDS):
            file = out / part / f"shard-{shard}.txt"
            if not file.exists():
                write_text(file, f"{stage} {part} {shard} {seen}\n")
                note(f"shard {stage} {part or '-'} {shard}")
            if os.environ.get("TOY_HANG") == stage:
                hang()
    note(f"end {stage} {os.getpid()}")


def content(value: Any) -> Any:
    if isinstance(value, Artifact):
        return [hash_file(file) for file in sorted(value.path.rglob("shard-*.txt"))]
    if isinstance(value, dict):
        return {name: content(item) for name, item in value.items()}
    return [content(item) for item in value]


def note(text: str) -> None:
    if log := os.environ.get("TOY_LOG"):
        with Path(log).open("a") as file:
            file.write(f"{text}\n")


def hang() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    note(f"child {child.pid}")
    time.sleep(120)


def obey(stage: str) -> None:
    if os.environ.get("TOY_WARN") == stage:
        print(f"! {stage}: the toy warns.\nand a library talks", file=sys.stderr, flush=True)
    if os.environ.get("TOY_REFUSE") == stage:
        raise UserError(f"{stage}: the toy refuses.\n  Type something else.")
    if os.environ.get("TOY_WAIT") == stage:
        raise WorkPending(f"{stage}: the toy waits.\n  Come again.")
    if os.environ.get("TOY_BREAK") == stage:
        raise ValueError("the toy broke")
    if os.environ.get("TOY_FULL") == stage:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a-file")
    paused, _, seconds = os.environ.get("TOY_PAUSE", "").partition(":")
    if paused == stage:
        time.sleep(float(seconds))
    held, _, file = os.environ.get("TOY_HOLD", "").partition(":")
    while held == stage and not Path(file).exists():
        time.sleep(0.05)
