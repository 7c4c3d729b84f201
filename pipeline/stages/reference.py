"""reference: log-probabilities of given token ids under a model, computed once.

They are the reference of a training, or give the KL of an evaluation. Rows are sorted by length and
processed in chunks of a fixed number of rows, each a file: a killed run repeats one chunk.
"""

import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import KL, Logps, Model, Pairs, Samples, note_cost, read_table, write_table
from pipeline.config import ReferenceConfig
from pipeline.errors import StageError, UserError, pluralize
from pipeline.progress import Progress, print_phase
from pipeline.resources import open_models
from pipeline.resources.gpu_sets import worker_environments
from pipeline.resources.model_shape import parameter_cost
from pipeline.resources.worker_pool import Figures, Worker, run_shards

if TYPE_CHECKING:
    import polars as pl

    from pipeline.models.logprobs import OnBatch

CHUNK = 512  # rows; not a knob of `runtime`, so a resumed run finds the same chunks
ROWS = "rows.parquet"  # where every worker reads them
WORKERS = "reference.runtime.workers"


def run(cfg: ReferenceConfig, out: Path, *, model: Model, rows: Pairs | Samples) -> Logps:
    table, scratch = collect_completions(rows), out / "scratch"
    chunks = [f"chunk-{at:06d}.parquet" for at in range(-(-table.height // CHUNK))]
    if missing := [chunk for chunk in chunks if not (scratch / chunk).exists()]:
        write_table(scratch / ROWS, table)
        work = partial(measure_chunks, cfg, model, scratch, CHUNK)
        environments = worker_environments(cfg.runtime.workers, WORKERS)
        progress = ChunkProgress(table, missing)
        note_cost(out, **parameter_cost(model.weights, model.revision))
        print_phase("loading the model")
        run_shards(missing, work, environments, scratch / "workers", on_report=progress.update)
    write_table(out / "logps.parquet", _join_chunks([scratch / chunk for chunk in chunks]))
    note_cost(out, rows=table.height, tokens=int(table["length"].sum()))
    return Logps(out)


class ChunkProgress:
    """The progress bar. The longest rows come first, so the time left is estimated by tokens."""

    def __init__(self, table: "pl.DataFrame", missing: list[str]):
        self._table, self._missing = table, missing
        self._progress: Progress | None = None
        self._started, self._tokens = 0.0, 0

    def update(self, figures: Figures) -> None:
        """A worker has loaded its model, or has finished rows."""
        if self._progress is None:
            self._progress, self._started = self._start_progress(), time.monotonic()
        if rows := int(figures["rows"]):
            self._tokens += int(figures["tokens"])
            speed = self._tokens / max(time.monotonic() - self._started, 0.001)
            self._progress.work_done = self._tokens
            self._progress.advance(rows, speed=f"{speed:.0f} tok/s")

    def _start_progress(self) -> Progress:
        starts = [_first_row(chunk, CHUNK) for chunk in self._missing]
        to_do = [self._table.slice(start, CHUNK)["length"] for start in starts]
        rows, tokens = sum(map(len, to_do)), sum(int(each.sum()) for each in to_do)
        progress = Progress("reference", self._table.height, "completions", tokens)
        progress.resume_at(self._table.height - rows)
        return progress


def collect_completions(rows: Pairs | Samples) -> "pl.DataFrame":
    """Each completion once: `sample_id, prompt_id, prompt_token_ids, token_ids`, longest first."""
    import polars as pl

    if isinstance(rows, Samples):
        columns = "sample_id", "prompt_id", "prompt_token_ids", "token_ids"
        table = rows.read()
        is_kl = pl.col("setting") == KL
        if table.select(is_kl.any()).item():  # an evaluation's; of a pool, all answers
            table = table.filter(is_kl)
        table = table.select(columns)
    else:
        table = pl.concat(_split_sides(pl.concat([rows.read_train(), rows.read_dev()])))
    table = table.unique("sample_id").with_columns(
        length=pl.col("prompt_token_ids").list.len() + pl.col("token_ids").list.len()
    )
    if (bare := table.filter(pl.col("prompt_token_ids").list.len() == 0)).height:
        raise UserError(
            f"{rows.path}: {pluralize(bare.height, 'row')} without prompt tokens"
            f" ({bare['sample_id'][0]} is one): nothing comes before their first token,"
            " so it has no log-probability.\n"
            "  Use a chat template or a tokenizer with BOS."
        )
    return table.sort(["length", "sample_id"], descending=[True, False])


def _split_sides(pairs: "pl.DataFrame") -> "Iterator[pl.DataFrame]":
    import polars as pl

    for side in ("chosen", "rejected"):
        ids = pl.col(f"{side}_id").alias("sample_id"), "prompt_id"
        yield pairs.select(*ids, "prompt_token_ids", pl.col(f"{side}_token_ids").alias("token_ids"))


def measure_chunks(
    cfg: ReferenceConfig, model: Model, scratch: Path, size: int, worker: Worker
) -> None:
    """One worker's part: it loads the model once."""
    from pipeline.models import loading

    table = read_table(scratch / ROWS)
    key = "reference", model.weights, model.adapter, cfg.dtype, cfg.quantization
    load = partial(loading.load, model, cfg.dtype, cfg.quantization)
    module = open_models.borrow(key, load)
    loading.check_vocabulary(module, [table["prompt_token_ids"], table["token_ids"]], "reference")
    worker.report(rows=0, tokens=0)

    def report_batch(rows: int, tokens: int) -> None:
        worker.report(rows=rows, tokens=tokens)

    for chunk in iter(worker.claim, None):
        part = table.slice(_first_row(chunk, size), size)
        write_table(scratch / chunk, _measure_chunk(cfg, module, part, report_batch))
        worker.finish(chunk)
    open_models.park(key, module)


def _first_row(chunk: str, size: int) -> int:
    return int(Path(chunk).stem.removeprefix("chunk-")) * size


def _measure_chunk(
    cfg: ReferenceConfig, module: Any, part: "pl.DataFrame", on_batch: "OnBatch"
) -> "pl.DataFrame":
    import polars as pl

    from pipeline.models.logprobs import compute_logps

    columns = part["prompt_token_ids"].to_list(), part["token_ids"].to_list()
    logps = compute_logps(module, *columns, cfg.runtime.batch_tokens, on_batch)
    if broken := sum(not math.isfinite(value) for value in logps):
        raise StageError(
            f"refer: no finite log-probability for {broken} of"
            f" {pluralize(len(logps), 'completion')} under this model in {cfg.dtype}:"
            " nothing is published.\n"
            "  Try reference.dtype=float32; else its weights are broken."
        )
    return part.select(
        "sample_id",
        "prompt_id",
        pl.Series("logp", logps, dtype=pl.Float64),
        pl.col("token_ids").list.len().cast(pl.Int64).alias("tokens"),
    )


def _join_chunks(files: list[Path]) -> "pl.DataFrame":
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
