"""A sequence classifier's raw logit for each answer.

It is opened with the first shard, and probed with four texts.

One label: its logit. Two: logit 1 − logit 0, the log-odds. A named label: that label's own logit.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.artifacts import Model
from pipeline.config import RewardModelScorer
from pipeline.errors import StageError, UserError, suggest
from pipeline.resources import open_models
from pipeline.scorers import Answer, Score
from pipeline.scorers.classifier_logits import ClassifierSource, Logits, PoolingEngine, open_engine
from pipeline.scorers.reward_text import EncodedRow, RewardEncoder, UnreadableText
from pipeline.text import strip_reasoning

# Of different lengths, so that they are padded when they share a batch.
PROBES = (
    ("Name a colour.", "Red."),
    ("What do otters eat?", "Mostly fish, and now and then a crab."),
    (
        "Describe the river.",
        "The river is slow and wide. In spring it takes the lower fields, and nobody minds.",
    ),
    ("How many days has a week?", "I do not know, and I will not say."),
)
# How far the score of a text alone and in a batch may differ, relative to 1 + its size.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


class RewardModel:
    def __init__(
        self, cfg: RewardModelScorer, reward: Model | None, knob: str = "score.scorers.NAME"
    ):
        self.cfg, self.reward, self.knob = cfg, reward, knob
        self.engine: PoolingEngine | None = None
        self.engine_key: tuple[Any, ...]
        self.encoder: RewardEncoder
        self.read_score: Callable[[Logits], float]

    def score(self, answers: list[Answer]) -> Iterator[Score]:
        engine = self.engine or self._open()
        rows: dict[str, EncodedRow] = {}
        for answer in answers:
            text = answer.completion
            if self.cfg.strip_reasoning:
                text = strip_reasoning(text)
            try:
                rows[answer.sample_id] = self.encoder.encode(answer.prompt, text)
            except UnreadableText as fault:
                yield Score(answer.sample_id, None, detail=str(fault))
        all_logits = engine.compute_logits([*rows.values()])
        for (sample_id, row), logits in zip(rows.items(), all_logits, strict=True):
            yield _make_score(sample_id, self.read_score(logits), row.tokens_cut)

    def close(self) -> None:
        if self.engine:
            open_models.park(self.engine_key, self.engine, self.engine.close)

    def _open(self) -> PoolingEngine:
        from transformers import AutoConfig

        cfg, knob = self.cfg, self.knob
        source, tokenizer = self._find_checkpoint()
        name = str(source.weights)
        config = AutoConfig.from_pretrained(
            source.weights, revision=source.revision, trust_remote_code=source.remote_code
        )
        self.read_score = make_reader(config.id2label, cfg.label, name, knob)
        limit = _find_length_limit(cfg.max_length, config, tokenizer, knob)
        self.encoder = RewardEncoder(tokenizer, cfg.input, cfg.template.kwargs, limit, knob)
        probes = encode_probes(self.encoder, name, knob)
        self.engine_key = "score", source, limit, cfg.dtype, cfg.engine, cfg.runtime
        load = partial(open_engine, cfg, source, tokenizer, limit, knob)
        self.engine = open_models.borrow(self.engine_key, load)
        check_probes(self.engine, probes, self.read_score, cfg.dtype, name, knob)
        return self.engine

    def _find_checkpoint(self) -> tuple[ClassifierSource, Any]:
        from pipeline.models.checkpoint import locate_classifier, open_tokenizer

        cfg, reward = self.cfg, self.reward
        if cfg.model is not None:
            folder, _ = locate_classifier(cfg.model, cfg.revision, cfg.trust)
            source, tokenizer = ClassifierSource(folder, None, cfg.trust.remote_code), folder
        elif reward is not None:
            source = ClassifierSource(reward.weights, reward.revision, reward.remote_code)
            tokenizer = reward.tokenizer
        else:
            raise UserError(
                f"{self.knob}: a scorer of kind reward_model has no model.\n"
                f"  Give {self.knob}.model=NAME, or reward=checkpoint reward.model=NAME."
            )
        return (
            source,
            open_tokenizer(
                tokenizer, cfg.template.chat_template, str(source.weights), source.remote_code
            ),
        )


def _make_score(sample_id: str, score: float, tokens_cut: int) -> Score:
    if not math.isfinite(score):
        return Score(sample_id, None, detail=f"the reward model gave {score}")
    return Score(sample_id, score, detail=json.dumps({"cut": tokens_cut}) if tokens_cut else "")


def make_reader(
    labels: dict[int, str], label: str | None, name: str, knob: str = "score.scorers.NAME"
) -> Callable[[Logits], float]:
    """How a model's logits become one number."""
    index_of = {text: index for index, text in labels.items()}
    if label is not None:
        if label not in index_of:
            raise UserError(f"{name}: it has no label {label}. {suggest(label, list(index_of))}")
        return lambda logits: logits[index_of[label]]
    match len(labels):
        case 1:
            return lambda logits: logits[0]
        case 2:
            return lambda logits: logits[1] - logits[0]
        case several:
            raise UserError(
                f"{name}: it has {several} labels ({', '.join(index_of)});"
                " a reward model has one or two.\n"
                f"  Give {knob}.label=LABEL, the one whose logit is the score."
            )


def _find_length_limit(wanted: int | None, config: Any, tokenizer: Any, knob: str) -> int:
    """The model's context. The tokenizer's limit excludes positions that are reserved."""
    context = min(
        getattr(config.get_text_config(), "max_position_embeddings", 1 << 30),
        tokenizer.model_max_length,
    )
    if wanted is not None and wanted > context:
        raise UserError(
            f"{knob}.max_length={wanted}: this reward model can see {context} tokens."
            " Give that, or null."
        )
    return wanted or context


def encode_probes(
    encoder: RewardEncoder, name: str, knob: str = "score.scorers.NAME"
) -> list[EncodedRow]:
    try:
        return [
            encoder.encode([{"role": "user", "content": question}], answer)
            for question, answer in PROBES
        ]
    except UnreadableText as fault:
        raise UserError(
            f"{name}: it cannot read one question and its answer: {fault}.\n"
            f"  Give {knob}.template.chat_template=FILE (or {knob}.template.kwargs),"
            f" or {knob}.input=pair."
        ) from fault


def check_probes(
    engine: PoolingEngine,
    rows: list[EncodedRow],
    read_score: Callable[[Logits], float],
    dtype: str,
    name: str,
    knob: str = "score.scorers.NAME",
) -> None:
    """Check before a long job that scores are numbers, differ, and do not depend on the batch."""
    in_batch = [read_score(logits) for logits in engine.compute_logits(rows)]
    alone = [read_score(engine.compute_logits([row])[0]) for row in rows]
    if not all(map(math.isfinite, in_batch)):
        raise StageError(
            f"{name}: it gives {in_batch} for four plain texts.\n"
            f"  Try {knob}.dtype=float32; if that does not help, the model is broken."
        )
    if max(in_batch) == min(in_batch):
        raise UserError(
            f"{name}: it gives {in_batch[0]} for each of four different texts.\n"
            "  Its input or its template is not what it was trained on:"
            f" try {knob}.input=pair, or chat."
        )
    gap = max(abs(a - b) / (1 + abs(b)) for a, b in zip(in_batch, alone, strict=True))
    if gap > TOLERANCE[dtype]:
        raise StageError(
            f"{name}: four texts score differently in a batch and alone (by {gap:.2g}):"
            f" {in_batch} and {alone}.\n"
            "  Its padding is wrong: set pad_token in tokenizer_config.json to the one that it was"
            " trained with."
        )
