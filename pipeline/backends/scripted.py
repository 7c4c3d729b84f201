"""A backend without model, tokenizer or torch: completions are a function of prompt ids and seed. For tests.

Token 0 ends a completion; a prompt has a token a word, as many as real ones, so that the same limits fit it; an
answer's words are syllables.
"""

import math
import random
from collections.abc import Iterable, Iterator
from typing import Any, Self
from zlib import crc32

from pipeline.artifacts import Model
from pipeline.backends import Completion, Message, OnTokens, Request
from pipeline.config import Limits, ScriptedBackend

END = 0
LONGEST = 48  # tokens of a completion that ends by itself
ENDLESS = 1 / 16  # share of completions that run into the limit
SYLLABLES = [c + v for c in "bdfghklmnprstvwz" for v in "aeiou"]


class ScriptedText:
    context = None
    end = END

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def encode(self, messages: list[Message], kwargs: dict[str, Any]) -> list[int]:
        spoken = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return [1 + crc32(word.encode()) % (self.vocabulary - 1) for word in spoken.split()]

    def decode(self, completion: Completion) -> str:
        return self.read(completion.token_ids)

    def check_kept(self, messages: list[Message], kwargs: dict[str, Any]) -> None:
        """It has no template that could write one otherwise."""

    def read(self, ids: list[int]) -> str:
        return " ".join(_word(token) for token in ids if token != END)

    def pieces(self, text: str) -> list[int]:
        known = {_word(token): token for token in range(1, self.vocabulary)}
        return [known[word] for word in text.split() if word in known]


class Scripted:
    def __init__(self, cfg: ScriptedBackend):
        self.vocabulary = cfg.vocabulary
        self.text = ScriptedText(cfg.vocabulary)
        self.limit = 0

    def start(self, model: Model, limits: Limits) -> Self:
        self.limit = limits.completion
        return self

    def generate(
        self, blocks: Iterable[list[Request]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion]:
        for block in blocks:
            for request in block:
                yield self.complete(request)

    def complete(self, request: Request) -> Completion:
        seed = request.seed if request.temperature else "greedy"
        chance = random.Random(f"{seed} {request.prompt_token_ids}")
        length = self.limit if chance.random() < ENDLESS else chance.randint(1, LONGEST)
        words = chance.choices(range(1, self.vocabulary), k=min(length, self.limit))
        logprob = -math.log(self.vocabulary) * len(words)
        if length < self.limit:
            return Completion(request.sample_id, [*words, END], logprob, "stop")
        return Completion(request.sample_id, words, logprob, "length")

    def close(self) -> None:
        pass


def _word(token: int) -> str:
    rest, syllable = divmod(token, len(SYLLABLES))
    return (_word(rest) if rest else "") + SYLLABLES[syllable]
