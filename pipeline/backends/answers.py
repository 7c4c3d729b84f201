"""Published answers as a backend: a model's answers from a file, in place of asking it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from pipeline.artifacts import Model
from pipeline.backends import Completion, CompletionRequest, FailedRequest, OnTokens
from pipeline.backends.chat import ModelTokenizer
from pipeline.config import AnswersFile, Limits
from pipeline.data.published_answers import (
    describe_other_questions,
    find_answer,
    list_questions,
    read_published_answers,
)
from pipeline.errors import StageError


class AnswersReader:
    def __init__(self, cfg: AnswersFile, policy: Model, knob: str):
        self.cfg, self.knob = cfg, knob
        self.tokenizer = ModelTokenizer(policy)
        self.answers: dict[str, list[str]] = {}

    def start(self, model: Model, limits: Limits) -> Self:
        self.answers = read_published_answers(self.cfg, self.knob)
        return self

    def generate(
        self, blocks: Iterable[list[CompletionRequest]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion | FailedRequest]:
        found = 0
        for block in blocks:
            for request in block:
                result = self._find_answer(request)
                found += isinstance(result, Completion)
                yield result
        if not found:
            raise StageError(describe_other_questions(self.cfg, self.knob, len(self.answers)))

    def _find_answer(self, request: CompletionRequest) -> Completion | FailedRequest:
        asked = list_questions(request.messages)
        text = find_answer(self.answers, asked)
        if text is None:
            what = f"turn {len(asked)} of this prompt" if len(asked) > 1 else "this prompt"
            reason = f"{Path(self.cfg.file).name} does not answer {what}"
            return FailedRequest(request.sample_id, reason)
        ids = [*self.tokenizer.encode_literal(text), self.tokenizer.eos]
        return Completion(request.sample_id, ids, None, "stop", text)

    def close(self) -> None:
        self.answers = {}
