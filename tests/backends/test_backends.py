import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import TypeAdapter

from pipeline.artifacts import Model, Prompts
from pipeline.backends import (
    Backend,
    Completion,
    CompletionRequest,
    open_backend,
    vllm_engine,
)
from pipeline.backends.lora_support import choose_engine_rank
from pipeline.backends.vllm_engine import check_weights_path
from pipeline.config import BackendConfig, Limits, vllm_args
from pipeline.data import synthetic
from pipeline.errors import UserError
from pipeline.models.quantization_gap import measure_gap
from pipeline.sampling import sampler
from pipeline.sampling.stop_strings import cut_at_stop
from tests.stages import test_sample
from tests.support.house import HOUSE, composed
from tests.support.tiny import CHAT, WORDS, tiny_model, tiny_tokenizer

LIMITS = Limits(prompt=64, completion=40)
END, OTHER_END = 2, 51
VLLM = {
    "kind": "vllm",
    "dtype": "float32",
    "enforce_eager": None,
    "prefix_caching": None,
    "engine": {},
    "runtime": {
        "memory": 0.5,
        "cpu_cache_gib": 1,
        "max_sequences": 64,
        "tensor_parallel": 1,
        "engine": {},
    },
}
model = pytest.mark.model


def transformers(batch: int) -> dict:
    return {"kind": "transformers", "dtype": "float32", "runtime": {"batch": batch}}


def open_sampler(config: dict, policy: Model, knob: str = "sample") -> Backend:
    return open_backend(TypeAdapter(BackendConfig).validate_python(config), policy, knob)


def requests(
    backend: Backend,
    count: int,
    temperature: float,
    top_p: float = 1.0,
    name: str = "",
    min_p: float = 0.0,
) -> list[CompletionRequest]:
    chance = random.Random(7)
    contents = [
        " ".join(chance.choices(WORDS.split(), k=chance.randint(2, 12))) for _ in range(count)
    ]
    ids = [
        backend.tokenizer.encode([{"role": "user", "content": content}], {}) for content in contents
    ]
    return [
        CompletionRequest(f"{name}{at}", prompt, temperature, top_p, 2**62 + at, min_p)
        for at, prompt in enumerate(ids)
    ]


def sample_all(backend: Backend, *blocks: list[CompletionRequest]) -> dict[str, Completion]:
    return {completion.sample_id: completion for completion in backend.generate(blocks)}


# ── scripted ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def scripted() -> Backend:
    return open_sampler({"kind": "scripted", "vocabulary": 50}, Model(Path("none"))).start(
        Model(Path("none")), LIMITS
    )


def test_scripted_completions_are_a_function_of_prompt_and_seed(scripted):
    asked = requests(scripted, 200, temperature=1.0)
    first = sample_all(scripted, asked)
    assert sample_all(scripted, asked[100:], asked[:100]) == first
    assert len({tuple(completion.token_ids) for completion in first.values()}) == 200
    assert {completion.finish_reason for completion in first.values()} == {"stop", "length"}
    assert {len(c.token_ids) for c in first.values() if c.finish_reason == "length"} == {
        LIMITS.completion
    }
    assert all(0 <= token < 50 for completion in first.values() for token in completion.token_ids)
    assert all(0 < token < 50 for request in asked for token in request.prompt_token_ids)


def test_the_smoke_run_s_prompts_fit_its_limits_with_the_scripted_backend(scripted):
    cfg = composed("recipes=smoke", "backend@sample.backend=scripted")
    asked = synthetic.generate_prompts(cfg.prompts.rows, cfg.prompts.constraints, cfg.seed)
    lengths = [len(scripted.tokenizer.encode(row["prompt"], {})) for row in asked]
    assert (
        len(lengths) == cfg.prompts.rows
        and min(lengths) > 10
        and max(lengths) <= cfg.sample.limits.prompt
    )


def test_scripted_greedy_completions_do_not_depend_on_the_seed(scripted):
    ids = scripted.tokenizer.encode([{"role": "user", "content": "hello"}], {})
    both = sample_all(
        scripted,
        [CompletionRequest("a", ids, 0.0, 1.0, 1), CompletionRequest("b", ids, 0.0, 1.0, 2)],
    )
    assert both["a"].token_ids == both["b"].token_ids


