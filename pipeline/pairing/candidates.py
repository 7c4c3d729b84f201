"""Samples with their scores, joined by id, in columns: what strategies choose from. A score is never moved by position.

`rows`: `p` (number of the prompt), `prompt_id, sample_id, completion, finish_reason, tokens, prompt_tokens, second_bos,
score`, in the order of prompts.
"""

import numpy as np
import polars as pl

from pipeline.errors import Refusal, nearest


def candidates(samples: pl.DataFrame, scores: pl.DataFrame, scorer: str) -> pl.DataFrame:
    """Every sample, its prompt's number and the chosen scorer's score (null where there is none)."""
    rows, numbers = by_prompt(samples)
    own = scores.lazy().filter(pl.col("scorer") == scorer).select("sample_id", "score").collect()
    if not own.height:
        known = sorted(scores["scorer"].unique())
        raise Refusal(f"pair.scorer={scorer}: no such scorer in the scores. {nearest(scorer, known)}")
    return rows.with_columns(numbers, score_of(rows["sample_id"], own))


def by_prompt(samples: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """The samples in the order of prompts, as they mostly lie already, and each one's prompt's number `p`."""
    ids = samples["prompt_id"]
    new = np.append(True, (ids[1:] != ids[:-1]).to_numpy()) if len(ids) else np.zeros(0, dtype=bool)
    firsts = ids.filter(pl.Series(new))
    if not firsts.is_sorted():
        return by_prompt(samples.sort("prompt_id", maintain_order=True))
    return samples, pl.Series("p", np.cumsum(new, dtype=np.uint32) - np.uint32(1)).set_sorted()


def score_of(ids: pl.Series, own: pl.DataFrame) -> pl.Series:
    """`score` of these sample ids. Scores that lie in the samples' order need no join."""
    if own.height == ids.len() and bool((own["sample_id"] == ids).all()):
        return own["score"]
    strangers = own.join(ids.to_frame(), on="sample_id", how="anti")
    if strangers.height:
        raise Refusal(
            f"pair: {strangers.height} of {own.height} scores are of samples that are not here,"
            f" such as {strangers['sample_id'][0]}.\n"
            "  The scores are of another sampling run. Score these samples."
        )
    return ids.to_frame().join(own, on="sample_id", how="left", validate="1:1", maintain_order="left")["score"]


def other_scorers(scores: pl.DataFrame, scorer: str) -> list[str]:
    """Scorers beside the one that decides; a criterion (`rules/mention`) is a part of its scorer, not another one."""
    names = scores["scorer"].unique().to_list()
    return sorted(name for name in names if name != scorer and "/" not in name)
