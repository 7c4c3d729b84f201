"""Shards that processes of several machines take from one folder."""

import json
import multiprocessing
from collections import Counter
from functools import partial
from pathlib import Path

from pipeline import hardware
from pipeline.artifacts import DEVICES_FILE
from pipeline.driver import worker
from pipeline.resources.shard_queue import JoinedWorker, OwnQueue, read_queue
from pipeline.resources.worker_pool import Worker, run_shards

SHARDS = [f"{at:05d}.txt" for at in range(40)]


def write(out: Path, worker: Worker, only: int = 1000) -> None:
    done = 0
    while done < only and (shard := worker.claim()):
        worker.output(shard, out / "rows" / shard).parent.mkdir(parents=True, exist_ok=True)
        worker.output(shard, out / "rows" / shard).write_text(f"rows of {shard}")
        worker.report(rows=1)
        worker.finish(shard, {shard: len(shard)})
        done += 1


def join(out: Path, only: int = 1000) -> int:
    worker = JoinedWorker(out, read_queue(out)["shards"])
    write(out, worker, only)
    worker.close()
    return worker.finished


def test_the_stage_collects_what_others_finish_and_does_the_rest(tmp_path):
    finished, rows = {}, []

    def work(worker: Worker) -> None:
        assert join(tmp_path, only=7) == 7
        assert not list(tmp_path.glob("rows/*")), "only the stage writes into its step"
        write(tmp_path, worker)

    on_finish = lambda shard, entry: finished.update(entry)  # noqa: E731
    run_shards(SHARDS, work, [{}], tmp_path, on_finish, lambda f: rows.append(f["rows"]))
    assert finished == dict.fromkeys(SHARDS, 9) and sum(rows) == 40
    written = {path.name: path.read_text() for path in (tmp_path / "rows").iterdir()}
    assert written == {shard: f"rows of {shard}" for shard in SHARDS}
    assert list(OwnQueue(tmp_path, SHARDS[:3], {}).collect()) == []


def test_what_waited_for_a_killed_stage_is_taken_and_what_it_finished_itself_is_asked_for_anew(
    tmp_path,
):
    killed = OwnQueue(tmp_path, SHARDS, {})
    killed.finish(killed.take())  # its file was lost with the machine
    assert join(tmp_path, only=5) == 5
    finished = {}
    run_shards(SHARDS, partial(write, tmp_path), [{}], tmp_path, lambda s, e: finished.update(e))
    assert finished == dict.fromkeys(SHARDS, 9)
    assert len(list((tmp_path / "rows").iterdir())) == 40


def test_a_shard_that_another_kind_of_device_made_is_recorded(tmp_path, monkeypatch):
    def work(worker: Worker) -> None:
        for device, only in (("4 cores of sparc", 2), ("1 x NVIDIA H200", 3)):
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(hardware, "describe_device", lambda device=device: device)
                join(tmp_path, only=only)
        join(tmp_path, only=4)
        write(tmp_path, worker)

    run_shards(SHARDS, work, [{}], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / DEVICES_FILE).read_text().splitlines()]
    assert len({line["shard"] for line in lines}) == 5
    made = Counter(line["device"] for line in lines)
    assert made == {"4 cores of sparc": 2, "1 x NVIDIA H200": 3}
    with (tmp_path / DEVICES_FILE).open("a") as file:
        file.write('{"sha')  # an attempt that was killed
    devices = worker.list_devices({"device": "2 cores of x86_64"}, tmp_path)
    assert devices == ["2 cores of x86_64", "1 x NVIDIA H200", "4 cores of sparc"]


def count_taken(out: Path, ready, results) -> None:
    worker = JoinedWorker(out, SHARDS)
    ready.wait()
    taken = list(iter(worker.claim, None))
    for shard in taken:
        worker.finish(shard, shard)
    worker.close()
    results.put(taken)


def test_many_processes_take_each_shard_once(tmp_path):
    queue = OwnQueue(tmp_path, SHARDS, {})
    context = multiprocessing.get_context("spawn")
    ready, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=count_taken, args=(tmp_path, ready, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    ready.set()
    taken = [shard for _ in processes for shard in results.get(timeout=120)]
    for process in processes:
        process.join()
    assert sorted(taken) == SHARDS
    queue.close()
    assert read_queue(tmp_path) is None, "nothing is taken from a stage that has ended"
