"""A real Slurm of two nodes on this machine, where Debian's slurm-wlm and munge are installed."""

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = "slurmctld", "slurmd", "munged", "sbatch"


def explain_absence() -> str | None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is missing: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


@contextmanager
def run_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and squeue find it."""
    host = socket.gethostname().partition(".")[0]
    ports = [_find_port() for _ in range(3)]
    for name in ("state", "log"):
        (folder / name).mkdir(parents=True)
    nodes = "\n".join(
        f"NodeName=n{at} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[at]} CPUs=4"
        " RealMemory=4000 State=UNKNOWN"
        for at in (1, 2)
    )
    (folder / "slurm.conf").write_text(f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/ctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
{nodes}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
""")
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    started_munge = _start_munge()
    try:
        subprocess.run(["slurmctld"], env=environment, check=True)
        time.sleep(2)
        for node in ("n1", "n2"):
            subprocess.run(["slurmd", "-N", node], env=environment, check=True)
        wait_for(lambda: "idle" in ask(environment, "sinfo", "--noheader"))
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment)
        time.sleep(2)
        subprocess.run(["scontrol", "shutdown"], env=environment)
        if started_munge:
            subprocess.run(["pkill", "-x", "munged"])
            wait_for(lambda: not _runs_munge())  # or the next cluster takes it for its own


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _runs_munge() -> bool:
    return not subprocess.run(["pgrep", "-x", "munged"], capture_output=True).returncode


def _start_munge() -> bool:
    if _runs_munge():
        return False
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge")
    subprocess.run(["su", "-s", "/bin/bash", "munge", "-c", "/usr/sbin/munged"], check=True)
    return True


def ask(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=environment, capture_output=True, text=True).stdout


def lose_a_job(environment: dict[str, str], words: list[str], chance: random.Random) -> bool:
    """Do this to any of the jobs that run; False if none does."""
    jobs = ask(environment, "squeue", "--noheader", "--states=RUNNING", "--format=%A").split()
    if not jobs:
        return False
    return not subprocess.run([*words, chance.choice(sorted(jobs))], env=environment).returncode


def wait_for(condition, seconds: float = 300):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)
    return found
