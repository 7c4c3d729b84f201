"""vLLM. On a CPU the engine runs in this process and a block is drained before the next, so that the same shard gives
the same bytes whatever was drawn before it; on a GPU it runs beside us and is refilled while the last block drains.
"""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pipeline import hardware
from pipeline.artifacts import Model
from pipeline.backends import COUNT_EVERY, Completion, OnTokens, Request
from pipeline.backends.chat import Chat
from pipeline.backends.lora_support import engine_rank
from pipeline.backends.stopping import Stopper
from pipeline.config import Limits, VllmBackend
from pipeline.errors import StageError, UserError
from pipeline.hashing import here
from pipeline.resources import inference_memory

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # Threads that spin while they wait cost a factor of ten on a CPU that others use too. Read when torch is loaded.
    "OMP_WAIT_POLICY": "passive",
}
# An engine in our own process starts in 2 s instead of 12, and needs no second copy of the libraries.
ENVIRONMENT_ON_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# One small function would be compiled at the first log-probability all the same, and fail where there is no g++.
ENVIRONMENT_OF_EAGER = {"TORCHDYNAMO_DISABLE": "1"}
GIB = 1 << 30


class Vllm:
    def __init__(self, cfg: VllmBackend, policy: Model, knob: str):
        set_unset(ENVIRONMENT)
        self.cfg, self.knob = cfg, knob
        self.text = Chat(policy)
        self.limits: Limits
        self.room: int  # how many requests may still be unfinished when the next block is submitted
        self.engine: Any = None
        self.adapter: LoRARequest | None = None
        self.growing: dict[
            str, tuple[Stopper, list[int]]
        ] = {}  # what a stop string may end, and its tokens so far

    def start(self, model: Model, limits: Limits) -> Self:
        try:
            from vllm import EngineArgs, LLMEngine
            from vllm.platforms import current_platform
        except ImportError as error:
            raise inference_memory.missing_vllm(self.knob, error) from error
        on_cpu = current_platform.is_cpu()
        self.limits, self.room = limits, 0 if on_cpu else self.cfg.runtime.max_sequences
        if on_cpu:
            set_unset(
                ENVIRONMENT_ON_CPU
                | (ENVIRONMENT_OF_EAGER if self.cfg.enforce_eager is not False else {})
            )
        else:
            self._check_memory(model, current_platform)
        self.engine = LLMEngine.from_engine_args(EngineArgs(**self._arguments(model, on_cpu)))
        self.adapter = _request(model.adapter)
        return self

    def _check_memory(self, model: Model, platform: Any) -> None:
        """An engine that runs out of memory says so after minutes, and in other words."""
        if not platform.is_cuda_alike() or (files := here(model.weights, model.revision)) is None:
            return
        needs, runtime = (
            inference_memory.read_needs(files, self.cfg.dtype, self._longest()),
            self.cfg.runtime,
        )
        device = platform.get_device_total_memory()
        free = min((gpu.free for gpu in hardware.gpus()), default=device)
        place = inference_memory.EnginePlace(
            self.knob, device, runtime.memory, runtime.tensor_parallel, free=free
        )
        if needs and (short := inference_memory.shortage(needs, place)):
            raise UserError(short)

    def _longest(self) -> int:
        longest = self.limits.prompt + self.limits.completion
        return min(longest, self.text.context or longest)

    def _arguments(self, model: Model, on_cpu: bool) -> dict[str, Any]:
        longest = self._longest()
        return {
            "model": str(model.weights),
            "revision": model.revision,
            "skip_tokenizer_init": True,  # ids go in and come out
            "trust_remote_code": model.remote_code,
            "dtype": self.cfg.dtype,
            "max_model_len": longest,
            "max_num_seqs": self.cfg.runtime.max_sequences,
            "seed": 0,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            **(self._for_cpu(longest) if on_cpu else self._for_gpu()),
            **_for_adapter(model.adapter),
        }

    def _for_cpu(self, longest: int) -> dict[str, Any]:
        return {
            "enforce_eager": self.cfg.enforce_eager is not False,
            "enable_prefix_caching": self.cfg.prefix_caching is True,
            "kv_cache_memory_bytes": self.cfg.runtime.cpu_cache_gib * GIB,
            # A request with a seed whose prefill is split kills vLLM on CPU.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(longest, 2048),
        }

    def _for_gpu(self) -> dict[str, Any]:
        return {
            "enforce_eager": self.cfg.enforce_eager is True,
            "enable_prefix_caching": self.cfg.prefix_caching is not False,
            "gpu_memory_utilization": self.cfg.runtime.memory,
            "tensor_parallel_size": self.cfg.runtime.tensor_parallel,
        }

    def generate(
        self, blocks: Iterable[list[Request]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion]:
        waiting = iter(blocks)
        exhausted = False
        counted = time.monotonic()
        while True:
            while not exhausted and self.engine.get_num_unfinished_requests() <= self.room:
                block = next(waiting, None)
                exhausted = block is None
                self._submit(block or [])
            if not self.engine.has_unfinished_requests():
                return
            for output in self.engine.step():
                if (
                    completion := self._grown(output)
                    if output.request_id in self.growing
                    else _completion(output)
                ):
                    yield completion
            if on_tokens and time.monotonic() - counted >= COUNT_EVERY:
                on_tokens(self._under_way())
                counted = time.monotonic()

    def _under_way(self) -> dict[str, int]:
        """The engine's outputs bring finished completions alone, which is fast; its own lists know the others."""
        try:
            states = self.engine.output_processor.request_states.values()
            return {
                state.external_req_id: state.detokenizer.num_output_tokens() for state in states
            }
        except (
            AttributeError
        ):  # of another release: a line of progress says less, and nothing else is lost
            return {}

    def _submit(self, block: list[Request]) -> None:
        for request in block:
            if request.stop:
                self.growing[request.sample_id] = Stopper(self.text, request.stop), []
            prompt = {"type": "token", "prompt_token_ids": request.prompt_token_ids}
            self.engine.add_request(
                request.sample_id, prompt, self._parameters(request), lora_request=self.adapter
            )

    def _parameters(self, request: Request) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=1,  # with n > 1 vLLM counts seeds up from the given one, and neighbours would be drawn again
            temperature=request.temperature,
            top_p=request.top_p,
            min_p=request.min_p,
            seed=request.seed,
            max_tokens=self.limits.completion,
            stop_token_ids=self.text.stops,
            logprobs=0,  # of the drawn token alone, before temperature
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if request.stop else RequestOutputKind.FINAL_ONLY,
        )

    def _grown(self, output: Any) -> Completion | None:
        """The completion, once it is finished or may end; its output brings new tokens alone."""
        stopper, ids = self.growing[output.request_id]
        ids += output.outputs[0].token_ids
        if not output.finished:
            if not stopper.sees(ids):
                return None
            self.engine.abort_request([output.request_id])
        del self.growing[output.request_id]
        logprob = output.outputs[0].cumulative_logprob
        return Completion(
            output.request_id, ids, logprob, _reason(output) if output.finished else "length"
        )

    def close(self) -> None:
        if self.engine is not None:
            self.engine.engine_core.shutdown()
            self.engine = None


def set_unset(environment: dict[str, str]) -> None:
    """What the person set stands."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def _for_adapter(adapter: Path | None) -> dict[str, Any]:
    if adapter is None:
        return {}
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": engine_rank(adapter)}


def _request(adapter: Path | None) -> "LoRARequest | None":
    from vllm.lora.request import LoRARequest

    return adapter and LoRARequest("policy", 1, str(adapter))


def _completion(output: Any) -> Completion | None:
    if not output.finished:
        return None
    [drawn] = output.outputs
    return Completion(
        output.request_id, list(drawn.token_ids), drawn.cumulative_logprob, _reason(output)
    )


def _reason(output: Any) -> Literal["stop", "length"]:
    reason = output.outputs[0].finish_reason
    if reason not in ("stop", "length"):
        raise StageError(
            f"vLLM ended the completion {output.request_id} with {reason}; stop or length was expected."
        )
    return reason
