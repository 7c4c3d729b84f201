"""Each recipe's twin, by the command that a user types, to its report; one store for all."""

import json

import pytest

from tests.support.house import composed
from tests.support.twins import GROUPS, run_twin, start_judge

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(1200)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("twins")


@pytest.fixture(scope="session")
def judge():
    with start_judge() as address:
        yield address


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, names in GROUPS.items() for name in names]
)
def test_a_twin_makes_its_report_without_network(group, name, folder, judge):
    finished = run_twin(name, folder, judge)
    assert finished.returncode == 0, finished.stdout
    page = folder / finished.stdout.splitlines()[-1]
    report = json.loads(page.with_name("report.json").read_text())
    rounds = composed(f"recipes={name}").rounds
    trained = [model["name"] for model in report["models"] if model["name"].startswith("round-")]
    assert trained[-1:] == [f"round-{rounds}"]
    assert len(report["training"]) == rounds
    assert all(row["steps"] > 0 for row in report["training"])
