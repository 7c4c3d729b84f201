"""`strop submit`: a run as a Slurm job, and others that help it, in files that a person can read.

The run's job asks for a whole machine's share once and builds all steps there. When Slurm ends it
early (its time is up, or another job has priority) it is queued again, and resumes from the store.
Jobs of `machines=N` take shards of it (`strop work`), so they need the same disk and nothing else.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path

from pipeline.artifacts import make_new_folder, write_text
from pipeline.commands.table import Words, describe_usage, parse_words, reports_errors
from pipeline.config import Config
from pipeline.config.compose import Arguments, compose
from pipeline.driver.cluster import sbatch
from pipeline.errors import DONE, INTERRUPTED, UserError

# What each of our knobs is for sbatch.
OPTIONS = {
    "gpus": "--gpus",
    "cpus": "--cpus-per-task",
    "memory": "--mem",
    "time": "--time",
    "partition": "--partition",
    "account": "--account",
    "constraint": "--constraint",
}


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("submit", arguments)
    helpers = _read_machines(words) - 1
    points, _ = compose(Arguments.parse(words.overrides))
    folder = make_new_folder(Path("jobs") / points[0].recipe.replace("/", "-"))
    run, help_ = folder / "run.sbatch", folder / "help.sbatch"
    write_text(run, render_run(words, points[0], folder))
    if helpers:
        write_text(help_, render_helper(words, points[0], folder))
    if "--dry-run" in words.flags:
        print(f"Nothing was submitted. To submit it: {_format_submit(run)}")
        print(run.read_text() + (help_.read_text() if helpers else ""), end="")
        return DONE
    number = submit([str(run)])
    print(f"job {number}: {run}")
    if helpers:
        array = [f"--dependency=after:{number}", f"--array=1-{helpers}", str(help_)]
        print(f"job {submit(array)}: {help_}, {helpers} times")
    return DONE


def _read_machines(words: Words) -> int:
    count = words.knob("machines")
    if not re.fullmatch("[0-9]{1,4}", count) or not int(count):
        raise UserError(
            f"machines={count}: expected a whole number from 1 to 9999.\n"
            f"  {describe_usage('submit')}"
        )
    return int(count)


def _format_submit(file: Path) -> str:
    return shlex.join(["sbatch", str(file)])


def render_run(words: Words, cfg: Config, folder: Path) -> str:
    command = shlex.join([sys.executable, "-m", "pipeline", "run", *words.overrides])
    job = shlex.quote(str(folder / "run.sbatch"))
    waits_for_batch = (
        "# It waits for a batch of a judge.",
        f'"RUNNING {INTERRUPTED} ") sbatch --begin=now+30minutes {job} ;;',
    )
    return (
        f"{_render_head(words, cfg, folder, 'run')}{sbatch.REQUEUE_HEAD}\n"
        f"{_render_prolog(words)}{sbatch.render_requeued(command, *waits_for_batch)}"
    )


def render_helper(words: Words, cfg: Config, folder: Path) -> str:
    """It waits long: the steps that it can help with are minutes or hours apart."""
    (cfg.runs / cfg.recipe).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline", "work", str(cfg.runs / cfg.recipe), "wait=3600"]
    return f"""{_render_head(words, cfg, folder, "help")}
{_render_prolog(words)}exec {shlex.join(command)}
"""


def _render_head(words: Words, cfg: Config, folder: Path, name: str) -> str:
    options = {option: words.knobs[knob] or None for knob, option in OPTIONS.items()}
    number = "%j" if name == "run" else "%A-%a"
    output = f"{folder.absolute()}/{name}-{number}.log"
    return sbatch.render_head(f"{cfg.recipe.replace('/', '-')}-{name}", output, options)


def _render_prolog(words: Words) -> str:
    """Free text, such as `module load cuda`."""
    file = words.knobs["prolog"]
    if file is None:
        return ""
    try:
        return f"{Path(file).read_text().rstrip()}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prolog={file}: cannot be read as text. Give a file of shell commands, such as"
            " `module load cuda`."
        ) from error


def submit(words: list[str]) -> str:
    """Returns the job's number."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "strop submit: no sbatch here, so this machine submits no Slurm jobs.\n"
            "  Type this on the cluster's login machine; --dry-run shows the jobs without it."
        )
    return sbatch.submit(words, describe_usage("submit"))
