"""The origins of a model, by the names that the user typed."""

from pathlib import Path

import pytest

from pipeline.artifacts import write_json
from pipeline.commands.origins import START, UNKNOWN, Origin, find_origins
from tests.support.finished_run import seal

STEP = "sft/aaaaaaaaaaaa"


@pytest.fixture
def step(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    seal(tmp_path / "store" / "prompts/999999999999", {})
    return tmp_path / "store" / STEP


@pytest.mark.parametrize("typed", ["./small.gguf", "wheel:small==1.0"])
@pytest.mark.parametrize("licence", ["apache-2.0", None])
def test_a_gguf_file_is_the_model_at_the_start_with_its_own_licence(step, typed, licence):
    gguf = {"sha256": "0" * 64, "license": licence}
    write_json(step / "model.json", {"weights": "weights", "tokenizer": "weights", "gguf": gguf})
    seal(step, {"kind": "gguf", "path": typed, "dtype": "float32"})
    assert find_origins(step) == [Origin(START, typed, licence or UNKNOWN)]
    (step / "model.json").unlink()
    assert find_origins(step) == [Origin(START, typed, UNKNOWN)], "its step may have been pruned"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [("./sft/weights", "./sft/weights"), ("/home/me/sft", "sft"), ("~/sft", "sft")],
)
def test_a_folder_is_named_as_typed_unless_that_tells_where_files_are(step, typed, shown):
    seal(step, {"kind": "checkpoint", "model": typed, "revision": None})
    [origin] = find_origins(step)
    assert (origin.role, origin.name, origin.is_hub_name) == (START, shown, False)
