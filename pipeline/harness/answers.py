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
from pipeline.config import BenchmarkConfig, TransformersBackend, VllmBackend
from pipeline.errors import Broken, Refusal
from pipeline.progress import Progress
from pipeline.training import models

CHUNK = 512  # requests; never from `runtime`, so that a resumed run finds the same chunks
CELLS = 1 << 30  # logits of one batch, 4 GiB in float32: with a large vocabulary fewer requests go together
MERGED = "merged"  # an adapter merged for vLLM; gone before anything is published


def opened(cfg: BenchmarkConfig, model: Model, scratch: Path) -> LM:
    """lm-eval's own way to each of the two engines."""
    shared: dict[str, Any] = {"chat_template_args": cfg.template_kwargs, "think_end_token": cfg.thinks_until}
    if isinstance(cfg.backend, VllmBackend):
        return _by_vllm(cfg, cfg.backend, model, scratch, shared)
    from lm_eval.models.huggingface import HFLM

    module = models.load(model, cfg.backend.dtype)
    batch = cfg.backend.runtime.batch
    return HFLM(pretrained=module, tokenizer=models.load_tokenizer(model), backend="causal", batch_size=batch, **shared)


def _by_vllm(cfg: BenchmarkConfig, backend: VllmBackend, model: Model, scratch: Path, shared: dict[str, Any]) -> LM:
    try:
        from lm_eval.models.vllm_causallms import VLLM
    except ImportError as error:
        raise Refusal(
            f"benchmark {cfg.task}: lm-eval's vLLM does not start here ({error}).\n"
            "  It wants the build for GPUs: give backend@benchmark.NAME.backend=transformers."
        ) from error
    served = models.merged_in(scratch / MERGED, model, backend.dtype) if model.adapter else model
    return VLLM(
        pretrained=str(served.weights),
        revision=served.revision,
        tokenizer=str(model.tokenizer),
        trust_remote_code=model.remote_code,
        dtype=backend.dtype,
        enforce_eager=backend.enforce_eager is True,
        enable_prefix_caching=backend.prefix_caching is not False,
        gpu_memory_utilization=backend.runtime.memory,
        tensor_parallel_size=backend.runtime.tensor_parallel,
        max_batch_size=backend.runtime.max_sequences,
        seed=cfg.seed,
        batch_size=CHUNK,  # with "auto" vLLM shows a bar, and divides by its time: 0 where bars are off
        **shared,
    )


class Chunks(LM):
    """A model that keeps what it has answered."""

    def __init__(self, cfg: BenchmarkConfig, model: Any, folder: Path):
        super().__init__()
        self.cfg, self.model, self.folder = cfg, model, folder
        self.asked, self.cut = 0, 0

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        lengths = [len(self.model.tok_encode("".join(each.args))) for each in requests]
        self.cut += sum(length > self.model.max_length for length in lengths)
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
            raise Refusal(
                f"benchmark {self.cfg.task}: it asks for answers of up to {longest} tokens, and the model has a context"
                f" of {self.model.max_length}.\n  Give max_new_tokens={self.model.max_length // 2} or less."
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
        figures = [value for answer in answers if not isinstance(answer, str) for value in _figures(answer)]
        if not all(math.isfinite(value) for value in figures):
            raise Broken(
                f"benchmark {self.cfg.task}: some answer has no finite log-probability under this model in"
                f" {self.cfg.backend.dtype}.\n  Try backend.dtype=float32; else its weights are broken."
            )
        return answers


def _figures(answer: Any) -> list[float]:
    return [answer] if isinstance(answer, float) else [value for value in answer if isinstance(value, float)]
