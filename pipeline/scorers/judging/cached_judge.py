"""Asks a judge what the store does not know, within its budget, and parses every response."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import AnswerJudge, EngineConfig, Judge, VllmEngine
from pipeline.errors import pluralize
from pipeline.hashing import ContentCache, drop_runtime, hash_json
from pipeline.progress import Progress, print_progress
from pipeline.scorers.judging import JudgeEngine, JudgeRequest, Response, open_engine
from pipeline.scorers.judging.batch_journal import BatchJournal
from pipeline.scorers.judging.batches import BatchCollector
from pipeline.scorers.judging.budget import JudgeBudget
from pipeline.scorers.judging.parsing import Verdict, parse_verdict
from pipeline.scorers.judging.template import REFERENCE, JudgeTemplate
from pipeline.scorers.judging.verdict_cache import VerdictSource, VerdictStore
from pipeline.text import strip_reasoning

POLL = 0.5  # seconds between two checks for a verdict that another process has requested


class CachedJudge:
    """`fields` are what its template has to use, `knob` is where the user's config has this judge.

    The engine starts with the first request that it has to send.
    """

    def __init__(self, cfg: Judge, fields: set[str], knob: str):
        self.cfg, self.knob = cfg, f"{knob}.engine"
        self.template = JudgeTemplate(cfg.template, fields, cfg.form, cfg.seed)
        self.reference_template: JudgeTemplate | None = None
        if isinstance(cfg, AnswerJudge) and cfg.reference_column:
            self.reference_template = JudgeTemplate(
                cfg.reference_template, {*fields, REFERENCE}, cfg.form, cfg.seed
            )
        self.store = VerdictStore(cfg.runtime.verdicts)
        name = get_engine_name(cfg.engine)
        self.budget = JudgeBudget(name, cfg.engine, self.store, self.knob)
        self.identity = _hash_identity(cfg)
        texts = [one.text for one in (self.template, self.reference_template) if one]
        hashed = hash_json(texts if len(texts) > 1 else texts[0])[:16]
        self.source = VerdictSource(name, cfg.engine.revision or "", hashed)
        self.engine: JudgeEngine | None = None
        self.journal = BatchJournal(self.store) if cfg.engine.batch else None
        self.batches: BatchCollector | None = None
        self._requested = set[str]()  # the keys of what this process has sent

    def prepare_answer(self, completion: str) -> str:
        """An answer as the judge reads it."""
        return strip_reasoning(completion) if self.cfg.strip_reasoning else completion

    def build_request(
        self,
        judged: Mapping[str, str],
        reference: str | None,
        labels: tuple[str, ...],
        order: str = "",
        /,
        **fields: Any,
    ) -> JudgeRequest:
        """`judged` are the untrusted texts; a reference, where there is one, has its template."""
        if reference is None or self.reference_template is None:
            return self.template.build_request(judged, labels, order, **fields)
        texts = {**judged, REFERENCE: reference}
        return self.reference_template.build_request(texts, labels, order, **fields)

    def get_verdicts(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """One for each request, in their order. Equal requests are sent once."""
        keys = [self._hash_request(request) for request in requests]
        request_of = dict(zip(keys, requests, strict=True))
        known = self._load_usable(request_of)
        verdicts = {key: self._parse(request_of[key], response) for key, response in known.items()}
        if unknown := {key: request for key, request in request_of.items() if key not in known}:
            if self.cfg.engine.batch:
                verdicts |= self._collect_batches(unknown)
            else:
                verdicts |= self._request_verdicts(unknown, len(known))
        return [verdicts[key] for key in keys]

    def _load_usable(self, request_of: Mapping[str, JudgeRequest]) -> dict[str, Response]:
        """The known responses. An earlier run's one without a verdict is forgotten.

        So the same command asks again once the judge is fixed; not while it waits for a batch.
        """
        known = self.store.load_responses(request_of)
        unusable = {
            key: response
            for key, response in known.items()
            if key not in self._requested and self._parse(request_of[key], response).fault
        }
        if self.journal:
            collected = self.journal.load_collected(unusable)
            unusable = {key: one for key, one in unusable.items() if key not in collected}
        if unusable:
            self.store.forget(unusable)
        return {key: response for key, response in known.items() if key not in unusable}

    def _collect_batches(self, unknown: dict[str, JudgeRequest]) -> dict[str, Verdict]:
        """Raises WorkPending until each request was answered in a batch."""
        assert self.journal and not isinstance(self.cfg.engine, VllmEngine)
        if self.batches is None:
            form, knob = self.cfg.form, self.knob
            self.batches = BatchCollector(
                self.cfg.engine, form, knob, self.journal, self.source, self.budget
            )
        responses = self.batches.collect(unknown)
        self._requested |= responses.keys()
        return {key: self._parse(unknown[key], one) for key, one in responses.items()}

    def _request_verdicts(self, unknown: dict[str, JudgeRequest], known: int) -> dict[str, Verdict]:
        self.engine = self.engine or open_engine(self.cfg.engine, self.cfg.form, self.knob)
        progress = Progress(f"judge {self.source.judge}", known + len(unknown), "verdicts")
        progress.resume_at(known)
        key_of = {request: key for key, request in unknown.items()}
        verdicts, waiting = dict[str, Verdict](), deque(unknown.values())
        # Requests that another process has claimed, and how many there were at the last check.
        elsewhere, elsewhere_before = deque[JudgeRequest](), 0

        def on_response(request: JudgeRequest, response: Response) -> None:
            """Save it before anything else: it is paid for."""
            key = key_of[request]
            self._requested.add(key)
            saved = self.store.save(key, self.source, request, response)
            verdicts[key] = self._parse(request, saved)
            self.budget.record(request, response)
            progress.advance(1, **self.budget.describe())

        def claim(request: JudgeRequest) -> bool:
            """Whether this process is to send it.

            Another one may have claimed it, or have its response by now.
            """
            found = self.store.claim(key_of[request])
            if isinstance(found, Response):
                verdicts[key_of[request]] = self._parse(request, found)
                progress.advance(1, **self.budget.describe())
            elif not found:
                elsewhere.append(request)
            return found is True

        try:
            while waiting or elsewhere:
                self.engine.send_requests(self._admit_requests(waiting, claim), on_response)
                if waiting:
                    self.budget.check(waiting[0])
                elif elsewhere:
                    elsewhere_before = self._wait_for_others(len(elsewhere), elsewhere_before)
                    waiting, elsewhere = elsewhere, deque()
        finally:
            self.store.release_claims()
        return verdicts

    def _wait_for_others(self, count: int, before: int) -> int:
        if count != before:
            note = f"judge {self.source.judge}: another run asks for {pluralize(count, 'verdict')}"
            print_progress(note)
        time.sleep(POLL)
        return count

    def _parse(self, request: JudgeRequest, response: Response) -> Verdict:
        return parse_verdict(response, request.labels, self.cfg.form)

    def _admit_requests(
        self, waiting: deque[JudgeRequest], claim: Callable[[JudgeRequest], bool]
    ) -> Iterator[JudgeRequest]:
        """Until one does not fit with those in flight.

        Whether it fits at all is known once they are back.
        """
        while waiting:
            if not claim(waiting[0]):
                waiting.popleft()
            elif self.budget.find_blocking_cap(waiting[0]):
                return
            else:
                self.budget.admit(waiting[0])
                yield waiting.popleft()

    def _hash_request(self, request: JudgeRequest) -> str:
        messages = [dict(message) for message in request.messages]
        return hash_json([self.identity, messages, request.labels])

    def close(self) -> None:
        for opened in (self.engine, self.batches):
            if opened is not None:
                opened.close()
        self.store.close()


def get_engine_name(engine: EngineConfig) -> str:
    """The model's name, or that of its folder, but never the whole path."""
    if isinstance(engine, VllmEngine) and engine.model.is_local:
        return Path(engine.model).name
    return str(engine.model)


def _hash_identity(cfg: Judge) -> str:
    """What a verdict depends on apart from the text of its request.

    Where a server or a folder is does not count.
    """
    outside = set(cfg.engine.outside_identity)
    values = drop_runtime(cfg.engine.model_dump(mode="json", exclude=outside))
    if isinstance(cfg.engine, VllmEngine) and cfg.engine.model.is_local:
        hashes = ContentCache(cfg.runtime.verdicts.parent / ".contents.json")
        values["model"] = f"content:{hashes.hash_path(Path(cfg.engine.model))}"
    return hash_json([values, cfg.form])
