"""Which model a word names, and what is refused."""

import shutil

import pytest

from pipeline.artifacts import write_json
from pipeline.commands.find_model import find_model, find_trained_model, list_run_models
from pipeline.errors import UserError
from tests.support.finished_run import REPORT, SFT, TRAIN, make_run, prune_step, reseal

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run whose links lead into a copied store."""
    shutil.copytree(made.parents[2], tmp_path, symlinks=True, dirs_exist_ok=True)
    run = tmp_path / "runs" / "mine" / "now"
    for link in (run / "store").iterdir():
        step = link.readlink().relative_to(made.parents[2])
        link.unlink()
        link.symlink_to(tmp_path / step)
    return run


def test_a_run_is_its_chosen_model_and_names_its_others(run, tmp_path):
    assert find_model(str(run), tmp_path / "x").model.path == tmp_path / "store" / TRAIN
    assert find_model(f"{run}:sft", tmp_path / "x").model.path == tmp_path / "store" / SFT
    assert [*list_run_models(run)] == ["sft", "round-1"], "the control is SFT again"
    found = find_model(str(run), tmp_path / "x")
    assert found.name == "round-1" and found.read_dtype() == "float32"
    assert found.read_answer_settings()["max_tokens"] == 12
    with pytest.raises(UserError, match="no such model. Did you mean round-1"):
        find_model(f"{run}:round-2", tmp_path / "x")


def test_a_replicate_has_its_own_name_and_the_round_stays_the_first_seed_s(run, tmp_path):
    (run / "store" / "007-train-round-1-seed-43").symlink_to(tmp_path / "store" / SFT)
    assert [*list_run_models(run)] == ["sft", "round-1", "round-1-seed-43"]
    assert list_run_models(run)["round-1"] == tmp_path / "store" / TRAIN


def test_a_run_without_a_report_has_not_chosen(run, tmp_path):
    (run / "store" / "005-evaluate-report").unlink()
    assert find_model(f"{run}:round-1", tmp_path / "x").name == "round-1"
    with pytest.raises(UserError, match=r"has not chosen a model(.|\n)*now:round-1"):
        find_model(str(run), tmp_path / "x")
    for link in (run / "store").iterdir():
        link.unlink()
    with pytest.raises(UserError, match="no model yet"):
        find_model(str(run), tmp_path / "x")


def test_a_pruned_model_and_one_without_its_base_are_refused(run, tmp_path):
    shutil.rmtree(tmp_path / "store" / SFT / "weights")
    with pytest.raises(UserError, match=rf"{SFT} is damaged: weights/\S+ is missing"):
        find_model(str(run), tmp_path / "x")
    prune_step(tmp_path / "store" / SFT)
    with pytest.raises(UserError, match=rf"{SFT} has no weights here \(pruned"):
        find_model(str(run), tmp_path / "x")
    shutil.rmtree(tmp_path / "store" / SFT)
    with pytest.raises(UserError, match=f"its base {SFT} is not in its store"):
        find_model(str(run), tmp_path / "x")
    prune_step(tmp_path / "store" / TRAIN)
    with pytest.raises(UserError, match="pruned"):
        find_model(str(run), tmp_path / "x")


def test_a_checkpoint_that_was_moved_away_is_named(run, tmp_path):
    step = tmp_path / "store" / SFT
    write_json(step / "model.json", {"tokenizer": "weights", "revision": None})
    write_json(step / "place.json", {"weights": str(tmp_path / "gone")})
    reseal(step)
    with pytest.raises(UserError, match="its checkpoint is gone from"):
        find_model(f"{run}:sft", tmp_path / "x")


def test_a_step_s_folder_and_a_checkpoint_s_folder_are_models(run, tmp_path):
    assert find_model(str(tmp_path / "store" / TRAIN), tmp_path / "x").name == "dddddddddddd"
    weights = tmp_path / "store" / SFT / "weights"
    found = find_model(str(weights), tmp_path / "x")
    assert found.model.weights == weights and found.name == "weights"
    assert found.read_answer_settings() == {}
    with pytest.raises(UserError, match="no run here, and no model of a store"):
        find_trained_model(str(weights), "export")


@pytest.mark.parametrize("word", ["nowhere", "./nowhere/deeper", "~nosuchuser/x", "a/b/c"])
def test_what_is_no_model_is_refused(word, tmp_path):
    with pytest.raises(UserError, match="Give a f"):
        find_model(word, tmp_path / "x")


def test_a_model_of_what_is_not_a_run_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        find_model(f"{tmp_path / 'store' / REPORT}:sft", tmp_path / "x")


def test_a_checkpoint_with_code_or_without_weights_is_refused(run, tmp_path):
    weights = tmp_path / "store" / SFT / "weights"
    config = (weights / "config.json").read_text()
    (weights / "config.json").write_text(config.replace("{", '{"auto_map": {},', 1))
    with pytest.raises(UserError, match="its own Python code"):
        find_model(str(weights), tmp_path / "x")
    (weights / "config.json").write_text(config)
    (weights / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="safetensors"):
        find_model(str(weights), tmp_path / "x")


@pytest.mark.parametrize("word", ["runs/latest", "runs/latest:sft"])
def test_before_any_run_it_is_said_and_the_hub_is_not_asked(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{word}: there is no run here yet\.\n  Type strop new"):
        find_model(word, tmp_path / "x")
