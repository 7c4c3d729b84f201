"""How sampling grows with workers, rows and shards. No model: the `scripted` backend.

python bench/scale.py [workers] [rows] [shards] [NAME=VALUE …]

`workers`: tokens/s of a run that 1, 2, 4 and 8 processes sample, over as many times that of one.
    Each completion takes `cost=0.02` seconds, and each run `seconds=60` for what its workers do.
    The run is one of them; the others join it by `strop work`. `start=COMMAND` starts each of them
    elsewhere: `{work}` in it stands for what it runs, as in start="srun --ntasks=1 {work}".
    `words="cluster=ray …"` are added to the run, and `join=false` starts no workers: the run finds
    its own, as many as `{workers}` in its words asks for.
`rows`: `many=200000` prompts with 8 answers each over `less=100000`: the peak memory of the driver
    and of the stage, and the seconds for each row. The goal is for many=1000000, here or with
    `words="cluster=ray …"`.
`shards`: `shards=2000` of them, claimed and published by `processes=16`: none lost, none twice.
    The seconds for each shard, over those for a tenth of the shards. The goal is for shards=10000
    and processes=64.
"""

import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from measure import Ratio, list_children, read_peak_memory, report

from pipeline.resources.shard_queue import JoinedWorker, read_queue
from pipeline.resources.worker_pool import Worker, run_shards
from tests.support.house import HOUSE, SMALL

KNOBS = {
    "runs": "1",
    "cost": "0.02",
    "seconds": "60",
    "start": "{work}",
    "words": "",
    "join": "true",
    "many": "200000",
    "less": "100000",
    "shards": "2000",
    "processes": "16",
}
WORKERS = 1, 2, 4, 8
ANSWERS = 8  # of each prompt
SHARD_SECONDS = 0.5  # of work in each shard of `workers`
WAIT = 600  # seconds that a worker waits for the run
RUN = [
    *SMALL,
    "until=sample",
    "backend@sample.backend=scripted",
    "limits={prompt:512,completion:64}",
    "sample.per_round=null",
    "preload=false",
]


def main(arguments: list[str]) -> dict[str, Ratio]:
    knobs = KNOBS | dict(word.split("=", 1) for word in arguments if "=" in word)
    names = [word for word in arguments if "=" not in word] or ["workers", "rows", "shards"]
    ratios: dict[str, list[float]] = {}
    for name in names:
        for _ in range(int(knobs["runs"])):
            with tempfile.TemporaryDirectory() as folder:
                for ratio, value in MEASURES[name](knobs, Path(folder)).items():
                    ratios.setdefault(ratio, []).append(value)
    return {name: Ratio(values, GOALS[name]) for name, values in ratios.items()}


# ── workers ───────────────────────────────────────────────────────────────────────────────────────


def measure_workers(knobs: dict[str, str], folder: Path) -> dict[str, float]:
    speeds = {count: measure_speed(knobs, folder / str(count), count) for count in WORKERS}
    return {
        f"efficiency_{count}": speeds[count] / count / speeds[1] for count in WORKERS if count > 1
    }


def measure_speed(knobs: dict[str, str], folder: Path, count: int) -> float:
    """Tokens per second, as the run itself counts them, from its first engine's start."""
    cost = float(knobs["cost"])
    shard = max(1, round(SHARD_SECONDS / cost / ANSWERS))
    prompts = max(shard, round(count * float(knobs["seconds"]) / cost / ANSWERS))
    words = shlex.split(knobs["words"].format(workers=count))
    environment = {"SCALED_PROMPTS": str(prompts), "SCALED_COST": knobs["cost"]}
    (folder / "runs").mkdir(parents=True)
    with join_workers(knobs, folder, count - 1, environment):
        run = [*RUN, f"sample.settings.draw.n={ANSWERS}", f"sample.shard={shard}", *words]
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "pipeline", *run],
            env=make_environment(environment),
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    [manifest] = folder.glob("store/sample/*/manifest.json")
    speed = float(json.loads(manifest.read_text())["cost"]["tokens_per_second"])
    seconds = time.monotonic() - started
    print(f"{count} workers: {speed:.0f} tokens/s; {seconds:.0f} s for all", flush=True)
    return speed


@contextmanager
def join_workers(
    knobs: dict[str, str], folder: Path, count: int, environment: dict[str, str]
) -> Iterator[None]:
    """Workers that wait for the run. They are ended with it."""
    work = f"{shlex.quote(sys.executable)} -m pipeline work runs step=sample wait={WAIT}"
    command = shlex.split(knobs["start"].replace("{work}", work))
    workers = [
        subprocess.Popen(command, env=make_environment(environment), cwd=folder)
        for _ in range(count if knobs["join"] == "true" else 0)
    ]
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


