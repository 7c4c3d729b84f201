"""Batched `generate`, for machines without vLLM and as the measure of it. Batches never cross blocks.

Every row draws from a generator of its own, so a completion does not depend on the batch that it is drawn in.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from pipeline.artifacts import Model
from pipeline.backends import COUNT_EVERY, Completion, OnTokens, Request
from pipeline.backends.chat import Chat
from pipeline.backends.stopping import EndOfRows
from pipeline.config import Limits, TransformersBackend

if TYPE_CHECKING:
    import torch


class Transformers:
    def __init__(self, cfg: TransformersBackend, policy: Model):
        self.cfg = cfg
        self.text = Chat(policy)
        self.module: Any = None

    def start(self, model: Model, limits: Limits) -> Self:
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
        self.take(module.to("cuda" if torch.cuda.is_available() else "cpu").eval(), limits)
        return self

    def take(self, module: Any, limits: Limits, in_step: bool = False) -> None:
        """Draw from a module that is loaded, such as one in training.

        `in_step`: its weights are shared by processes, of which each goes on until the last has drawn its rows.
        """
        from transformers import GenerationConfig

        # The checkpoint's own generation_config would add penalties and cuts that nobody asked for here.
        module.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=limits.completion,
            eos_token_id=self.text.stops,
            pad_token_id=self.text.pad,
        )
        self.module, self.in_step = module, in_step

    def generate(
        self, blocks: Iterable[list[Request]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion]:
        size = self.cfg.runtime.batch
        for block in blocks:
            by_length = sorted(block, key=lambda request: len(request.prompt_token_ids))
            for start in range(0, len(by_length), size):
                yield from self._draw(by_length[start : start + size], on_tokens)

    def _draw(self, batch: list[Request], on_tokens: OnTokens | None) -> list[Completion]:
        import torch

        ids, mask = self._padded([request.prompt_token_ids for request in batch])
        draws = Draws(batch, self.module.device)
        steps = [draws, TokenCount(self.text.stops, batch, on_tokens)] if on_tokens else [draws]
        with torch.no_grad():  # inference_mode would mark what a module in training caches
            ends = EndOfRows(self.text, batch, ids.shape[1])
            shaped = {"logits_processor": steps, "stopping_criteria": [ends] if ends else []}
            rows = self.module.generate(
                input_ids=ids, attention_mask=mask, synced_gpus=self.in_step, **shaped
            )
        drawn = [
            row[:end] for row, end in zip(rows[:, ids.shape[1] :].tolist(), ends.at, strict=True)
        ]
        logprobs = torch.stack(draws.logprobs, dim=1).double().cpu()
        return [self._completion(*row) for row in zip(batch, drawn, logprobs, strict=True)]

    def _padded(self, prompts: list[list[int]]) -> "tuple[torch.Tensor, torch.Tensor]":
        import torch

        width = max(map(len, prompts))
        ids = [[self.text.pad] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(ids, device=self.module.device), torch.tensor(
            mask, device=self.module.device
        )

    def _completion(
        self, request: Request, drawn: list[int], logprobs: "torch.Tensor"
    ) -> Completion:
        stop = next((at for at, token in enumerate(drawn) if token in self.text.stops), None)
        tokens = drawn if stop is None else drawn[: stop + 1]
        logprob = logprobs[: len(tokens)].sum().item()
        return Completion(request.sample_id, tokens, logprob, "length" if stop is None else "stop")

    def close(self) -> None:
        self.module = None


class TokenCount:
    """A logits processor that tells now and then how far a batch is, and changes nothing."""

    def __init__(self, stops: list[int], batch: list[Request], on_tokens: OnTokens):
        self._stops, self._on_tokens = set(stops), on_tokens
        self._ids = [request.sample_id for request in batch]
        self._width: int | None = (
            None  # of the prompts, which is all that there is at the first token
        )
        self._counted = time.monotonic()

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        if self._width is None:
            self._width = input_ids.shape[1]
        if time.monotonic() - self._counted >= COUNT_EVERY:
            rows = input_ids[:, self._width :].tolist()
            self._on_tokens(dict(zip(self._ids, map(self._length, rows), strict=True)))
            self._counted = time.monotonic()
        return scores

    def _length(self, drawn: list[int]) -> int:
        """Up to the stop token, after which a row is only filled up."""
        return next((at + 1 for at, token in enumerate(drawn) if token in self._stops), len(drawn))


class Draws:
    """A logits processor that chooses each row's next token by the row's own chances and keeps its raw log-probability.

    The largest of `log p + Gumbel noise` is a draw from p; greedy search is left with one token to take.
    """

    def __init__(self, batch: list[Request], device: "torch.device"):
        import torch

        self.temperature = torch.tensor(
            [request.temperature for request in batch], device=device
        ).unsqueeze(1)
        self.top_p = torch.tensor([request.top_p for request in batch], device=device).unsqueeze(1)
        self.min_p = torch.tensor([request.min_p for request in batch], device=device).unsqueeze(1)
        self.generators = [
            torch.Generator(device).manual_seed(r.seed) if r.temperature else None for r in batch
        ]
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        logits = scores.float()
        chosen = self._choose(logits)
        self.logprobs.append(logits.log_softmax(-1).gather(1, chosen).squeeze(1))
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen, 0.0)

    def _choose(self, logits: "torch.Tensor") -> "torch.Tensor":
        import torch

        greedy = self.temperature == 0
        logprobs = (logits / torch.where(greedy, 1.0, self.temperature)).log_softmax(-1)
        logprobs = torch.where(
            greedy, logprobs, self._nucleus(self._likely(logprobs)) + self._noise(logits)
        )
        return logprobs.argmax(-1, keepdim=True)

    def _likely(self, logprobs: "torch.Tensor") -> "torch.Tensor":
        """The tokens that are at least min_p times as likely as the likeliest, as they share the probability."""
        import torch

        if (self.min_p == 0).all():
            return logprobs
        outside = logprobs < logprobs.max(-1, keepdim=True).values + self.min_p.log()
        return torch.where(
            self.min_p == 0, logprobs, logprobs.masked_fill(outside, -torch.inf).log_softmax(-1)
        )

    def _nucleus(self, logprobs: "torch.Tensor") -> "torch.Tensor":
        """The smallest set of likeliest tokens that holds top_p of the probability; the others at minus infinity."""
        import torch

        if (self.top_p == 1).all():
            return logprobs
        ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
        likelier = ordered.exp().cumsum(-1) - ordered.exp()
        outside = (likelier >= self.top_p) & (self.top_p < 1)
        return logprobs.masked_fill(
            torch.zeros_like(outside).scatter_(1, order, outside), -torch.inf
        )

    def _noise(self, logits: "torch.Tensor") -> "torch.Tensor":
        import torch

        noise = torch.ones_like(logits)
        for row, generator in zip(noise, self.generators, strict=True):
            if generator is not None:
                row.exponential_(generator=generator)
        return -noise.log()
