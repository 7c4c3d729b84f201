"""Finished evals made from nothing: the folders that `evaluate` reads, with answers, scores and
values as told."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import (
    Logps,
    Model,
    Pairs,
    Prompts,
    Samples,
    Scores,
    write_json,
    write_table,
    write_text,
)

SCORER = "rules"
FUNNEL = {
    "samples_in": 3200,
    "dropped_samples": {"empty": 4, "truncated": 120},
    "candidates": 3076,
    "prompts_in": 400,
    "dropped_prompts": {"one usable sample": 2, "tie": 31},
    "ties": {"prompts": 31, "all_easy": 20, "all_hard": 11},
    "pairs_in": 367,
    "dropped_pairs": {},
    "pairs": 367,
    "train": 331,
    "dev": 36,
    "margin": {"least": 0.333333, "median": 0.666667},
}
TEXT, NUMBER = pl.String, pl.Float64
SAMPLE = {
    "prompt_id": TEXT,
    "sample_id": TEXT,
    "setting": TEXT,
    "completion": TEXT,
    "token_ids": pl.List(pl.Int64),
    "finish_reason": TEXT,
    "logprob": NUMBER,
    "reasoning_tokens": pl.Int64,
}
SCORE = {
    "sample_id": TEXT,
    "prompt_id": TEXT,
    "scorer": TEXT,
    "score": NUMBER,
    "status": TEXT,
    "detail": TEXT,
}
LOGP = {"sample_id": TEXT, "prompt_id": TEXT, "logp": NUMBER, "tokens": pl.Int64}


def prompts(
    store: Path, ids: Sequence[str], text: str = "Tell me about {}.", part: str = "test"
) -> Prompts:
    folder = store / "prompts" / "aaaaaaaaaaaa" / part
    messages = [[{"role": "user", "content": text.format(key)}] for key in ids]
    columns = [json.dumps({"category": "nature"}) for _ in ids]
    write_table(
        folder / "prompts.parquet",
        pl.DataFrame({"prompt_id": ids, "prompt": messages, "columns": columns}),
    )
    return Prompts(folder)


def answer(
    prompt: str, score: float | None, text: str = "An answer.", index: int = 0, **more: Any
) -> dict[str, Any]:
    """One answer and its score; `kinds` are scores of the criteria that apply to it, `others` other
    scorers'."""
    plain = {
        "tokens": 10,
        "finish_reason": "stop",
        "reasoning_tokens": 0,
        "kinds": {},
        "others": {},
        "abstained": False,
    }
    return {
        "prompt_id": prompt,
        "sample_id": f"{prompt}/{index}",
        "completion": text,
        "score": score,
        **plain,
        **more,
    }


def model(
    store: Path, stage: str, fingerprint: str, metrics: Sequence[Mapping[str, Any]] = ()
) -> Model:
    folder = store / stage / fingerprint
    write_json(folder / "model.json", {"weights": "weights", "tokenizer": "weights"})
    if metrics:
        write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
    return Model(folder)


def make_eval(
    of: Model,
    answers: Sequence[Mapping[str, Any]],
    kl: Sequence[tuple[str, float, float | None]] = (),
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """`kl`: prompt, log π, log SFT (None: no row). `without`: what it lacks, of samples, scores,
    logps."""
    store, key = of.path.parent.parent, of.path.name
    samples, scores, logps = (store / stage / key for stage in ("sample", "score", "reference"))
    _write(samples / "samples" / "0.parquet", _drawn(answers, kl), SAMPLE)
    _write(scores / "scores" / "0.parquet", _marks(answers), SCORE)
    known = [(f"{prompt}/kl", prompt, logp, 10) for prompt, _, logp in kl if logp is not None]
    _write(logps / "logps.parquet", known, LOGP)
    made = {
        "model": of,
        "samples": Samples(samples),
        "scores": Scores(scores),
        "logps": Logps(logps),
    }
    return {name: artifact for name, artifact in made.items() if name not in without}


def _write(path: Path, rows: list[tuple[Any, ...]], schema: Mapping[str, Any]) -> None:
    """Every table in an order of its own, so that whoever joins by position is found out."""
    shuffled = random.Random(path.parent.name).sample(rows, len(rows))
    write_table(path, pl.DataFrame(shuffled, schema=schema, orient="row"))


def _drawn(
    answers: Sequence[Mapping[str, Any]], kl: Sequence[tuple[str, float, float | None]]
) -> list[tuple[Any, ...]]:
    freely = [
        (prompt, f"{prompt}/kl", "kl", "Freely.", [7] * 10, "stop", logprob, 0)
        for prompt, logprob, _ in kl
    ]
    rows = [
        {**a, "setting": "answer", "token_ids": [7] * a["tokens"], "logprob": -1.0 * a["tokens"]}
        for a in answers
    ]
    return [*(tuple(row[key] for key in SAMPLE) for row in rows), *freely]


def _marks(answers: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for a in answers:
        scores = {
            SCORER: a["score"],
            **{f"{SCORER}/{kind}": value for kind, value in a["kinds"].items()},
            **a["others"],
        }
        for scorer, score in scores.items():
            status = "ok" if score is not None else "abstained" if a["abstained"] else "failed"
            rows.append((a["sample_id"], a["prompt_id"], scorer, score, status, ""))
    return rows


def pairs(store: Path, fingerprint: str, funnel: Mapping[str, Any] = FUNNEL) -> Pairs:
    write_json(store / "pair" / fingerprint / "funnel.json", dict(funnel))
    return Pairs(store / "pair" / fingerprint)