# ── the checkpoint's own words ────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Model:
    """Heads of 32, which vLLM on a CPU needs.

    Its tokenizer and its generation config name different EOS tokens.
    """
    made = tiny_model(tmp_path_factory.mktemp("store") / "sft" / "0123456789ab", hidden=128)
    file = made.path / "weights" / "generation_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "eos_token_id": OTHER_END, "repetition_penalty": 3.0}))
    return made


@model
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}" + CHAT, None),
        (CHAT.removeprefix("{{ bos_token }}"), 0),
        (CHAT, 1),
    ],
    ids=["two", "none", "one"],
)
def test_a_prompt_has_the_bos_of_its_template_unless_it_is_doubled(
    policy, tmp_path, template, expected
):
    from tokenizers import processors
    from transformers import AutoTokenizer

    tiny_tokenizer(tmp_path / "tokenizer", template)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    begins = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.backend_tokenizer.post_processor = begins
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "model.json").write_text(
        json.dumps({"weights": str(policy.weights), "tokenizer": "tokenizer"})
    )
    backend = open_sampler(transformers(1), Model(tmp_path))
    if expected is None:
        with pytest.raises(UserError, match=r"two BOS \(<s>\).*\n.*template.chat_template=FILE"):
            requests(backend, 1, 0.0)
    else:
        ids = requests(backend, 1, 0.0)[0].prompt_token_ids
        assert ids.count(tokenizer.bos_token_id) == expected
        assert (ids[0] == tokenizer.bos_token_id) == bool(expected)


@model
def test_a_prompt_that_the_template_refuses_is_named(policy, tmp_path):
    template = "{{ raise_exception('no system role') }}"
    tiny_tokenizer(tmp_path / "tokenizer", template)
    (tmp_path / "model.json").write_text(
        json.dumps({"weights": str(policy.weights), "tokenizer": "tokenizer"})
    )
    with pytest.raises(UserError, match=r"does not render .*'hello'.*no system role"):
        open_sampler(transformers(1), Model(tmp_path)).tokenizer.encode(
            [{"role": "user", "content": "hello"}], {}
        )


# ── transformers ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def slow(policy) -> Backend:
    return open_sampler(transformers(16), policy).start(policy, LIMITS)


def raw_logprob(backend, request: CompletionRequest, completion: Completion) -> float:
    """By one forward pass over prompt and completion, unpadded."""
    import torch

    ids = torch.tensor(
        [request.prompt_token_ids + completion.token_ids], device=backend.module.device
    )
    with torch.inference_mode():
        logits = backend.module(ids).logits[0, len(request.prompt_token_ids) - 1 : -1]
    chosen = torch.tensor(completion.token_ids, device=logits.device).unsqueeze(1)
    return logits.float().log_softmax(-1).gather(1, chosen).double().sum().item()


@model
def test_transformers_completions_do_not_depend_on_the_batch(policy, slow):
    asked = requests(slow, 24, 0.9, 0.95, "s") + requests(slow, 8, 0.0, name="g")
    together = sample_all(slow, asked)
    for batch in (1, 5):
        apart = sample_all(
            open_sampler(transformers(batch), policy).start(policy, LIMITS), asked[::-1]
        )
        assert {key: c.token_ids for key, c in apart.items()} == {
            key: c.token_ids for key, c in together.items()
        }
        assert all(
            apart[key].logprob == pytest.approx(c.logprob, abs=1e-3) for key, c in together.items()
        )


@model
def test_transformers_logprobs_are_those_of_a_forward_pass_before_temperature(slow):
    asked = requests(slow, 16, 1.7, 0.8)
    completions = sample_all(slow, asked)
    for request in asked:
        completion = completions[request.sample_id]
        assert completion.logprob == pytest.approx(raw_logprob(slow, request, completion), abs=1e-3)


