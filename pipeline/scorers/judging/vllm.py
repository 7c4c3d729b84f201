"""A judge model in the stage's own process.

Its output is restricted to the labels, whose probabilities sum to one.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.backends.vllm import check_weights_path
from pipeline.config import VllmEngine
from pipeline.errors import UserError
from pipeline.scorers.judging import JudgeRequest, OnResponse, Response, not_installed_error
from pipeline.scorers.judging.endpoint import build_schema

ALTERNATIVES = 20
GIB = 1 << 30
# As in sampling: quiet, no usage statistics, no spinning threads. On a CPU: one process, no
# compilation.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_WAIT_POLICY": "passive",
}
ENVIRONMENT_ON_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}


class VllmJudge:
    def __init__(self, cfg: VllmEngine, form: str, knob: str):
        self.cfg, self.form, self.knob = cfg, form, knob
        self.name = Path(cfg.model).name if cfg.model.is_local else str(cfg.model)
        _set_environment(ENVIRONMENT)
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise not_installed_error(cfg, knob, error) from error
        check_weights_path(cfg.model)
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            _set_environment(ENVIRONMENT_ON_CPU)
        self.model = LLM(**self._build_arguments(on_cpu))
        self.tokenizer = self.model.get_tokenizer()

    def _build_arguments(self, on_cpu: bool) -> dict[str, Any]:
        cfg = self.cfg
        memory = (
            {"enforce_eager": True, "kv_cache_memory_bytes": cfg.runtime.cpu_cache_gib * GIB}
            if on_cpu
            else {"gpu_memory_utilization": cfg.runtime.memory}
        )
        return {
            "model": str(cfg.model),
            "revision": cfg.revision,
            "trust_remote_code": cfg.remote_code,
            "dtype": cfg.dtype,
            "max_model_len": cfg.max_length,
            "max_num_seqs": cfg.runtime.max_sequences,
            "tensor_parallel_size": cfg.runtime.tensor_parallel,
            "max_logprobs": ALTERNATIVES,
            "seed": 0,
            "disable_log_stats": True,
            **memory,
        }

    def send_requests(self, requests: Iterable[JudgeRequest], on_response: OnResponse) -> None:
        """In batches of as many as run at a time: a killed stage loses one batch."""
        waiting, size = list(requests), self.cfg.runtime.max_sequences
        for start in range(0, len(waiting), size):
            for request, response in self._answer_batch(waiting[start : start + size]):
                on_response(request, response)

    def _answer_batch(self, batch: list[JudgeRequest]) -> Iterator[tuple[JudgeRequest, Response]]:
        ids = {request: self._encode(request) for request in batch}
        room = self.cfg.max_length - self.cfg.max_tokens
        fitting = [request for request in batch if len(ids[request]) <= room]
        prompts = [{"prompt_token_ids": ids[request]} for request in fitting]
        parameters = [self._build_parameters(request.labels) for request in fitting]
        outputs = self.model.generate(prompts, parameters, use_tqdm=False)
        for request, output in zip(fitting, outputs, strict=True):
            yield request, self._read_output(output)
        for request in batch:
            if request not in fitting:
                limit = f"{self.knob}.max_length={self.cfg.max_length}"
                fault = f"a request of {len(ids[request])} tokens is longer than {limit}"
                yield request, Response(None, fault=fault)

    def _encode(self, request: JudgeRequest) -> list[int]:
        from jinja2 import TemplateError

        messages = [dict(message) for message in request.messages]
        try:
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False, **self.cfg.template_kwargs
            )
        except (TemplateError, ValueError) as error:
            raise UserError(
                f"{self.cfg.model}: its chat template does not render a judge's request: {error}.\n"
                "  If it knows no system message, give a template=FILE without the line `---`:"
                " it is one message then."
            ) from error

    def _build_parameters(self, labels: tuple[str, ...]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        is_word = self.form == "word"
        restriction = (
            StructuredOutputsParams(choice=list(labels))
            if is_word
            else StructuredOutputsParams(json=build_schema(labels))
        )
        return SamplingParams(
            temperature=0.0,
            max_tokens=self.cfg.max_tokens,
            logprobs=ALTERNATIVES if is_word else None,
            structured_outputs=restriction,
        )

    def _read_output(self, output: Any) -> Response:
        [completion] = output.outputs
        first_token = None
        if completion.logprobs:
            alternatives = completion.logprobs[0].values()
            first_token = {
                one.decoded_token: math.exp(one.logprob)
                for one in alternatives
                if math.isfinite(one.logprob)
            }
        tokens = (len(output.prompt_token_ids), len(completion.token_ids))
        return Response(completion.text, first_token, self.name, *tokens)

    def close(self) -> None:
        self.model.llm_engine.engine_core.shutdown()


def _set_environment(environment: dict[str, str]) -> None:
    """What the user has set has precedence."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
