"""What a policy in training says by itself: answers to fixed dev prompts, how far they are from the reference's."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pipeline.artifacts import Model, Prompts
from pipeline.backends import Completion, Request
from pipeline.backends.transformers import Transformers
from pipeline.config import Limits, TrainConfig, TransformersBackend
from pipeline.errors import StageError
from pipeline.hashing import digest_of
from pipeline.models import loading
from pipeline.progress import Progress
from pipeline.resources import model_shape, training_fit
from pipeline.scorers import Answer, open_scorer
from pipeline.training.distributed import collectives, sharded
from pipeline.training.distributed.collectives import logps_of_all
from pipeline.training.monitoring.callbacks import phase
from pipeline.training.monitoring.early_stopping import KL, SCORE, TOKENS

Row = tuple[dict[str, Any], Request]

SHOWN = 4  # answers that a person reads


class EvalGenerations:
    """The same prompts and the same seeds at each look: what differs is the policy."""

    def __init__(self, cfg: TrainConfig, init: Model, held_to: Model, dev: Prompts):
        self.cfg, self.init, self.held_to = cfg, init, held_to
        self.limits = Limits(prompt=cfg.max_length, completion=cfg.guards.tokens)
        backend = {
            "kind": "transformers",
            "dtype": cfg.dtype,
            "runtime": {"batch": training_fit.ANSWERS_AT_ONCE},
        }
        self.engine = Transformers(TransformersBackend(**backend), init)
        self.at_once = _at_once(cfg, init)
        self.rows = list(self._fitting(dev))
        self.columns = dev.columns()
        self.scorer = (
            open_scorer(cfg.guards.scorer, knob="train.guards.scorer")
            if cfg.guards.scorer
            else None
        )

    def _fitting(self, dev: Prompts) -> Iterator[Row]:
        """The first prompts that leave room for an answer; longer ones are no prompts of this experiment."""
        found = 0
        for row in dev.read().iter_rows(named=True):
            ids = self.engine.text.encode(row["prompt"], self.cfg.guards.template_kwargs)
            if (
                found < self.cfg.guards.prompts
                and len(ids) + self.cfg.guards.tokens <= self.cfg.max_length
            ):
                found += 1
                seed = int(digest_of([self.cfg.seed, "guard", row["prompt_id"]])[:16], 16) >> 1
                yield row, Request(row["prompt_id"], ids, temperature=1.0, top_p=1.0, seed=seed)

    def look(self, trainer: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """The figures, and the answers that are shown. Several processes draw, read and score together."""
        step = trainer.state.global_step
        trainer.model.eval()
        with trainer.compute_loss_context_manager():
            drawn = self._drawn(trainer.model, sharded.is_sharded(trainer), step)
            phase(f"looking at step {step}: the KL of its own answers")
            here = self._logps(trainer.model, drawn)
            there = self._reference_logps(trainer, drawn)
        give_memory_back()
        texts = [self.engine.text.decode(one) for one in drawn]
        kl = fmean(a - b for a, b in zip(here, there, strict=True))
        figures = {KL: kl, TOKENS: fmean(len(one.token_ids) for one in drawn)}
        if self.scorer:
            figures[SCORE] = self._score(drawn, texts)
        shown = [
            {"prompt_id": row["prompt_id"], "prompt": row["prompt"][-1]["content"], "answer": text}
            for (row, _), text in zip(self.rows[:SHOWN], texts, strict=False)
        ]
        return figures, shown

    def _drawn(self, policy: Any, in_step: bool, step: int = 0) -> list[Completion]:
        own, blocks = policy.generation_config, self._blocks()
        phase(f"looking at step {step}: its own answers")
        watch = AnswersLine(step, sum(map(len, blocks)), self.limits.completion)
        try:
            self.engine.take(policy, self.limits, in_step)
            drawn = collectives.pooled(
                {one.sample_id: one for one in watch.through(self.engine, blocks)}
            )
        finally:
            self.engine.close()
            policy.generation_config = own
        return [drawn[request.sample_id] for _, request in self.rows]

    def _blocks(self) -> list[list[Request]]:
        """As many in each process, whatever room its own device has: those that share weights draw block by block."""
        by_length = sorted(
            (request for _, request in self.rows), key=lambda one: len(one.prompt_token_ids)
        )
        mine, each = collectives.in_step(by_length), min(collectives.gathered([self.at_once]))
        return [mine[at : at + each] for at in range(0, len(mine), each)]

    def _reference_logps(self, trainer: Any, drawn: list[Completion]) -> list[float]:
        """Of its own, so that nothing names a loaded reference any more when memory is given back."""
        with reference_of(self.cfg, trainer, self.init, self.held_to) as reference:
            return self._logps(reference, drawn)

    def _logps(self, module: Any, drawn: list[Completion]) -> list[float]:
        prompts = [request.prompt_token_ids for _, request in self.rows]
        return logps_of_all(module, prompts, [one.token_ids for one in drawn], self.cfg.max_length)

    def _score(self, drawn: list[Completion], texts: list[str]) -> float:
        """Each answer is marked by one process: whether code ends in time may differ, and all have to stop alike."""
        assert self.scorer
        answers = [
            Answer(
                one.sample_id,
                row["prompt_id"],
                row["prompt"],
                text,
                self.columns[row["prompt_id"]],
                len(one.token_ids),
            )
            for (row, _), one, text in zip(self.rows, drawn, texts, strict=True)
        ]
        mine = self.scorer.mark(collectives.share(answers))
        whole = collectives.gathered([mark for mark in mine if not mark.criterion])
        if failed := [mark for mark in whole if mark.score is None]:
            raise StageError(
                f"train.guards.scorer could not mark {len(failed)} of {len(whole)} answers ({failed[0].detail}).\n"
                f"  Give a scorer that marks every answer to a dev prompt, or train.guards.scorer=null."
            )
        return fmean(mark.score for mark in whole if mark.score is not None)


class AnswersLine:
    """`▸ train, look at step 0: 32/64 answers · 1200 of at most 8192 tokens`, by one process for its own share."""

    def __init__(self, step: int, answers: int, limit: int):
        self._most, self._tokens, self._limit = answers * limit, 0, limit
        self._line = Progress(f"train, look at step {step}:", answers, "answers")
        self._speaks = os.environ.get("RANK", "0") == "0"

    def through(self, engine: Transformers, blocks: list[list[Request]]) -> Iterator[Completion]:
        for one in engine.generate(blocks, self._count):
            self._tokens += len(one.token_ids)
            self._most -= self._limit - len(one.token_ids)  # what it did not need
            self._show(1, self._tokens)
            yield one

    def _count(self, under_way: Mapping[str, int]) -> None:
        self._show(0, self._tokens + sum(under_way.values()))

    def _show(self, done: int, tokens: int) -> None:
        if self._speaks:
            self._line.advance(done, drawn=f"{tokens} of at most {self._most} tokens")


def _at_once(cfg: TrainConfig, init: Model) -> int:
    """As many as fit beside the weights and the optimizer's state, which stay where they are."""
    shape = model_shape.read_shape(Path(init.weights))
    return (
        training_fit.choose_answer_batch(shape, cfg, training_fit.ANSWERS_AT_ONCE)
        if shape
        else training_fit.ANSWERS_AT_ONCE
    )


@contextmanager
def reference_of(cfg: TrainConfig, trainer: Any, init: Model, held_to: Model) -> Iterator[Any]:
    """The policy without its adapter where that is it, or the one that the trainer asks; else loaded for this look."""
    if loading.is_bare_base(trainer.model, init, held_to):
        with trainer.model.disable_adapter():
            yield trainer.model
    elif cfg.keeps_reference:
        yield trainer.ref_model
    elif sharded.is_sharded(trainer):
        with sharded.loaded(trainer, held_to, cfg.dtype) as reference:
            yield reference
    else:
        yield loading.load(held_to, cfg.dtype, getattr(cfg.adapter, "quantization", None))


def give_memory_back() -> None:
    """To the device: what a loaded reference held there would else stay with this process."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(step: int, shown: list[dict[str, Any]], file: Path) -> None:
    """Into the artifact; the log has them in short."""
    import json
    import sys

    with file.open("a") as lines:
        for each in shown:
            lines.write(json.dumps({"step": step, **each}, ensure_ascii=False) + "\n")
            print(
                f"  step {step} · {each['prompt'][:60]!r} → {each['answer'][:100]!r}",
                file=sys.stderr,
            )
