"""The real stage. SCALED_COST: seconds that each completion takes, without a core's work."""

import os
import time

from pipeline.backends import Completion, CompletionRequest
from pipeline.backends.scripted import ScriptedSampler
from pipeline.stages.sample import join as join
from pipeline.stages.sample import run as run

if cost := float(os.environ.get("SCALED_COST", 0)):
    complete = ScriptedSampler.complete

    def complete_slowly(self: ScriptedSampler, request: CompletionRequest) -> Completion:
        time.sleep(cost)
        return complete(self, request)

    ScriptedSampler.complete = complete_slowly  # type: ignore[method-assign]
