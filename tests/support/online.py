"""Online training on the tiny model: prompts of few words, and a reward that rules can see."""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, write_table
from pipeline.config import OnlineTraining, SampleRequest, ScoreConfig
from tests.support.preferences import dpo, text

# Of the random answers of a flat model two thirds have the letter, so groups differ.
LETTER = {"kind": "regex", "pattern": "e", "whole": False, "wanted": True, "gold": False}
N = 4  # answers to a prompt


def write_prompts(folder: Path, count: int = 12, seed: int = 0) -> Prompts:
    draw = random.Random(seed)
    rows = [
        {
            "prompt_id": f"p{number:02d}",
            "prompt": [{"role": "user", "content": text(draw, 2, 12)}],
            "columns": json.dumps({"number": number}),
        }
        for number in range(count)
    ]
    write_table(folder / "prompts.parquet", pl.DataFrame(rows))
    return Prompts(folder)


def request(n: int = N, per_round: int | None = None, **limits: int) -> SampleRequest:
    setting = {"n": n, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "stop": []}
    return SampleRequest(
        settings={"draw": {**setting, "system": None, "few_shot": []}},
        per_round=per_round,
        limits={"prompt": 48, "completion": 12, **limits},
        template_kwargs={},
        reasoning=None,
        seed=0,
        seeded="auto",
        shard=8,
        runtime={"blocks": 1, "max_failed": 0.0, "workers": 1},
        backend={"kind": "transformers", "dtype": "float32", "runtime": {"batch": 8}},
        purpose="train",
        round=1,
        wave=0,
        ties_by=None,
        prompt_share=None,
        reuse_prompts=False,
    )


def online(
    *given: Any,
    scorers: dict[str, Any] | None = None,
    reward: str = "letter",
    asks: SampleRequest | None = None,
    **changes: Any,
) -> OnlineTraining:
    """12 prompts, 2 a step with 4 answers each: six steps."""
    knobs: dict[str, Any] = {
        "trainer": "grpo",
        "loss": ["dapo"],
        "reference_logps": "online",
        "beta": 0.04,
        "batch": 2 * N,
        **changes,
    }
    score = {"scorers": scorers or {"letter": LETTER}, "max_failed": 0.01}
    return OnlineTraining(
        **dict(dpo(*given, **knobs)),
        request=asks or request(),
        score=ScoreConfig(**score, runtime={"workers": 1}),
        reward=reward,
    )
