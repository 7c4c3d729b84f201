"""Batched `generate`, for machines without vLLM and as its reference. Batches never cross blocks.

Each row has its own random generator, so a completion does not depend on its batch.
"""

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

from pipeline.artifacts import Model
from pipeline.backends import COUNT_EVERY, Completion, CompletionRequest, OnTokens
from pipeline.backends.chat import ModelTokenizer
from pipeline.backends.lora_support import find_weights
from pipeline.backends.stopping import StopStringCriteria
from pipeline.config import Limits, TransformersBackend
from pipeline.resources import open_models

if TYPE_CHECKING:
    import torch


class Streamer(Protocol):
    """What transformers' generate gives the prompt's ids at first, then each new token."""

    def put(self, value: "torch.Tensor") -> None: ...

    def end(self) -> None: ...


class TransformersSampler:
    def __init__(self, cfg: TransformersBackend, policy: Model):
        self.cfg, self.policy = cfg, policy
        self.tokenizer = ModelTokenizer(policy)
        self.module: Any = None
        self.module_key: tuple[Any, ...] | None = None  # of a module that was loaded here

    def start(self, model: Model, limits: Limits) -> Self:
        weights = find_weights(self.policy, model)
        self.module_key = "sample", weights, model.revision, self.cfg.dtype
        module = open_models.borrow(self.module_key, partial(self._load_module, model))
        self.use_module(module, limits)
        return self

    def _load_module(self, model: Model) -> Any:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        module = AutoModelForCausalLM.from_pretrained(
            model.weights,
            revision=model.revision,
            dtype=getattr(torch, self.cfg.dtype),
            trust_remote_code=model.remote_code,
        )
        return module.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def use_module(self, module: Any, limits: Limits, synced_gpus: bool = False) -> None:
        """Sample from a loaded module, such as one in training.

        `synced_gpus`: processes share its weights, so each has to continue until all have finished.
        """
        from transformers import GenerationConfig

        # The checkpoint's own generation_config would add penalties that were not asked for.
        module.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=limits.completion,
            eos_token_id=self.tokenizer.stop_ids,
            pad_token_id=self.tokenizer.pad,
        )
        self.module, self.synced_gpus = module, synced_gpus

    def generate(
        self, blocks: Iterable[list[CompletionRequest]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion]:
        size = self.cfg.runtime.batch
        for block in blocks:
            by_length = sorted(block, key=lambda request: len(request.prompt_token_ids))
            for start in range(0, len(by_length), size):
                yield from self._sample_batch(by_length[start : start + size], on_tokens)

    def stream(self, request: CompletionRequest, streamer: Streamer) -> Completion:
        """One completion, whose tokens `streamer` gets as they are sampled."""
        [completion] = self._sample_batch([request], None, streamer)
        return completion

    def _sample_batch(
        self,
        batch: list[CompletionRequest],
        on_tokens: OnTokens | None,
        streamer: Streamer | None = None,
    ) -> list[Completion]:
        import torch

        ids, mask = self._pad_left([request.prompt_token_ids for request in batch])
        sampler = GumbelSampler(batch, self.module.device)
        processors: list[Any] = [sampler]
        if on_tokens:
            processors.append(TokenReporter(self.tokenizer.stop_ids, batch, on_tokens))
        criteria = StopStringCriteria(self.tokenizer, batch, ids.shape[1])
        # Not inference_mode: tensors that a module in training caches would be unusable afterwards.
        with torch.no_grad():
            rows = self.module.generate(
                input_ids=ids,
                attention_mask=mask,
                synced_gpus=self.synced_gpus,
                logits_processor=processors,
                stopping_criteria=[criteria] if criteria else [],
                streamer=streamer,
            )
        completions = rows[:, ids.shape[1] :].tolist()
        sampled = [row[:end] for row, end in zip(completions, criteria.end_lengths, strict=True)]
        logprobs = torch.stack(sampler.logprobs, dim=1).double().cpu()
        return [self._build_completion(*row) for row in zip(batch, sampled, logprobs, strict=True)]

    def _pad_left(self, prompts: list[list[int]]) -> "tuple[torch.Tensor, torch.Tensor]":
        import torch

        width = max(map(len, prompts))
        ids = [[self.tokenizer.pad] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self.module.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _build_completion(
        self, request: CompletionRequest, ids: list[int], logprobs: "torch.Tensor"
    ) -> Completion:
        stop_ids = self.tokenizer.stop_ids
        stop = next((at for at, token in enumerate(ids) if token in stop_ids), None)
        tokens = ids if stop is None else ids[: stop + 1]
        logprob = logprobs[: len(tokens)].sum().item()
        return Completion(request.sample_id, tokens, logprob, "length" if stop is None else "stop")

    def close(self) -> None:
        module, self.module = self.module, None
        if module is not None and self.module_key:
            open_models.park(self.module_key, module)


class TokenReporter:
    """A logits processor that changes nothing and reports the length of each row now and then."""

    def __init__(self, stop_ids: list[int], batch: list[CompletionRequest], on_tokens: OnTokens):
        self._stop_ids, self._on_tokens = set(stop_ids), on_tokens
        self._sample_ids = [request.sample_id for request in batch]
        self._width: int | None = None  # of the prompts: all of the input at the first token
        self._reported = time.monotonic()

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        if self._width is None:
            self._width = input_ids.shape[1]
        if time.monotonic() - self._reported >= COUNT_EVERY:
            rows = input_ids[:, self._width :].tolist()
            lengths = map(self._measure_length, rows)
            self._on_tokens(dict(zip(self._sample_ids, lengths, strict=True)))
            self._reported = time.monotonic()
        return scores

    def _measure_length(self, ids: list[int]) -> int:
        """Up to the stop token; what follows is padding."""
        return next((at + 1 for at, token in enumerate(ids) if token in self._stop_ids), len(ids))


class GumbelSampler:
    """A logits processor that chooses each row's next token and keeps its raw log-probability.

    The argmax of `log p + Gumbel noise` is a sample from p. Only the chosen token is left to the
    greedy search.
    """

    def __init__(self, batch: list[CompletionRequest], device: "torch.device"):
        import torch

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, device=device).unsqueeze(1)

        self.temperature = column([request.temperature for request in batch])
        self.top_p = column([request.top_p for request in batch])
        self.min_p = column([request.min_p for request in batch])
        self.generators = [
            torch.Generator(device).manual_seed(request.seed) if request.temperature else None
            for request in batch
        ]
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        logits = scores.float()
        chosen = self._choose_tokens(logits)
        self.logprobs.append(logits.log_softmax(-1).gather(1, chosen).squeeze(1))
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen, 0.0)

    def _choose_tokens(self, logits: "torch.Tensor") -> "torch.Tensor":
        import torch

        greedy = self.temperature == 0
        logprobs = (logits / torch.where(greedy, 1.0, self.temperature)).log_softmax(-1)
        noisy = self._apply_top_p(self._apply_min_p(logprobs)) + self._draw_noise(logits)
        return torch.where(greedy, logprobs, noisy).argmax(-1, keepdim=True)

    def _apply_min_p(self, logprobs: "torch.Tensor") -> "torch.Tensor":
        """Keep the tokens at least min_p times as likely as the likeliest, and renormalise."""
        import torch

        if (self.min_p == 0).all():
            return logprobs
        outside = logprobs < logprobs.max(-1, keepdim=True).values + self.min_p.log()
        kept = logprobs.masked_fill(outside, -torch.inf).log_softmax(-1)
        return torch.where(self.min_p == 0, logprobs, kept)

    def _apply_top_p(self, logprobs: "torch.Tensor") -> "torch.Tensor":
        """Keep the smallest set of likeliest tokens that holds top_p of the probability."""
        import torch

        if (self.top_p == 1).all():
            return logprobs
        ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
        likelier = ordered.exp().cumsum(-1) - ordered.exp()  # probability before each token
        outside = (likelier >= self.top_p) & (self.top_p < 1)
        outside = torch.zeros_like(outside).scatter_(1, order, outside)
        return logprobs.masked_fill(outside, -torch.inf)

    def _draw_noise(self, logits: "torch.Tensor") -> "torch.Tensor":
        """Gumbel noise is −log of exponential noise. It is zero in greedy rows."""
        import torch

        noise = torch.ones_like(logits)
        for row, generator in zip(noise, self.generators, strict=True):
            if generator is not None:
                row.exponential_(generator=generator)
        return -noise.log()
