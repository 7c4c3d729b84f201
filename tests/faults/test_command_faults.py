"""Faults in what is typed, where it is typed and when it is stopped: a table, a row a fault."""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.compose import Arguments, compose
from pipeline.driver.run import link_latest, open_run_dir, run_point
from pipeline.errors import UserError
from pipeline.plan import plan
from tests.support.house import HOUSE, SMALL, Toys, composed, identity_of


@dataclass(frozen=True)
class Fault:
    words: str
    says: tuple[str, ...]


FAULTS = [
    Fault("train.beta=inf", ("train.beta=inf", "finite")),
    Fault("train.beta='inf'", ("train.beta=", "finite")),
    Fault("train.args={weight: inf}", ("train.args.weight",)),
    Fault("template.kwargs={depth: [1, -inf]}", ("template.kwargs.depth.1=-inf", "finite")),
    Fault("template.kwargs={depth: nan}", ("template.kwargs.depth=nan", "finite")),
    Fault("train.beta=${nope}", ("train.beta", "'nope' not found")),
    Fault("train.beta=${oc.env:NO_SUCH_VARIABLE}", ("train.beta", "NO_SUCH_VARIABLE")),
    Fault("train.beta=${train.beta}", ("train.beta", "Recursive")),
    Fault("sample.per_round=${sum:a,b}", ("sample.per_round",)),
    Fault("store=${store}", ("store", "Recursive")),
    Fault("train=3", ("command line", "Got int")),
    Fault("train=[3]", ("command line",)),
    Fault("=3", ("command line",)),
    Fault("+=", ("command line", "Write key=value")),
    Fault(
        "train.beta=0.1,0.3",
        ("train.beta=0.1,0.3: several values", "strop sweep prompts=playground", "[0.1,0.3]"),
    ),
    Fault("dtype=float16", ("command line: train.dtype='float16'", "copies dtype")),
    Fault("seed=" + "9" * 5000, ("seed=999", "4300 digits")),
    Fault("seed=" + "[" * 2000, ("seed=[[[", "Write key=value")),
    Fault("hydra.mode=???", ("hydra",)),
    Fault("hydra.mode=${seed}", ("hydra", "42")),
    Fault("store=", ("store=''", "expected a folder")),
    Fault("runs=", ("runs=''", "expected a folder")),
    Fault("runs=store", ("store=store runs=store", "Give two separate folders")),
    Fault("runs=./x/../store", ("store=store", "Give two separate folders")),
    Fault("runs=store/runs", ("store=store runs=store/runs", "Give two separate folders")),
    Fault("store=runs/store", ("store=runs/store runs=runs", "Give two separate folders")),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.words[:40])
def test_what_is_typed_wrongly_is_refused_in_words(fault):
    with pytest.raises(UserError) as refusal:
        composed(*SMALL, fault.words)
    assert [words for words in fault.says if words not in str(refusal.value)] == []