@model
@pytest.mark.parametrize(("top_p", "min_p"), [(0.2, 0.0), (1.0, 0.0), (0.8, 0.3)])
def test_transformers_draws_have_the_models_own_probabilities(policy, top_p, min_p):
    """First tokens of 4,000 samples against the softmax at temperature 2, after min_p and top_p."""
    import torch
    from scipy.stats import chisquare

    backend = open_sampler(transformers(500), policy).start(policy, Limits(prompt=64, completion=1))
    ids = requests(backend, 1, 1.0)[0].prompt_token_ids
    chance = random.Random(3)
    seeds = [
        CompletionRequest(str(at), ids, 2.0, top_p, chance.getrandbits(63), min_p)
        for at in range(4000)
    ]
    first = torch.tensor([c.token_ids[0] for c in sample_all(backend, seeds).values()])

    with torch.inference_mode():
        chances = (backend.module(torch.tensor([ids])).logits[0, -1].double() / 2).softmax(-1)
    chances = torch.where(chances < min_p * chances.max(), 0, chances)
    ordered, order = (chances / chances.sum()).sort(descending=True)
    found = torch.bincount(first, minlength=len(chances))[order].double()
    size = min(int((ordered.cumsum(0) < top_p).sum()) + 1, int((ordered > 0).sum()))
    assert found[size:].sum() == 0
    cell = torch.arange(size).clamp(max=99)  # the rarest tokens are counted together
    cells = torch.zeros(int(cell[-1]) + 1, dtype=torch.double)
    expected = cells.index_add(0, cell, 4000 * ordered[:size] / ordered[:size].sum())
    assert chisquare(cells.index_add(0, cell, found[:size]), expected).pvalue > 1e-3


def write_adapter(policy: Model, name: str, **shape: object) -> tuple[Model, Any]:
    """A published adapter of random matrices, and the module that it makes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "target_modules": "all-linear",
        "init_lora_weights": False,
    } | shape
    module = get_peft_model(
        AutoModelForCausalLM.from_pretrained(policy.weights), LoraConfig(**config)
    )
    place = policy.path.parent.parent / "train" / name
    module.save_pretrained(place / "adapter")
    recorded = json.loads((place / "adapter" / "adapter_config.json").read_text())
    base = "sft/0123456789ab"
    record = {
        "base": base,
        "adapter": "adapter",
        "peft": {**recorded, "base_model_name_or_path": base},
    }
    tiny_tokenizer(place / "tokenizer")
    (place / "model.json").write_text(json.dumps({**record, "tokenizer": "tokenizer"}))
    return Model(place), module


@pytest.fixture(scope="module")
def lora(policy) -> tuple[Model, Any]:
    return write_adapter(policy, "00000000000a")


@model
def test_an_adapter_is_sampled_merged_and_leaves_no_scratch(lora, tmp_path):
    import torch

    adapter, adapted = lora
    rows = test_sample.run(
        tmp_path / "out", write_prompts(tmp_path), adapter, backend=transformers(8), **SMALL
    )
    row = rows.filter(setting="calm").row(0, named=True)
    with torch.inference_mode():
        logits = adapted(torch.tensor([row["prompt_token_ids"] + row["token_ids"]])).logits[0]
    predicted = logits[len(row["prompt_token_ids"]) - 1 : -1].argmax(-1).tolist()
    assert predicted == row["token_ids"]
    assert set(rows["policy"]) == {"00000000000a"}
    assert not (tmp_path / "out" / sampler.MERGED).exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name != "scratch") == [
        "cost.json",
        "dropped.parquet",
        "samples",
        "shards.json",
    ]


@model
@pytest.mark.parametrize(
    ("name", "shape", "beside"),
    [
        ("00000000000b", {"r": 24, "use_rslora": True}, 32),
        ("00000000000c", {"use_dora": True}, None),
        ("00000000000d", {"bias": "lora_only"}, None),
        ("00000000000f", {"modules_to_save": ["lm_head"]}, None),
        ("000000000010", {"target_modules": ["q_proj", "embed_tokens"]}, None),
        ("000000000011", {"rank_pattern": {"q_proj": 100}}, 128),
        ("000000000012", {"r": 600}, None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_vllm_cannot_run_beside_its_base_is_merged(
    card, policy, tmp_path, name, shape, beside
):
    card(80)
    adapter, _ = write_adapter(policy, name, **shape)
    served = sampler.prepare_policy(test_sample.config(backend=VLLM), adapter, tmp_path)
    assert (served.adapter is None) == (beside is None)
    if beside:
        assert choose_engine_rank(served.adapter) == beside


@model
def test_on_a_cpu_every_adapter_is_merged_for_vllm(card, lora, tmp_path):
    """There vLLM copies an adapter's matrices for each token of a prompt, which takes minutes."""
    adapter, adapted = lora
    card()
    served = sampler.prepare_policy(test_sample.config(backend=VLLM), adapter, tmp_path)
    assert served.adapter is None
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(served.weights)(ids).logits
        assert (merged - adapted(ids).logits).abs().max() < 1e-4
    card(80)
    assert (
        sampler.prepare_policy(test_sample.config(backend=VLLM), adapter, tmp_path / "gpu").adapter
        == adapter.adapter
    )


