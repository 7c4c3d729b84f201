"""A judge model in the stage's own process: its reply is restricted to the labels, whose probabilities sum to one."""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import VllmEngine
from pipeline.errors import UserError
from pipeline.scorers.judging import Hear, Question, Reply, not_installed
from pipeline.scorers.judging.endpoint import schema

ALTERNATIVES = 20
GIB = 1 << 30
# As in sampling: quiet, no usage sent, no spinning threads; on a CPU one process and nothing compiled.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_WAIT_POLICY": "passive",
}
ENVIRONMENT_ON_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}


class Vllm:
    def __init__(self, cfg: VllmEngine, form: str, knob: str):
        self.cfg, self.form, self.knob = cfg, form, knob
        self.name = Path(cfg.model).name if cfg.model.is_local else str(cfg.model)
        _set(ENVIRONMENT)
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise not_installed(cfg, knob, error) from error
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            _set(ENVIRONMENT_ON_CPU)
        self.model = LLM(**self._arguments(on_cpu))
        self.tokenizer = self.model.get_tokenizer()

    def _arguments(self, on_cpu: bool) -> dict[str, Any]:
        cfg = self.cfg
        room = (
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
            **room,
        }

    def ask(self, questions: Iterable[Question], hear: Hear) -> None:
        """In blocks of as many as run at a time: a killed stage loses one block."""
        waiting, room = list(questions), self.cfg.runtime.max_sequences
        for start in range(0, len(waiting), room):
            for question, reply in self._answered(waiting[start : start + room]):
                hear(question, reply)

    def _answered(self, block: list[Question]) -> Iterator[tuple[Question, Reply]]:
        ids = {question: self._ids(question) for question in block}
        fitting = [
            question
            for question in block
            if len(ids[question]) + self.cfg.max_tokens <= self.cfg.max_length
        ]
        prompts = [{"prompt_token_ids": ids[question]} for question in fitting]
        outputs = self.model.generate(
            prompts, [self._parameters(q.labels) for q in fitting], use_tqdm=False
        )
        for question, output in zip(fitting, outputs, strict=True):
            yield question, self._reply(output)
        for question in block:
            if question not in fitting:
                longest = f"{self.knob}.max_length={self.cfg.max_length}"
                fault = f"a question of {len(ids[question])} tokens is longer than {longest}"
                yield question, Reply(None, fault=fault)

    def _ids(self, question: Question) -> list[int]:
        from jinja2 import TemplateError

        messages = [dict(message) for message in question.messages]
        try:
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False, **self.cfg.template_kwargs
            )
        except (TemplateError, ValueError) as error:
            raise UserError(
                f"{self.cfg.model}: its chat template does not render a judge's question: {error}.\n"
                "  If it knows no system message, give a template=FILE without the line `---`: it is one message then."
            ) from error

    def _parameters(self, labels: tuple[str, ...]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        word = self.form == "word"
        kept_to = (
            StructuredOutputsParams(choice=list(labels))
            if word
            else StructuredOutputsParams(json=schema(labels))
        )
        return SamplingParams(
            temperature=0.0,
            max_tokens=self.cfg.max_tokens,
            logprobs=ALTERNATIVES if word else None,
            structured_outputs=kept_to,
        )

    def _reply(self, output: Any) -> Reply:
        [said] = output.outputs
        first = None
        if said.logprobs:
            alternatives = [one for one in said.logprobs[0].values() if math.isfinite(one.logprob)]
            first = {one.decoded_token: math.exp(one.logprob) for one in alternatives}
        return Reply(said.text, first, self.name, len(output.prompt_token_ids), len(said.token_ids))

    def close(self) -> None:
        self.model.llm_engine.engine_core.shutdown()


def _set(environment: dict[str, str]) -> None:
    """What the person set stands."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
