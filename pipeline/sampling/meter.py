"""What a person watching a draw sees."""

import time

from pipeline.backends import Completion, Failed
from pipeline.progress import Progress
from pipeline.sampling.shards import Shards


class Meter:
    def __init__(self, shards: Shards, per_prompt: int):
        found = shards.totals()
        self._completions, self._tokens, self._truncated = found["completions"], found["tokens"], found["truncated"]
        self._failed = 0
        self._found, self._started = self._tokens, time.monotonic()
        self._progress = Progress("sample", shards.height * per_prompt, "completions")
        self._progress.resume_at(self._completions)

    def count(self, drawn: Completion | Failed) -> None:
        if isinstance(drawn, Failed):
            self._failed += 1
        else:
            self._completions += 1
            self._tokens += len(drawn.token_ids)
            self._truncated += drawn.finish_reason == "length"
        speed = (self._tokens - self._found) / max(time.monotonic() - self._started, 0.001)
        facts = {
            "speed": f"{speed:.0f} tok/s",
            "length": f"{self._tokens / max(self._completions, 1):.0f} tokens",
            "truncated": f"{self._truncated / max(self._completions, 1):.0%}",
            **({"failed": str(self._failed)} if self._failed else {}),
        }
        self._progress.advance(1, **facts)
