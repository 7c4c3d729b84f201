"""Prints the override by which a recipe for vLLM runs where it is not installed, and says so."""

import sys
from importlib.util import find_spec

if not find_spec("vllm"):
    print(
        "vLLM is not installed here: sampling goes through the transformers backend, slower.",
        file=sys.stderr,
    )
    print("backend=transformers")
