"""Killed, raced, refused and broken runs: what is left and what the next run does. Toy stages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import store
from pipeline.driver import worker
from pipeline.progress import read_faults
from pipeline.resources import leases
from tests.support.house import SMALL, Toys

UNTIL_SAMPLE = [*SMALL, "until=sample"]


@pytest.fixture
def toys(tmp_path):
    return Toys(tmp_path)


def wait_for(condition, seconds: float = 30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{condition} did not come true within {seconds} s")


def alive(pid: int) -> bool:
    """Running, not merely a zombie that its parent has not collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def hanging_worker(toys: Toys) -> tuple[int, int]:
    """The pids of a worker that hangs in the middle of `sample` and of the child it started."""
    child = int(wait_for(lambda: toys.notes("child"))[-1].split()[1])
    worker = int(toys.notes("start sample")[-1].split()[2])
    return worker, child


def undisturbed(tmp_path: Path) -> dict:
    other = Toys(tmp_path / "undisturbed")
    other.folder.mkdir()
    other.run(*UNTIL_SAMPLE)
    return other.files()


@pytest.mark.long
def test_a_worker_killed_in_the_middle_is_resumed_where_it_was(toys, tmp_path):
    driver = toys.start(*UNTIL_SAMPLE, hang="sample", pause="sample:1")
    worker, child = hanging_worker(toys)
    os.kill(worker, signal.SIGKILL)
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 1
    assert (
        "killed by signal 9" in output
        and "Run the same command to resume" in output
        and "The whole log" in output
    )
    wait_for(lambda: not alive(child))

    toys.run(*UNTIL_SAMPLE)
    assert toys.notes("shard sample") == [f"shard sample - {shard}" for shard in range(3)], (
        "no shard is made twice"
    )
    assert toys.files() == undisturbed(tmp_path)
    [manifest] = (toys.folder / "store" / "sample").glob("*/manifest.json")
    assert 1 < json.loads(manifest.read_text())["seconds"] < 20, (
        "the killed attempt's seconds count too"
    )


@pytest.mark.long
def test_a_killed_driver_takes_its_worker_along_and_the_next_run_is_the_only_writer(toys, tmp_path):
    driver = toys.start(*UNTIL_SAMPLE, hang="sample")
    worker, child = hanging_worker(toys)
    driver.kill()
    toys.run(*UNTIL_SAMPLE)
    assert not alive(worker) and not alive(child), "no orphans"
    driver.communicate()
    assert toys.files() == undisturbed(tmp_path)
    assert toys.notes("shard sample") == [f"shard sample - {shard}" for shard in range(3)]


@pytest.mark.long
def test_killed_before_the_rename_only_the_rename_is_left_to_do(toys):
    toys.run(*UNTIL_SAMPLE)
    published = next((toys.folder / "store" / "sample").glob("[0-9a-f]*"))
    published.rename(published.with_name(f"{published.name}.partial"))
    toys.run(*UNTIL_SAMPLE)
    assert published.is_dir()
    assert len(toys.notes("start sample")) == 1, "the stage did not run again"


@pytest.mark.long
def test_killed_after_the_rename_the_step_is_found(toys):
    driver = toys.start(*SMALL, "until=score@1", hang="score")
    wait_for(lambda: toys.notes("child"))
    driver.kill()
    driver.communicate()
    output = toys.run(*SMALL, "until=score@1")
    assert "✓ sample" in output and toys.built(output) == ["score round 1"]


@pytest.mark.long
def test_a_second_run_of_the_same_step_waits_names_the_owner_and_reuses(toys):
    go = toys.folder / "go"
    first = toys.start(*UNTIL_SAMPLE, hold=f"sample:{go}")
    wait_for(lambda: toys.notes("start sample"))
    owner = toys.notes("start sample")[0].split()[2]
    second = toys.start(*UNTIL_SAMPLE)
    logs = (toys.folder / "runs").glob
    wait_for(
        lambda: any(
            f"waiting for pid {owner} on " in p.read_text() for p in logs("*/*/logs/*sample*.log")
        )
    )
    go.touch()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert toys.built(outputs[0])[-1:] == ["sample round 1"] and toys.built(outputs[1]) == []
    assert len(toys.notes("start sample")) == 1


