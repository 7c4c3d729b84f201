"""The real stage. TOY_SHARD_PAUSE: seconds that pass before each shard is written."""

import os
import time

from pipeline.sampling.shards import Shards
from pipeline.stages.sample import join as join
from pipeline.stages.sample import run as run

if pause := float(os.environ.get("TOY_SHARD_PAUSE", 0)):
    write = Shards.write_samples

    def write_slowly(self, *table, **figures):
        time.sleep(pause)
        return write(self, *table, **figures)

    Shards.write_samples = write_slowly
