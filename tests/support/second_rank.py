"""A rank of which only the second one breaks, while the first one waits for it."""

import os
import sys
import time

from pipeline.errors import StageError
from pipeline.training import rank, session


def train(*args, **kwargs):
    if os.environ["RANK"] == "0":
        time.sleep(60)
    raise StageError("a process that checks answers was killed.")


if __name__ == "__main__":
    session.train = train
    sys.exit(rank.main())
