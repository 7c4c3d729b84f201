"""W&B online, with its own client: what is sent, what a failing server costs, a second attempt."""

import base64
import json
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.artifacts import Model, write_json
from pipeline.hashing import drop_runtime
from pipeline.training.monitoring import trackers
from pipeline.training.monitoring.callbacks import MetricsLog
from tests.support.preferences import dpo
from tests.support.wandb_server import WandbServer
from tests.training.test_guards import Round, published_files
from tests.training.test_trackers import KEY, WANDB, files, train_with_tracker

ONLINE = WANDB.model_copy(update={"mode": "online", "entity": "team"})
GROUP = "smoke/2026-01-02_03-04-05"
LOOK = SimpleNamespace(is_world_process_zero=True)


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def plain(round_) -> Model:
    return train_with_tracker(round_, "plain", Path(), None)


@pytest.fixture
def server(tmp_path, monkeypatch):
    import wandb

    server = WandbServer()
    for name in ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE")
    wandb.teardown()  # it reads its environment once
    yield server
    server.close()
    wandb.teardown()


def make_run_dir(tmp_path: Path, point: str = "2") -> Path:
    folder = tmp_path / "runs" / GROUP / point
    folder.mkdir(parents=True)
    return folder


def expected_rows(metrics: list[dict]) -> list[tuple[int, dict]]:
    """metrics.jsonl as a page of curves has it: one row a step."""
    rows: dict[int, dict] = defaultdict(dict)
    for row in metrics:
        figures = {name: row[name] for name in row if name not in ("step", "epoch")}
        rows[row["step"]] |= {
            name.replace("eval_", "dev/", 1): figures[name] for name in figures if "eval_" in name
        }
        rows[row["step"]] |= {
            f"train/{name}": figures[name] for name in figures if "eval_" not in name
        }
    return sorted(rows.items())


def drop_empty(config):
    """Its client sends no empty part of a config."""
    if not isinstance(config, dict):
        return config
    return {name: drop_empty(value) for name, value in config.items() if value != {}}


def without_answers(rows: list[tuple[int, dict]]) -> list[tuple[int, dict]]:
    return [
        (step, {name: row[name] for name in row if name != "dev/answers"}) for step, row in rows
    ]


@pytest.mark.model
def test_the_server_is_told_all_of_a_training_and_the_key_in_its_one_place(
    round_, plain, tmp_path, server, capfd
):
    model = train_with_tracker(round_, "sent", make_run_dir(tmp_path), ONLINE)
    [run] = server.runs.values()
    told = {
        name: run.told[name]
        for name in ("project", "entity", "groupName", "displayName", "jobType")
    }
    assert [*told.values()] == ["p", "team", GROUP, "2/train-1", "train"]
    cfg = drop_runtime(dpo(learning_rate=3e-3, typical_learning_rate=3e-3).model_dump())
    assert run.config == drop_empty({**cfg, "fingerprint": "sent"})
    assert without_answers(run.rows) == expected_rows(model.read_metrics()) and len(run.rows) == 7
    assert run.exit_codes == [0]

    pages = {path: body.decode() for path, body in server.uploads.items() if path.endswith(".html")}
    assert [step for step, row in run.rows if "dev/answers" in row] == [0, 4, 6] and len(pages) == 3
    answers = [json.loads(line) for line in (model.path / "answers.jsonl").read_text().splitlines()]
    last = next(page for path, page in pages.items() if "/answers_6_" in path)
    assert all(
        trackers.render_answers([row]).split("<tr>")[1].removesuffix("</table>") in last
        for row in answers[-4:]
    )

    coded = base64.b64encode(f"api:{KEY}".encode()).decode()
    for path, headers, body in server.requests:
        asked = path == "/graphql" or path.endswith("/file_stream")
        assert headers.pop("Authorization", None) == (f"Basic {coded}" if asked else None)
        said = f"{path} {headers}".encode() + body
        assert KEY.encode() not in said and coded.encode() not in said
    said = "".join(capfd.readouterr())
    assert KEY not in said and "tracker=wandb" not in said
    everything = [*files(tmp_path), *files(round_.store)]
    assert [path for path in everything if KEY.encode() in path.read_bytes()] == []
    assert published_files(model) == published_files(plain)


@pytest.mark.model
def test_a_training_that_failed_and_is_run_again_is_one_run_with_every_step_once(
    round_, tmp_path, server, monkeypatch, capfd
):
    log = MetricsLog.on_log

    def log_or_fail(self, args, state, control, **kwargs):
        if state.global_step == 6:
            raise RuntimeError("the machine went away")
        log(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "on_log", log_or_fail)
        with pytest.raises(RuntimeError, match="went away"):
            train_with_tracker(round_, "again", make_run_dir(tmp_path), ONLINE)
    [run] = server.runs.values()
    assert run.exit_codes == [1] and run.rows[-1][0] == 5
    assert (round_.store / "train" / "again" / "scratch" / "checkpoints" / "checkpoint-4").is_dir()

    model = train_with_tracker(round_, "again", make_run_dir(tmp_path, "3"), ONLINE)
    [run] = server.runs.values()
    assert without_answers(run.rows) == expected_rows(model.read_metrics()) and run.exit_codes == [
        1,
        0,
    ]
    assert [step for step, row in run.rows if "dev/answers" in row] == [0, 4, 6]
    assert run.told["displayName"] == "3/train-1" and "wandb" not in capfd.readouterr().err


