"""A sequence classifier gives each answer its raw logit. It is opened with the first shard, after a look at four texts.

One label: its logit. Two: logit 1 − logit 0, the log-odds. A named label: that label's own logit.
"""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.artifacts import Model
from pipeline.config import RewardModelScorer
from pipeline.errors import StageError, UserError, nearest
from pipeline.scorers import Answer, Score
from pipeline.scorers.pooling import Engine, Logits, Place, open_engine
from pipeline.scorers.reward_text import RewardText, Row, Unreadable
from pipeline.text import without_reasoning

# Unlike in length, so that they are padded when they share a batch.
PROBES = (
    ("Name a colour.", "Red."),
    ("What do otters eat?", "Mostly fish, and now and then a crab."),
    (
        "Describe the river.",
        "The river is slow and wide. In spring it takes the lower fields, and nobody minds.",
    ),
    ("How many days has a week?", "I do not know, and I will not say."),
)
AGREE = {
    "float32": 1e-4,
    "bfloat16": 5e-2,
    "float16": 1e-2,
}  # of a score of 1, alone and beside others


class RewardModel:
    def __init__(
        self, cfg: RewardModelScorer, reward: Model | None, knob: str = "score.scorers.NAME"
    ):
        self.cfg, self.reward, self.knob = cfg, reward, knob
        self.engine: Engine | None = None
        self.text: RewardText
        self.read: Callable[[Logits], float]

    def mark(self, answers: list[Answer]) -> Iterator[Score]:
        engine = self.engine or self._start()
        rows: dict[str, Row] = {}
        for answer in answers:
            said = (
                without_reasoning(answer.completion)
                if self.cfg.strip_reasoning
                else answer.completion
            )
            try:
                rows[answer.sample_id] = self.text.row(answer.prompt, said)
            except Unreadable as fault:
                yield Score(answer.sample_id, None, detail=str(fault))
        for (sample_id, row), logits in zip(
            rows.items(), engine.logits([*rows.values()]), strict=True
        ):
            yield _mark(sample_id, self.read(logits), row.cut)

    def close(self) -> None:
        if self.engine:
            self.engine.close()

    def _start(self) -> Engine:
        from transformers import AutoConfig

        place, tokenizer = self._opened()
        config = AutoConfig.from_pretrained(
            place.weights, revision=place.revision, trust_remote_code=place.remote_code
        )
        self.read = reader(config.id2label, self.cfg.label, str(place.weights), self.knob)
        limit = _limit(self.cfg.max_length, config, tokenizer, self.knob)
        self.text = RewardText(
            tokenizer, self.cfg.input, self.cfg.template.kwargs, limit, self.knob
        )
        probes = probe_rows(self.text, str(place.weights), self.knob)
        self.engine = open_engine(self.cfg, place, tokenizer, limit, self.knob)
        check_probes(self.engine, probes, self.read, self.cfg.dtype, str(place.weights), self.knob)
        return self.engine

    def _opened(self) -> tuple[Place, Any]:
        from pipeline.models.checkpoint import locate_classifier, open_tokenizer

        cfg, reward = self.cfg, self.reward
        if cfg.model is not None:
            folder, _ = locate_classifier(cfg.model, cfg.revision, cfg.trust)
            place, tokenizer = Place(folder, None, cfg.trust.remote_code), folder
        elif reward is not None:
            place, tokenizer = (
                Place(reward.weights, reward.revision, reward.remote_code),
                reward.tokenizer,
            )
        else:
            raise UserError(
                f"{self.knob}: a scorer of kind reward_model has no model.\n"
                f"  Give {self.knob}.model=NAME, or reward=checkpoint reward.model=NAME."
            )
        return place, open_tokenizer(
            tokenizer, cfg.template.chat_template, str(place.weights), place.remote_code
        )


def _mark(sample_id: str, score: float, cut: int) -> Score:
    if not math.isfinite(score):
        return Score(sample_id, None, detail=f"the reward model gave {score}")
    return Score(sample_id, score, detail=json.dumps({"cut": cut}) if cut else "")


def reader(
    labels: dict[int, str], label: str | None, name: str, knob: str = "score.scorers.NAME"
) -> Callable[[Logits], float]:
    """How a model's labels become one number."""
    places = {text: place for place, text in labels.items()}
    if label is not None:
        if label not in places:
            raise UserError(f"{name}: it has no label {label}. {nearest(label, list(places))}")
        return lambda logits: logits[places[label]]
    match len(labels):
        case 1:
            return lambda logits: logits[0]
        case 2:
            return lambda logits: logits[1] - logits[0]
        case several:
            raise UserError(
                f"{name}: it has {several} labels ({', '.join(places)}); a reward model has one or two.\n"
                f"  Give {knob}.label=LABEL, the one whose logit is the score."
            )


def _limit(wanted: int | None, config: Any, tokenizer: Any, knob: str) -> int:
    """What the model can see; the tokenizer knows of positions that are taken by others."""
    seen = min(
        getattr(config.get_text_config(), "max_position_embeddings", 1 << 30),
        tokenizer.model_max_length,
    )
    if wanted is not None and wanted > seen:
        raise UserError(
            f"{knob}.max_length={wanted}: this reward model can see {seen} tokens. Give that, or null."
        )
    return wanted or seen


def probe_rows(text: RewardText, name: str, knob: str = "score.scorers.NAME") -> list[Row]:
    try:
        return [
            text.row([{"role": "user", "content": question}], answer) for question, answer in PROBES
        ]
    except Unreadable as fault:
        raise UserError(
            f"{name}: one question and its answer cannot be put to it: {fault}.\n"
            f"  Give {knob}.template.chat_template=FILE (or {knob}.template.kwargs), or {knob}.input=pair."
        ) from fault


def check_probes(
    engine: Engine,
    rows: list[Row],
    read: Callable[[Logits], float],
    dtype: str,
    name: str,
    knob: str = "score.scorers.NAME",
) -> None:
    """Before a long job: numbers, not all alike, and the same alone as beside others."""
    together = [read(logits) for logits in engine.logits(rows)]
    alone = [read(engine.logits([row])[0]) for row in rows]
    if not all(map(math.isfinite, together)):
        raise StageError(
            f"{name}: it gives {together} for four plain texts.\n  Try {knob}.dtype=float32; else it is broken."
        )
    if max(together) == min(together):
        raise UserError(
            f"{name}: it gives {together[0]} for each of four unlike texts: it tells nothing apart.\n"
            f"  Its input or its template is not what it was trained on: try {knob}.input=pair, or chat."
        )
    gap = max(abs(a - b) / (1 + abs(b)) for a, b in zip(together, alone, strict=True))
    if gap > AGREE[dtype]:
        raise StageError(
            f"{name}: four texts score otherwise together than alone (by {gap:.2g}): {together} and {alone}.\n"
            f"  Its padding is wrong: set pad_token in tokenizer_config.json to the one that it was trained with."
        )
