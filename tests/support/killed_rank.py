"""A rank whose launcher is killed under it, with no warning, at the third step."""

import os
import signal
import sys

from pipeline.training import rank
from pipeline.training.monitoring import callbacks
from tests.support.sharded_rank import shard_on_a_cpu_too

plain = callbacks.MetricsLog.on_log


def on_log(self, args, state, control, **kwargs):
    plain(self, args, state, control, **kwargs)
    if state.global_step == 3 and state.is_world_process_zero:
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()  # for what follows a parent's death


if __name__ == "__main__":
    shard_on_a_cpu_too()
    callbacks.MetricsLog.on_log = on_log
    sys.exit(rank.main())
