"""The store's listing and pruning: what a run needs stays, what was pruned is rebuilt when read."""

import shutil
import subprocess
import sys

import pytest

from pipeline import store
from pipeline.driver.executor import build_missing
from pipeline.driver.outline import prepare_plan
from pipeline.status import read_statuses
from pipeline.step import Step
from tests.support.house import HOUSE, SMALL, Toys, composed

UNTIL_PAIR = [*SMALL, "until=pair"]


@pytest.fixture
def toys(tmp_path):
    return Toys(tmp_path)


def usage(toys: Toys, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "pipeline", "store", *words]
    done = subprocess.run(
        command, cwd=toys.folder, env=toys.environment(), capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def forget_runs(toys: Toys) -> None:
    """As a person does who lets every run's work go."""
    for path in (toys.folder / "runs").iterdir():
        if path.is_dir():
            path.unlink() if path.is_symlink() else shutil.rmtree(path)


@pytest.mark.long
def test_what_a_run_names_is_not_pruned_and_the_rest_only_when_asked_for(toys):
    toys.run(*UNTIL_PAIR)
    listed = usage(toys)
    assert "built" in listed and "run/" in listed and "5 steps" in listed
    assert "nothing to prune" in usage(toys, "--prune", "--yes")
    forget_runs(toys)
    before = toys.files()
    assert "Nothing was removed" in usage(toys, "--prune", code=2)
    shards = [
        toys.folder / "store" / name / "shard-0.txt"
        for name in before
        if not name.startswith("prompts/")
    ]
    assert toys.files() == before and len(shards) == 4 and all(shard.is_file() for shard in shards)
    usage(toys, "--prune", "--yes")
    assert toys.files() == before, "manifests stay"
    assert not list((toys.folder / "store").rglob("shard-*.txt"))


@pytest.mark.long
def test_after_pruning_nothing_is_built_but_what_somebody_reads(toys):
    toys.run(*UNTIL_PAIR)
    made = toys.files()
    forget_runs(toys)
    usage(toys, "--prune", "--yes")
    again = toys.run(*UNTIL_PAIR)
    assert toys.built(again).count("pair round 1") == 1, "the target itself is wanted whole"
    assert toys.files() == made
    hollow = [name for name, manifest in toys.manifests().items() if manifest.get("pruned")]
    assert not hollow, "pair reads samples and scores, and these the prompts and the policy"


@pytest.mark.long
def test_a_hollow_step_that_nobody_reads_stays_hollow(toys):
    toys.run(*UNTIL_PAIR)
    forget_runs(toys)
    usage(toys, "--prune", "--yes")
    toys.run(*SMALL, "until=sft")
    hollow = {
        name.split("/")[0] for name, manifest in toys.manifests().items() if manifest.get("pruned")
    }
    assert hollow == {"prompts", "sample", "score", "pair"}
    assert "0 to do" in toys.run(*SMALL, "until=sft", "dry_run=true")
    assert "4 to do" in toys.run(*UNTIL_PAIR, "dry_run=true")


@pytest.mark.long
def test_a_refilled_step_with_other_content_makes_what_follows_run(toys):
    toys.run(*UNTIL_PAIR)
    forget_runs(toys)
    usage(toys, "--prune", "--yes")
    output = toys.run(*UNTIL_PAIR, salt="other")
    assert {"sample round 1", "score round 1", "pair round 1"} <= set(toys.built(output))
    assert "0 to do" in toys.run(*UNTIL_PAIR, "dry_run=true", salt="other")


@pytest.mark.long
def test_pruned_inputs_of_a_step_that_only_becomes_stale_on_the_way_are_made_again(
    tmp_path, monkeypatch, capsys
):
    """A sample with other content makes score run, which reads a model that no other step needs."""
    cfg = composed(*SMALL, f"store={tmp_path}/store", f"runs={tmp_path}/runs")
    monkeypatch.setenv("PIPELINE_STAGES", "tests.support.toys")
    monkeypatch.setenv("PYTHONPATH", str(HOUSE))
    prompts, model = Step("prompts", cfg.prompts), Step("sft", cfg.sft)
    samples = Step("sample", cfg.sample.request("train"), prompts=prompts / "train")
    scores = Step("score", cfg.score, samples=samples, model=model)
    built = [
        prompts,
        model,
        samples,
        scores,
        Step("pair", cfg.pair.for_round(1), samples=samples, scores=scores),
    ]
    first = prepare_plan(cfg, built[-1:])
    build_missing(cfg, first, tmp_path / "first")
    for step in built[:3]:
        store.prune(first.folder(step), store.read_manifest(first.folder(step)))
    monkeypatch.setenv("TOY_SALT", "other")
    second = prepare_plan(
        cfg, [Step("pair", cfg.pair.for_round(2), samples=samples, scores=scores)]
    )
    build_missing(cfg, second, tmp_path / "second")
    assert "rebuilt with other content" in capsys.readouterr().out
    assert all(
        manifest and not store.is_pruned(manifest)
        for manifest, _ in read_statuses(second, verify=True).values()
    )


def test_a_folder_without_a_store_and_unknown_words_are_refused(toys):
    assert "store=FOLDER" in usage(toys, code=2)
    assert "--force: not understood" in usage(toys, "--force", code=2)
