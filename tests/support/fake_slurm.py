"""Slurm's programs as a script of bash that starts jobs at once, on this machine.

`install` writes them into a folder for PATH. FAKE_PENDING=1: jobs stay in the queue.
FAKE_LOST=STAGE: its job vanishes, without an exit code. FAKE_BLIND=FOLDER: no node sees it.
"""

from pathlib import Path

PROGRAMS = "sbatch", "squeue", "scancel", "sinfo", "srun", "scontrol"
SCRIPT = r"""#!/bin/bash
state="$(dirname "$0")/state"; mkdir -p "$state"; file="${@: -1}"
echo "$(basename "$0") $*" >> "$state/calls"
case "$(basename "$0")" in
sinfo) echo "main|2|4|8000|(null)|1:00:00" ;;
srun) [ -n "$FAKE_BLIND" ] && echo "missing $FAKE_BLIND"; exec "${@: -3}" ;;
sbatch)
    for word in "$@"; do
        case "$word" in
        --test-only) test_only=1 ;;
        --nodes=*) [ "${word#*=}" -le 2 ] || fault="More nodes than there are" ;;
        --cpus-per-task=*) [ "${word#*=}" -le 4 ] || fault="Requested node has not so many" ;;
        esac
    done
    if [ -n "$test_only" ]; then
        [ -z "$fault" ] && exit 0
        echo "allocation failure: $fault" >&2; exit 1
    fi
    number=$(( $(ls "$state" | grep -c pid) + 1 ))
    output=$(sed -n 's/^#SBATCH --output=//p' "$file" | tr -d '"')
    touch "$state/$number.pid"
    if [ -z "$FAKE_PENDING" ]; then
        case "$file" in
        *-$FAKE_LOST-*) echo 0 > "$state/$number.pid" ;;
        *) SLURM_JOB_ID=$number setsid bash "$file" >> "${output//%a/1}" 2>&1 < /dev/null &
           echo $! > "$state/$number.pid" ;;
        esac
    fi
    echo $number ;;
squeue)
    for each in "$state"/*.pid; do
        number=$(basename "$each" .pid); pid=$(cat "$each")
        case "$pid" in
        "") echo "$number|PENDING|Resources" ;;
        0) ;;  # gone: `kill -0 0` asks for this script's own group, which is there
        *) kill -0 "$pid" 2>/dev/null && echo "$number|RUNNING|None" ;;
        esac
    done ;;
scancel)
    pid=$(cat "$state/$1.pid"); echo 0 > "$state/$1.pid"
    [ -n "$pid" ] && kill -TERM -- "-$pid" ;;
esac
exit 0
"""


def install(folder: Path) -> str:
    """Returns the folder for PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        (folder / name).write_text(SCRIPT)
        (folder / name).chmod(0o755)
    return str(folder)


def read_calls(folder: Path) -> list[str]:
    return (folder / "state" / "calls").read_text().splitlines()
