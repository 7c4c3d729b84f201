"""What a person watching a draw sees."""

import time

from pipeline.backends import Completion
from pipeline.progress import Progress
from pipeline.sampling.shards import Shards


class Meter:
    def __init__(self, shards: Shards, per_prompt: int):
        found = shards.totals()
        self._completions, self._tokens, self._truncated = found["completions"], found["tokens"], found["truncated"]
        self._found, self._started = self._tokens, time.monotonic()
        self._progress = Progress("sample", shards.height * per_prompt, "completions")
        self._progress.resume_at(self._completions)

    def count(self, completion: Completion) -> None:
        self._completions += 1
        self._tokens += len(completion.token_ids)
        self._truncated += completion.finish_reason == "length"
        speed = (self._tokens - self._found) / max(time.monotonic() - self._started, 0.001)
        self._progress.advance(
            speed=f"{speed:.0f} tok/s",
            length=f"{self._tokens / self._completions:.0f} tokens",
            truncated=f"{self._truncated / self._completions:.0%}",
        )
