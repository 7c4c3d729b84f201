"""Published answers as a backend: a model's answers from a file, in place of asking it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from pipeline.artifacts import Model
from pipeline.backends import Completion, CompletionRequest, FailedRequest, OnTokens
from pipeline.backends.chat import ModelTokenizer
from pipeline.config import AnswersFile, Limits
from pipeline.data.published_answers import read_published_answers
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
            raise StageError(
                f"{self.knob}.file={self.cfg.file}: none of its {len(self.answers)} questions is"
                " among the prompts that it is compared on.\n"
                "  Give the answers of this evaluation's own prompts, or this benchmark's questions"
                " as prompts.evaluation."
            )

    def _find_answer(self, request: CompletionRequest) -> Completion | FailedRequest:
        asked = [message["content"] for message in request.messages if message["role"] == "user"]
        answers = self.answers.get(asked[0].strip(), []) if asked else []
        if len(answers) < len(asked):
            what = f"turn {len(asked)} of this prompt" if len(asked) > 1 else "this prompt"
            reason = f"{Path(self.cfg.file).name} does not answer {what}"
            return FailedRequest(request.sample_id, reason)
        text = answers[len(asked) - 1]
        ids = [*self.tokenizer.encode_literal(text), self.tokenizer.eos]
        return Completion(request.sample_id, ids, None, "stop", text)

    def close(self) -> None:
        self.answers = {}
