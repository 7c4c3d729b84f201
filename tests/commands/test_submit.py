"""The job files of `strop submit`, and what it refuses."""

import os

import pytest

from pipeline.commands import submit

WORDS = ["recipes=smoke", "train.beta=0.2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_shows_both_jobs_and_submits_neither(here, capsys, monkeypatch):
    monkeypatch.setattr(submit, "submit", lambda words: pytest.fail("submitted"))
    (here / "prolog.sh").write_text("module load cuda\n")
    asked = ["machines=4", "gpus=2", "memory=64G", "time=8:00:00", "prolog=prolog.sh", "--dry-run"]
    assert submit.main([*asked, *WORDS]) == 0
    printed = capsys.readouterr().out
    run = (here / "jobs" / "smoke" / "run.sbatch").read_text()
    help_ = (here / "jobs" / "smoke" / "help.sbatch").read_text()
    assert run in printed and help_ in printed
    for line in ("#SBATCH --gpus=2", "#SBATCH --mem=64G", "#SBATCH --time=8:00:00"):
        assert line in run.splitlines() and line in help_.splitlines()
    assert "#SBATCH --requeue" in run and "#SBATCH --requeue" not in help_
    assert "module load cuda\n" in run and "-m pipeline run recipes=smoke train.beta=0.2 &" in run
    assert "work runs/smoke wait=3600" in help_ and "--partition" not in run


def test_the_jobs_that_help_start_after_the_run(here, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(submit, "submit", lambda words: seen.append(words) or "17")
    monkeypatch.setattr(submit.shutil, "which", lambda name: name)
    assert submit.main(["machines=3", *WORDS]) == 0
    assert seen[0] == ["jobs/smoke/run.sbatch"]
    assert seen[1] == ["--dependency=after:17", "--array=1-2", "jobs/smoke/help.sbatch"]
    assert "job 17: jobs/smoke/run.sbatch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["machines=none"], "machines=none: expected a whole number from 1"),
        (["gpus=abc"], "gpus=abc: expected a whole number from 0"),
        (["cpus=-3"], "cpus=-3: expected a whole number from 1"),
        (["memory=lots"], "memory=lots: expected a number such as 64G or 64000M"),
        (["time=8h"], "time=8h: expected minutes, or H:MM:SS"),
        (["machnes=3"], "machnes=3: not understood. Did you mean machines="),
        (["--dryrun"], "--dryrun: no such flag. Did you mean --dry-run"),
        (["until=scor"], "until=scor: the plan has no such step. Did you mean score"),
        (["prompts=file", "prompts.path=no.jsonl", "score=length"], "no.jsonl: no such file"),
        (["prolog=nowhere.sh"], "prolog=nowhere.sh: cannot be read as text"),
        (["train.bet=1"], "train.bet is not a knob"),
    ],
)
def test_what_cannot_be_submitted_is_refused(here, capsys, words, fault):
    assert submit.main(["--dry-run", *words, *WORDS]) == 2
    assert fault in capsys.readouterr().err
    assert not (here / "jobs").exists()


def test_what_slurm_does_not_read_is_named_at_once_with_the_usage(here, capsys):
    assert submit.main(["gpus=-1", "cpus=0", "memory=64 G", "time=1:00:00:00", *WORDS]) == 2
    shown = capsys.readouterr().err
    for knob in ("gpus=-1", "cpus=0", "memory=64 G", "time=1:00:00:00"):
        assert f"{knob}: expected " in shown
    assert shown.count("Usage: strop submit [machines=1]") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["gpus=0", "memory=64000", "time=90"],
        ["gpus=a100:2", "memory=64000M", "time=1-00:00:00"],
        ["gpus=8", "memory=64g", "time=UNLIMITED"],
    ],
)
def test_what_slurm_reads_is_accepted(here, words):
    assert submit.main(["--dry-run", *words, *WORDS]) == 0


def test_a_prolog_may_bring_what_is_missing_here(here, monkeypatch, capsys):
    (here / "prolog.sh").write_text("export KEY=x\n")
    monkeypatch.setattr(submit, "find_faults", lambda *plan: ["no key"])
    assert submit.main(["--dry-run", *WORDS]) == 2
    assert "no key" in capsys.readouterr().err
    assert submit.main(["--dry-run", "prolog=prolog.sh", *WORDS]) == 0


def test_without_slurm_and_with_an_unknown_partition_it_says_what_to_do(here, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(here))
    assert submit.main(WORDS) == 2
    assert "no sbatch here" in capsys.readouterr().err
    assert not (here / "jobs").exists()
    sbatch = here / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'invalid partition specified: x' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}/bin")
    assert submit.main(["partition=x", *WORDS]) == 2
    assert "invalid partition specified: x" in capsys.readouterr().err
