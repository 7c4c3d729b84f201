"""The real stage. TOY_SHARD_PAUSE: seconds that pass before each shard is written.

Each shard that is written gets a line in TOY_LOG.
"""

import os
import time

from pipeline.sampling.shards import Shards
from pipeline.stages.sample import join as join
from pipeline.stages.sample import run as run
from tests.support.toys import note

pause = float(os.environ.get("TOY_SHARD_PAUSE", 0))
write = Shards.write_samples


def write_slowly(self, file, *table, **figures):
    time.sleep(pause)
    entry = write(self, file, *table, **figures)
    note(f"drew {file.name.rpartition('-')[2]}")
    return entry


Shards.write_samples = write_slowly
