"""The wheel by itself: conf/ and recipes/ are in it, and planning needs the light packages only."""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata, util
from pathlib import Path

import pytest

from tests.support.house import HOUSE

SOURCES = "pipeline", "conf", "recipes", "pyproject.toml", "README.md", "LICENSE"
# What composing and planning import, with what those packages import themselves.
LIGHT = (
    "hydra",
    "omegaconf",
    "antlr4",
    "yaml",
    "packaging",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_extensions",
    "typing_inspection",
    "polars",
    "_polars_runtime_32",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves its own folders next to what it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        place = HOUSE / name
        if place.is_dir():
            shutil.copytree(
                place, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(place, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    [built] = out.glob("strop-*.whl")
    return built


def pip(*words: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        words[0],
        "--quiet",
        "--no-deps",
        "--no-index",
        *words[1:],
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_an_installed_wheel_plans_without_anything_heavy(wheel, tmp_path):
    site = tmp_path / "site"
    pip("install", "--target", str(site), str(wheel))
    for name in LIGHT:
        found = util.find_spec(name)
        place = Path(found.origin)
        place = place.parent if place.name == "__init__.py" else place
        (site / place.name).symlink_to(place)
    for name in (
        "hydra-core",
        "omegaconf",
        "pydantic",
        "pydantic_core",
    ):  # hydra finds its plugins by metadata
        record = Path(str(metadata.distribution(name)._path))
        (site / record.name).symlink_to(record)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r});"
        " from pipeline.__main__ import main; sys.exit(main())"
    )
    words = ["plan", "recipes=smoke"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, "a run here would be refused: the core has no torch"
    assert done.stdout.splitlines()[-1].startswith("26 steps, 26 to do")
    assert "torch, transformers, trl: not installed" in done.stdout + done.stderr
    assert "pip install 'strop[cpu]'" in done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"site"}, "a plan writes nothing"


@pytest.mark.long
def test_the_command_strop_is_the_wheel_s(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [entry] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "strop = pipeline.__main__:main" in archive.read(entry).decode()
        names = set(archive.namelist())
    conf = {path.relative_to(HOUSE).as_posix() for path in (HOUSE / "conf").rglob("*.yaml")}
    recipes = {
        f"conf/{path.relative_to(HOUSE).as_posix()}"
        for path in (HOUSE / "recipes").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"pipeline/{name}" for name in conf | recipes} <= names
    pages = [
        path
        for path in (HOUSE / "pipeline").rglob("*")
        if path.suffix in (".html", ".css", ".js") and "conf" not in path.parts
    ]
    assert len(pages) > 5 and {path.relative_to(HOUSE).as_posix() for path in pages} <= names
