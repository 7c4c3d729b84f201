"""Trackers show metrics.jsonl, write to the run's folder, change and stop nothing, leak no key."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.artifacts import Model, write_json
from pipeline.config import Tensorboard, Wandb
from pipeline.errors import UserError
from pipeline.preflight import environment
from tests.support.house import SMALL, Toys, fingerprints
from tests.support.preferences import dpo
from tests.training.test_guards import Round, published_files

KEY = "0123456789abcdef" * 2 + "01234567"  # of a key's length; no server knows it
WANDB = Wandb(kind="wandb", mode="offline", project="p", entity=None, group=None, name=None)
ONLINE = WANDB.model_copy(update={"mode": "online"})


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"))


@pytest.fixture
def run_dir(tmp_path) -> Path:
    folder = tmp_path / "runs" / "smoke" / "2026-01-02_03-04-05" / "2"
    folder.mkdir(parents=True)
    return folder


def train_with_tracker(round_: Round, name: str, run_dir: Path, tracker, **runtime) -> Model:
    """Train as the worker does: with a `step.json` in the folder that names the run's folder."""
    cfg = dpo(
        tracker=tracker and tracker.model_dump(),
        runtime=runtime,
        learning_rate=3e-3,
        typical_learning_rate=3e-3,
    )
    step = {
        "stage": "train",
        "label": 1,
        "fingerprint": name,
        "story": str(run_dir),
        "config": cfg.model_dump(),
    }
    (round_.store / "train" / name).mkdir(parents=True, exist_ok=True)
    write_json(round_.store / "train" / name / "step.json", step)
    model = round_.train(name, cfg)
    (model.path / "step.json").unlink()
    return model


@pytest.fixture(scope="module")
def plain(round_) -> Model:
    return round_.train("plain", dpo(learning_rate=3e-3, typical_learning_rate=3e-3))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.model
