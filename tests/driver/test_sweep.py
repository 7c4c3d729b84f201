"""A sweep on toy stages: the best point on dev goes to test, the others' models may be pruned."""

import errno
import json
import os
import shlex
import sys

import pytest
import yaml

from pipeline import store
from pipeline.artifacts import write_json, write_text
from pipeline.config.compose import Arguments, compose
from pipeline.driver import sweep
from pipeline.driver.store_users import register_runs
from pipeline.errors import INTERRUPTED, explain_disk_fault
from tests.support import fake_slurm
from tests.support.house import SMALL, Toys, composed

GRID = [*SMALL, "evaluate.split=dev", "evaluate.control=false", "-m", "train.beta=0.1,0.2,0.3"]


@pytest.fixture
def toys(tmp_path):
    return Toys(tmp_path)


def folder_of(toys):
    """The newest sweep's."""
    return sorted((toys.folder / "runs").glob("*/*/points.json"))[-1].parent


def test_a_full_disk_is_named_where_hydra_writes(tmp_path, monkeypatch):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sweep, "launch", fail)
    monkeypatch.setattr(sys, "argv", ["strop"])
    words = [*GRID, f"runs={tmp_path}/runs", f"store={tmp_path}/store"]
    arguments = Arguments.parse(words)
    with pytest.raises(OSError, match=f"{tmp_path}/runs/run") as fault:
        sweep.run_sweep(arguments, compose(arguments)[0])
    assert explain_disk_fault(fault.value)


@pytest.mark.slow
def test_the_best_point_is_examined_on_test_and_the_other_models_go(toys):
    output = toys.run(*GRID, "sweep.keep=best")
    folder = folder_of(toys)
    points = json.loads((folder / "points.json").read_text())
    best = max(points, key=lambda point: point["score"])
    assert output.splitlines()[-1] == str(folder / "sweep.html") and len(points) == 3
    assert f"point {best['point']} again, on test" in output
    assert (folder / "best" / "report.html").read_text() == f"{best['score']:.6f}\n"

    words = shlex.split(
        f"strop run {' '.join(best['overrides'])} hydra.mode=RUN evaluate.split=test"
    )
    assert shlex.join(words) in (page := (folder / "sweep.html").read_text())
    assert 'href="best/report.html"' in page

    trained = {
        name: manifest for name, manifest in toys.manifests().items() if name.startswith("train/")
    }
    kept = [
        name.partition("/")[2]
        for name, manifest in trained.items()
        if not store.is_pruned(manifest)
    ]
    assert len(trained) == 3 and len(kept) == 1
    assert kept[0] in json.loads((folder / "best" / store.PLAN).read_text())

    notes = len(toys.notes("start"))
    assert (
        toys.built(toys.run(*GRID, "sweep.keep=best")) == [] and len(toys.notes("start")) == notes
    )
    assert toys.built(toys.run(*words[2:])) == [], (
        "the command on the page is the run that was made"
    )


@pytest.mark.slow
def test_a_model_that_another_run_names_stays_and_the_budget_decides(toys):
    toys.run(*GRID)
    points = json.loads((folder_of(toys) / "points.json").read_text())
    ranked = sorted(points, key=lambda point: point["score"])
    alone = next(word for word in ranked[0]["overrides"] if word.startswith("train.beta="))
    toys.run(*GRID[:-2], alone)
    for plan in (toys.folder / "runs").glob(f"*/*/*/{store.PLAN}"):
        plan.unlink()  # the first sweep is forgotten, the lone run is not
    output = toys.run(*GRID, "sweep.keep=best", f"sweep.kl_budget={ranked[1]['kl']}")
    assert f"point {ranked[1]['point']} again, on test" in output
    hollow = [
        name
        for name, told in toys.manifests().items()
        if name.startswith("train/") and store.is_pruned(told)
    ]
    assert len(hollow) == 1, "the highest score is beyond the budget; the lowest is another run"