@model
def test_the_difference_between_a_policy_and_what_is_sampled_for_it_is_measured(
    policy, lora, tmp_path
):
    adapter, _ = lora
    merged = sampler.prepare_policy(test_sample.config(backend=transformers(8)), adapter, tmp_path)
    rows = test_sample.run(
        tmp_path / "out", write_prompts(tmp_path), adapter, backend=transformers(8), **SMALL
    )
    assert measure_gap(adapter, merged, rows, "float32", "float32") < 1e-4
    assert measure_gap(adapter, policy, rows, "float32", "float32") > 0.1


@model
def test_an_adapter_of_a_quantised_base_is_merged_and_its_difference_noted(lora, tmp_path):
    adapter, _ = lora
    bits = {"bits": 4, "double": True, "dtype": "float32"}
    quantised = Model(shutil.copytree(adapter.path, adapter.path.with_name("00000000000q")))
    (quantised.path / "model.json").write_text(json.dumps({**adapter.record, "quantization": bits}))
    assert (
        sampler.prepare_policy(test_sample.config(backend=VLLM), quantised, tmp_path).adapter
        is None
    )
    test_sample.run(
        tmp_path / "out", write_prompts(tmp_path), quantised, backend=transformers(8), **SMALL
    )
    noted = tmp_path / "out" / "cost.json"
    told = json.loads(noted.read_text())
    assert 0 <= told["quantization_difference"] < 0.01
    # Killed after the last shard, before the measurement: nothing is sampled again.
    noted.write_text(
        json.dumps(
            {name: figure for name, figure in told.items() if name != "quantization_difference"}
        )
    )
    drawn_at = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "samples").iterdir()}
    test_sample.run(
        tmp_path / "out", write_prompts(tmp_path), quantised, backend=transformers(8), **SMALL
    )
    assert json.loads(noted.read_text()) == told
    assert {file: file.stat().st_mtime_ns for file in drawn_at} == drawn_at


SMALL = {"limits": {"prompt": 64, "completion": 24}, "shard": 4}


def write_prompts(folder: Path):
    return test_sample.ask(
        folder / "train", *(f"name {number} facts about the river" for number in range(12))
    )


# ── vLLM: one engine for all of these ─────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def fast(policy):
    backend = open_sampler(VLLM, policy).start(policy, LIMITS)
    yield backend
    backend.close()


def test_vllm_is_not_started_on_a_path_that_it_takes_for_a_pattern(tmp_path):
    for name in ("x[1]", "x*", "x?"):
        with pytest.raises(UserError, match=r"(?s)x.*/weights: vLLM reads no .*store=FOLDER"):
            check_weights_path(tmp_path / name / "weights")
    check_weights_path(tmp_path / "x(1)" / "weights")
    check_weights_path("hub/model")


