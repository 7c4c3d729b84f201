"""Trackers show what metrics.jsonl says, in the run's folder; they change nothing, stop nothing and tell no key."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.artifacts import Model, write_json
from pipeline.config import Tensorboard, Wandb
from pipeline.door import outside
from pipeline.errors import Refusal
from tests.house import SMALL, Toys, fingerprints
from tests.preferences import dpo
from tests.test_guards import Round, published

KEY = "0123456789abcdef" * 2 + "01234567"  # of a key's length; no server knows it
WANDB = Wandb(kind="wandb", mode="offline", project="p", entity=None, group=None, name=None)


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"))


@pytest.fixture
def story(tmp_path) -> Path:
    folder = tmp_path / "runs" / "smoke" / "2026-01-02_03-04-05" / "2"
    folder.mkdir(parents=True)
    return folder


def tracked(round_: Round, name: str, story: Path, tracker, **runtime) -> Model:
    """Trained as the worker has it done: `step.json` lies in the folder and says where the run's story is."""
    cfg = dpo(tracker=tracker and tracker.model_dump(), runtime=runtime, learning_rate=3e-3, usual_rate=3e-3)
    step = {"stage": "train", "label": 1, "fingerprint": name, "story": str(story), "config": cfg.model_dump()}
    (round_.store / "train" / name).mkdir(parents=True)
    write_json(round_.store / "train" / name / "step.json", step)
    model = round_.train(name, cfg)
    (model.path / "step.json").unlink()
    return model


@pytest.fixture(scope="module")
def plain(round_) -> Model:
    return round_.train("plain", dpo(learning_rate=3e-3, usual_rate=3e-3))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.model
def test_tensorboard_shows_every_figure_and_the_answers(round_, plain, story):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = tracked(round_, "boarded", story, Tensorboard(kind="tensorboard"))
    events = EventAccumulator(str(story / "tensorboard" / "train-1"))
    events.Reload()
    for shown, name in (("train/loss", "loss"), ("dev/loss", "eval_loss"), ("dev/kl", "eval_kl")):
        logged = {row["step"]: row[name] for row in model.metrics() if name in row}
        assert {event.step: event.value for event in events.Scalars(shown)} == pytest.approx(logged, rel=1e-6)
        assert len(logged) >= 3
    answers = [tag for tag in events.Tags()["tensors"] if tag.startswith("dev/answers/")]
    assert len(answers) == 4 and [event.step for event in events.Tensors(answers[0])] == [0, 4, 6]
    assert published(model) == published(plain)


@pytest.mark.model
def test_wandb_works_offline_and_tells_no_key(round_, plain, story, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    model = tracked(round_, "offline", story, WANDB)
    assert published(model) == published(plain)

    [run] = (story / "wandb").glob("offline-run-*/run-*.wandb")
    data = run.read_bytes()
    for word in (b"train/loss", b"train/rewards/margins", b"dev/kl", b"smoke/2026-01-02_03-04-05", b"2/train-1"):
        assert word in data, word
    tables = [json.loads(path.read_text()) for path in files(story) if path.name.endswith(".table.json")]
    assert len(tables) == 3 and tables[0]["columns"] == ["step", "prompt_id", "prompt", "answer"]
    said = "".join(capfd.readouterr())
    assert KEY not in said and "failed" not in said
    everything = [*files(story), *files(model.path), *files(round_.store)]
    assert [path for path in everything if KEY.encode() in path.read_bytes()] == []


@pytest.mark.model
def test_a_tracker_that_cannot_be_opened_stops_nothing(round_, plain, story, capfd):
    (story / "tensorboard").write_text("a file where the folder should be")
    model = tracked(round_, "unopened", story, Tensorboard(kind="tensorboard"))
    said = capfd.readouterr().err
    assert said.count("! tracker=tensorboard failed (Not a directory): training goes on") == 1
    assert published(model) == published(plain)


@pytest.mark.model
def test_a_tracker_that_dies_on_the_way_stops_nothing(round_, plain, story, capfd, monkeypatch):
    """Its service is killed at the third step."""
    from pipeline.training.callbacks import MetricsLog

    log = MetricsLog.on_log

    def killing(self, args, state, control, **kwargs):
        log(self, args, state, control, **kwargs)
        if state.global_step == 3:
            for pid in services():
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(MetricsLog, "on_log", killing)
    model = tracked(round_, "killed", story, WANDB)
    assert capfd.readouterr().err.count("! tracker=wandb failed") == 1
    assert published(model) == published(plain)


def services() -> list[int]:
    """W&B's processes under this one."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, parent, name in rows if int(parent) == os.getpid() and "wandb-core" in name]


@pytest.mark.model
def test_checkpoints_are_kept_when_asked_beside_the_model_and_not_in_it(round_, plain, story):
    model = tracked(round_, "kept", story, None, keep_checkpoints=True)
    kept = story / "checkpoints" / "train-1"
    assert (kept / "checkpoint-4" / "optimizer.pt").is_file() and (kept / "checkpoints.json").is_file()
    assert published(model) == published(plain)


def test_a_tracker_changes_no_fingerprint():
    plain = fingerprints(*SMALL)
    assert fingerprints(*SMALL, "tracker=wandb", "tracker.mode=offline", "tracker.name=x") == plain


def test_wandb_without_its_key_is_refused_at_the_door(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    said = Toys(tmp_path).run(*SMALL, "tracker=wandb", code=2)
    assert "tracker=wandb: there is no key for api.wandb.ai: WANDB_API_KEY is not set" in said
    assert "`wandb login`; or give tracker.mode=offline" in said and not list((tmp_path / "runs").iterdir())

    online = WANDB.model_copy(update={"mode": "online"})
    outside.check_tracker(WANDB)
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    outside.check_tracker(online)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(Refusal, match=r"no key for wandb\.example\.org"):
        outside.check_tracker(online)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    outside.check_tracker(online)


def test_a_tracker_that_is_not_installed_is_refused_at_the_door(monkeypatch):
    monkeypatch.setattr(outside, "find_spec", lambda name: None)
    with pytest.raises(
        Refusal, match=r"tracker=tensorboard: the package tensorboard is not installed.*\n.*make install"
    ):
        outside.check_tracker(Tensorboard(kind="tensorboard"))


@pytest.mark.model
def test_a_server_that_is_not_there_stops_nothing(round_, plain, story, monkeypatch, capfd):
    from pipeline.training import tracking

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens at the port for discarding
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    model = tracked(round_, "online", story, WANDB.model_copy(update={"mode": "online"}))
    said = "".join(capfd.readouterr())
    assert said.count("! tracker=wandb failed") == 1 and KEY not in said
    assert published(model) == published(plain)