@pytest.mark.parametrize("recipe", ["../../x", "../x", "/x", "latest"])
def test_a_recipe_whose_name_leads_out_of_the_runs_is_refused(tmp_path, monkeypatch, recipe):
    """Its runs would be filed in an unexpected place, and their steps would count as unused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "recipes").mkdir(parents=True)
    for place in ("x.yaml", "mine/x.yaml", "mine/recipes/latest.yaml"):
        (tmp_path / place).write_text("# @package _global_\nseed: 7\n")
    with pytest.raises(UserError, match="recipes="):
        composed("--config-dir", "mine", *SMALL, f"recipes={recipe}")


def test_a_recipe_in_a_folder_of_recipes_is_filed_below_its_name(tmp_path):
    (tmp_path / "recipes" / "team").mkdir(parents=True)
    (tmp_path / "recipes" / "team" / "x.yaml").write_text("# @package _global_\nseed: 7\n")
    cfg = composed("--config-dir", str(tmp_path), *SMALL, "recipes=team/x")
    assert (cfg.seed, cfg.recipe) == (7, "team/x")


def test_a_word_that_takes_its_value_from_elsewhere_is_kept_as_it_was_typed():
    cfg = composed(*SMALL, "sample.seed=${seed}", "seed=9")
    assert cfg.sample.seed == 9 and "'sample.seed=${seed}'" in cfg.command


def test_a_sweep_without_several_values_is_refused_with_what_to_type():
    with pytest.raises(UserError, match="train.beta=0.05,0.2"):
        compose(Arguments.parse(["-m", *SMALL, "train.beta=0.1"]))


def test_several_values_without_sweep_name_the_sweep_that_works(tmp_path):
    words = [*SMALL, "train.beta=0.1,0.3"]
    with pytest.raises(UserError) as refusal:
        compose(Arguments.parse(words))
    [typed] = [line for line in str(refusal.value).splitlines() if "strop sweep" in line]
    sweep = shlex.split(typed.partition("strop sweep")[2])
    assert len(compose(Arguments.parse(["-m", *sweep]))[0]) == 2


ODD = ["a(b)", "a,b", "a=b", "a b", "a'b", 'a"b', "a{b}[c]", "a#b", "a\\"]


@pytest.mark.parametrize("name", ODD)
def test_a_recipe_is_found_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "x.yaml").write_text("# @package _global_\nseed: 7\n")
    assert composed("--config-dir", str(folder), *SMALL, "recipes=x").seed == 7


@pytest.mark.long
def test_a_sweep_runs_in_a_folder_of_any_name(tmp_path):
    toys = Toys(tmp_path / "a(b),c=d 'e")
    own = tmp_path / "mine, (2)=x"
    (own / "recipes").mkdir(parents=True)
    (own / "recipes" / "x.yaml").write_text("# @package _global_\nrounds: 1\n")
    toys.folder.mkdir()
    words = ["--config-dir", str(own), "recipes=x", *SMALL, "until=sft", "-m", "seed=1,2"]
    output = toys.run(*words)
    [points] = (toys.folder / "runs" / "x").glob("*/points.json")
    assert output.splitlines()[-1] == str(points) and points.read_text().count('"done"') == 2


# ── runs/latest ───────────────────────────────────────────────────────────────────────────────────


def latest_of(folder: Path) -> Path:
    return (folder / "runs" / "latest").resolve()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Makes a run in this process, on toy stages."""
    monkeypatch.setenv("PIPELINE_STAGES", "tests.support.toys")
    monkeypatch.setenv("PYTHONPATH", str(HOUSE))
    places = f"store={tmp_path}/store", f"runs={tmp_path}/runs"
    return lambda *words, story=None: run_point(composed(*SMALL, *places, *words), story)