@model
def test_without_vllm_its_backend_says_what_to_type(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    remedy = r"^evaluate.sample.backend: .*\n.*make install.*backend=transformers"
    with pytest.raises(UserError, match=remedy):
        open_sampler(VLLM, policy, "evaluate.sample").start(policy, LIMITS)


@model
def test_vllm_and_transformers_agree_on_greedy_tokens_and_logprobs(fast, slow):
    asked = requests(fast, 100, 0.0)
    theirs, ours = sample_all(fast, asked), sample_all(slow, asked)
    assert {c.token_ids[-1] for c in ours.values() if c.finish_reason == "stop"} == {END, OTHER_END}
    assert sum(theirs[r.sample_id].token_ids == ours[r.sample_id].token_ids for r in asked) == 100
    assert {key: c.finish_reason for key, c in theirs.items()} == {
        key: c.finish_reason for key, c in ours.items()
    }
    assert all(c.logprob == pytest.approx(ours[key].logprob, abs=1e-3) for key, c in theirs.items())


@model
def test_vllm_logprobs_are_raw_and_ends_are_part_of_the_tokens(fast, slow):
    asked = requests(fast, 60, 1.5, 0.9)
    completions = sample_all(fast, asked)
    ends = {c.token_ids[-1] for c in completions.values() if c.finish_reason == "stop"}
    assert ends == {END, OTHER_END}
    for request in asked:
        completion = completions[request.sample_id]
        assert completion.logprob == pytest.approx(raw_logprob(slow, request, completion), abs=1e-3)
        inside = (
            completion.token_ids[:-1]
            if completion.finish_reason == "stop"
            else completion.token_ids
        )
        assert not {END, OTHER_END} & set(inside)
        assert (
            len(completion.token_ids) == LIMITS.completion
        ) or completion.finish_reason == "stop"
        assert fast.tokenizer.decode(completion) == fast.tokenizer.tokenizer.decode(
            inside, skip_special_tokens=True
        )


@model
def test_the_likeliest_tokens_alone_are_the_greedy_ones(fast, slow):
    """min_p=1 leaves one token to draw, whatever the temperature."""
    for backend in (fast, slow):
        greedy, narrow = (
            sample_all(backend, requests(backend, 30, 0.0)),
            sample_all(backend, requests(backend, 30, 2.0, min_p=1)),
        )
        wide = sample_all(backend, requests(backend, 30, 2.0, min_p=0.01))
        assert {key: c.token_ids for key, c in narrow.items()} == {
            key: c.token_ids for key, c in greedy.items()
        }
        assert all(narrow[key].token_ids != c.token_ids for key, c in wide.items())


@model
def test_a_stop_string_saves_tokens_and_leaves_the_same_completions(fast, slow):
    """One row in three gets a stop string from its own plain completion."""
    for backend in (fast, slow):
        plain = sample_all(backend, asked := requests(backend, 48, 0.9))
        with_stop = [
            replace(r, stop=(backend.tokenizer.decode_raw(plain[r.sample_id].token_ids[5:8]),))
            for r in asked[::3]
        ]
        stopped = sample_all(backend, [*with_stop, *asked[1::3]])
        assert all(
            stopped[r.sample_id].token_ids == plain[r.sample_id].token_ids for r in asked[1::3]
        )
        cuts = [
            [cut_at_stop(backend.tokenizer, list(r.stop), c[r.sample_id]) for c in (plain, stopped)]
            for r in with_stop
        ]
        told = [
            [(completion.token_ids, completion.finish_reason, stop) for completion, stop in both]
            for both in cuts
        ]
        assert all(before == after for before, after in told)
        assert sum(stop is not None for (_, _, stop), _ in told) > 12
        lengths = [sum(len(c[r.sample_id].token_ids) for r in with_stop) for c in (plain, stopped)]
        assert lengths[1] < 0.8 * lengths[0]


@model
def test_vllm_draws_the_same_in_other_groupings(fast):
    asked = requests(fast, 120, 0.9, 0.95)
    together = sample_all(fast, asked)
    apart = sample_all(fast, *(asked[start : start + 37] for start in range(0, 120, 37)))
    assert {key: c.token_ids for key, c in apart.items()} == {
        key: c.token_ids for key, c in together.items()
    }
    assert len({tuple(c.token_ids) for c in together.values()}) == 120
    assert all(math.isfinite(c.logprob) and c.logprob < 0 for c in together.values())


@model
def test_vllm_tells_the_tokens_of_what_is_not_finished(fast, monkeypatch):
    from pipeline.backends import vllm

    asked, heard = requests(fast, 40, 0.9), list[dict[str, int]]()
    plain = sample_all(fast, asked)
    monkeypatch.setattr(vllm, "COUNT_EVERY", 0.0)
    told = {
        c.sample_id: c for c in fast.generate([asked], lambda counts: heard.append(dict(counts)))
    }
    assert {key: c.token_ids for key, c in told.items()} == {
        key: c.token_ids for key, c in plain.items()
    }
    assert set(heard[0]) == set(plain) and heard[-1] == {}
    for key, completion in plain.items():
        counts = [counts[key] for counts in heard if key in counts]
        assert counts == sorted(counts) and max(counts) == len(completion.token_ids) - 1
    assert max(sum(counts.values()) for counts in heard) > 0.3 * sum(
        len(c.token_ids) for c in plain.values()
    )


@model
def test_on_a_gpu_the_next_block_is_submitted_before_the_last_one_drains(fast, monkeypatch):
    """The next block is submitted at `refill_threshold` unfinished requests: 0 on a CPU."""
    asked = requests(fast, 120, 0.9)

    def unfinished(room: int) -> tuple[list[int], dict[str, list[int]]]:
        monkeypatch.setattr(fast, "refill_threshold", room)
        left: list[int] = []

        def blocks():
            for start in range(0, 120, 40):
                left.append(fast.engine.get_num_unfinished_requests())
                yield asked[start : start + 40]

        return left, {
            completion.sample_id: completion.token_ids for completion in fast.generate(blocks())
        }

    assert fast.refill_threshold == 0
    (drained, apart), (refilled, flowing) = unfinished(0), unfinished(39)
    assert drained == [0, 0, 0] and all(0 < left <= 39 for left in refilled[1:])
    assert apart == flowing


@model
def test_a_log_probability_that_nothing_needs_is_left_out(fast):
    asked = requests(fast, 40, 0.9)
    known = sample_all(fast, asked)
    unknown = sample_all(fast, [replace(request, needs_logprob=False) for request in asked])
    assert {key: c.token_ids for key, c in unknown.items()} == {
        key: c.token_ids for key, c in known.items()
    }
    assert {c.logprob for c in unknown.values()} == {None}


@pytest.fixture(scope="module")
def unseeded(policy):
    config = VLLM | {"runtime": VLLM["runtime"] | {"engine": {"max_num_batched_tokens": 512}}}
    cfg = TypeAdapter(BackendConfig).validate_python(config)
    backend = open_backend(cfg, policy, seeded=False, engine_seed=7)
    yield backend.start(policy, LIMITS)
    backend.close()


@model
def test_without_seeds_the_engine_shares_prefills_is_refilled_and_draws_anew(fast, unseeded):
    assert fast.repeats and not unseeded.repeats
    assert unseeded.refill_threshold == 2 * VLLM["runtime"]["max_sequences"]
    config = unseeded.engine.vllm_config
    assert config.cache_config.enable_prefix_caching
    assert not fast.engine.vllm_config.cache_config.enable_prefix_caching
    assert (config.model_config.seed, config.scheduler_config.max_num_batched_tokens) == (7, 512)
    asked = requests(unseeded, 40, 0.9)
    first, second = sample_all(unseeded, asked), sample_all(unseeded, asked)
    assert sum(second[key].token_ids == c.token_ids for key, c in first.items()) < 4
    greedy, expected = (sample_all(one, requests(one, 40, 0.0)) for one in (unseeded, fast))
    assert sum(greedy[key].token_ids == c.token_ids for key, c in expected.items()) == 40


@model
def test_no_argument_of_the_user_s_can_replace_one_of_ours(fast, policy):
    place = vllm_engine.open_platform(lambda error: error)
    ours = {*fast._build_engine_arguments(policy, place), "seed"}
    assert ours - vllm_args.CHUNKS <= set(vllm_args.SET_BY_BACKEND)
    chunks = VLLM | {"engine": {"max_num_batched_tokens": 64}}
    with pytest.raises(
        UserError, match=r"max_num_batched_tokens.*\n.*evaluate.sample.seeded=false"
    ):
        open_sampler(chunks, policy, "evaluate.sample").start(policy, LIMITS)
    odd = VLLM | {"engine": {"quantization": "nonsense"}}
    with pytest.raises(UserError, match="does not start with the engine arguments quantization=no"):
        open_sampler(odd, policy).start(policy, LIMITS)


def make_running(backend: Backend):
    class RunningSampler:
        """Uses an engine that is running already."""

        tokenizer, generate = backend.tokenizer, backend.generate
        start = close = staticmethod(lambda *_: None)

    return RunningSampler


HANDS = """
import sys
from pathlib import Path
from pipeline.artifacts import Model, Prompts
from tests.backends import test_backends as t
out, prompts, policy = map(Path, sys.argv[1:4])
t.draw(out, Prompts(prompts), Model(policy), workers=int(sys.argv[4]))
"""


def draw(out: Path, prompts: Prompts, policy: Model, workers: int = 1) -> None:
    runtime = {**test_sample.CONFIG["runtime"], "workers": workers}
    how = {"limits": LIMITS.model_dump(), "shard": 3, "runtime": runtime}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "count_grouped", lambda *_: 7)
        test_sample.run(out, prompts, policy, backend=VLLM, **how)


