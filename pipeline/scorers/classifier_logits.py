"""Raw logits of a sequence classifier for rows of token ids.

By transformers, or by vLLM's pooling runner. A row's logits do not depend on what shares its batch:
they are read at the row's own last token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipeline.backends import vllm_engine
from pipeline.config import RewardModelScorer
from pipeline.errors import UserError
from pipeline.models.batching import batch_by_length
from pipeline.models.strict_loading import load_strict
from pipeline.scorers.reward_text import EncodedRow

Logits = list[float]


@dataclass(frozen=True)
class ClassifierSource:
    """Where a classifier is, as `from_pretrained` opens it."""

    weights: Path | str
    revision: str | None
    remote_code: bool


class PoolingEngine(Protocol):
    def compute_logits(self, rows: list[EncodedRow]) -> list[Logits]: ...

    def close(self) -> None: ...


def open_engine(
    cfg: RewardModelScorer,
    source: ClassifierSource,
    tokenizer: Any,
    limit: int,
    knob: str = "score.scorers.NAME",
) -> PoolingEngine:
    if cfg.engine == "transformers":
        return TransformersPooling(cfg, source, tokenizer)
    return VllmPooling(cfg, source, limit, knob)


# ── transformers ────────────────────────────────────────────────────────────────────────────────


class TransformersPooling:
    def __init__(self, cfg: RewardModelScorer, source: ClassifierSource, tokenizer: Any):
        import torch
        from transformers import AutoModelForSequenceClassification

        module = load_strict(AutoModelForSequenceClassification, source, cfg.dtype)
        self.module = module.eval().requires_grad_(False)
        self.module.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pad = find_pad_token(self.module, tokenizer)
        self.batch_tokens = cfg.runtime.batch_tokens

    def compute_logits(self, rows: list[EncodedRow]) -> list[Logits]:
        return forward_in_batches(self.module, self.pad, rows, self.batch_tokens)

    def close(self) -> None:
        self.module = None


def find_pad_token(module: Any, tokenizer: Any) -> int:
    """The id to pad with.

    A model with a head on every token is masked, so that any id does. Other models derive
    positions from the pad token.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    if not hasattr(module, "score"):
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has no pad token, and this kind of model"
            " needs it to find the text.\n"
            "  Set pad_token in tokenizer_config.json to the one it was trained with."
        )
    return 0


def forward_in_batches(
    module: Any, pad: int, rows: list[EncodedRow], batch_tokens: int
) -> list[Logits]:
    found: list[Logits] = [[] for _ in rows]
    for batch in batch_by_length([len(row.ids) for row in rows], batch_tokens):
        values = _forward(module, pad, [rows[index] for index in batch])
        for index, value in zip(batch, values.float().tolist(), strict=True):
            found[index] = value
    return found


def _forward(module: Any, pad: int, rows: list[EncodedRow]) -> Any:
    import torch

    width = max(len(row.ids) for row in rows)
    lengths = torch.tensor([len(row.ids) for row in rows], device=module.device)

    def stack(values: list[list[int]], filler: int) -> Any:
        return torch.tensor(
            [one + [filler] * (width - len(one)) for one in values], device=module.device
        )

    inputs = {"input_ids": stack([row.ids for row in rows], pad)}
    inputs["attention_mask"] = (torch.arange(width, device=module.device) < lengths[:, None]).long()
    if rows[0].segments is not None:
        inputs["token_type_ids"] = stack([row.segments or [] for row in rows], 0)
    with torch.no_grad(), capture_token_logits(module) as captured:
        pooled = module(**inputs).logits
    # transformers reads the last token other than pad: the wrong one where a text ends with pad.
    return captured[-1][torch.arange(len(rows)), lengths - 1] if captured else pooled


@contextmanager
def capture_token_logits(module: Any) -> Iterator[list[Any]]:
    """The head's logits at each token, for models that pool after their head."""
    captured: list[Any] = []

    def capture(_module: Any, _inputs: Any, values: Any) -> None:
        if values.dim() == 3:
            captured.append(values)

    config = module.config.get_text_config()
    before = config.pad_token_id
    config.pad_token_id = before or 0  # without one the model takes no batch
    hook = module.score.register_forward_hook(capture) if hasattr(module, "score") else None
    try:
        yield captured
    finally:
        config.pad_token_id = before
        if hook:
            hook.remove()


# ── vLLM ────────────────────────────────────────────────────────────────────────────────────────


def _missing_vllm(knob: str, error: ImportError) -> UserError:
    return UserError(
        f"{knob}.engine=vllm: vLLM cannot be imported here ({error}).\n"
        f"  Run `make install`, or give {knob}.engine=transformers."
    )


class VllmPooling:
    def __init__(self, cfg: RewardModelScorer, source: ClassifierSource, limit: int, knob: str):
        place = vllm_engine.open_platform(partial(_missing_vllm, knob))
        vllm_engine.check_weights_path(source.weights)
        device = place.device_arguments(cfg.runtime.memory, cpu_cache_gib=1)
        if place.on_cpu:
            device["enable_chunked_prefill"] = False
        from vllm import EngineArgs, LLMEngine
        from vllm.config import PoolerConfig

        arguments = EngineArgs(
            model=str(source.weights),
            revision=source.revision,
            trust_remote_code=source.remote_code,
            runner="pooling",
            # Raw logits: a sigmoid flattens what is far from zero.
            pooler_config=PoolerConfig(use_activation=False),
            skip_tokenizer_init=True,  # its input is token ids
            dtype=cfg.dtype,
            max_model_len=limit,
            max_num_batched_tokens=max(limit, cfg.runtime.batch_tokens),
            enable_prefix_caching=False,
            seed=0,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **device,
        )
        self.engine: Any = LLMEngine.from_engine_args(arguments)

    def compute_logits(self, rows: list[EncodedRow]) -> list[Logits]:
        from vllm import PoolingParams

        for index, row in enumerate(rows):
            prompt = {"type": "token", "prompt_token_ids": row.ids}
            parameters = PoolingParams(task="classify", use_activation=False)
            self.engine.add_request(str(index), prompt, parameters)
        found: dict[int, Logits] = {}
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished:
                    found[int(output.request_id)] = output.outputs.data.tolist()
        return [found[index] for index in range(len(rows))]

    def close(self) -> None:
        self.engine.engine_core.shutdown()
        self.engine = None
