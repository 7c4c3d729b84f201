"""Who answers lm-eval's requests: the model through transformers or vLLM, chunk by chunk, each a file.

A killed run repeats one chunk, and its batches are those of a run that was not. lm-eval cuts what does not fit into the
context from the left, in silence: here it is counted.
"""

import json
import math
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from pipeline.artifacts import Model, write_json
from pipeline.backends.vllm import (
    ENVIRONMENT,
    ENVIRONMENT_OF_EAGER,
    ENVIRONMENT_ON_CPU,
    GIB,
    set_unset,
)
from pipeline.config import BenchmarkConfig, TransformersBackend, VllmBackend
from pipeline.errors import StageError, UserError
from pipeline.models import loading
from pipeline.progress import Progress, print_phase

CHUNK = 512  # requests; never from `runtime`, so that a resumed run finds the same chunks
CELLS = (
    1 << 30
)  # logits of one batch, 4 GiB in float32: with a large vocabulary fewer requests go together
MERGED = "merged"  # an adapter merged for vLLM; gone before anything is published


def opened(cfg: BenchmarkConfig, knob: str, model: Model, scratch: Path) -> LM:
    """lm-eval's own way to each of the two engines."""
    if isinstance(cfg.backend, VllmBackend):
        print_phase("starting the vLLM engine")
        return _by_vllm(cfg, cfg.backend, knob, model, scratch)
    from lm_eval.models.huggingface import HFLM

    print_phase("loading the model")
    return HFLM(
        pretrained=loading.load(model, cfg.backend.dtype),
        tokenizer=loading.load_tokenizer(model),
        backend="causal",
        batch_size=cfg.backend.runtime.batch,
        chat_template_args=dict(cfg.template_kwargs),
        think_end_token=cfg.thinks_until,
    )


def _by_vllm(
    cfg: BenchmarkConfig, backend: VllmBackend, knob: str, model: Model, scratch: Path
) -> LM:
    set_unset(ENVIRONMENT)
    try:
        from lm_eval.models.vllm_causallms import VLLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UserError(
            f"benchmark {cfg.task}: lm-eval's vLLM does not start here ({error}).\n"
            f"  It wants the build for GPUs: give backend@{knob}.backend=transformers."
        ) from error
    served = loading.merged_in(scratch / MERGED, model, backend.dtype) if model.adapter else model
    more = dict(cfg.template_kwargs)
    return VLLM(
        pretrained=str(served.weights),
        revision=served.revision,
        tokenizer=str(model.tokenizer),
        trust_remote_code=model.remote_code,
        dtype=backend.dtype,
        max_batch_size=backend.runtime.max_sequences,
        seed=cfg.seed,
        batch_size=CHUNK,  # with "auto" vLLM shows a bar, and divides by its time: 0 where bars are off
        enable_thinking=more.pop("enable_thinking", None),  # among the others it would be dropped
        chat_template_args=more,
        think_end_token=cfg.thinks_until,
        **(_on_cpu(backend) if current_platform.is_cpu() else _on_gpu(backend)),
    )


def _on_cpu(backend: VllmBackend) -> dict[str, Any]:
    set_unset(
        ENVIRONMENT_ON_CPU | (ENVIRONMENT_OF_EAGER if backend.enforce_eager is not False else {})
    )
    return {
        "enforce_eager": backend.enforce_eager is not False,
        "enable_prefix_caching": backend.prefix_caching is True,
        "kv_cache_memory_bytes": backend.runtime.cpu_cache_gib * GIB,
    }


def _on_gpu(backend: VllmBackend) -> dict[str, Any]:
    return {
        "enforce_eager": backend.enforce_eager is True,
        "enable_prefix_caching": backend.prefix_caching is not False,
        "gpu_memory_utilization": backend.runtime.memory,
        "tensor_parallel_size": backend.runtime.tensor_parallel,
    }


class Chunks(LM):
    """A model that keeps what it has answered."""

    def __init__(self, cfg: BenchmarkConfig, knob: str, model: Any, folder: Path):
        super().__init__()
        self.cfg, self.knob, self.model, self.folder = cfg, knob, model, folder
        self.asked, self.cut = 0, 0

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        lengths = [len(self.model.tok_encode("".join(each.args))) for each in requests]
        # transformers is not shown a choice's last token; vLLM has to draw one more.
        room = self.model.max_length + (
            1 if isinstance(self.cfg.backend, TransformersBackend) else -1
        )
        self.cut += sum(length > room for length in lengths)
        self._narrow(min(max(lengths), self.model.max_length))
        return [(logp, greedy) for logp, greedy in self._answers("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Any]) -> list[str]:
        for prompt, wishes in (each.args for each in requests):
            room = self.model.max_length - self._longest(wishes)
            self.cut += len(self.model.tok_encode(prompt)) > room
        return self._answers("generate_until", requests)

    def apply_chat_template(self, *history: Any, **how: Any) -> str:
        return self.model.apply_chat_template(*history, **how)

    @property
    def tokenizer_name(self) -> str:
        return self.model.tokenizer_name

    def _narrow(self, longest: int) -> None:
        """transformers keeps the logits of every token of a batch; vLLM does not."""
        if isinstance(self.cfg.backend, TransformersBackend):
            fits = max(1, CELLS // (longest * self.model.vocab_size))
            self.model.batch_size_per_gpu = min(self.cfg.backend.runtime.batch, fits)

    def _longest(self, wishes: dict[str, Any]) -> int:
        longest: int = normalize_gen_kwargs(wishes, self.model.max_gen_toks)["max_gen_toks"]
        if longest >= self.model.max_length:
            raise UserError(
                f"benchmark {self.cfg.task}: it asks for answers of up to {longest} tokens, and the model has a context"
                f" of {self.model.max_length}.\n  Give {self.knob}.max_new_tokens={self.model.max_length // 2} or less."
            )
        return longest

    def _answers(self, kind: str, requests: list[Any]) -> list[Any]:
        progress = Progress(f"benchmark {self.cfg.task}", len(requests), "requests")
        found: list[Any] = []
        for start in range(0, len(requests), CHUNK):
            file, part = self.folder / f"{kind}-{start:08d}.json", requests[start : start + CHUNK]
            if file.exists():
                progress.resume_at(progress.done + len(part))
            else:
                write_json(file, self._finite(getattr(self.model, kind)(part)))
                progress.advance(len(part))
            found += json.loads(file.read_text())
        self.asked += len(requests)
        return found

    def _finite(self, answers: list[Any]) -> list[Any]:
        figures = [
            value for answer in answers if not isinstance(answer, str) for value in _figures(answer)
        ]
        if not all(math.isfinite(value) for value in figures):
            raise StageError(
                f"benchmark {self.cfg.task}: some answer has no finite log-probability under this model in"
                f" {self.cfg.backend.dtype}.\n  Try {self.knob}.backend.dtype=float32; else its weights are broken."
            )
        return answers


def _figures(answer: Any) -> list[float]:
    return (
        [answer]
        if isinstance(answer, float)
        else [value for value in answer if isinstance(value, float)]
    )
