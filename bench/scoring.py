"""What scoring costs over what it has to: a function for each ratio.

`judge`: requests/s of the pairwise judge at concurrency 16, over the 16/0.05 that a server with 50 ms latency allows.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import Ratio, report

from pipeline.config import DuelConfig
from pipeline.scorers.judging.court import Court
from pipeline.scorers.judging.duels import NEEDS, Bout, fought
from tests.house import composed
from tests.judges import KEY, FakeJudge, fake_judge

RUNS = 5
CONCURRENCY, LATENCY, BOUTS = 16, 0.05, 800


def judge() -> Ratio:
    """Two requests a bout, each a row of the verdict store; a fresh store each run, the client's start not counted."""
    os.environ["JUDGE_KEY"] = KEY
    ideal, shares = CONCURRENCY / LATENCY, []
    with fake_judge(LATENCY) as server:
        for run in range(RUNS + 1):
            speed = _requests_per_second(_judging(server), run)
            print(f"judge: {speed:.0f} requests/s of {ideal:.0f}")
            shares += [speed / ideal] if run else []  # the first run does not count
    return Ratio(shares, ">= 0.85")


def _judging(server: FakeJudge) -> DuelConfig:
    at = "exam.duels.j"
    runtime = {"base_url": server.url, "api_key_env": "JUDGE_KEY", "concurrency": CONCURRENCY}
    words = [f"{at}.engine.runtime.{name}={value}" for name, value in runtime.items()]
    return composed("recipes=smoke", f"+duel@{at}=default", f"{at}.engine.model=good", *words).exam.duels["j"]


def _requests_per_second(cfg: DuelConfig, run: int) -> float:
    bouts = [Bout(f"Question {i} of run {run}?", f"good {i}", f"bad {i}") for i in range(BOUTS + 1)]
    with tempfile.TemporaryDirectory() as folder:
        store = cfg.runtime.model_copy(update={"verdicts": Path(folder) / "verdicts.sqlite"})
        court = Court(cfg.model_copy(update={"runtime": store}), NEEDS)
        fought(court, bouts[BOUTS:])
        started = time.perf_counter()
        verdicts = fought(court, bouts[:BOUTS])
        seconds = time.perf_counter() - started
        court.close()
    assert all(verdict.ab.winner == verdict.ba.winner == "a" for verdict in verdicts)
    return 2 * BOUTS / seconds


def main() -> None:
    report("scoring", {"judge": judge()})


if __name__ == "__main__":
    main()
