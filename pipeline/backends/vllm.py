"""vLLM. On a GPU the engine runs in its own process, on a CPU in this one.

Where seeds make the bytes repeat, a block is drained before the next one is submitted, so that a
shard gives the same bytes whatever was sampled before it. Elsewhere the engine is refilled.
"""

import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from zlib import crc32

from pipeline import hardware
from pipeline.artifacts import Model
from pipeline.backends import COUNT_EVERY, Completion, CompletionRequest, OnTokens, vllm_engine
from pipeline.backends.chat import ModelTokenizer
from pipeline.backends.lora_support import choose_engine_rank, find_weights
from pipeline.backends.stopping import StopStringDetector
from pipeline.backends.vllm_engine import EnginePlatform
from pipeline.config import Limits, Seeded, VllmBackend, vllm_args
from pipeline.errors import StageError, UserError
from pipeline.hashing import find_local_folder
from pipeline.resources import inference_memory, open_models

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest


class VllmSampler:
    def __init__(
        self,
        cfg: VllmBackend,
        policy: Model,
        knob: str,
        seeded: Seeded = "auto",
        engine_seed: int = 0,
    ):
        vllm_engine.set_environment_defaults(vllm_engine.ENVIRONMENT)
        self.cfg, self.policy, self.knob = cfg, policy, knob
        self.seeded, self.engine_seed = seeded, engine_seed
        self.tokenizer = ModelTokenizer(policy)
        self.limits: Limits
        self.is_seeded: bool  # whether each request has a seed
        self.repeats: bool  # whether the bytes are to repeat
        # How many requests may still be unfinished when the next block is submitted.
        self.refill_threshold: int
        self.engine: Any = None
        self.engine_key: dict[str, Any]
        self.adapter: LoRARequest | None = None
        self.parameters: dict[tuple[float | bool | None, ...], SamplingParams]
        # Unfinished completions that a stop string may end, with their tokens so far.
        self.stoppable: dict[str, tuple[StopStringDetector, list[int]]] = {}

    def start(self, model: Model, limits: Limits) -> Self:
        place = vllm_engine.open_platform(partial(inference_memory.missing_vllm, self.knob))
        vllm_engine.check_weights_path(model.weights)
        self.prepare(place, limits)
        if not place.on_cpu:
            self._check_memory(model, place.platform)
        arguments = self._build_engine_arguments(model, place)
        # Without the seed: another Step's requests go on in the engine's stream of random numbers.
        self.engine_key = arguments | {"model": find_weights(self.policy, model)}
        self.engine = open_models.borrow(self.engine_key, partial(self._start_engine, arguments))
        self.adapter = _build_lora_request(model.adapter)
        return self

    def prepare(self, place: EnginePlatform, limits: Limits) -> None:
        """Decide what this device decides, before there is an engine."""
        self.limits, self.parameters = limits, {}
        self.is_seeded = place.on_cpu if self.seeded == "auto" else self.seeded
        self.repeats = place.on_cpu and self.is_seeded
        # Another batch waits in the engine while the next block is built.
        self.refill_threshold = 0 if self.repeats else 2 * self.cfg.runtime.max_sequences
        if self.repeats and (chunks := sorted(vllm_args.CHUNKS & self.cfg.engine_args.keys())):
            raise UserError(
                f"{self.knob}: engine argument {chunks[0]}: on a CPU vLLM ends at a prompt that is"
                " split and has a seed.\n"
                f"  Leave it out, or give {self.knob.removesuffix('.backend')}.seeded=false."
            )

    def _start_engine(self, arguments: dict[str, Any]) -> Any:
        """`arguments` are all but the seed, which no engine needs whose requests have theirs."""
        from vllm import EngineArgs, LLMEngine
        from vllm.usage.usage_lib import UsageContext

        seed = 0 if self.is_seeded else self.engine_seed
        try:
            # As `LLM` does: the engine's own default would split prompts into smaller chunks.
            return LLMEngine.from_engine_args(
                EngineArgs(**arguments, seed=seed), UsageContext.LLM_CLASS
            )
        except (TypeError, ValueError) as error:
            if not self.cfg.engine_args:
                raise
            given = ", ".join(f"{name}={value}" for name, value in self.cfg.engine_args.items())
            raise UserError(
                f"{self.knob}: vLLM does not start with the engine arguments {given}: {error}\n"
                "  Give values that its EngineArgs documents, or leave them out."
            ) from error

    def _check_memory(self, model: Model, platform: Any) -> None:
        """Refuse early: an engine that runs out of memory fails after minutes, less clearly."""
        if (
            not platform.is_cuda_alike()
            or self.cfg.may_save_memory
            or (files := find_local_folder(model.weights, model.revision)) is None
        ):
            return
        runtime = self.cfg.runtime
        needs = inference_memory.read_needs(files, self.cfg.dtype, self._max_model_length())
        device = platform.get_device_total_memory()
        free = min((gpu.free for gpu in hardware.list_gpus()), default=device)
        place = inference_memory.EnginePlace(
            self.knob, device, runtime.memory, self.cfg.gpus, free=free
        )
        if needs and (short := inference_memory.shortage(needs, place)):
            raise UserError(short)

    def _max_model_length(self) -> int:
        length = self.limits.prompt + self.limits.completion
        return min(length, self.tokenizer.context or length)

    def _build_engine_arguments(self, model: Model, place: EnginePlatform) -> dict[str, Any]:
        max_length = self._max_model_length()
        return {
            "model": str(model.weights),
            "revision": model.revision,
            "skip_tokenizer_init": True,  # ids go in and come out
            "trust_remote_code": model.remote_code,
            "dtype": self.cfg.dtype,
            "max_model_len": max_length,
            "max_num_seqs": self.cfg.runtime.max_sequences,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            **backend_arguments(self.cfg, place, self.repeats),
            **(_unsplit_prompts(max_length) if self.repeats else {}),
            **_adapter_arguments(model.adapter),
        }

    def generate(
        self, blocks: Iterable[list[CompletionRequest]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion]:
        waiting = iter(blocks)
        exhausted = False
        counted = time.monotonic()
        while True:
            while (
                not exhausted and self.engine.get_num_unfinished_requests() <= self.refill_threshold
            ):
                block = next(waiting, None)
                exhausted = block is None
                self._submit_block(block or [])
            if not self.engine.has_unfinished_requests():
                return
            for output in self.engine.step():
                if output.request_id in self.stoppable:
                    completion = self._extend_completion(output)
                else:
                    completion = _build_completion(output)
                if completion:
                    yield completion
            if on_tokens and time.monotonic() - counted >= COUNT_EVERY:
                on_tokens(self._count_unfinished_tokens())
                counted = time.monotonic()

    def _count_unfinished_tokens(self) -> dict[str, int]:
        """From the engine's internal state: its outputs hold finished completions alone."""
        try:
            states = self.engine.output_processor.request_states.values()
            return {
                state.external_req_id: state.detokenizer.num_output_tokens() for state in states
            }
        except AttributeError:  # another release of vLLM: only the progress line is less precise
            return {}

    def _submit_block(self, block: list[CompletionRequest]) -> None:
        for request in block:
            if request.stop:
                detector = StopStringDetector(self.tokenizer, request.stop)
                self.stoppable[request.sample_id] = detector, []
            prompt = {"type": "token", "prompt_token_ids": request.prompt_token_ids}
            self.engine.add_request(
                request.sample_id,
                prompt,
                self._sampling_parameters(request),
                lora_request=self.adapter,
            )

    def _sampling_parameters(self, request: CompletionRequest) -> "SamplingParams":
        """A copy with its own seed: to make and check them takes as long as to submit a request."""
        figures = request.temperature, request.top_p, request.min_p
        kind = *figures, request.needs_logprob, bool(request.stop)
        if kind not in self.parameters:
            self.parameters[kind] = self._make_parameters(request)
        parameters = self.parameters[kind].clone()
        parameters.seed = request.seed if self.is_seeded else None
        return parameters

    def _make_parameters(self, request: CompletionRequest) -> "SamplingParams":
        # From their module: the package itself looks them up anew for each request.
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        return SamplingParams(
            n=1,  # with n > 1 vLLM uses seed, seed + 1, …, which would repeat neighbouring requests
            temperature=request.temperature,
            top_p=request.top_p,
            min_p=request.min_p,
            max_tokens=self.limits.completion,
            stop_token_ids=self.tokenizer.stop_ids,
            # 0: of the sampled token alone, before temperature.
            logprobs=0 if request.needs_logprob else None,
            flat_logprobs=True,
            detokenize=False,
            skip_clone=True,  # its copies differ in their seeds alone
            output_kind=RequestOutputKind.DELTA if request.stop else RequestOutputKind.FINAL_ONLY,
        )

    def _extend_completion(self, output: Any) -> Completion | None:
        """The completion, once it is finished or may stop. `output` holds its new tokens alone."""
        detector, ids = self.stoppable[output.request_id]
        ids += output.outputs[0].token_ids
        if not output.finished:
            if not detector.finds_stop(ids):
                return None
            self.engine.abort_request([output.request_id])
        del self.stoppable[output.request_id]
        logprob = output.outputs[0].cumulative_logprob
        reason = _read_finish_reason(output) if output.finished else "length"
        return Completion(output.request_id, ids, logprob, reason)

    def close(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            vllm_engine.park(self.engine_key, engine, engine)


def backend_arguments(cfg: VllmBackend, place: EnginePlatform, repeats: bool) -> dict[str, Any]:
    """What a backend's knobs mean to vLLM on this device. `repeats`: the bytes are to repeat."""
    runtime = cfg.runtime
    device = place.device_arguments(runtime.memory, runtime.cpu_cache_gib, cfg.enforce_eager)
    parallel = {} if place.on_cpu else {"tensor_parallel_size": runtime.tensor_parallel}
    caches = not repeats if cfg.prefix_caching is None else cfg.prefix_caching
    return {**device, "enable_prefix_caching": caches, **parallel, **cfg.engine_args}


def _unsplit_prompts(max_length: int) -> dict[str, Any]:
    """A seeded request whose prefill is split crashes vLLM on a CPU."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_length, 2048)}


def _adapter_arguments(adapter: Path | None) -> dict[str, Any]:
    if adapter is None:
        return {}
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": choose_engine_rank(adapter)}


def _build_lora_request(adapter: Path | None) -> "LoRARequest | None":
    from vllm.lora.request import LoRARequest

    # An engine that several Steps share knows an adapter again by its number.
    return adapter and LoRARequest(str(adapter), crc32(str(adapter).encode()) or 1, str(adapter))


def _build_completion(output: Any) -> Completion | None:
    if not output.finished:
        return None
    [sampled] = output.outputs
    reason = _read_finish_reason(output)
    return Completion(
        output.request_id, list(sampled.token_ids), sampled.cumulative_logprob, reason
    )


def _read_finish_reason(output: Any) -> Literal["stop", "length"]:
    reason = output.outputs[0].finish_reason
    if reason not in ("stop", "length"):
        raise StageError(
            f"vLLM ended the completion {output.request_id} with {reason};"
            " stop or length was expected."
        )
    return reason