def test_tensorboard_shows_every_figure_and_the_answers(round_, plain, run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = train_with_tracker(round_, "boarded", run_dir, Tensorboard(kind="tensorboard"))
    events = EventAccumulator(str(run_dir / "tensorboard" / "train-1"))
    events.Reload()
    for shown, name in (("train/loss", "loss"), ("dev/loss", "eval_loss"), ("dev/kl", "eval_kl")):
        logged = {row["step"]: row[name] for row in model.read_metrics() if name in row}
        assert {event.step: event.value for event in events.Scalars(shown)} == pytest.approx(
            logged, rel=1e-6
        )
        assert len(logged) >= 3
    answers = [tag for tag in events.Tags()["tensors"] if tag.startswith("dev/answers/")]
    assert len(answers) == 4 and [event.step for event in events.Tensors(answers[0])] == [0, 4, 6]
    assert published_files(model) == published_files(plain)


@pytest.mark.model
def test_wandb_works_offline_and_tells_no_key(round_, plain, run_dir, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    model = train_with_tracker(round_, "offline", run_dir, WANDB)
    assert published_files(model) == published_files(plain)

    [run] = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    data = run.read_bytes()
    for word in (
        b"train/loss",
        b"train/rewards/margins",
        b"dev/kl",
        b"smoke/2026-01-02_03-04-05",
        b"2/train-1",
    ):
        assert word in data, word
    pages = [path for path in files(run_dir) if path.suffix == ".html" and "answers" in path.name]
    assert len(pages) == 3 and all(path.read_text().count("<tr>") == 4 for path in pages)
    said = "".join(capfd.readouterr())
    assert KEY not in said and "failed" not in said
    everything = [*files(run_dir), *files(model.path), *files(round_.store)]
    assert [path for path in everything if KEY.encode() in path.read_bytes()] == []


@pytest.mark.model
def test_a_tracker_that_cannot_be_opened_stops_nothing(round_, plain, run_dir, capfd):
    (run_dir / "tensorboard").write_text("a file where the folder should be")
    model = train_with_tracker(round_, "unopened", run_dir, Tensorboard(kind="tensorboard"))
    said = capfd.readouterr().err
    assert said.count("! tracker=tensorboard failed (Not a directory): training continues") == 1
    assert published_files(model) == published_files(plain)


@pytest.mark.model
def test_a_tracker_that_dies_on_the_way_stops_nothing(round_, plain, run_dir, capfd, monkeypatch):
    """Its service is killed at the third step."""
    import wandb

    from pipeline.training.monitoring.callbacks import MetricsLog

    log = MetricsLog.on_log

    def log_and_kill(self, args, state, control, **kwargs):
        log(self, args, state, control, **kwargs)
        if state.global_step == 3:
            for pid in services():
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(MetricsLog, "on_log", log_and_kill)
    model = train_with_tracker(round_, "killed", run_dir, WANDB)
    assert capfd.readouterr().err.count("! tracker=wandb failed") == 1
    assert published_files(model) == published_files(plain)
    with suppress(OSError):
        wandb.teardown()  # it remembers the one that was killed


def services() -> list[int]:
    """W&B's processes under this one."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,ppid,comm"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [
        int(pid)
        for pid, parent, name in rows
        if int(parent) == os.getpid() and "wandb-core" in name
    ]


@pytest.mark.model
def test_checkpoints_are_kept_when_asked_beside_the_model_and_not_in_it(round_, plain, run_dir):
    model = train_with_tracker(round_, "kept", run_dir, None, keep_checkpoints=True)
    kept = run_dir / "checkpoints" / "train-1"
    assert (kept / "checkpoint-4" / "optimizer.pt").is_file() and (
        kept / "checkpoints.json"
    ).is_file()
    assert published_files(model) == published_files(plain)


def test_a_tracker_changes_no_fingerprint():
    plain = fingerprints(*SMALL)
    assert fingerprints(*SMALL, "tracker=wandb", "tracker.mode=offline", "tracker.name=x") == plain


@pytest.fixture
def quiet(tmp_path, monkeypatch) -> Path:
    """An environment that says nothing to W&B but where its netrc is."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "netrc"


@pytest.mark.parametrize("planned", [[], ["dry_run=true"]])
def test_wandb_without_its_key_is_refused_at_the_door(tmp_path, quiet, planned):
    said = Toys(tmp_path).run(*SMALL, "tracker=wandb", *planned, code=2)
    assert "tracker=wandb: no key for https://api." in said
    assert "`wandb login`; or give tracker.mode=offline" in said and not list(
        (tmp_path / "runs").glob("*")
    )
    assert not Toys(tmp_path).manifests()


def test_the_key_is_looked_for_where_wandb_will_find_it(quiet, monkeypatch):
    def check() -> None:
        environment.check_tracker(ONLINE)

    environment.check_tracker(WANDB)
    quiet.write_text(
        "".join(
            f"machine {at} login user password {KEY}\n" for at in ("api.wandb.ai", "my.org:8080")
        )
    )
    check()
    for url, known in {
        "https://my.org": False,
        "http://my.org:8080/": True,
        "https://api.wandb.ai": True,
    }.items():
        monkeypatch.setenv("WANDB_BASE_URL", url)
        if known:
            check()
            continue
        with pytest.raises(UserError, match=rf"no key for {url}: WANDB_API_KEY is not set"):
            check()
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.org")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    check()

    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("WANDB_BASE_URL")
    (quiet.parent / "config").mkdir()
    (quiet.parent / "config" / "settings").write_text(
        "[default]\nbase_url = http://my.org:8080\n"
    )  # wandb login --host
    check()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WANDB_API_KEY", f"{KEY}\n", "start or end with whitespace"),
        ("WANDB_API_KEY", KEY[:30], "must have 40+ characters, has 30"),
        ("WANDB_API_KEY", f"{KEY[:20]} {KEY[20:]}", "may only contain"),
        ("WANDB_BASE_URL", f"my.org/{KEY}", "WANDB_BASE_URL: Input should be a valid URL"),
        ("WANDB_MODE", KEY, "WANDB_MODE: Input should be 'online'"),
        ("WANDB_MODE", "offline", "WANDB_MODE=offline is set"),
        ("WANDB_MODE", "disabled", "WANDB_MODE=disabled is set"),
        ("WANDB_DISABLED", "True", "WANDB_DISABLED=True is set"),
    ],
)
def test_what_would_keep_wandb_from_sending_is_refused_at_the_door(
    quiet, monkeypatch, name, value, said
):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="^tracker=wandb: ") as refused:
        environment.check_tracker(ONLINE)
    words = str(refused.value)
    assert said in words and "give tracker.mode=offline" in words.lower() and KEY[:20] not in words
    environment.check_tracker(WANDB)


def test_a_tracker_that_is_not_installed_is_refused_at_the_door(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=r"tracker=tensorboard: the package tensorboard is not installed.*\n.*make install",
    ):
        environment.check_tracker(Tensorboard(kind="tensorboard"))
