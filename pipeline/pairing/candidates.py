"""Samples with their scores, in columns: what strategies choose from. Joins are by id."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.artifacts import Samples, scan_tables
from pipeline.errors import UserError, pluralize, suggest


@dataclass(frozen=True)
class PairCandidates:
    """All samples where they were read, model by model; row numbers alone are put in order.

    `rows`: `p` (number of the prompt), `prompt_id, sample_id, completion, finish_reason, tokens,
    prompt_tokens, second_bos, source, score`. `prompts`: their sorted ids, in which `p` is a place.
    `order`: the rows' numbers in the order of prompts; None where they are in it.
    """

    rows: pl.DataFrame
    prompts: pl.Series
    order: np.ndarray | None

    def list_rows(self, mask: np.ndarray) -> np.ndarray:
        """The numbers of the rows that are in the mask, in the order of prompts."""
        if self.order is None:
            return np.flatnonzero(mask)
        return self.order[np.flatnonzero(mask[self.order])]


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
) -> PairCandidates:
    """Every sample, its prompt's number and the deciding scorer's score (null without one)."""
    if scores is None:
        samples = samples.with_columns(score=pl.lit(None, pl.Float64))
    else:
        samples = samples.with_columns(find_scores(samples["sample_id"], scores, scorer))
    prompts, numbers, order = number_prompts(samples["prompt_id"], samples["source"])
    return PairCandidates(samples.with_columns(p=numbers), prompts, order)


def find_scores(ids: pl.Series, scores: pl.DataFrame, scorer: str) -> pl.Series:
    """The `score` of these sample ids by one scorer."""
    own = scores.lazy().filter(pl.col("scorer") == scorer).select("sample_id", "score").collect()
    if not own.height:
        known = sorted(scores["scorer"].unique())
        raise UserError(
            f"pair.scorer={scorer}: no such scorer in the scores. {suggest(scorer, known)}"
        )
    return align_scores(ids, own)


def number_prompts(
    ids: pl.Series, sources: pl.Series
) -> tuple[pl.Series, np.ndarray, np.ndarray | None]:
    """The sorted prompts, each sample's place among them, and the samples' order by it.

    The samples of one model are in this order already. Those of several are a sorted run each,
    which the stable sort merges in linear time.
    """
    run = _find_run(ids, sources)
    own = ids[:run]
    new = np.append(True, (own[1:] != own[:-1]).to_numpy())[:run]
    prompts, lengths = own.filter(pl.Series(new)), np.diff(np.flatnonzero(new), append=run)
    if is_in_order := prompts.is_sorted():
        places = np.arange(len(prompts), dtype=np.uint32)
    else:
        places = prompts.rank("dense").to_numpy() - np.uint32(1)
        prompts = prompts.unique().sort()
    numbers = np.repeat(places, lengths)
    if run == len(ids) and is_in_order:
        return prompts, numbers, None
    numbers = np.tile(numbers, len(ids) // run)
    return prompts, numbers, np.argsort(numbers, kind="stable")


def _find_run(ids: pl.Series, sources: pl.Series) -> int:
    """How many rows are enough to know all: the first model's, where all answered alike.

    Otherwise all rows.
    """
    run = int(np.append(np.flatnonzero((sources != sources[:1]).to_numpy()), len(ids))[0])
    alike = run == len(ids) or (len(ids) % run == 0 and ids[run:].equals(ids[:-run]))
    return run if alike else len(ids)


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