@pytest.mark.slow
def test_a_point_that_fails_stands_on_the_page_and_the_rest_is_compared(toys):
    toys.run(*GRID[:-1], "train.beta=0.1,0.2")
    output = toys.run(*GRID, code=1, refuse="train")
    points = json.loads((folder_of(toys) / "points.json").read_text())
    assert [point["status"] for point in points] == ["done", "done", "refused"]
    assert output.splitlines()[-1] == str(folder_of(toys) / "sweep.html")
    page = (folder_of(toys) / "sweep.html").read_text()
    assert "2 of 3 points" in page and ">refused<" in page and "0.3" in page


@pytest.mark.long
def test_knobs_of_one_round_s_training_can_be_swept(toys):
    words = ["recipes=grpo_vs_dpo", "until=prompts", "-m", "train_in_round.2.beta=0.02,0.08"]
    toys.run(*words)
    written = [
        yaml.safe_load(file.read_text()) for file in toys.folder.glob("runs/*/*/*/config.yaml")
    ]
    assert sorted(one["train_in_round"]["2"]["beta"] for one in written) == [0.02, 0.08]


# ── on a cluster ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def slurm_path(tmp_path, monkeypatch):
    programs = fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


def list_trainings_at_once(toys) -> int:
    """The most toy trainings that ran at the same time."""
    counts, running = [0], 0
    for line in toys.log.read_text().splitlines():
        running += line.startswith("start train") - line.startswith("end train")
        counts.append(running)
    return max(counts)


@pytest.mark.slow
def test_on_a_cluster_the_points_are_built_side_by_side_and_what_they_share_once(
    tmp_path, slurm_path
):
    here, there = Toys(tmp_path / "here"), Toys(tmp_path / "there")
    for each in (here, there):
        each.folder.mkdir()
    here.run(*GRID)
    output = there.run(*GRID, "cluster=slurm", pause="train:2")
    assert there.files() == here.files()
    assert list_trainings_at_once(there) > 1 == list_trainings_at_once(here)
    assert len(there.notes("start")) == len(here.notes("start")), "each step is built once"
    folder = folder_of(there)
    assert output.splitlines()[-1] == str(folder / "sweep.html")
    commands = {
        record["config"]["beta"]: record["command"]
        for record in map(
            json.loads, (file.read_text() for file in (folder / "shared/steps").glob("*-train-*"))
        )
    }
    assert all(f"train.beta={beta}" in command for beta, command in commands.items())
    assert len(commands) == 3
    assert "3 points" in (there.folder / "runs" / "index.html").read_text()


@pytest.mark.slow
def test_on_a_cluster_a_step_that_fails_stops_its_own_point_alone(toys, slurm_path):
    toys.run(*GRID[:-1], "train.beta=0.1,0.2", "cluster=slurm")
    output = toys.run(*GRID, "cluster=slurm", code=1, refuse="train")
    points = json.loads((folder_of(toys) / "points.json").read_text())
    assert [point["status"] for point in points] == ["done", "done", "refused"]
    assert output.splitlines()[-1] == str(folder_of(toys) / "sweep.html")


def test_on_a_cluster_a_point_that_is_refused_is_left_to_its_turn(tmp_path, monkeypatch):
    words = [*SMALL, f"store={tmp_path}/store", f"runs={tmp_path}/runs"]
    good, bad = composed(*words), composed(*words, "train.learning_rate=3e-6")
    built = []
    monkeypatch.setattr(
        sweep, "find_faults", lambda cfg, *_: ["no"] if cfg.train.learning_rate == 3e-6 else []
    )
    monkeypatch.setattr(sweep, "build_missing", lambda cfg, whole, *_: built.append(whole))
    sweep.build_together([bad, good, good], tmp_path / "runs" / "shared")
    assert [step.stage for step in built[0].steps].count("train") == 1
    built.clear()
    sweep.build_together([bad], tmp_path / "runs" / "shared")
    assert not built


