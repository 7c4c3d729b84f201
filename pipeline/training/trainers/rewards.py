"""The reward of online training: the round's scorers, called for each batch of sampled answers.

One process scores the answers of all, whole prompts at a time: a judge's budget is counted once,
and scorers that compare a prompt's answers see them together.
"""

from contextlib import ExitStack
from typing import Any

from pipeline.artifacts import Model, Prompts
from pipeline.backends import Completion
from pipeline.backends.chat import ModelTokenizer
from pipeline.config import OnlineTraining
from pipeline.errors import StageError, pluralize
from pipeline.models import loading
from pipeline.scorers import Answer, Score, open_scorer
from pipeline.scorers.joint import score_jointly
from pipeline.training.distributed.collectives import merge_results, rank_and_size
from pipeline.training.monitoring.guards import warn

Place = tuple[int, int]  # a process, and the number of an answer there
FAILED = "rewards/failed"  # in the log: the share of a batch's answers that have no score


class Rewards:
    """TRL calls it as a reward function. A failed score is None there: it moves nothing."""

    __name__ = "reward"  # TRL's metrics are named by it

    def __init__(
        self,
        cfg: OnlineTraining,
        init: Model,
        prompts: Prompts,
        reward_model: Model | None,
    ):
        self.cfg = cfg
        self.tokenizer = ModelTokenizer(init, loading.load_tokenizer(init))
        self.columns = prompts.read_columns()
        self._open = ExitStack()
        self.scorers = {}
        for name, block in cfg.score.scorers.items():
            if name not in cfg.score.joint_scorers:
                self.scorers[name] = open_scorer(block, reward_model, f"score.scorers.{name}")
                self._open.callback(self.scorers[name].close)

    def close(self) -> None:
        self._open.close()

    def __call__(
        self, *, completion_ids: list[list[int]], prompt_id: list[str], log_metric: Any, **row: Any
    ) -> list[float | None]:
        rank, _ = rank_and_size()
        rows = zip(prompt_id, row["prompts"], completion_ids, strict=True)
        own = {(rank, at): self._read_answer(rank, at, *each) for at, each in enumerate(rows)}
        answers = merge_results(own)
        scores = self._score([*answers.values()]) if rank == 0 else {}
        known = merge_results(scores)
        failed = [one for one in known.values() if one.score is None and not one.abstained]
        state = row["trainer_state"]
        if rank == 0 and not state.global_step:
            self._warn_of_equal([*answers.values()], known)
        log_metric(FAILED, len(failed) / len(known))
        self._check_failures(failed, len(known), state)
        return [known[answer.sample_id].score for answer in own.values()]

    def _read_answer(
        self, rank: int, at: int, prompt_id: str, prompt: list[Any], ids: list[int]
    ) -> Answer:
        ended = ids[-1:] and ids[-1] in self.tokenizer.stop_ids
        drawn = Completion(f"{rank}-{at}", ids, None, "stop" if ended else "length")
        return Answer(
            drawn.sample_id,
            prompt_id,
            prompt,
            self.tokenizer.decode(drawn),
            self.columns[prompt_id],
            len(ids),
        )

    def _score(self, answers: list[Answer]) -> dict[str, Score]:
        """By sample id, in the order in which processes hold the prompts' neighbours."""
        whole = {
            name: {one.sample_id: one for one in scorer.score(answers) if not one.criterion}
            for name, scorer in self.scorers.items()
        }
        if joint := self.cfg.score.joint_scorers.get(self.cfg.reward):
            scores = score_jointly(joint, answers, whole)
            return {one.sample_id: one for one in scores if not one.criterion}
        return whole[self.cfg.reward]

    def _warn_of_equal(self, answers: list[Answer], known: dict[str, Score]) -> None:
        """Of the first batch: a reward that never differs trains to the end for nothing."""
        groups: dict[str, set[float | None]] = {}
        for answer in answers:
            groups.setdefault(answer.prompt_id, set()).add(known[answer.sample_id].score)
        if any(len(scores) > 1 for scores in groups.values()):
            return
        warn(
            f"the first answers to each of {pluralize(len(groups), 'prompt')} have equal rewards by"
            f" {self.cfg.reward}: there is nothing to learn from them. Check pair.scorer on a few"
            " answers, or sample more and warmer ones (sample.settings.NAME.n and temperature)"
        )

    def _check_failures(self, failed: list[Score], answers: int, state: Any) -> None:
        """Stops where more fail than may fail in the whole training.

        Those of earlier batches, of the same size, are in the log that checkpoints carry.
        """
        earlier = sum(row.get(FAILED, 0.0) for row in state.log_history)
        count = round(earlier * answers) + len(failed)
        planned = state.max_steps * self.cfg.batch // self.cfg.passes
        if not failed or count <= self.cfg.score.max_failed * planned:
            return
        raise StageError(
            f"train: {count} of {planned} rewards by {self.cfg.reward} failed already"
            f" ({failed[0].detail}). The limit is score.max_failed={self.cfg.score.max_failed}.\n"
            "  Fix the scorer, or raise the limit, and run the same command again: it resumes from"
            " the newest checkpoint."
        )