@pytest.mark.long
def test_the_lease_of_a_process_that_has_ended_delays_no_run(toys):
    toys.run(*UNTIL_SAMPLE)
    published = next((toys.folder / "store" / "sample").glob("[0-9a-f]*"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    holder = leases.describe_process() | {"state": leases.HELD, "pid": ended.pid, "started": "1"}
    (store.lease_folder(published) / "000009").write_text(json.dumps(holder))
    shutil.rmtree(published)
    assert toys.built(toys.run(*UNTIL_SAMPLE)) == ["sample round 1"]


@pytest.mark.parametrize(
    ("verify", "damage"), [("false", b"cut"), ("true", None)], ids=["size", "hash"]
)
@pytest.mark.long
def test_a_damaged_file_is_noticed_and_made_again(toys, verify, damage):
    toys.run(*UNTIL_SAMPLE)
    file = next((toys.folder / "store" / "sample").glob("[0-9a-f]*/shard-1.txt"))
    whole = file.read_bytes()
    file.write_bytes(damage if damage is not None else whole.swapcase())
    output = toys.run(*UNTIL_SAMPLE, f"verify={verify}")
    assert "damaged: shard-1.txt" in output and toys.built(output) == ["sample round 1"]
    assert file.read_bytes() == whole


@pytest.mark.long
def test_a_step_that_waits_for_a_batch_stops_no_other_and_the_run_ends_with_75(toys):
    driver = toys.start(*SMALL, wait="score")
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 75 and "score: the toy waits.\n  Come again." in output
    assert len(toys.notes("start score")) >= 2, "of the round, and of the evaluation of SFT"
    assert not toys.notes("start pair")
    [record] = (toys.folder / "runs").glob("*/*/run.json")
    assert json.loads(record.read_text())["code"] == 75
    sampled = len(toys.notes("start sample"))
    built = toys.built(toys.run(*SMALL))
    assert "score round 1" in built and "sample round 1" not in built and sampled >= 2


@pytest.mark.parametrize("word", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.long
def test_stopped_by_a_signal_it_says_75_and_goes_on(toys, word):
    driver = toys.start(*UNTIL_SAMPLE, hang="sample")
    worker, child = hanging_worker(toys)
    driver.send_signal(word)
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 75 and word.name in output
    wait_for(lambda: not alive(worker) and not alive(child))
    toys.run(*UNTIL_SAMPLE)


@pytest.mark.long
def test_three_signals_in_a_row_end_it_with_75_and_no_worker_is_left(toys):
    driver = toys.start(*UNTIL_SAMPLE, hang="sample")
    worker, child = hanging_worker(toys)
    for _ in range(8):
        driver.send_signal(signal.SIGINT)
        time.sleep(0.05)
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 75 and "Traceback" not in output
    wait_for(lambda: not alive(worker) and not alive(child))


def test_a_stage_that_refuses_ends_with_2_and_its_own_words(toys):
    output = toys.run(*UNTIL_SAMPLE, code=2, refuse="sample")
    assert "sample: the toy refuses.\n  Type something else." in output
    assert "Traceback" not in output


def test_a_stage_that_breaks_ends_with_1_its_last_lines_and_the_log(toys):
    output = toys.run(*UNTIL_SAMPLE, code=1, **{"break": "sample"})
    assert "ValueError: the toy broke" in output and ".log" in output


@pytest.mark.long
def test_a_full_disk_is_a_refusal_and_keeps_what_is_done(toys):
    output = toys.run(*UNTIL_SAMPLE, code=2, full="sample")
    assert "No space left on device" in output and "store=" in output and "Traceback" not in output
    assert toys.built(toys.run(*UNTIL_SAMPLE)) == ["sample round 1"]


def test_a_store_that_cannot_be_written_is_refused_before_anything_runs(toys):
    (toys.folder / "file").write_text("")
    output = toys.run(*UNTIL_SAMPLE, "store=file/store", code=2)
    assert "store=file/store" in output and not toys.notes("start")


def test_dry_run_shows_and_touches_nothing(toys):
    output = toys.run(*SMALL, "dry_run=true")
    assert output.splitlines()[-1] == "16 steps, 16 to do · a run here would be accepted"
    assert [p.name for p in toys.folder.iterdir()] == []


@pytest.mark.long
def test_a_failing_point_does_not_stop_the_others(toys):
    sweep = [*SMALL, "until=train", "-m", "train.beta=0.1,0.2", "train.args={}"]
    output = toys.run(*sweep, code=1, refuse="train")
    assert output.count("the toy refuses") == 2
    points = json.loads(next((toys.folder / "runs").glob("*/*/points.json")).read_text())
    assert [p["status"] for p in points] == ["refused", "refused"]


def test_every_point_is_judged_before_the_first_runs(toys):
    output = toys.run(*SMALL, "-m", "train.beta=0.1,-1", code=2)
    assert "train.beta=-1" in output and not toys.notes("start")


@pytest.mark.long
def test_a_sweep_builds_shared_steps_once(toys):
    from pipeline.training.monitoring.trackers import parse_run_dir

    output = toys.run(*SMALL, "until=train", "-m", "train.beta=0.1,0.2")
    built = toys.built(output)
    assert set(built[:2]) == {"sft", "prompts"}, "side by side"
    assert built[2:] == [
        *(f"{stage} round 1" for stage in ("sample", "score", "pair", "reference", "train")),
        "train round 1",
    ]
    steps = [
        json.loads(file.read_text())
        for file in (toys.folder / "store" / "train").glob("*/step.json")
    ]
    groups = [parse_run_dir(Path(step["story"])) for step in steps]  # a tracker's
    assert len({group for group, _ in groups}) == 1 and sorted(point for _, point in groups) == [
        "0",
        "1",
    ]


@pytest.mark.long
def test_stopping_a_sweep_stops_all_of_it(toys):
    driver = toys.start(*SMALL, "until=sample", "-m", "sample.seed=1,2", hang="sample")
    hanging_worker(toys)
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=30)
    assert driver.returncode == 75
    assert len(toys.notes("start sample")) == 1


@pytest.mark.long
def test_a_step_can_be_run_again_by_hand_from_its_folder(toys):
    toys.run(*UNTIL_SAMPLE)
    published = next((toys.folder / "store" / "sample").glob("[0-9a-f]*"))
    record = toys.folder / "step.json"
    shutil.copy(published / "step.json", record)
    shutil.rmtree(published)
    command = [sys.executable, "-m", "pipeline.driver.worker", str(record)]
    assert subprocess.run(command, env=toys.environment(), cwd=toys.folder).returncode == 0
    assert toys.built(toys.run(*UNTIL_SAMPLE)) == []


@pytest.mark.long
def test_latest_points_to_the_last_run_and_links_into_the_store(toys):
    toys.run(*UNTIL_SAMPLE)
    latest = toys.folder / "runs" / "latest"
    assert (latest / "config.yaml").exists() and (latest / "ledger.json").exists()
    linked = next((latest / "store").glob("*-sample-1"))
    assert linked.resolve().parent.name == "sample" and (linked / "manifest.json").exists()


@pytest.mark.long
def test_a_worker_s_warnings_reach_the_screen(toys):
    said = toys.run(*UNTIL_SAMPLE, warn="sample")
    assert said.count("\n  ! sample: the toy warns.\n") == 1 and "a library talks" not in said


def test_all_that_a_worker_says_at_its_end_is_repeated_and_nothing_else(capsys):
    print("✗ of a library\n  and more of it\nwork continues", file=sys.stderr)
    worker.print_fault("one.jsonl: a fault.\n  Correct it.\ntwo.jsonl: a fault.\n  Correct it.")
    lines = [*capsys.readouterr().err.splitlines(), "exit"]
    assert (
        read_faults(lines)
        == "one.jsonl: a fault.\n  Correct it.\ntwo.jsonl: a fault.\n  Correct it."
    )
    assert read_faults(["nothing", "  was reported"]) == ""
