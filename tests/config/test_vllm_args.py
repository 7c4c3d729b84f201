"""What `backend.engine` may contain: what the installed vLLM takes and no knob of our own sets."""

import dataclasses
import sys

import pytest

from pipeline.config import vllm_args
from pipeline.errors import UserError
from tests.support.house import composed, fingerprints

SMOKE = "recipes=smoke"
SAMPLES = {"sample@1", "sample@2", "sample@test sft"}


@pytest.fixture
def no_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    vllm_args.list_names.cache_clear()
    yield
    vllm_args.list_names.cache_clear()


def changed(*words: str) -> set[str]:
    before, after = fingerprints(SMOKE), fingerprints(SMOKE, *words)
    return {name for name in before if after[name] != before[name]}


def test_what_the_engine_takes_passes():
    engine = "{quantization: fp8, kv_cache_dtype: fp8, speculative_config: {method: ngram}}"
    runtime = "{pipeline_parallel_size: 2, max_num_batched_tokens: 16384}"
    cfg = composed(SMOKE, f"backend.engine={engine}", f"backend.runtime.engine={runtime}")
    for backend in (cfg.sample.backend, cfg.evaluate.sample.backend):
        assert backend.engine_args["kv_cache_dtype"] == "fp8"
        assert backend.engine_args["max_num_batched_tokens"] == 16384
        assert (backend.pipeline_stages, backend.gpus) == (2, 2)
        assert backend.may_save_memory
    assert not composed(SMOKE).sample.backend.may_save_memory


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "backend.engine.quantisation=fp8",
            "backend.engine: quantisation is not an argument of the installed vLLM's engine."
            " Did you mean quantization",
        ),
        ("backend.engine.zzz=1", "zzz is not an argument .* Its EngineArgs documents them all"),
        ("backend.engine.dtype=float16", "dtype is set by the backend: use backend.dtype"),
        (
            "backend.runtime.engine.trust_remote_code=true",
            "trust_remote_code is set by the backend: use the checkpoint's trust.remote_code",
        ),
        ("backend.engine.data_parallel_size=2", "each worker has an engine: use sample.runtime"),
        (
            "backend.runtime.engine.kv_cache_dtype=fp8",
            "backend.runtime.engine: kv_cache_dtype changes the samples: give it in backend.engine",
        ),
        ("backend.runtime.engine.pipeline_parallel_size=0", "expected a number of stages, from 1"),
    ],
)
def test_what_it_does_not_take_or_a_knob_sets_is_refused_with_what_to_type(word, message):
    with pytest.raises(UserError, match=message):
        composed(SMOKE, word)


def test_an_argument_is_given_once():
    with pytest.raises(UserError, match="set the same argument"):
        composed(
            SMOKE, *(f"backend.{place}block_size=32" for place in ("engine.", "runtime.engine."))
        )


def test_without_vllm_only_what_a_knob_sets_is_refused(no_vllm):
    assert composed(SMOKE, "backend.engine.zzz=1").sample.backend.engine == {"zzz": 1}
    with pytest.raises(UserError, match="use backend.dtype"):
        composed(SMOKE, "backend.engine.dtype=float16")


def test_what_changes_the_samples_enters_identity_and_nothing_else_does():
    assert changed("backend.engine={}", "backend.runtime.engine.block_size=32") == set()
    assert changed("backend.engine.quantization=fp8") >= SAMPLES


@pytest.mark.model
def test_the_names_are_those_of_the_installed_engine():
    from vllm import EngineArgs

    names = {field.name for field in dataclasses.fields(EngineArgs)}
    assert set(vllm_args.list_names()) == {name for name in names if not name.startswith("_")}
    assert set(vllm_args.SET_BY_BACKEND) <= names
    for some in (vllm_args.CHANGES_SAMPLES, vllm_args.SAVES_MEMORY, vllm_args.CHUNKS):
        assert some <= names - set(vllm_args.SET_BY_BACKEND)


# ── seeds ─────────────────────────────────────────────────────────────────────────────────────────


def test_only_giving_up_the_seeds_enters_identity():
    assert changed("sample.seeded=true") == changed("evaluate.sample.seeded=auto") == set()
    assert changed("sample.seeded=false") >= SAMPLES
    assert not changed("evaluate.sample.seeded=false") & {"sample@1", "score@1"}


def test_a_backend_that_knows_nothing_but_seeds_is_not_asked_to_do_without():
    with pytest.raises(UserError, match=r"sample.seeded=false: the backend transformers draws by"):
        composed(SMOKE, "sample.seeded=false", "backend@sample.backend=transformers")