def test_latest_replaces_no_link_of_the_user_s(tmp_path, capsys):
    cfg = composed(*SMALL, f"store={tmp_path}/store", f"runs={tmp_path}/runs")
    latest, run_dir = tmp_path / "runs" / "latest", tmp_path / "runs" / "run" / "now"
    for target in (tmp_path / "mine", tmp_path / "unmounted"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        latest.parent.mkdir(exist_ok=True)
        latest.symlink_to(target)
        open_run_dir(cfg, run_dir)
        link_latest(cfg.runs, run_dir)
        assert latest.readlink() == target and f"{latest}: not a link" in capsys.readouterr().err
        latest.unlink()
    for target in (run_dir, "/before/it/was/moved/runs/run/2026-01-01_00-00-00-2/0"):
        latest.symlink_to(target)
        link_latest(cfg.runs, run_dir.with_name("then"))
        assert latest.readlink() == Path("run/then")
        latest.unlink()


def test_a_run_s_config_says_what_to_type_to_repeat_it_in_the_same_store(tmp_path):
    places = f"store={tmp_path}/it's", f"runs={tmp_path}/runs", "until=train@1"
    run_dir = open_run_dir(composed(*SMALL, *places, "train.beta=0.3"), tmp_path / "runs/now")
    line = (run_dir / "config.yaml").read_text().splitlines()[0]
    words = shlex.split(line.removeprefix("# "))
    assert words[:2] == ["cd", str(Path.cwd())] and {*places, "train.beta=0.3"} <= {*words}


@pytest.mark.parametrize("word", ["hydra.sweep.subdir=mine", "hydra.job.chdir=true"])
def test_hydra_s_own_folders_are_refused(word):
    with pytest.raises(UserError, match="runs=FOLDER"):
        composed(*SMALL, word)


@pytest.mark.long
def test_latest_is_the_last_finished_run_and_no_refused_or_partial_one(tmp_path, run, monkeypatch):
    runs = tmp_path / "runs" / "run"
    assert run("until=sft", story=runs / "0") == 0
    assert latest_of(tmp_path) == runs / "0", "while none has finished, the last one"
    monkeypatch.setenv("TOY_REFUSE", "sample")
    assert run(story=runs / "1") == 2
    assert latest_of(tmp_path) == runs / "1"
    monkeypatch.delenv("TOY_REFUSE")
    assert run(story=runs / "2") == 0
    assert (
        latest_of(tmp_path) == runs / "2"
        and (tmp_path / "runs" / "latest" / "report.html").is_file()
    )
    assert run("until=sft", story=runs / "3") == 0
    monkeypatch.setenv("TOY_REFUSE", "train")
    assert run("train.beta=0.3", story=runs / "4") == 2
    assert latest_of(tmp_path) == runs / "2"
    monkeypatch.delenv("TOY_REFUSE")
    assert run(story=runs / "5") == 0 and latest_of(tmp_path) == runs / "5"


# ── signals ───────────────────────────────────────────────────────────────────────────────────────


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) & 1 << (number - 1))


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.5, 1.0])
def test_stopped_in_its_first_second_it_says_75_and_no_traceback(tmp_path, delay):
    """The handlers are set before anything heavy is imported; before that, Python has none."""
    command = [sys.executable, "-m", "pipeline", *SMALL, "dry_run=true"]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not catches(process.pid, signal.SIGTERM):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    if delay == 0:
        assert "pydantic_core" not in Path(f"/proc/{process.pid}/maps").read_text()
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode in ((75,) if delay < 1 else (75, 0)) and "Traceback" not in error
    assert process.returncode == 0 or "SIGTERM" in error


# ── words of any kind ─────────────────────────────────────────────────────────────────────────────

KNOBS = [
    "train",
    "train.beta",
    "train.args",
    "sample.per_round",
    "store",
    "recipes",
    "prompts",
    "score@evaluate.score",
]
KNOBS += [
    "evaluate.duels",
    "hydra.mode",
    "hydra.sweep.dir",
    "seed",
    "rounds",
    "limits.prompt",
    "template.kwargs",
    "until",
]
TYPED = [
    "inf",
    "nan",
    "-1",
    "0",
    "1e400",
    "null",
    "true",
    "[]",
    "{}",
    "[1, 2]",
    "{a: 1}",
    "${seed}",
    "${nope}",
    "???",
]
TYPED += [
    "a,b",
    "choice(1,2)",
    "range(1,3)",
    "'x",
    '"x"',
    "../x",
    "",
    " ",
    "9" * 5000,
    "${oc.env:HOME}",
    "${oc.decode:[}",
]
SIGNS = st.text(alphabet="abz019.,=:@+-~/\\'\"{}[]()$#?! \t\néß\U0001f600", max_size=12)
VALUE = st.sampled_from(TYPED) | SIGNS
WORD = st.one_of(
    st.builds("{}={}".format, st.sampled_from(KNOBS), VALUE),
    st.builds("{}{}={}".format, st.sampled_from(["+", "++", "~", ""]), SIGNS, VALUE),
    SIGNS,
    st.text(max_size=12),
)


def is_understood_or_refused(words: list[str]) -> None:
    """Whatever else is raised is a traceback, and fails the test."""
    said = "understood"
    try:
        points, _ = compose(Arguments.parse([*SMALL, *words]))
        for cfg in points[:2]:
            identity_of(plan(cfg))
    except UserError as refusal:
        said = str(refusal)
    assert said.strip()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words=st.lists(WORD, min_size=1, max_size=2))
def test_no_words_end_in_a_traceback(words):
    is_understood_or_refused(words)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(words=st.lists(WORD, min_size=1, max_size=3))
def test_no_words_end_in_a_traceback_for_long(words):
    is_understood_or_refused(words)