@pytest.mark.slow
@model
def test_vllm_hands_and_their_stage_killed_leave_the_bytes_of_one_engine(
    fast, policy, tmp_path, monkeypatch
):
    prompts = test_sample.ask(
        tmp_path / "train", *(f"name {at} facts about the river" for at in range(600))
    )
    out = tmp_path / "killed"

    def child(workers: int) -> "subprocess.Popen[bytes]":
        command = [
            sys.executable,
            "-c",
            HANDS,
            *map(str, (out, prompts.path, policy.path, workers)),
        ]
        return subprocess.Popen(command, cwd=HOUSE)

    stage = child(workers=2)
    wait_for_shards(out, 6, stage)
    hands = test_sample.Drawn(tmp_path).processes(stage.pid, "spawn_main")
    assert len(hands) == 2
    os.kill(hands[0], signal.SIGKILL)
    wait_for_shards(out, len(list((out / "samples").iterdir())) + 6, stage)
    stage.kill()
    stage.wait()
    listed = json.loads((out / "shards.json").read_text())
    assert 7 <= len(listed) < 200 and len(listed) % 7 == 0

    assert child(workers=1).wait() == 0
    monkeypatch.setattr(sampler, "open_backend", lambda *_: make_running(fast))
    draw(tmp_path / "whole", prompts, policy)
    assert test_sample.files(out) == test_sample.files(tmp_path / "whole")


