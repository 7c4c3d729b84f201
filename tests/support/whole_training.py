"""A training in a process by itself, as the driver starts one: prints the most bytes that it
kernel's own maximum is too low where it gives pages of the libraries back while they are not
used, as a machine short of memory does. So anonymous and file pages are watched apart, too.
"""

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from pipeline.artifacts import Logps, Model, Pairs
from pipeline.config import TrainConfig
from pipeline.stages import train


def main() -> None:
    folder = Path(sys.argv[1])
    cfg = TrainConfig(**json.loads((folder / "config.json").read_text()))
    init = Model(folder / "sft" / "model")
    logps = [Logps(folder / "logps")]
    most: Counter[str] = Counter()
    threading.Thread(target=watch, args=[most], daemon=True).start()
    train.run(
        cfg,
        folder / "train" / "adapter",
        init=init,
        pairs=[Pairs(folder / "pairs")],
        reference=init,
        logps=logps,
    )
    held = read_status()
    print(max(held["VmHWM"], most["RssAnon"] + most["RssFile"]))


def watch(most: Counter[str]) -> None:
    while True:
        held = read_status()
        for name in ("RssAnon", "RssFile"):
            most[name] = max(most[name], held[name])
        time.sleep(0.02)


def read_status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(size.split()[0]) << 10 for name, size in sizes}


if __name__ == "__main__":
    main()
