"""refer: log-probabilities of given token ids under a model, computed once: the reference of
training, KL of an exam.

Rows are sorted by length and done in chunks of a fixed number of rows, each a file: a killed run
repeats one chunk.
"""

import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import KL, Logps, Model, Pairs, Samples, note_cost, read_table, write_table
from pipeline.config import ReferenceConfig
from pipeline.errors import StageError, UserError, many
from pipeline.progress import Progress, say_phase
from pipeline.resources.gpu_sets import worker_environments
from pipeline.resources.model_shape import parameter_cost
from pipeline.resources.worker_pool import Figures, Worker, run_shards

if TYPE_CHECKING:
    import polars as pl

    from pipeline.models.logprobs import OnBatch

CHUNK = 512  # rows; never from `runtime`, so that a resumed run finds the same chunks
ROWS = "rows.parquet"  # where every hand reads them
WORKERS = "refer.runtime.workers"


def run(cfg: ReferenceConfig, out: Path, *, model: Model, rows: Pairs | Samples) -> Logps:
    table, scratch = wanted(rows), out / "scratch"
    chunks = [f"chunk-{at:06d}.parquet" for at in range(-(-table.height // CHUNK))]
    if missing := [chunk for chunk in chunks if not (scratch / chunk).exists()]:
        write_table(scratch / ROWS, table)
        work, hands = (
            partial(measure, cfg, model, scratch, CHUNK),
            worker_environments(cfg.runtime.workers, WORKERS),
        )
        note_cost(out, **parameter_cost(model.weights, model.revision))
        say_phase("loading the model")
        run_shards(missing, work, hands, scratch / "workers", on_report=Watch(table, missing).hear)
    write_table(out / "logps.parquet", _joined([scratch / chunk for chunk in chunks]))
    note_cost(out, rows=table.height, tokens=int(table["length"].sum()))
    return Logps(out)


class Watch:
    """What a person sees: the longest rows come first, so that time is told by tokens."""

    def __init__(self, table: "pl.DataFrame", missing: list[str]):
        self._table, self._missing = table, missing
        self._progress: Progress | None = None
        self._started, self._tokens = 0.0, 0

    def hear(self, figures: Figures) -> None:
        """A hand has its model, or rows are done."""
        if self._progress is None:
            self._progress, self._started = self._begun(), time.monotonic()
        if rows := int(figures["rows"]):
            self._tokens += int(figures["tokens"])
            speed = self._tokens / max(time.monotonic() - self._started, 0.001)
            self._progress.worked = self._tokens
            self._progress.advance(rows, speed=f"{speed:.0f} tok/s")

    def _begun(self) -> Progress:
        to_do = [
            self._table.slice(_start(chunk, CHUNK), CHUNK)["length"] for chunk in self._missing
        ]
        rows, tokens = sum(map(len, to_do)), sum(int(each.sum()) for each in to_do)
        progress = Progress("refer", self._table.height, "completions", tokens)
        progress.resume_at(self._table.height - rows)
        return progress


def wanted(rows: Pairs | Samples) -> "pl.DataFrame":
    """Each completion once: `sample_id, prompt_id, prompt_token_ids, token_ids`, longest first."""
    import polars as pl

    if isinstance(rows, Samples):
        table = rows.read(setting=KL).select(
            "sample_id", "prompt_id", "prompt_token_ids", "token_ids"
        )
    else:
        table = pl.concat(_sides(pl.concat([rows.train(), rows.dev()])))
    table = table.unique("sample_id").with_columns(
        length=pl.col("prompt_token_ids").list.len() + pl.col("token_ids").list.len()
    )
    if (bare := table.filter(pl.col("prompt_token_ids").list.len() == 0)).height:
        raise UserError(
            f"{rows.path}: {many(bare.height, 'row')} without prompt tokens ({bare['sample_id'][0]} is one): nothing"
            f" stands before their first token, so it has no log-probability.\n"
            f"  Use a chat template or a tokenizer with BOS."
        )
    return table.sort(["length", "sample_id"], descending=[True, False])


def _sides(pairs: "pl.DataFrame") -> "Iterator[pl.DataFrame]":
    import polars as pl

    for side in ("chosen", "rejected"):
        ids = pl.col(f"{side}_id").alias("sample_id"), "prompt_id"
        yield pairs.select(*ids, "prompt_token_ids", pl.col(f"{side}_token_ids").alias("token_ids"))


def measure(cfg: ReferenceConfig, model: Model, scratch: Path, size: int, hand: Worker) -> None:
    """One hand's part: the model is opened once."""
    from pipeline.models import loading

    table = read_table(scratch / ROWS)
    module = loading.load(model, cfg.dtype, cfg.quantization)
    loading.check_vocabulary(module, [table["prompt_token_ids"], table["token_ids"]], "refer")
    hand.report(rows=0, tokens=0)
    for chunk in iter(hand.claim, None):
        part = table.slice(_start(chunk, size), size)
        write_table(
            scratch / chunk,
            _measured(cfg, module, part, lambda n, m: hand.report(rows=n, tokens=m)),
        )
        hand.finish(chunk)


def _start(chunk: str, size: int) -> int:
    return int(Path(chunk).stem.removeprefix("chunk-")) * size


def _measured(
    cfg: ReferenceConfig, module: Any, part: "pl.DataFrame", on_batch: "OnBatch"
) -> "pl.DataFrame":
    import polars as pl

    from pipeline.models.logprobs import completion_logps

    columns = part["prompt_token_ids"].to_list(), part["token_ids"].to_list()
    logps = completion_logps(module, *columns, cfg.runtime.batch_tokens, on_batch)
    if broken := sum(not math.isfinite(value) for value in logps):
        raise StageError(
            f"refer: no finite log-probability for {broken} of {many(len(logps), 'completion')} under this model in "
            f"{cfg.dtype}: nothing is published.\n  Try refer.dtype=float32; else its weights are broken."
        )
    return part.select(
        "sample_id",
        "prompt_id",
        pl.Series("logp", logps, dtype=pl.Float64),
        pl.col("token_ids").list.len().cast(pl.Int64).alias("tokens"),
    )


def _joined(files: list[Path]) -> "pl.DataFrame":
    import polars as pl

    if files:
        return pl.concat([read_table(file) for file in files]).sort("sample_id")
    return pl.DataFrame(
        schema={
            "sample_id": pl.String,
            "prompt_id": pl.String,
            "logp": pl.Float64,
            "tokens": pl.Int64,
        }
    )