# ── without running anything ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def trained(tmp_path):
    """Three points of a sweep with a model each, the best one's retest, a run that uses model 2."""
    cfg = composed(*SMALL, f"store={tmp_path}/store", f"runs={tmp_path}/runs")
    for model in "abc":
        place = store.step_folder(cfg.store, "train", model)
        write_text(place / "weights", "w")
        files = store.list_files(place)
        write_json(place / store.MANIFEST, {"stage": "train", "files": files})
    runs = {
        "mine/now/0": "a",
        "mine/now/1": "b",
        "mine/now/2": "c",
        "mine/now/best": "b",
        "mine/now/shared": "a",  # what built the points on a cluster
        "other/then": "c",
    }
    for run, model in runs.items():
        write_json(cfg.runs / run / store.PLAN, {"s": "sft", model: "train"})
    register_runs(cfg.store, cfg.runs)
    return cfg


def test_the_models_of_the_other_points_go_but_not_what_another_run_names(trained):
    sweep.prune_losers(trained, trained.runs / "mine" / "now", [{"point": 0}, {"point": 2}])
    left = sorted(path.parent.name for path in trained.store.glob("train/*/weights"))
    assert left == ["b", "c"]
    assert store.is_pruned(store.read_manifest(trained.store / "train" / "a"))


def test_a_model_in_which_the_user_keeps_a_file_stays(trained, capsys):
    write_text(trained.store / "train" / "a" / "notes.txt", "years")
    sweep.prune_losers(trained, trained.runs / "mine" / "now", [{"point": 0}])
    assert (trained.store / "train" / "a" / "notes.txt").is_file()
    assert "train/a" in (output := capsys.readouterr().out) and "notes.txt" in output


def test_a_model_that_a_run_of_another_runs_folder_names_stays(trained, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    write_json(elsewhere / "other" / "then" / store.PLAN, {"a": "train"})
    register_runs(trained.store, elsewhere)
    sweep.prune_losers(trained, trained.runs / "mine" / "now", [{"point": 0}])
    assert (trained.store / "train" / "a" / "weights").is_file()
    elsewhere.rename(
        tmp_path / "away"
    )  # as when its disk is not mounted: nothing says what its runs need
    sweep.prune_losers(trained, trained.runs / "mine" / "now", [{"point": 0}])
    assert (
        trained.store / "train" / "a" / "weights"
    ).is_file() and "elsewhere" in capsys.readouterr().out


def test_the_command_is_what_a_shell_reads_back():
    best = {"overrides": ["recipes=mine", "+duel@evaluate.duels.j=default", "sft.model=/a b/m"]}
    told = sweep.make_best_command(best, ["-m", "--config-dir", "/my/recipes"])
    assert shlex.split(told)[2:] == [
        "--config-dir",
        "/my/recipes",
        *best["overrides"],
        "hydra.mode=RUN",
        "evaluate.split=test",
    ]


def test_while_a_point_waits_for_a_batch_the_sweep_is_not_over(tmp_path, monkeypatch):
    """The other points are kept: the best of all is not known yet."""
    monkeypatch.setattr(sweep, "run_point", lambda *_: pytest.fail("a retest"))
    monkeypatch.setattr(sweep, "prune_losers", lambda *_: pytest.fail("models were pruned"))
    cfg = composed(*SMALL, "score=rules", "evaluate.split=dev", "sweep.keep=best")
    done = {"point": 0, "overrides": [], "status": "done", "score": 0.5, "sft_score": 0.4}
    done |= {"split": "dev", "better": None, "kl": 1.0, "report": "0/report.html"}
    waiting = {"point": 1, "overrides": ["train.beta=0.2"], "status": "stopped"}
    page, code = sweep.finish_sweep(cfg, tmp_path, [done, waiting])
    assert code == INTERRUPTED and page.name == "sweep.html"
    assert sweep.finish_sweep(cfg, tmp_path, [waiting])[1] == INTERRUPTED
