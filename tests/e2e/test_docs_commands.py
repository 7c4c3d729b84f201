"""Every command of README and docs, as it is typed, at twin scale; one folder and store for all."""

import pytest

from docs import experiments
from pipeline.results import Run
from tests.support.docs_commands import (
    find_elsewhere,
    list_commands,
    make_folder,
    make_small,
    run_program,
    run_strop,
)
from tests.support.house import HOUSE
from tests.support.twins import start_judge

TYPED = [one for one in list_commands() if not find_elsewhere(one.text)]
ANSWERS = {"strop chat": "Tell me about the otter.\n/quit\n"}  # what is typed into a command


def test_every_command_is_run_here_or_by_a_named_test():
    assert len(TYPED) > 50
    for place, text in list_commands():
        if file := find_elsewhere(text):
            assert (HOUSE / file).exists(), f"{place}: {text}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    make_folder(folder)
    return folder


@pytest.fixture(scope="session")
def judge():
    with start_judge() as address:
        yield address


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("place", "text"), TYPED, ids=[one.place for one in TYPED])
def test_a_command_of_the_docs_works(place, text, folder, judge):
    if text.startswith("python "):
        (_, script, *words) = text.split()
        finished = run_program(folder, str(HOUSE / script), *words)
    else:
        typed = next((answers for start, answers in ANSWERS.items() if start in text), "")
        finished = run_strop(folder, *make_small(text, judge), typed=typed)
    assert finished.returncode == 0, f"{text}\n{finished.stdout}"


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1200)
def test_a_run_of_an_experiment_is_measured(folder, judge):
    words = make_small(experiments.BASE, judge)
    finished = run_strop(folder, *words)
    assert finished.returncode == 0, finished.stdout
    run = Run(folder / "runs" / "latest")
    measured = experiments.measure("rate", [run] * len(experiments.EXPERIMENTS["rate"].points))
    point = measured["points"][0]
    (first, *_, last) = point["evaluations"]
    assert first["step"] == 0 and first["delta"] == pytest.approx(0, abs=1e-3)
    assert last["step"] == len(point["losses"])
    assert point["final"]["score"]["n"] == 8 and {*point["final"]["criteria"]} > {"open"}
    assert [row["n"] for row in experiments.measure("ties", [run])["ties"]] == [*range(2, 9)]
