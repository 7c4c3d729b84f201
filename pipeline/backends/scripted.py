"""A backend without model, tokenizer or torch: completions are a function of prompt and seed.

For tests. Token 0 ends a completion. A prompt has one token per word, about as many as real
prompts, so that the same limits fit it. The words of an answer are syllables.
"""

import math
import random
from collections.abc import Iterable, Iterator
from typing import Any, Self
from zlib import crc32

from pipeline.artifacts import Model
from pipeline.backends import Completion, CompletionRequest, Message, OnTokens
from pipeline.config import Limits, ScriptedBackend

EOS = 0
MAX_UNTRUNCATED = 48  # tokens of a completion that ends by itself
TRUNCATED_SHARE = 1 / 16  # of completions, which run into the limit
SYLLABLES = [c + v for c in "bdfghklmnprstvwz" for v in "aeiou"]


class ScriptedTokenizer:
    context = None
    eos = EOS

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def encode(self, messages: list[Message], kwargs: dict[str, Any]) -> list[int]:
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return [1 + crc32(word.encode()) % (self.vocabulary - 1) for word in text.split()]

    def decode(self, completion: Completion) -> str:
        return self.decode_raw(completion.token_ids)

    def decode_all(self, completions: list[Completion]) -> list[str]:
        return [self.decode(one) for one in completions]

    def check_prompt_prefix(self, messages: list[Message], kwargs: dict[str, Any]) -> None:
        """Nothing to check: without a template a prompt never changes."""

    def decode_raw(self, ids: list[int]) -> str:
        return " ".join(_spell_token(token) for token in ids if token != EOS)

    def encode_text(self, text: str) -> list[int]:
        known = {_spell_token(token): token for token in range(1, self.vocabulary)}
        return [known[word] for word in text.split() if word in known]


class ScriptedSampler:
    def __init__(self, cfg: ScriptedBackend):
        self.vocabulary = cfg.vocabulary
        self.tokenizer = ScriptedTokenizer(cfg.vocabulary)
        self.limit = 0

    def start(self, model: Model, limits: Limits) -> Self:
        self.limit = limits.completion
        return self

    def generate(
        self, blocks: Iterable[list[CompletionRequest]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion]:
        for block in blocks:
            for request in block:
                yield self.complete(request)

    def complete(self, request: CompletionRequest) -> Completion:
        seed = request.seed if request.temperature else "greedy"
        chance = random.Random(f"{seed} {request.prompt_token_ids}")
        truncated = chance.random() < TRUNCATED_SHARE
        length = self.limit if truncated else chance.randint(1, MAX_UNTRUNCATED)
        words = chance.choices(range(1, self.vocabulary), k=min(length, self.limit))
        logprob = -math.log(self.vocabulary) * len(words) if request.needs_logprob else None
        if length < self.limit:
            return Completion(request.sample_id, [*words, EOS], logprob, "stop")
        return Completion(request.sample_id, words, logprob, "length")

    def close(self) -> None:
        pass


def _spell_token(token: int) -> str:
    rest, syllable = divmod(token, len(SYLLABLES))
    return (_spell_token(rest) if rest else "") + SYLLABLES[syllable]
