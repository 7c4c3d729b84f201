"""Samples with their scores, in columns: what strategies choose from. Joins are by id.

`rows`: `p` (number of the prompt), `prompt_id, sample_id, completion, finish_reason, tokens,
prompt_tokens, second_bos, source, score`, in the order of prompts.
"""

import numpy as np
import polars as pl

from pipeline.artifacts import Samples, scan_tables
from pipeline.errors import UserError, pluralize, suggest


def scan_metadata(samples: Samples, bos: int | None) -> pl.DataFrame:
    """What pairs are chosen by. Token ids stay on the disk; their number is enough."""
    return (
        _scan_shards(samples)
        .select(
            "prompt_id",
            "sample_id",
            "completion",
            "finish_reason",
            tokens=pl.col("token_ids").list.len(),
            prompt_tokens=pl.col("prompt_token_ids").list.len(),
            second_bos=pl.lit(False) if bos is None else pl.col("token_ids").list.contains(bos),
        )
        .collect(engine="streaming")
    )


def read_samples(samples: Samples, ids: pl.Series) -> pl.DataFrame:
    """The rows of these samples, with their tokens."""
    wanted = ids.drop_nulls().to_frame("sample_id").lazy()
    columns = ("prompt_id", "sample_id", "prompt", "completion", "prompt_token_ids", "token_ids")
    return (
        _scan_shards(samples)
        .select(*columns)
        .join(wanted, on="sample_id", how="semi")
        .collect(engine="streaming")
    )


def _scan_shards(samples: Samples) -> pl.LazyFrame:
    return scan_tables(sorted((samples.path / "samples").glob("*.parquet")))


def join_candidates(
    samples: pl.DataFrame, scores: pl.DataFrame | None, scorer: str
) -> pl.DataFrame:
    """Every sample, its prompt's number and the deciding scorer's score (null without one)."""
    if scores is None:
        samples = samples.with_columns(score=pl.lit(None, pl.Float64))
    else:  # before the samples are sorted: mostly their scores are in the same order
        samples = samples.with_columns(find_scores(samples["sample_id"], scores, scorer))
    rows, numbers = number_prompts(samples)
    return rows.with_columns(numbers)


def find_scores(ids: pl.Series, scores: pl.DataFrame, scorer: str) -> pl.Series:
    """The `score` of these sample ids by one scorer."""
    own = scores.lazy().filter(pl.col("scorer") == scorer).select("sample_id", "score").collect()
    if not own.height:
        known = sorted(scores["scorer"].unique())
        raise UserError(
            f"pair.scorer={scorer}: no such scorer in the scores. {suggest(scorer, known)}"
        )
    return align_scores(ids, own)


def number_prompts(samples: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """The samples in the order of prompts, and each sample's prompt number `p`.

    The samples of one model are in this order already. Those of several are a sorted run each, and
    both sorts here merge such runs in linear time.
    """
    ids = samples["prompt_id"]
    new = _find_changes(ids)
    firsts = ids.filter(pl.Series(new))
    if firsts.is_sorted():
        return samples, pl.Series("p", _count_changes(new)).set_sorted()
    order = firsts.arg_sort()
    places = np.empty(len(firsts), dtype=np.uint32)
    places[order.to_numpy()] = _count_changes(_find_changes(firsts.gather(order)))
    numbers = np.repeat(places, np.diff(np.append(np.flatnonzero(new), len(ids))))
    rows = np.argsort(numbers, kind="stable")
    return samples[rows], pl.Series("p", numbers[rows]).set_sorted()


def _find_changes(ids: pl.Series) -> np.ndarray:
    """Which rows differ from the row above; the first one does."""
    return np.append(True, (ids[1:] != ids[:-1]).to_numpy())[: len(ids)]


def _count_changes(new: np.ndarray) -> np.ndarray:
    return np.cumsum(new, dtype=np.uint32) - np.uint32(1)


def align_scores(ids: pl.Series, own: pl.DataFrame) -> pl.Series:
    """`score` of these sample ids. Scores in the samples' order need no join."""
    if own.height == ids.len() and bool((own["sample_id"] == ids).all()):
        return own["score"]
    unknown = own.join(ids.to_frame(), on="sample_id", how="anti")
    if unknown.height:
        raise UserError(
            f"pair: {unknown.height} of {pluralize(own.height, 'score')} belong to samples that"
            " are not"
            f" here, such as {unknown['sample_id'][0]}.\n"
            "  The scores are of another sampling run. Score these samples."
        )
    return ids.to_frame().join(
        own, on="sample_id", how="left", validate="1:1", maintain_order="left"
    )["score"]


def list_other_scorers(scores: pl.DataFrame, scorer: str) -> list[str]:
    """Scorers other than this one. A criterion (`rules/mention`) is a part of its scorer."""
    names = scores["scorer"].unique().to_list()
    return sorted(name for name in names if name != scorer and "/" not in name)
