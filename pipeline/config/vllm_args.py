"""Checks `backend.engine`: arguments of vLLM's engine that no knob of our own sets.

The names are those of the installed vLLM, read from its source: importing it takes seconds. Without
vLLM they are checked where it is installed.
"""

import ast
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pydantic import JsonValue

EngineArgs = dict[str, JsonValue]
PIPELINE_STAGES = "pipeline_parallel_size"
# How a prompt is split into the steps of the engine.
CHUNKS = {"enable_chunked_prefill", "max_num_batched_tokens", "max_num_scheduled_tokens"}

# Set by the backend: what to use instead.
_POLICY = "the policy is sampled, in token ids"
_WORKERS = "each worker has an engine: use sample.runtime.workers and backend.runtime"
_ADAPTER = "it follows from the policy's adapter"
SET_BY_BACKEND = {
    "model": _POLICY,
    "model_weights": _POLICY,
    "served_model_name": _POLICY,
    "runner": _POLICY,
    "convert": _POLICY,
    "tokenizer": _POLICY,
    "tokenizer_mode": _POLICY,
    "tokenizer_revision": _POLICY,
    "skip_tokenizer_init": _POLICY,
    "revision": "use sft.revision",
    "code_revision": "use sft.revision",
    "hf_token": "a run writes its config to disk: set the environment variable HF_TOKEN",
    "trust_remote_code": "use the checkpoint's trust.remote_code",
    "dtype": "use backend.dtype",
    "seed": "use sample.seed",
    "enforce_eager": "use backend.enforce_eager",
    "enable_prefix_caching": "use backend.prefix_caching",
    "max_model_len": "use limits.prompt and limits.completion",
    "max_num_seqs": "use backend.runtime.max_sequences",
    "gpu_memory_utilization": "use backend.runtime.memory",
    "kv_cache_memory_bytes": "use backend.runtime.memory, on a CPU backend.runtime.cpu_cache_gib",
    "tensor_parallel_size": "use backend.runtime.tensor_parallel",
    "nnodes": _WORKERS,
    "device_ids": _WORKERS,
    "logprobs_mode": "the KL needs log-probabilities before temperature",
    "enable_lora": _ADAPTER,
    "max_loras": _ADAPTER,
    "max_lora_rank": _ADAPTER,
    "generation_config": "use the knobs of sample.settings",
    "override_generation_config": "use the knobs of sample.settings",
    "disable_log_stats": "a run shows its own progress",
    "use_tqdm_on_load": "a run shows its own progress",
}
# They change which tokens are likely, so identity has to contain them.
CHANGES_SAMPLES = {
    "quantization",
    "quantization_config",
    "kv_cache_dtype",
    "kv_cache_dtype_skip_layers",
    "hf_overrides",
    "logits_processors",
}
# With these an engine may need less memory than weights and cache of the backend's dtype.
SAVES_MEMORY = {"quantization", "quantization_config", "kv_cache_dtype", "cpu_offload_gb"}


def check_args(args: EngineArgs) -> EngineArgs:
    """Raise one ValueError that lists all that the engine would refuse or the backend sets."""
    return _refuse(args, _find_faults(args))


def check_runtime_args(args: EngineArgs) -> EngineArgs:
    """The same for arguments outside identity, which must not change the samples."""
    misplaced = (
        f"{name} changes the samples: give it in backend.engine, not in runtime"
        for name in sorted(args.keys() & CHANGES_SAMPLES)
    )
    return _refuse(args, [*_find_faults(args), *misplaced])


def _refuse(args: EngineArgs, faults: Iterable[str]) -> EngineArgs:
    if message := "\n  ".join(faults):
        raise ValueError(message)
    return args


def _find_faults(args: EngineArgs) -> Iterator[str]:
    known = list_names() if args else ()
    for name, value in args.items():
        if name in SET_BY_BACKEND or name.startswith("data_parallel"):
            yield f"{name} is set by the backend: {SET_BY_BACKEND.get(name, _WORKERS)}"
        elif known and name not in known:
            yield f"{name} is not an argument of the installed vLLM's engine. {_suggest(name)}"
        elif name == PIPELINE_STAGES and not (type(value) is int and value > 0):
            yield f"{name}={value}: expected a number of stages, from 1"


def _suggest(name: str) -> str:
    close = get_close_matches(name, [one for one in list_names() if one not in SET_BY_BACKEND])
    return f"Did you mean {' or '.join(close)}?" if close else "Its EngineArgs documents them all"


@cache
def list_names() -> tuple[str, ...]:
    """The arguments of the installed vLLM's engine; empty where they cannot be read."""
    package = find_spec("vllm")
    folders = package.submodule_search_locations if package else None
    file = Path(folders[0], "engine", "arg_utils.py") if folders else None
    if file is None or not file.exists():
        return ()
    classes = [item for item in ast.parse(file.read_text()).body if isinstance(item, ast.ClassDef)]
    fields = [
        field.target.id
        for item in classes
        if item.name == "EngineArgs"
        for field in item.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]
    return tuple(name for name in fields if not name.startswith("_"))
