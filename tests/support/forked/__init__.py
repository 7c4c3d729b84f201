"""Stages that use what the prepared parent has loaded: threads, tensors and gradients.

The parent itself uses the thread pools of pyarrow before it forks.
"""

import os
import sys
from pathlib import Path

from pipeline.artifacts import write_text
from pipeline.stages import PRELOAD as REAL
from pipeline.stages import PRELOAD_WITHOUT_GPU

PRELOAD = (*REAL, *PRELOAD_WITHOUT_GPU, "tests.support.forked.pools")


def use_libraries(out: Path) -> None:
    import polars as pl
    import torch

    from tests.support.forked import pools

    is_forked = "pipeline.driver.prepared_parent" in sys.orig_argv
    assert is_forked == (pools.used_by != os.getpid())
    assert not torch.cuda.is_initialized()
    total = pools.sum_in_threads()
    assert pl.DataFrame({"a": range(1000)}).group_by(pl.col("a") % 7).len().height == 7
    torch.manual_seed(0)
    layer, rows = torch.nn.Linear(512, 512), torch.randn(512, 512)
    layer(rows).square().mean().backward()
    write_text(out / "libraries.txt", f"{total} {layer.weight.grad.double().sum().item():.17g}\n")