class ByHand:
    """A training's tracker, and the files that it reads, without a training."""

    def __init__(self, out: Path, run_dir: Path):
        self.out, self.callback, self.step = out, trackers.TrackerCallback(ONLINE, out), 0
        out.mkdir()
        (out / "scratch").mkdir()
        config = {"beta": 0.1, "runtime": {"micro_batch": 2}}
        step = {
            "stage": "train",
            "label": 1,
            "fingerprint": "f",
            "story": str(run_dir),
            "config": config,
        }
        write_json(out / "step.json", step)

    def log(self) -> float:
        """Seconds that the training waits."""
        for name, row in (
            ("metrics", {"loss": 1 / (1 + self.step)}),
            ("answers", {"prompt": "Why?", "answer": "<b>"}),
        ):
            with (self.out / f"{name}.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.step, **row}) + "\n")
        self.step += 1
        return measure_seconds(lambda: self.callback.on_log(None, LOOK, None))


def measure_seconds(act) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


@pytest.mark.model
def test_the_points_of_a_sweep_are_one_group(tmp_path, server):
    for point in ("0", "1"):
        training = ByHand(tmp_path / f"out-{point}", make_run_dir(tmp_path, point))
        training.log()
        training.callback.close()
    told = [
        (run.told["groupName"], run.told["displayName"], run.config) for run in server.runs.values()
    ]
    config = {"beta": 0.1, "fingerprint": "f"}
    assert told == [(GROUP, "0/train-1", config), (GROUP, "1/train-1", config)]


FAULTS = {
    "refused": 401,
    "forbidden": 403,
    "unknown": 404,
    "broken": 500,
    "silent": 0,
    "dead": None,
}
FIRST = {
    "refused": "its server does not take the key",
    "forbidden": "its server does not let the key write to this project",
    "unknown": "its server knows no such project or entity",
    "broken": "its server does not answer",
    "silent": "its server does not answer",
    "dead": "its server does not answer",
}


@pytest.mark.model
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_from_the_first_is_said_once_and_waited_for_once(
    fault, tmp_path, server, monkeypatch, capfd
):
    monkeypatch.setattr(trackers, "PATIENCE", 1.0)
    training = ByHand(tmp_path / "out", make_run_dir(tmp_path))
    spoil(server, fault)
    assert training.log() < 4.0
    assert training.log() + measure_seconds(training.callback.close) < 0.1
    said = "".join(capfd.readouterr())
    line = f"! tracker=wandb failed ({FIRST[fault]}): "
    assert said == f"{line}training continues without it; metrics.jsonl has every step\n"


@pytest.mark.model
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_on_the_way_holds_up_no_step_and_the_end_for_a_while(
    fault, tmp_path, server, monkeypatch, capfd
):
    monkeypatch.setattr(trackers, "PATIENCE", 1.0)
    training = ByHand(tmp_path / "out", make_run_dir(tmp_path))
    training.log()
    spoil(server, fault)
    assert sum(training.log() for _ in range(20)) < 1.0
    assert measure_seconds(training.callback.close) < 2.0
    said = capfd.readouterr().err
    assert KEY not in said and "`wandb sync`" in said
    assert said.count("! tracker=wandb failed (its server does not answer)") == (
        fault in ("broken", "silent", "dead")
    )


@pytest.mark.model
def test_what_a_server_missed_for_a_while_it_gets_at_the_end(tmp_path, server):
    training = ByHand(tmp_path / "out", make_run_dir(tmp_path))
    training.log()
    server.fault = 500
    training.log()
    threading.Timer(1.0, setattr, (server, "fault", None)).start()
    assert 1.0 < measure_seconds(training.callback.close) < 30.0
    [run] = server.runs.values()
    assert [step for step, row in run.rows if row["train/loss"] and row["dev/answers"]] == [0, 1]
    assert run.exit_codes == [0] and sum(path.endswith(".html") for path in server.uploads) == 2


def spoil(server: WandbServer, fault: str) -> None:
    server.fault = FAULTS[fault]
    if fault == "dead":
        server.close()


@pytest.mark.model
def test_a_key_that_is_refused_stops_no_training(round_, plain, tmp_path, server, capfd):
    server.fault = 401
    model = train_with_tracker(round_, "refused", make_run_dir(tmp_path), ONLINE)
    assert published_files(model) == published_files(plain)
    assert (
        capfd.readouterr().err.count("! tracker=wandb failed (its server does not take the key)")
        == 1
    )


@pytest.mark.model
def test_who_presses_stop_in_wandb_is_told_where_a_training_stops(
    tmp_path, server, monkeypatch, capfd
):
    """Its client would interrupt this process."""
    from wandb.sdk.lib.run_stopping import RunStopChecker

    monkeypatch.setitem(RunStopChecker.__init__.__kwdefaults__, "poll_interval", 0.1)
    server.stopped = True
    training = ByHand(tmp_path / "out", make_run_dir(tmp_path))
    said = ""
    for _ in range(100):
        training.log()
        time.sleep(0.1)
        said += capfd.readouterr().err
        if said:
            break
    training.callback.close()
    assert (
        said == "! tracker=wandb was asked to stop the run: a tracker cannot stop training; "
        "press Ctrl-C where it runs\n"
    )
