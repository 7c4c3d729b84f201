"""A run that others help, killed twenty times at random: the same command ends with its bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.stages.test_sample import SCRIPTED, Drawn, files

KILLS, SEED, HELPERS = 20, 19, 2
SHARDS = 400
RUN = [*SCRIPTED, f"sample.per_round={SHARDS}", "preload=false"]
PAUSE = "2"  # seconds for each shard: the run must not end before the last kill
WORK = [sys.executable, "-m", "pipeline", "work", "runs", "wait=60"]
IN_FLIGHT = 2  # shards of a process: one that is written, and the next


class World(Drawn):
    """A driver, its stage and two workers that joined, each started anew when it is gone."""

    driver: "subprocess.Popen[str] | None" = None
    helpers: list["subprocess.Popen[bytes]"]

    def start_missing(self) -> None:
        if self.driver is None or self.driver.poll() is not None:
            if self.driver:
                self.driver.communicate()
            self.driver = self.start(*RUN, shard_pause=PAUSE)
        self.helpers = [one for one in self.helpers if one.poll() is None]
        while len(self.helpers) < HELPERS:
            with (self.folder / "helpers.log").open("ab") as log:
                environment = self.environment(shard_pause=PAUSE)
                helper = subprocess.Popen(
                    WORK, cwd=self.folder, env=environment, stdout=log, stderr=log
                )
            self.helpers.append(helper)

    def find(self, victim: str) -> int:
        """The pid of a driver, a stage or a worker that joined."""
        while True:
            self.start_missing()
            if victim == "joined":
                return self.helpers[0].pid
            stages = self.processes(self.driver.pid, "pipeline.driver.worker")
            if stages:
                return self.driver.pid if victim == "driver" else stages[0]
            time.sleep(0.05)

    def list_alive(self) -> list[str]:
        """All processes that descend from this test, by its log in their environment."""
        alive = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"TOY_LOG={self.log}".encode() in (folder / "environ").read_bytes():
                    alive.append((folder / "cmdline").read_text().replace("\0", " "))
        return alive


@pytest.mark.slow
def test_twenty_kills_leave_the_bytes_of_an_undisturbed_run_and_no_orphan(tmp_path):
    for name in ("killed", "alone"):
        (tmp_path / name).mkdir()
    world, alone = World(tmp_path / "killed"), Drawn(tmp_path / "alone")
    (world.folder / "runs").mkdir()
    world.helpers, chance = [], random.Random(SEED)
    victims = chance.sample(["driver", "stage", "joined"] * KILLS, KILLS)
    try:
        for victim in victims:
            pid = world.find(victim)
            time.sleep(chance.uniform(0, 3))
            os.kill(pid, signal.SIGKILL)
            assert not list(world.folder.glob("store/sample/*/manifest.json")), "it ended too early"
    finally:
        for process in (world.driver, *world.helpers):
            process.kill()
            process.communicate()
    before = Counter(world.notes("drew"))
    world.run(*RUN)
    drawn = Counter(world.notes("drew"))
    assert len(drawn) == SHARDS
    assert len(before) > KILLS, "hardly anything was drawn between the kills"
    twice = drawn.total() - SHARDS
    assert twice <= IN_FLIGHT * (KILLS + HELPERS + 1), "finished shards were drawn again"

    deadline = time.monotonic() + 10
    while (alive := world.list_alive()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive
    alone.run(*RUN)
    folders = [one.drawn()[0].parent.parent for one in (world, alone)]
    assert files(folders[0]) == files(folders[1])
