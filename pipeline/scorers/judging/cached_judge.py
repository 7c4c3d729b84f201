"""Asks a judge what the store does not know, within its budget, and reads every reply."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.config import EngineConfig, Judge, VllmEngine
from pipeline.errors import pluralize
from pipeline.hashing import ContentCache, drop_runtime, hash_json
from pipeline.progress import SIGN, Progress
from pipeline.scorers.judging import Engine, Question, Reply, open_engine
from pipeline.scorers.judging.budget import Budget
from pipeline.scorers.judging.parsing import Reading, read
from pipeline.scorers.judging.template import Wording
from pipeline.scorers.judging.verdict_cache import Asker, VerdictStore
from pipeline.text import strip_reasoning

POLL = 0.5  # seconds between two looks for a verdict that another process is asking for


class CachedJudge:
    """`needs` are the words that its template has to use, `knob` is where the person's config has this judge.

    The engine starts with the first question that it has to ask.
    """

    def __init__(self, cfg: Judge, needs: set[str], knob: str):
        self.cfg, self.knob = cfg, f"{knob}.engine"
        self.wording = Wording(cfg.template, needs, cfg.form, cfg.seed)
        self.store = VerdictStore(cfg.runtime.verdicts)
        self.budget = Budget(name_of(cfg.engine), cfg.engine, self.store, self.knob)
        self.identity = _identity(cfg)
        self.who = Asker(
            name_of(cfg.engine), cfg.engine.revision or "", hash_json(self.wording.text)[:16]
        )
        self.engine: Engine | None = None

    def shown(self, completion: str) -> str:
        return strip_reasoning(completion) if self.cfg.strip_reasoning else completion

    def readings(self, questions: Sequence[Question]) -> list[Reading]:
        """One for each question, in their order; equal questions are asked once."""
        keys = [self._key(question) for question in questions]
        question_of = dict(zip(keys, questions, strict=True))
        known = self.store.known(question_of)
        readings = {key: self._read(question_of[key], reply) for key, reply in known.items()}
        if unknown := {key: question for key, question in question_of.items() if key not in known}:
            readings |= self._ask(unknown, len(known))
        return [readings[key] for key in keys]

    def _ask(self, unknown: dict[str, Question], known: int) -> dict[str, Reading]:
        self.engine = self.engine or open_engine(self.cfg.engine, self.cfg.form, self.knob)
        progress = Progress(f"judge {self.who.judge}", known + len(unknown), "verdicts")
        progress.resume_at(known)
        key_of = {question: key for key, question in unknown.items()}
        readings, waiting = dict[str, Reading](), deque(unknown.values())
        others, others_before = deque[Question](), 0  # that another process is asking now

        def hear(question: Question, reply: Reply) -> None:
            """Written down before anything else happens: it is paid for."""
            key = key_of[question]
            readings[key] = self._read(question, self.store.keep(key, self.who, question, reply))
            self.budget.settle(question, reply)
            progress.advance(1, **self.budget.facts())

        def claimed(question: Question) -> bool:
            """Whether it is ours to ask: another process may be asking it, or have its answer by now."""
            found = self.store.claim(key_of[question])
            if isinstance(found, Reply):
                readings[key_of[question]] = self._read(question, found)
                progress.advance(1, **self.budget.facts())
            elif not found:
                others.append(question)
            return found is True

        try:
            while waiting or others:
                self.engine.ask(self._admitted(waiting, claimed), hear)
                if waiting:
                    self.budget.check(waiting[0])
                elif others:
                    others_before = self._wait(len(others), others_before)
                    waiting, others = others, deque()
        finally:
            self.store.give_up()
        return readings

    def _wait(self, others: int, before: int) -> int:
        if others != before:
            said = f"judge {self.who.judge}: another run asks for {pluralize(others, 'verdict')}"
            print(SIGN, said, file=sys.stderr, flush=True)
        time.sleep(POLL)
        return others

    def _read(self, question: Question, reply: Reply) -> Reading:
        return read(reply, question.labels, self.cfg.form)

    def _admitted(
        self, waiting: deque[Question], claimed: Callable[[Question], bool]
    ) -> Iterator[Question]:
        """Until one does not fit beside those in flight: whether it fits at all is known when they have come in."""
        while waiting:
            if not claimed(waiting[0]):
                waiting.popleft()
            elif self.budget.against(waiting[0]):
                return
            else:
                self.budget.admit(waiting[0])
                yield waiting.popleft()

    def _key(self, question: Question) -> str:
        return hash_json(
            [self.identity, [dict(message) for message in question.messages], question.labels]
        )

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.store.close()


def name_of(engine: EngineConfig) -> str:
    """A model's name, or that of the folder in which it lies: never the whole path."""
    return (
        Path(engine.model).name
        if isinstance(engine, VllmEngine) and engine.model.local
        else str(engine.model)
    )


def _identity(cfg: Judge) -> str:
    """What a verdict depends on beside the words of its question: never where a server or a folder is."""
    told = drop_runtime(cfg.engine.model_dump(mode="json"))
    if isinstance(cfg.engine, VllmEngine) and cfg.engine.model.local:
        hashes = ContentCache(cfg.runtime.verdicts.parent / ".contents.json")
        told["model"] = f"content:{hashes.hash_path(Path(cfg.engine.model))}"
    return hash_json([told, cfg.form])
