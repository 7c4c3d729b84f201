"""Asks a judge what the store does not know, within its budget, and reads every reply."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.config import EngineConfig, Judge, VllmEngine
from pipeline.content import ContentCache, digest_of
from pipeline.progress import Progress
from pipeline.reasoning import without_reasoning
from pipeline.scorers.judging import Engine, Question, Reply, open_engine
from pipeline.scorers.judging.budget import Budget
from pipeline.scorers.judging.reading import Reading, read
from pipeline.scorers.judging.template import Wording
from pipeline.scorers.judging.verdicts import Asker, VerdictStore


class Court:
    """`needs` are the words that its template has to use. The engine starts with the first question it has to ask."""

    def __init__(self, cfg: Judge, needs: set[str]):
        self.cfg = cfg
        self.wording = Wording(cfg.template, needs, cfg.form, cfg.seed)
        self.store = VerdictStore(cfg.runtime.verdicts)
        self.budget = Budget(name_of(cfg.engine), cfg.engine, self.store)
        self.identity = _identity(cfg)
        self.who = Asker(name_of(cfg.engine), cfg.engine.revision or "", digest_of(self.wording.text)[:16])
        self.engine: Engine | None = None

    def shown(self, completion: str) -> str:
        return without_reasoning(completion) if self.cfg.strip_reasoning else completion

    def readings(self, questions: Sequence[Question]) -> list[Reading]:
        """One for each question, in their order; equal questions are asked once."""
        keys = [self._key(question) for question in questions]
        replies = self.store.known(dict.fromkeys(keys))
        unknown = {key: question for key, question in zip(keys, questions, strict=True) if key not in replies}
        if unknown:
            replies |= self._ask(unknown, known=len(replies))
        return [
            read(replies[key], question.labels, self.cfg.form) for key, question in zip(keys, questions, strict=True)
        ]

    def _ask(self, unknown: dict[str, Question], known: int) -> dict[str, Reply]:
        self.engine = self.engine or open_engine(self.cfg.engine, self.cfg.form)
        progress = Progress(f"judge {self.who.judge}", known + len(unknown), "verdicts")
        progress.resume_at(known)
        key_of = {question: key for key, question in unknown.items()}
        replies, waiting = {}, deque(unknown.values())
        while waiting:
            self.budget.check(waiting[0])
            for question, reply in self.engine.ask(self._admitted(waiting)):
                replies[key_of[question]] = self.store.keep(key_of[question], self.who, question, reply)
                self.budget.settle(question, reply)
                progress.advance(1, **self.budget.facts())
        return replies

    def _admitted(self, waiting: deque[Question]) -> Iterator[Question]:
        """Until one does not fit beside those in flight: whether it fits at all is known when they have come in."""
        while waiting and not self.budget.against(waiting[0]):
            self.budget.admit(waiting[0])
            yield waiting.popleft()

    def _key(self, question: Question) -> str:
        return digest_of([self.identity, [dict(message) for message in question.messages], question.labels])

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.store.close()


def name_of(engine: EngineConfig) -> str:
    """A model's name, or that of the folder in which it lies: never the whole path."""
    return Path(engine.model).name if isinstance(engine, VllmEngine) and engine.model.local else str(engine.model)


def _identity(cfg: Judge) -> str:
    """What a verdict depends on beside the words of its question: never where a server or a folder is."""
    told = cfg.engine.model_dump(mode="json", exclude={"runtime"})
    if isinstance(cfg.engine, VllmEngine) and cfg.engine.model.local:
        hashes = ContentCache(cfg.runtime.verdicts.parent / ".contents.json")
        told["model"] = f"content:{hashes.of(Path(cfg.engine.model))}"
    return digest_of([told, cfg.form])
