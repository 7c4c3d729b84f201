"""Every twin to its report, one after the other with one store: `python -m tests.support.twins`.

Names of twins after it run these alone. Prints the minutes of each; exits with 1 if one fails.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.house import HOUSE

TWINS = HOUSE / "recipes" / "twins"
# Parts of the slow tests, of at most twenty minutes each.
GROUPS = {
    "offline": ["zephyr_7b", "zephyr_24gb", "smollm2_1b7", "tulu3_8b", "olmo2_1b"],
    "objectives": ["smollm3_apo", "kto_thumbs", "orpo_mistral", "guide_llama2_qlora"],
    "sampled": ["simpo_llama3_armorm", "smollm2", "course_week", "constitutional"],
    "rounds": ["sppo_llama3", "online_rlhf_llama3", "math_qwen_rounds", "iterative_rpo_gsm8k"],
}
NAMES = [name for names in GROUPS.values() for name in names]
# Twins that ask the judge of recipes/twins/judge.py, by the knob of its engine.
JUDGED = {
    "constitutional": "score.scorers.constitution.engine",
    "course_week": "score.scorers.pairwise.engine",
}


@contextmanager
def start_judge() -> Iterator[str]:
    """The address of a judge on a free port."""
    command = [sys.executable, str(TWINS / "judge.py"), "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
    finally:
        server.kill()
        server.wait()


def run_twin(name: str, folder: Path, judge: str) -> subprocess.CompletedProcess[str]:
    """The command that a user types, in a folder whose store all twins share."""
    knobs = [f"{JUDGED[name]}.runtime.base_url={judge}"] if name in JUDGED else []
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "run", f"recipes={name}", "scale=twin", *knobs],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HOUSE), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main(names: list[str], folder: Path) -> int:
    failed = []
    with start_judge() as judge:
        for name in names:
            begun = time.monotonic()
            finished = run_twin(name, folder, judge)
            minutes = (time.monotonic() - begun) / 60
            print(f"{name:24} {minutes:5.1f} minutes", flush=True)
            if finished.returncode:
                failed.append(name)
                print(finished.stdout, flush=True)
    print(f"{len(names) - len(failed)} of {len(names)} twins made their report", *failed)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or NAMES, Path.cwd()))
