"""Answers that a policy in training generates to fixed dev prompts, and their KL and score."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pipeline.artifacts import Model, Prompts
from pipeline.backends import Completion, CompletionRequest
from pipeline.backends.transformers import TransformersSampler
from pipeline.config import Limits, TrainConfig, TransformersBackend
from pipeline.errors import StageError
from pipeline.hashing import hash_json
from pipeline.models import loading
from pipeline.progress import Progress
from pipeline.resources import model_shape, training_fit
from pipeline.scorers import Answer, open_scorer
from pipeline.training.distributed import collectives, sharded
from pipeline.training.distributed.collectives import gather_logps
from pipeline.training.monitoring.callbacks import report_phase
from pipeline.training.monitoring.early_stopping import KL, SCORE, TOKENS

Row = tuple[dict[str, Any], CompletionRequest]

SHOWN_ANSWERS = 4  # answers per evaluation in answers.jsonl, for reading


class EvalGenerations:
    """Uses the same prompts and seeds at every evaluation: only the policy differs."""

    def __init__(self, cfg: TrainConfig, init: Model, reference: Model, dev: Prompts):
        self.cfg, self.init, self.reference = cfg, init, reference
        self.limits = Limits(prompt=cfg.max_length, completion=cfg.guards.tokens)
        backend = {
            "kind": "transformers",
            "dtype": cfg.dtype,
            "runtime": {"batch": training_fit.ANSWERS_AT_ONCE},
        }
        self.engine = TransformersSampler(TransformersBackend(**backend), init)
        self.batch_size = _fit_batch_size(cfg, init)
        self.rows = list(self._select_prompts(dev))
        self.columns = dev.read_columns()
        self.scorer = None
        if cfg.guards.scorer:
            self.scorer = open_scorer(cfg.guards.scorer, knob=f"{cfg.knob}.guards.scorer")

    def _select_prompts(self, dev: Prompts) -> Iterator[Row]:
        """The first prompts that leave room for an answer within `max_length`."""
        found = 0
        for row in dev.read().iter_rows(named=True):
            ids = self.engine.tokenizer.encode(row["prompt"], self.cfg.guards.template_kwargs)
            fits = len(ids) + self.cfg.guards.tokens <= self.cfg.max_length
            if fits and found < self.cfg.guards.prompts:
                found += 1
                seed = int(hash_json([self.cfg.seed, "guard", row["prompt_id"]])[:16], 16) >> 1
                yield (
                    row,
                    CompletionRequest(row["prompt_id"], ids, temperature=1.0, top_p=1.0, seed=seed),
                )

    def evaluate(self, trainer: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """The figures, and the answers to show. Several processes share all of the work."""
        step = trainer.state.global_step
        trainer.model.eval()
        with trainer.compute_loss_context_manager():
            drawn = self._generate(trainer.model, sharded.is_sharded(trainer), step)
            report_phase(f"evaluation at step {step}: KL of the generated answers")
            policy_logps = self._compute_logps(trainer.model, drawn)
            reference_logps = self._compute_reference_logps(trainer, drawn)
        free_device_memory()
        texts = self.engine.tokenizer.decode_all(drawn)
        # The mean log-ratio of answers sampled from the policy estimates KL(policy ‖ reference).
        kl = fmean(p - r for p, r in zip(policy_logps, reference_logps, strict=True))
        figures = {KL: kl, TOKENS: fmean(len(one.token_ids) for one in drawn)}
        if self.scorer:
            figures[SCORE] = self._score_answers(drawn, texts)
        shown = [
            {"prompt_id": row["prompt_id"], "prompt": row["prompt"][-1]["content"], "answer": text}
            for (row, _), text in zip(self.rows[:SHOWN_ANSWERS], texts, strict=False)
        ]
        return figures, shown

    def _generate(self, policy: Any, in_step: bool, step: int = 0) -> list[Completion]:
        generation_config, blocks = policy.generation_config, self._split_into_batches()
        report_phase(f"evaluation at step {step}: generating answers")
        progress = GenerationProgress(step, sum(map(len, blocks)), self.limits.completion)
        try:
            self.engine.use_module(policy, self.limits, in_step)
            drawn = collectives.merge_results(
                {one.sample_id: one for one in progress.track(self.engine, blocks)}
            )
        finally:
            self.engine.close()
            policy.generation_config = generation_config
        return [drawn[request.sample_id] for _, request in self.rows]

    def _split_into_batches(self) -> list[list[CompletionRequest]]:
        """This process's requests in batches, of the size that fits the fullest device.

        Processes that share weights generate batch by batch: each has the same number of each size.
        """
        by_length = sorted(
            (request for _, request in self.rows), key=lambda one: len(one.prompt_token_ids)
        )
        own = collectives.take_equal_share(by_length)
        size = min(collectives.gather_rows([self.batch_size]))
        return [own[start : start + size] for start in range(0, len(own), size)]

    def _compute_reference_logps(self, trainer: Any, drawn: list[Completion]) -> list[float]:
        """Its locals alone hold a loaded reference, so that returning frees the memory."""
        with open_reference(self.cfg, trainer, self.init, self.reference) as reference:
            return self._compute_logps(reference, drawn)

    def _compute_logps(self, module: Any, drawn: list[Completion]) -> list[float]:
        prompts = [request.prompt_token_ids for _, request in self.rows]
        return gather_logps(module, prompts, [one.token_ids for one in drawn], self.cfg.max_length)

    def _score_answers(self, drawn: list[Completion], texts: list[str]) -> float:
        """The mean score. One process scores each answer, so that all processes decide alike.

        Scored twice, code may run out of time once and not the other time.
        """
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
        own = self.scorer.score(collectives.take_share(answers))
        scores = collectives.gather_rows([score for score in own if not score.criterion])
        if failed := [score for score in scores if score.score is None]:
            knob = f"{self.cfg.knob}.guards.scorer"
            raise StageError(
                f"{knob} could not score {len(failed)} of {len(scores)} answers"
                f" ({failed[0].detail}).\n"
                f"  Give a scorer that scores every answer to a dev prompt, or {knob}=null."
            )
        return fmean(score.score for score in scores if score.score is not None)


class GenerationProgress:
    """`▸ train, evaluation at step 0: 32/64 answers · drawn 1200 of at most 8192 tokens`.

    The first process prints it, for its own share.
    """

    def __init__(self, step: int, answers: int, limit: int):
        self._most, self._tokens, self._limit = answers * limit, 0, limit
        self._line = Progress(f"train, evaluation at step {step}:", answers, "answers")
        self._is_first_process = os.environ.get("RANK", "0") == "0"

    def track(
        self, engine: TransformersSampler, blocks: list[list[CompletionRequest]]
    ) -> Iterator[Completion]:
        for one in engine.generate(blocks, self._show_in_flight):
            self._tokens += len(one.token_ids)
            self._most -= self._limit - len(one.token_ids)  # what this answer did not need
            self._show(1, self._tokens)
            yield one

    def _show_in_flight(self, in_flight: Mapping[str, int]) -> None:
        self._show(0, self._tokens + sum(in_flight.values()))

    def _show(self, done: int, tokens: int) -> None:
        if self._is_first_process:
            self._line.advance(done, drawn=f"{tokens} of at most {self._most} tokens")


def _fit_batch_size(cfg: TrainConfig, init: Model) -> int:
    """How many answers fit into the memory that weights and optimizer state leave."""
    shape = model_shape.read_shape(Path(init.weights))
    if not shape:
        return training_fit.ANSWERS_AT_ONCE
    return training_fit.choose_answer_batch(shape, cfg, training_fit.ANSWERS_AT_ONCE)


@contextmanager
def open_reference(cfg: TrainConfig, trainer: Any, init: Model, reference: Model) -> Iterator[Any]:
    """The reference model for one evaluation.

    The policy without its adapter where that is the reference, or the trainer's own reference;
    otherwise load it.
    """
    if loading.is_bare_base(trainer.model, init, reference):
        with trainer.model.disable_adapter():
            yield trainer.model
    elif cfg.keeps_reference:
        yield trainer.ref_model
    elif sharded.is_sharded(trainer):
        with sharded.load_sharded(trainer, reference, cfg.dtype) as module:
            yield module
    else:
        yield loading.load(reference, cfg.dtype, getattr(cfg.adapter, "quantization", None))


def free_device_memory() -> None:
    """Return a loaded reference's memory to the device: this process would keep it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def record_answers(step: int, answers: list[dict[str, Any]], file: Path) -> None:
    """Append the answers to the artifact's file, and print their beginnings to the log."""
    import json
    import sys

    with file.open("a") as lines:
        for row in answers:
            lines.write(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n")
            short = f"{row['prompt'][:60]!r} → {row['answer'][:100]!r}"
            print(f"  step {step} · {short}", file=sys.stderr)
