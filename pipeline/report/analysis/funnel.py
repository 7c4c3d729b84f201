"""From prompts to samples to pairs: what went in, what got lost and why.

The counts are in the steps' costs, which stay when their files are pruned; the reasons are in
those files.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.artifacts import FUNNEL_FILE, Pairs, read_table
from pipeline.config import REVISED
from pipeline.report.analysis.ancestors import Ancestor, read_ancestors

PRUNED = "reasons no longer kept"


def read_funnel(out: Path, pairs: list[Pairs]) -> dict[str, Any]:
    steps = read_ancestors(out)
    samples = [describe_samples(step) for step in steps if step.stage in ("sample", "revise")]
    # A round that trains online has no pairs.
    rounds = {step.fingerprint: step.label for step in steps if step.stage == "pair"}
    numbered = [(rounds.get(made.path.name, at), made) for at, made in enumerate(pairs, start=1)]
    prompts = (read_prompt_funnel(step) for step in steps if step.stage == "prompts")
    return {
        "prompts": next(prompts, None),
        "samples": sorted(samples, key=_sort_key),
        "pairs": [
            {"round": number, **read_pair_funnel(steps, made, number)} for number, made in numbered
        ],
    }


def read_pair_funnel(steps: list[Ancestor], made: Pairs, number: int | str) -> dict[str, Any]:
    """With the reference model's nats per token of each source's answers, where they are there."""
    funnel = made.read_funnel()
    if "sources" not in funnel:
        return funnel
    nats = measure_nats(steps, made, number)
    sources = {
        source: {**counts, "nats_per_token": nats.get(source, counts["nats_per_token"])}
        for source, counts in funnel["sources"].items()
    }
    return {**funnel, "sources": sources}


def measure_nats(steps: list[Ancestor], made: Pairs, number: int | str) -> dict[str, float]:
    """By source: the mean log-probability per token of its answers in the round's pairs."""
    import polars as pl

    of_round = [step for step in steps if step.stage == "reference" and step.label == number]
    files = [step.path / "logps.parquet" for step in of_round]
    tables = [read_table(file) for file in files if file.is_file()]
    if not tables or not (made.path / "train.parquet").is_file():
        return {}
    pairs = pl.concat([made.read_train(), made.read_dev()])
    answers = pl.concat(
        pairs.select(sample_id=f"{side}_id", source=f"{side}_source")
        for side in ("chosen", "rejected")
    )
    known = pl.concat(tables).unique("sample_id", keep="last")
    joined = answers.unique("sample_id").join(known, on="sample_id")
    nats = (pl.col("logp") / pl.col("tokens")).mean()
    return dict(joined.group_by("source").agg(nats).rows())


def read_prompt_funnel(step: Ancestor) -> dict[str, Any] | None:
    file = step.path / FUNNEL_FILE
    return json.loads(file.read_text()) if file.exists() else None


def describe_samples(step: Ancestor) -> dict[str, Any]:
    """One sampling step: of a round, of a later wave of it, or of an evaluation.

    Tokens are means over its completions.
    """
    cost, completions = step.cost, step.cost.get("completions", 0)
    reasoning = cost.get("reasoning_tokens")
    return {
        "label": step.label,
        **_name_model(step),
        "wave": step.config.get("wave", 0),
        "fingerprint": step.fingerprint,
        "prompts": cost.get("prompts", 0),
        "dropped": _count_reasons(step, "dropped"),
        "completions": completions,
        "failed": _count_reasons(step, "failed"),
        "truncated": cost.get("truncated", 0),
        "stopped_by_string": cost.get("stopped_by_string", 0),
        "tokens": cost["tokens"] / completions if completions else None,
        "reasoning_tokens": reasoning / completions if reasoning else None,
        "quantization_difference": cost.get("quantization_difference"),
    }


def _name_model(step: Ancestor) -> dict[str, str]:
    """Of answers that are not plainly the policy's."""
    if step.stage == "revise":
        return {"model": REVISED}
    share = step.config.get("prompt_share")
    return {"model": share["model"]} if share else {}


def _count_reasons(step: Ancestor, what: str) -> dict[str, int]:
    """Of the rows in `dropped.parquet` or `failed.parquet`."""
    count, file = step.cost.get(what, 0), step.path / f"{what}.parquet"
    if not count:
        return {}
    if not file.exists():
        return {PRUNED: count}
    return dict(sorted(read_table(file)["reason"].value_counts().rows()))


def _sort_key(samples: dict[str, Any]) -> tuple[bool, int, int]:
    """Rounds first; evaluations follow in the order in which they came."""
    in_evaluation = isinstance(samples["label"], str)
    return in_evaluation, 0 if in_evaluation else samples["label"], samples["wave"]
