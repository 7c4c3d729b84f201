"""One model in a chat: its conversation so far, and its next answer, token by token.

It samples as a run does, and its prompts are the ids that training and evaluation use.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.backends import Completion, CompletionRequest, Message
from pipeline.backends.chat import ModelTokenizer
from pipeline.backends.transformers import TransformersSampler
from pipeline.commands.find_model import FoundModel
from pipeline.config import BatchRuntime, Limits, TransformersBackend
from pipeline.errors import UserError
from pipeline.models import loading
from pipeline.sampling.stop_strings import cut_at_stop

OnText = Callable[[str], None]


@dataclass(frozen=True)
class ChatSettings:
    temperature: float
    top_p: float
    min_p: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...]
    system: str | None
    template_kwargs: dict[str, Any]
    dtype: str


class Speaker:
    def __init__(self, found: FoundModel, settings: ChatSettings):
        self.name, self.settings = found.name, settings
        backend = TransformersBackend(
            kind="transformers", dtype=settings.dtype, runtime=BatchRuntime(batch=1)
        )
        self.sampler = TransformersSampler(backend, found.model)
        self.tokenizer: ModelTokenizer = self.sampler.tokenizer
        self.module = loading.load(found.model, settings.dtype)
        self.reset()

    def reset(self) -> None:
        system = self.settings.system
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turn = 0

    def answer(self, question: str, on_text: OnText) -> str:
        """Answer and remember both. Ctrl-C ends an answer: its text so far counts, if any."""
        asked = [*self.messages, {"role": "user", "content": question}]
        request = self._build_request(asked)
        streamer = TextStreamer(self.tokenizer, self.settings.stop, on_text)
        try:
            self.sampler.stream(request, streamer)
        except KeyboardInterrupt:
            streamer.end()
            if not streamer.text:
                return ""
        self.messages = [*asked, {"role": "assistant", "content": streamer.text}]
        self.turn += 1
        return streamer.text

    def _build_request(self, messages: list[Message]) -> CompletionRequest:
        settings = self.settings
        ids = self.tokenizer.encode(messages, settings.template_kwargs)
        room = (self.tokenizer.context or len(ids) + settings.max_tokens) - len(ids)
        if room < 1:
            raise UserError(
                f"{self.name}: this conversation has {len(ids)} tokens, and the model reads at most"
                f" {self.tokenizer.context} with its answer.\n"
                "  Type /reset to begin a new one."
            )
        limits = Limits(prompt=len(ids), completion=min(room, settings.max_tokens))
        self.sampler.use_module(self.module, limits)
        return CompletionRequest(
            self.name,
            ids,
            settings.temperature,
            settings.top_p,
            settings.seed + self.turn,
            settings.min_p,
            settings.stop,
        )


class TextStreamer:
    """Gives `on_text` what each new token adds to the answer's text.

    It holds back what later tokens may change: half a character, or the start of a stop string.
    """

    def __init__(self, tokenizer: ModelTokenizer, stops: tuple[str, ...], on_text: OnText):
        self.text = ""
        self._tokenizer, self._stops, self._on_text = tokenizer, [*stops], on_text
        self._held_back = max((len(stop) - 1 for stop in stops), default=0)
        self._ids: list[int] | None = None  # None until the prompt has come

    def put(self, value: Any) -> None:
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        text = self._decode()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._show(text[: len(text) - self._held_back])

    def end(self) -> None:
        self._show(self._decode())

    def _show(self, text: str) -> None:
        if text.startswith(self.text) and len(text) > len(self.text):
            added, self.text = text[len(self.text) :], text
            self._on_text(added)

    def _decode(self) -> str:
        ids = self._ids or []
        is_stopped = bool(ids) and ids[-1] in self._tokenizer.stop_ids
        completion = Completion("", ids, None, "stop" if is_stopped else "length")
        if self._stops:
            completion, _ = cut_at_stop(self._tokenizer, self._stops, completion)
        return self._tokenizer.decode(completion)
