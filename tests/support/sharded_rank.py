"""A rank whose accelerate shards on a CPU too: there it takes FSDP for plain DDP, although torch
shards over gloo.

Only the name of what was asked is put right; sharding, gathering and saving are torch's,
accelerate's and ours. And its devices are unlike: the second has room for one answer at once. Rows
are not packed, as on a GPU, a pass costs so little that rows of unlike length make several, and
each process prints how many.
"""

import os
import sys

from accelerate import state

from pipeline.resources import training_fit
from pipeline.training import rank, row_packing
from pipeline.training.trainers import passes

plain = state.AcceleratorState.__init__


def on_a_cpu_too(self, *args, fsdp_plugin=None, **kwargs):
    plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type = state.PartialState._shared_state["distributed_type"] = (
            state.DistributedType.FSDP
        )
        self.fsdp_plugin = fsdp_plugin


def print_count(self, *layouts, choose=passes.Arrangement.choose):
    layout, chosen = choose(self, *layouts)
    print(f"rank {os.environ['RANK']} runs {len(chosen)} passes", file=sys.stderr, flush=True)
    return layout, chosen


def shard_on_a_cpu_too():
    row_packing.RowPacking._cut_into_segments = lambda self: "as on a GPU"
    passes.SHARDED_PASS_COST = 8
    passes.Arrangement.choose = print_count
    state.AcceleratorState.__init__ = on_a_cpu_too
    if os.environ["RANK"] == "1":
        training_fit.ANSWERS_AT_ONCE = 1


if __name__ == "__main__":
    shard_on_a_cpu_too()
    sys.exit(rank.main())