def wait_for_shards(out: Path, count: int, stage: "subprocess.Popen[bytes]") -> None:
    while not (out / "samples").exists() or len(list((out / "samples").glob("0*.parquet"))) < count:
        assert stage.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)


@model
def test_vllm_shards_drawn_again_have_the_same_bytes(fast, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(sampler, "open_backend", lambda *_: make_running(fast))
    prompts = write_prompts(tmp_path)
    first = test_sample.run(
        tmp_path / "out", prompts, policy, backend=VLLM, limits=LIMITS.model_dump()
    )
    whole = test_sample.files(tmp_path / "out")
    assert isinstance(first, pl.DataFrame) and len(whole) == 4
    (tmp_path / "out" / "samples" / "00001.parquet").unlink()
    test_sample.run(tmp_path / "out", prompts, policy, backend=VLLM, limits=LIMITS.model_dump())
    assert test_sample.files(tmp_path / "out") == whole


# ── and one more, with an adapter ─────────────────────────────────────────────────────────────────


@model
def test_vllm_runs_an_adapter_beside_its_base_as_if_merged(card, lora, tmp_path):
    card(80)  # where it does so
    adapter, _ = lora
    assert sampler.prepare_policy(test_sample.config(backend=VLLM), adapter, tmp_path).adapter
    prompts = test_sample.ask(
        tmp_path / "train", *(f"name {at} facts about the river" for at in range(100))
    )
    how = {
        "limits": {"prompt": 64, "completion": 24},
        "settings": {"calm": test_sample.CONFIG["settings"]["calm"]},
    }
    beside = test_sample.run(tmp_path / "beside", prompts, adapter, backend=VLLM, **how)
    merged = test_sample.run(tmp_path / "merged", prompts, adapter, backend=transformers(50), **how)
    assert beside.height == 100
    assert beside["sample_id"].equals(merged["sample_id"])
    assert beside["token_ids"].equals(merged["token_ids"])
    assert (beside["logprob"] - merged["logprob"]).abs().max() < 1e-3
