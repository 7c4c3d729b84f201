"""Prints the overrides by which a recipe for vLLM runs where it is not installed, and says so."""

import sys
from importlib.util import find_spec

MOUNTS = ("sample.backend", "evaluate.sample.backend")

if not find_spec("vllm"):
    print(
        "vLLM is not installed here: sampling goes through the transformers backend, slower.",
        file=sys.stderr,
    )
    print(" ".join(f"backend@{mount}=transformers" for mount in MOUNTS))
