"""What an engine takes of a GPU, and what that refuses: at the door, in `make plan`, before an
engine starts."""

import json
from pathlib import Path

import pytest

from pipeline.artifacts import write_json
from pipeline.driver.outline import prepare_plan
from pipeline.driver.run import run_point
from pipeline.errors import USER_ERROR, UserError
from pipeline.plan import plan
from pipeline.preflight import capacity
from pipeline.resources import inference_memory
from pipeline.resources.inference_memory import EngineNeeds, EnginePlace, shortage
from pipeline.resources.model_shape import GIB
from tests.backends.test_backends import LIMITS, VLLM, open_sampler
from tests.resources.test_training_fit import LLAMA_1B, LLAMA_7B, planned_on, shape
from tests.support.house import check_capacity, composed
from tests.support.tiny import tiny_model


def test_a_gpu_too_small_is_told_what_it_needs_and_what_to_lower():
    needs = EngineNeeds(weights=16 * GIB, cache=4 * GIB)
    assert shortage(needs, EnginePlace("sample.backend", 80 * GIB, 0.9, 1)) is None
    assert shortage(needs, EnginePlace("sample.backend", 12 * GIB, 0.9, 2)) is None
    assert shortage(needs, EnginePlace("sample.backend", 12 * GIB, 0.0, 2))
    said = shortage(needs, EnginePlace("sample.backend", 20 * GIB, 0.9, 1))
    assert said is not None
    assert (
        "needs 20 GiB at least (weights 16 GiB, one longest sequence 4 GiB),"
        " and there are 18 GiB (a share of 0.9 of 20" in said
    )
    assert "Lower limits.prompt" in said and "tensor_parallel=2 or more" in said


def test_what_other_processes_hold_of_a_gpu_is_not_there():
    needs = EngineNeeds(weights=16 * GIB, cache=4 * GIB)
    said = shortage(needs, EnginePlace("sample.backend", 80 * GIB, 0.9, 1, free=12 * GIB))
    assert said and "there are 12 GiB (what is free of a share of 0.9 of 80 GiB)" in said
    assert "raise sample.backend.runtime.memory" not in said, "which would not help"
    said = shortage(needs, EnginePlace("sample.backend", 80 * GIB, 0.9, 1, free=30 * GIB))
    assert said and "vLLM takes a share of 0.9 of 80 GiB as it starts, and 30 GiB are free" in said
    lower = float(said.split("runtime.memory=")[-1].rstrip("."))
    assert (
        shortage(needs, EnginePlace("sample.backend", 80 * GIB, lower, 1, free=30 * GIB)) is None
    ), "the remedy works"
    assert (
        shortage(needs, EnginePlace("sample.backend", 80 * GIB, 1.0, 1, vllm=False, free=30 * GIB))
        is None
    )
    assert shortage(needs, EnginePlace("sample.backend", 80 * GIB, 0.9, 1, free=72 * GIB)) is None


def test_a_gpu_that_is_in_use_is_refused_at_the_door(card, tmp_path):
    planned = planned_on(tmp_path, LLAMA_7B, "adapter=qlora")
    card(80, free=5)
    with pytest.raises(
        UserError,
        match=r"needs 13.6 GiB at least .* there are 5 GiB .what is free of a share of 0.9",
    ):
        capacity.check_engines(planned, planned.steps)


class SmallGpu:
    """What vLLM's platform says on a GPU of 64 KiB."""

    is_cuda_alike = staticmethod(lambda: True)
    get_device_total_memory = staticmethod(lambda: 1 << 16)


@pytest.mark.model
def test_a_gpu_too_small_is_refused_before_an_engine_starts(tmp_path):
    policy = tiny_model(tmp_path / "model")
    backend = open_sampler(VLLM, policy)
    backend.limits = LIMITS
    with pytest.raises(
        UserError, match=r"the policy needs .* and there are 0.0312 MiB .*\n.*tensor_parallel="
    ):
        backend._check_memory(policy, SmallGpu)


@pytest.mark.model
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_needs_are_those_of_the_model_in_its_dtype(tmp_path, dtype, size):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

    folder = Path(tiny_model(tmp_path / "model", hidden=64).weights)
    config = AutoConfig.from_pretrained(folder)
    module = AutoModelForCausalLM.from_pretrained(folder)
    kept = module(
        torch.ones(1, 10, dtype=torch.long), past_key_values=DynamicCache(config=config)
    ).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in kept.layers)
    needs = inference_memory.read_needs(folder, dtype, longest=10)
    assert needs == EngineNeeds(
        size * sum(weight.numel() for weight in module.parameters()), size * numbers
    )


TRANSFORMERS = [
    "backend@sample.backend=transformers",
    "backend@evaluate.sample.backend=transformers",
]


