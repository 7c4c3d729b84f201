"""Answers lm-eval's requests with the model, through transformers or vLLM.

Each chunk of requests is one file. A killed run repeats one chunk, with the same batches as an
uninterrupted run. lm-eval silently cuts what does not fit into the context from the left: here such
requests are counted.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from pipeline.artifacts import Model, write_json
from pipeline.backends.vllm import backend_arguments
from pipeline.backends.vllm_engine import check_weights_path, open_platform
from pipeline.config import BenchmarkConfig, TransformersBackend, VllmBackend
from pipeline.errors import StageError, UserError
from pipeline.models import loading
from pipeline.progress import Progress, print_phase
from pipeline.resources import open_models

CHUNK = 512  # requests; never from `runtime`, so that a resumed run finds the same chunks
# Of one batch, 4 GiB in float32: with a large vocabulary fewer requests share a batch.
MAX_LOGITS = 1 << 30
MERGED = "merged"  # an adapter merged for vLLM; removed before anything is published


@contextmanager
def open_model(cfg: BenchmarkConfig, knob: str, model: Model, scratch: Path) -> Iterator[LM]:
    """The model in lm-eval's own class for the engine. The next benchmark may use it too."""
    how = cfg.backend, cfg.template_kwargs, cfg.thinks_until, cfg.seed
    key = "benchmark", model.weights, model.adapter, *how
    opened = open_models.borrow(key, partial(_load_model, cfg, knob, model, scratch))
    yield opened
    engine = getattr(getattr(opened, "model", None), "llm_engine", None)
    open_models.park(key, opened, *([engine.engine_core.shutdown] if engine else []))


def _load_model(cfg: BenchmarkConfig, knob: str, model: Model, scratch: Path) -> LM:
    if isinstance(cfg.backend, VllmBackend):
        print_phase("starting the vLLM engine")
        return _open_vllm(cfg, cfg.backend, knob, model, scratch)
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


def _open_vllm(
    cfg: BenchmarkConfig, backend: VllmBackend, knob: str, model: Model, scratch: Path
) -> LM:
    place = open_platform(partial(_missing_vllm, cfg.task, knob))
    try:
        from lm_eval.models.vllm_causallms import VLLM
    except ImportError as error:
        raise _missing_vllm(cfg.task, knob, error) from error
    served = (
        loading.write_merged(scratch / MERGED, model, backend.dtype) if model.adapter else model
    )
    check_weights_path(served.weights)
    template_kwargs = dict(cfg.template_kwargs)
    return VLLM(
        pretrained=str(served.weights),
        revision=served.revision,
        tokenizer=str(model.tokenizer),
        trust_remote_code=model.remote_code,
        dtype=backend.dtype,
        max_batch_size=backend.runtime.max_sequences,
        seed=cfg.seed,
        # With "auto" vLLM shows a progress bar and divides by its time, which is 0 without bars.
        batch_size=CHUNK,
        # lm-eval would drop it from chat_template_args.
        enable_thinking=template_kwargs.pop("enable_thinking", None),
        chat_template_args=template_kwargs,
        think_end_token=cfg.thinks_until,
        **backend_arguments(backend, place, repeats=place.on_cpu),
    )


def _missing_vllm(task: str, knob: str, error: ImportError) -> UserError:
    return UserError(
        f"benchmark {task}: lm-eval's vLLM does not start here ({error}).\n"
        f"  It needs the build for GPUs: give backend@{knob}.backend=transformers."
    )


class ChunkedModel(LM):
    """A model that writes down its answers."""

    def __init__(self, cfg: BenchmarkConfig, knob: str, model: Any, folder: Path):
        super().__init__()
        self.cfg, self.knob, self.model, self.folder = cfg, knob, model, folder
        self.request_count, self.cut_count = 0, 0

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        lengths = [len(self.model.tok_encode("".join(each.args))) for each in requests]
        # transformers does not read a choice's last token; vLLM has to sample one more.
        extra = 1 if isinstance(self.cfg.backend, TransformersBackend) else -1
        limit = self.model.max_length + extra
        self.cut_count += sum(length > limit for length in lengths)
        self._limit_batch(min(max(lengths), self.model.max_length))
        answers = self._run_chunks("loglikelihood", requests)
        return [(logp, greedy) for logp, greedy in answers]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return self._run_chunks("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Any]) -> list[str]:
        for prompt, arguments in (each.args for each in requests):
            limit = self.model.max_length - self._find_answer_limit(arguments)
            self.cut_count += len(self.model.tok_encode(prompt)) > limit
        return self._run_chunks("generate_until", requests)

    def apply_chat_template(self, *history: Any, **options: Any) -> str:
        return self.model.apply_chat_template(*history, **options)

    @property
    def tokenizer_name(self) -> str:
        return self.model.tokenizer_name

    def _limit_batch(self, longest: int) -> None:
        """For transformers, which keeps the logits of every token of a batch. vLLM does not."""
        if isinstance(self.cfg.backend, TransformersBackend):
            fits = max(1, MAX_LOGITS // (longest * self.model.vocab_size))
            self.model.batch_size_per_gpu = min(self.cfg.backend.runtime.batch, fits)

    def _find_answer_limit(self, arguments: dict[str, Any]) -> int:
        limit: int = normalize_gen_kwargs(arguments, self.model.max_gen_toks)["max_gen_toks"]
        context = self.model.max_length
        if limit >= context:
            raise UserError(
                f"benchmark {self.cfg.task}: it asks for answers of up to {limit} tokens,"
                f" and the model has a context of {context}.\n"
                f"  Give {self.knob}.max_new_tokens={context // 2} or less."
            )
        return limit

    def _run_chunks(self, kind: str, requests: list[Any]) -> list[Any]:
        progress = Progress(f"benchmark {self.cfg.task}", len(requests), "requests")
        answers: list[Any] = []
        for start in range(0, len(requests), CHUNK):
            file, part = self.folder / f"{kind}-{start:08d}.json", requests[start : start + CHUNK]
            if file.exists():
                progress.resume_at(progress.done + len(part))
            else:
                write_json(file, self._check_finite(getattr(self.model, kind)(part)))
                progress.advance(len(part))
            answers += json.loads(file.read_text())
        self.request_count += len(requests)
        return answers

    def _check_finite(self, answers: list[Any]) -> list[Any]:
        numbers = [number for answer in answers for number in _list_numbers(answer)]
        if not all(map(math.isfinite, numbers)):
            raise StageError(
                f"benchmark {self.cfg.task}: some answer has no finite log-probability"
                f" under this model in {self.cfg.backend.dtype}.\n"
                f"  Try {self.knob}.backend.dtype=float32. If that fails, its weights are broken."
            )
        return answers


def _list_numbers(answer: Any) -> list[float]:
    """Log-probabilities of an answer: alone, or next to whether it is the greedy one."""
    if isinstance(answer, str):
        return []
    values = [answer] if isinstance(answer, float) else answer
    return [value for value in values if isinstance(value, float)]
