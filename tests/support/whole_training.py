"""A training in a process of its own, as the driver starts one: prints the most bytes that the
kernel saw it hold."""

import json
import sys
from pathlib import Path

from pipeline.artifacts import Logps, Model, Pairs
from pipeline.config import TrainConfig
from pipeline.stages import train


def main() -> None:
    folder = Path(sys.argv[1])
    cfg = TrainConfig(**json.loads((folder / "config.json").read_text()))
    init = Model(folder / "sft" / "model")
    logps = [Logps(folder / "logps")]
    train.run(
        cfg,
        folder / "train",
        init=init,
        pairs=[Pairs(folder / "pairs")],
        reference=init,
        logps=logps,
    )
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(lines["VmHWM"].split()[0]) << 10)


if __name__ == "__main__":
    main()