def test_a_model_that_no_gpu_here_can_draw_from_is_refused_at_the_door(card, tmp_path):
    """A training of an adapter of four bits would find room."""
    planned = planned_on(tmp_path, LLAMA_7B, "adapter=qlora")
    card(80, 12)
    with pytest.raises(UserError) as refusal:
        check_capacity(planned)
    needs, runtime = (
        "13.6 GiB at least (weights 12.6 GiB, one longest sequence 1 GiB)",
        "evaluate.sample.backend.runtime",
    )
    assert len(refusal.value.args) == 2 and refusal.value.args[1].startswith(
        "sample.backend: the policy needs"
    )
    assert refusal.value.args[0] == (
        f"evaluate.sample.backend: the policy needs {needs},"
        " and there are 10.8 GiB (a share of 0.9 of 12 GiB).\n"
        "  Lower limits.prompt or limits.completion, give dtype=bfloat16 where it is float32,"
        f" raise {runtime}.memory, or give {runtime}.tensor_parallel=2 or more."
    )
    with pytest.raises(UserError, match=r"^sample.backend: the policy needs"):
        capacity.check_engines(planned, [step for step in planned.steps if step.label == 1])
    capacity.check_engines(
        planned, [step for step in planned.steps if step.stage != "sample"]
    )  # what is built
    for gpus in ((), (24,)):
        card(*gpus)
        capacity.check_engines(planned, planned.steps)
    card(12, 12)
    both = [f"{at}.backend.runtime.tensor_parallel=2" for at in ("sample", "evaluate.sample")]
    capacity.check_engines(shared := planned_on(tmp_path, LLAMA_7B, *both), shared.steps)


def test_a_policy_that_the_run_makes_is_judged_by_what_it_is_made_from(card, tmp_path):
    def refused(*words: str) -> str:
        cfg = composed("recipes=smoke", *words, f"store={tmp_path / 'store'}", "dry_run=true")
        planned = prepare_plan(cfg, [plan(cfg)])
        with pytest.raises(UserError) as refusal:
            capacity.check_engines(planned, planned.steps)
        return str(refusal.value)

    write_json(tmp_path / "model" / "config.json", LLAMA_7B)
    card(12)
    assert "needs 25.2 GiB at least (weights 25.1 GiB" in refused(
        "base=checkpoint", f"base.model={tmp_path / 'model'}"
    )
    card(0.01)
    by_hand = refused("base.hidden=512", *TRANSFORMERS)
    assert " MiB at least (weights " in by_hand and "and there are 10 MiB.\n" in by_hand
    assert by_hand.endswith("or draw with vLLM on several GPUs.")


def test_make_plan_shows_the_plan_and_says_what_a_run_would_refuse(card, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "config.json", LLAMA_7B)
    given = [
        "prompts=playground",
        f"sft.model={tmp_path / 'model'}",
        "sample.per_round=100",
        f"store={tmp_path / 's'}",
    ]
    given.append("dtype=bfloat16")
    cfg = composed(*given, "dry_run=true")
    card(12)
    assert run_point(cfg) == USER_ERROR
    assert "\nsample.backend: the policy needs 13.6 GiB" in capsys.readouterr().out
    running = cfg.model_copy(update={"dry_run": False, "runs": tmp_path / "r"})
    assert run_point(running) == USER_ERROR
    assert "\nsample.backend: the policy needs 13.6 GiB" in capsys.readouterr().err
    card(24)
    assert run_point(cfg) == USER_ERROR, "the folder has a config and no weights"
    assert "the policy needs" not in capsys.readouterr().out


def weights_file(file: Path, numbers: int) -> None:
    header = json.dumps(
        {"w": {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}}
    ).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def test_weights_that_lie_there_twice_count_once(tmp_path):
    write_json(tmp_path / "config.json", LLAMA_1B)
    for name, numbers in (("model-00001", 300), ("model-00002", 500), ("consolidated", 800)):
        weights_file(tmp_path / f"{name}.safetensors", numbers)
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    write_json(tmp_path / inference_memory.INDEX, index)
    assert inference_memory.read_needs(tmp_path, "bfloat16", 0) == inference_memory.EngineNeeds(
        1600, 0
    )
    weights_file(tmp_path / "model.safetensors", 700)
    (tmp_path / inference_memory.INDEX).unlink()
    assert inference_memory.read_needs(tmp_path, "float32", 0) == inference_memory.EngineNeeds(
        2800, 0
    )


@pytest.mark.parametrize(
    ("also", "tokens"),
    [
        ({}, 1000),
        ({"max_position_embeddings": 600}, 600),
        ({"sliding_window": 100}, 100),
        ({"sliding_window": 100, "layer_types": ["sliding_attention", "full_attention"] * 8}, 500),
        ({"kv_lora_rank": 64}, 0),
        ({"head_dim": None}, 1000),
        ({"head_dim": None, "hidden_size": None}, 0),
        ({"head_dim": None, "num_attention_heads": None}, 0),
    ],
)
def test_the_cache_counts_layers_that_keep_the_whole_sequence(also, tokens):
    config = {**LLAMA_1B, "num_hidden_layers": 16, **also}
    each = 2 * 16 * shape(LLAMA_1B).keys * 2
    assert inference_memory.kv_cache_bytes(config, "bfloat16", 1000) == tokens * each
    assert (
        inference_memory.kv_cache_bytes({"text_config": config}, "bfloat16", 1000) == tokens * each
    )


def test_an_engine_that_stores_its_weights_smaller_is_left_to_vllm(card, tmp_path):
    card(12)

    def check(*words: str) -> None:
        planned = planned_on(tmp_path, LLAMA_7B, "adapter=qlora", *words)
        capacity.check_engines(planned, planned.steps)

    for words in ([], ["backend.runtime.engine.block_size=32"]):
        with pytest.raises(UserError, match=r"the policy needs"):
            check(*words)
    check("backend.engine.quantization=fp8")
