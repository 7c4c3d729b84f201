"""Which Steps are built by one worker, since they can use one open model."""

import json
from pathlib import Path

import pytest

from pipeline import hardware
from pipeline.artifacts import write_json
from pipeline.driver.model_sharing import find_model_key, opens_model, writes_verdicts
from pipeline.plan import plan
from tests.support.house import SMALL, composed, named

MORE = [*SMALL, "rounds=2", "evaluate.control=true", "backend=vllm"]


@pytest.fixture
def steps():
    return named(plan(composed(*MORE)))


@pytest.fixture
def folder_of(tmp_path):
    def find(step) -> Path:
        return tmp_path / f"{step.stage}-{step.label}"

    return find


def publish(folder: Path, **record: str) -> None:
    folder.mkdir(parents=True)
    (folder / "weights").mkdir()
    write_json(folder / "model.json", {"weights": "weights", "tokenizer": "tokenizer", **record})


def test_what_fills_memory_is_one_at_a_time_and_the_rest_is_not(steps):
    heavy = {step.stage for step in steps.values() if opens_model(step)}
    assert heavy == {"sft", "sample", "reference", "train"}
    light = {step.stage for step in steps.values() if not opens_model(step)}
    assert light == {"prompts", "score", "pair", "evaluate"}


def test_only_judges_write_verdicts(steps):
    assert not any(map(writes_verdicts, steps.values()))
    judged = "score=rubric", "score.scorers.rubric.engine.model=m"
    judges = {step.stage for step in named(plan(composed(*SMALL, *judged))).values()
              if writes_verdicts(step)}  # fmt: skip
    assert judges == {"score"}


def test_all_that_samples_one_policy_shares_an_engine(steps, folder_of):
    publish(folder_of(steps["sft@0"]))
    keys = {name: find_model_key(step, folder_of) for name, step in steps.items()}
    of_sft = [keys[f"sample@{label}"] for label in ("1", "test sft", "test control")]
    assert len(set(of_sft)) == 1
    assert keys["sample@2"] == keys["sample@test round-1"] != of_sft[0]
    assert keys["train@1"] is None and keys["pair@1"] is None


def test_an_engine_of_another_kind_is_another(folder_of):
    changes = [], ["sample.backend.dtype=float16"], ["evaluate.sample.backend.dtype=float16"]
    keys = []
    for change in changes:
        steps = named(plan(composed(*MORE, *change)))
        keys.append(
            (
                find_model_key(steps["sample@1"], folder_of),
                find_model_key(steps["sample@test sft"], folder_of),
            )
        )
    assert keys[0][0] == keys[0][1]
    assert all(draw != evaluation for draw, evaluation in keys[1:])


def test_references_under_one_model_share_it(steps, folder_of):
    publish(folder_of(steps["sft@0"]))
    names = "reference@1", "reference@test sft", "reference@test round-1"
    assert len({find_model_key(steps[name], folder_of) for name in names}) == 1


@pytest.mark.parametrize("gpus", [[], ["one"]])
def test_adapters_of_one_base_share_an_engine_where_vllm_runs_them(
    steps, folder_of, monkeypatch, gpus
):
    monkeypatch.setattr(hardware, "list_gpus", lambda: gpus)
    base = folder_of(steps["sft@0"])
    publish(base)
    for name in ("train@1", "train@2"):
        folder = folder_of(steps[name])
        publish(folder, adapter="adapter")
        (folder / "adapter").mkdir()
        config = {"peft_type": "LORA", "r": 16, "target_modules": ["q_proj"]}
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        record = json.loads((folder / "model.json").read_text())
        write_json(folder / "model.json", record | {"weights": str(base / "weights")})
    first, second = (
        find_model_key(steps[f"sample@test round-{number}"], folder_of) for number in (1, 2)
    )
    assert (first == second) == bool(gpus)
