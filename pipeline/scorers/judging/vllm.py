"""A judge model in the stage's own process.

Its output is restricted to the labels, whose probabilities sum to one.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.backends import vllm_engine
from pipeline.config import VllmEngine
from pipeline.errors import UserError
from pipeline.models.chat_template import encode_rendered, render_template
from pipeline.resources import open_models
from pipeline.scorers.judging import JudgeRequest, OnResponse, Response, not_installed_error
from pipeline.scorers.judging.endpoint import build_schema

ALTERNATIVES = 20


class VllmJudge:
    def __init__(self, cfg: VllmEngine, form: str, knob: str):
        self.cfg, self.form, self.knob = cfg, form, knob
        self.name = Path(cfg.model).name if cfg.model.is_local else str(cfg.model)
        place = vllm_engine.open_platform(partial(not_installed_error, cfg, knob))
        vllm_engine.check_weights_path(cfg.model)
        device = place.device_arguments(cfg.runtime.memory, cfg.runtime.cpu_cache_gib)
        self.arguments = self._build_arguments() | device
        self.model = open_models.borrow(self.arguments, partial(_start_engine, self.arguments))
        self.tokenizer = self.model.get_tokenizer()

    def _build_arguments(self) -> dict[str, Any]:
        cfg = self.cfg
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
        messages = [dict(message) for message in request.messages]
        text = render_template(
            self.tokenizer, messages, self.cfg.template_kwargs, self._explain_template
        )
        return encode_rendered(self.tokenizer, text)

    def _explain_template(self, error: Exception) -> UserError:
        return UserError(
            f"{self.cfg.model}: its chat template does not render a judge's request: {error}.\n"
            "  If it knows no system message, give a template=FILE without the line `---`:"
            " it is one message then."
        )

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
        vllm_engine.park(self.arguments, self.model, self.model.llm_engine)


def _start_engine(arguments: dict[str, Any]) -> Any:
    from vllm import LLM

    return LLM(**arguments)
