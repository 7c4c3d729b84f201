"""Uses the thread pools of pyarrow when it is loaded, and again when a stage asks."""

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet


def sum_in_threads() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pa.parquet.write_table(pa.table({"a": list(range(100_000))}), path, row_group_size=10_000)
        read = pa.dataset.dataset(path).to_table(use_threads=True)
    return int(pa.compute.sum(read["a"]).as_py())


sum_in_threads()
used_by = os.getpid()