def make_environment(more: dict[str, str]) -> dict[str, str]:
    path = {"PYTHONPATH": str(HOUSE), "PIPELINE_STAGES": "bench.scaled", "POLARS_MAX_THREADS": "1"}
    return {**os.environ, **path, **more}


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────


def measure_rows(knobs: dict[str, str], folder: Path) -> dict[str, float]:
    words = shlex.split(knobs["words"].format(workers=2))
    less, many = (
        measure_peaks(folder / name, int(knobs[name]), words) for name in ("less", "many")
    )
    rows = int(knobs["many"]) / int(knobs["less"])
    ratios = {"seconds_per_row": many["seconds"] / less["seconds"] / rows}
    # On a cluster the stage is no child of the driver: its memory is not measured there.
    places = "driver", *(["stage"] if less["stage"] else [])
    return ratios | {f"{place}_memory": many[place] / less[place] for place in places}


def measure_peaks(folder: Path, prompts: int, words: list[str]) -> dict[str, float]:
    """MB of the driver and of its worker, while only `sample` runs, and the stage's seconds."""
    folder.mkdir()
    environment = make_environment({"SCALED_PROMPTS": str(prompts)})
    run = [*RUN, f"sample.settings.draw.n={ANSWERS}", *words]
    command = [sys.executable, "-m", "pipeline", *run]
    for until in ("until=prompts", "until=sft"):
        subprocess.run(
            [*command, until], env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    driver = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL)
    peaks = {"driver": 0.0, "stage": 0.0}
    while driver.poll() is None:
        peaks["driver"] = max(peaks["driver"], read_peak_memory(driver.pid))
        for pid in list_children(driver.pid):
            peaks["stage"] = max(peaks["stage"], read_peak_memory(pid))
        time.sleep(0.1)
    assert driver.returncode == 0
    [manifest] = folder.glob("store/sample/*/manifest.json")
    seconds = float(json.loads(manifest.read_text())["seconds"])
    sizes = " + ".join(f"{name} {peak:.0f} MB" for name, peak in peaks.items())
    print(f"{prompts} prompts × {ANSWERS}: {sizes}, {seconds:.0f} s", flush=True)
    return {**peaks, "seconds": seconds}


# ── shards ────────────────────────────────────────────────────────────────────────────────────────


def measure_shards(knobs: dict[str, str], folder: Path) -> dict[str, float]:
    count, processes = int(knobs["shards"]), int(knobs["processes"])
    less = share_shards(folder / "less", max(1, count // 10), processes)
    return {"seconds_per_shard": share_shards(folder / "many", count, processes) / less}


def share_shards(out: Path, count: int, processes: int) -> float:
    """Seconds for each shard. Fails where one is lost, or processed twice."""
    shards = [f"{at:05d}.txt" for at in range(count)]
    out.mkdir()
    context = multiprocessing.get_context("fork")
    members = [context.Process(target=take_shards, args=(out, at)) for at in range(processes)]
    for member in members:
        member.start()
    finished: dict[str, Any] = {}
    started = time.monotonic()
    run_shards(shards, lambda worker: process_shards(worker, out), [{}], out, finished.__setitem__)
    seconds = time.monotonic() - started
    for member in members:
        member.join()
    published = {file.name: file.read_text() for file in (out / "rows").iterdir()}
    lists = [file.read_text().split() for file in out.glob("taken-*")]
    taken = [shard for each in lists for shard in each]
    assert sorted(taken) == sorted(published) == sorted(finished) == shards
    assert all(text == f"rows of {name}" for name, text in published.items())
    print(f"{count} shards by {processes} processes and the stage: {seconds:.1f} s", flush=True)
    return seconds / count


def take_shards(out: Path, number: int) -> None:
    """A joined worker, until the stage closes its queue."""
    while not (queue := read_queue(out)):
        time.sleep(0.01)
    worker = JoinedWorker(out, queue["shards"])
    while read_queue(out):
        process_shards(worker, out, f"taken-{number}")
        time.sleep(0.05)
    worker.close()


def process_shards(worker: Worker, out: Path, log: str = "taken-stage") -> None:
    with (out / log).open("a") as file:
        while shard := worker.claim():
            target = worker.output(shard, out / "rows" / shard)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(f"rows of {shard}")
            file.write(f"{shard}\n")
            worker.finish(shard, shard)


MEASURES = {"workers": measure_workers, "rows": measure_rows, "shards": measure_shards}
GOALS = {
    "efficiency_2": None,
    "efficiency_4": None,
    "efficiency_8": ">= 0.9",
    "driver_memory": "<= 1.3",
    "stage_memory": "<= 1.3",
    "seconds_per_row": "<= 1.2",
    "seconds_per_shard": "<= 1.5",
}

if __name__ == "__main__":
    report("scale", main(sys.argv[1:]))
