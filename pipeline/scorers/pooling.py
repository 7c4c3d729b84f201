"""Raw logits of a sequence classifier for rows of token ids: by transformers, or by vLLM's pooling runner.

A row's logits do not depend on what shares its batch: each is read at the row's own last token.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import RewardModelScorer
from pipeline.errors import UserError
from pipeline.models.batching import batch_by_length
from pipeline.models.strict_loading import load_strict
from pipeline.scorers.reward_text import Row

Logits = list[float]


@dataclass(frozen=True)
class Place:
    """Where a classifier lies, as `from_pretrained` opens it."""

    weights: Path | str
    revision: str | None
    remote_code: bool


class Engine(Protocol):
    def logits(self, rows: list[Row]) -> list[Logits]: ...

    def close(self) -> None: ...


def open_engine(
    cfg: RewardModelScorer,
    place: Place,
    tokenizer: Any,
    limit: int,
    knob: str = "score.scorers.NAME",
) -> Engine:
    if cfg.engine == "transformers":
        return TransformersPooling(cfg, place, tokenizer)
    return VllmPooling(cfg, place, limit, knob)


# ── transformers ──────────────────────────────────────────────────────────────────────────────────────────────────


class TransformersPooling:
    def __init__(self, cfg: RewardModelScorer, place: Place, tokenizer: Any):
        import torch
        from transformers import AutoModelForSequenceClassification

        self.module = (
            load_strict(AutoModelForSequenceClassification, place, cfg.dtype)
            .eval()
            .requires_grad_(False)
        )
        self.module.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pad = pad_for(self.module, tokenizer)
        self.batch_tokens = cfg.runtime.batch_tokens

    def logits(self, rows: list[Row]) -> list[Logits]:
        return forward(self.module, self.pad, rows, self.batch_tokens)

    def close(self) -> None:
        self.module = None


def pad_for(module: Any, tokenizer: Any) -> int:
    """A model whose head sees every token is masked, so any id does; others place their positions by their own."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    if not hasattr(module, "score"):
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has no pad token, and this kind of model finds its words by it.\n"
            f"  Set pad_token in tokenizer_config.json to the one it was trained with."
        )
    return 0


def forward(module: Any, pad: int, rows: list[Row], batch_tokens: int) -> list[Logits]:
    found: list[Logits] = [[] for _ in rows]
    for batch in batch_by_length([len(row.ids) for row in rows], batch_tokens):
        values = _logits(module, pad, [rows[index] for index in batch])
        for index, value in zip(batch, values.float().tolist(), strict=True):
            found[index] = value
    return found


def _logits(module: Any, pad: int, rows: list[Row]) -> Any:
    import torch

    width = max(len(row.ids) for row in rows)
    lengths = torch.tensor([len(row.ids) for row in rows], device=module.device)

    def padded(values: list[list[int]], filler: int) -> Any:
        return torch.tensor(
            [one + [filler] * (width - len(one)) for one in values], device=module.device
        )

    told = {"input_ids": padded([row.ids for row in rows], pad)}
    told["attention_mask"] = (torch.arange(width, device=module.device) < lengths[:, None]).long()
    if rows[0].segments is not None:
        told["token_type_ids"] = padded([row.segments or [] for row in rows], 0)
    with torch.no_grad(), every_token(module) as seen:
        pooled = module(**told).logits
    # transformers reads the last token that is no pad token: the wrong one where a text ends with that token.
    return seen[-1][torch.arange(len(rows)), lengths - 1] if seen else pooled


@contextmanager
def every_token(module: Any) -> Iterator[list[Any]]:
    """What the head says at each token, of models that pool after their head."""
    seen: list[Any] = []

    def keep(_module: Any, _inputs: Any, values: Any) -> None:
        if values.dim() == 3:
            seen.append(values)

    config = module.config.get_text_config()
    known, config.pad_token_id = (
        config.pad_token_id,
        config.pad_token_id or 0,
    )  # without one it takes no batch
    hook = module.score.register_forward_hook(keep) if hasattr(module, "score") else None
    try:
        yield seen
    finally:
        config.pad_token_id = known
        if hook:
            hook.remove()


# ── vLLM ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class VllmPooling:
    def __init__(self, cfg: RewardModelScorer, place: Place, limit: int, knob: str):
        from pipeline.backends.vllm import (
            ENVIRONMENT,
            ENVIRONMENT_EAGER,
            ENVIRONMENT_ON_CPU,
            GIB,
        )

        os.environ |= {**ENVIRONMENT, **os.environ}
        try:
            from vllm import EngineArgs, LLMEngine
            from vllm.config import PoolerConfig
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(
                f"{knob}.engine=vllm: vLLM cannot be imported here ({error}).\n"
                f"  Run `make install`, or give {knob}.engine=transformers."
            ) from error
        placed: dict[str, Any] = {"gpu_memory_utilization": cfg.runtime.memory}
        if current_platform.is_cpu():
            os.environ |= {**ENVIRONMENT_ON_CPU, **ENVIRONMENT_EAGER, **os.environ}
            placed = {
                "enforce_eager": True,
                "kv_cache_memory_bytes": GIB,
                "enable_chunked_prefill": False,
            }
        arguments = EngineArgs(
            model=str(place.weights),
            revision=place.revision,
            trust_remote_code=place.remote_code,
            runner="pooling",
            pooler_config=PoolerConfig(
                use_activation=False
            ),  # a sigmoid flattens what is far from zero
            skip_tokenizer_init=True,  # ids go in
            dtype=cfg.dtype,
            max_model_len=limit,
            max_num_batched_tokens=max(limit, cfg.runtime.batch_tokens),
            enable_prefix_caching=False,
            seed=0,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **placed,
        )
        self.engine: Any = LLMEngine.from_engine_args(arguments)

    def logits(self, rows: list[Row]) -> list[Logits]:
        from vllm import PoolingParams

        for at, row in enumerate(rows):
            prompt = {"type": "token", "prompt_token_ids": row.ids}
            self.engine.add_request(
                str(at), prompt, PoolingParams(task="classify", use_activation=False)
            )
        found: dict[int, Logits] = {}
        while self.engine.has_unfinished_requests():
            done = [output for output in self.engine.step() if output.finished]
            found |= {int(output.request_id): output.outputs.data.tolist() for output in done}
        return [found[at] for at in range(len(rows))]

    def close(self) -> None:
        self.engine.engine_core.shutdown()
        self.engine = None
