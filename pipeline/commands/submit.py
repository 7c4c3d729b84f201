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
from pipeline.driver.outline import outline_plan, select_targets
from pipeline.driver.run import find_faults
from pipeline.errors import DONE, INTERRUPTED, UserError
from pipeline.plan import plan
from pipeline.preflight.training_fits import TrainingFits

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

# What Slurm reads, and how we ask for it.
READABLE = {
    "machines": ("0*[1-9][0-9]{0,3}", "a whole number from 1 to 9999"),
    "gpus": (
        r"(([a-zA-Z][\w.-]*:)?[0-9]+)(,[a-zA-Z][\w.-]*:[0-9]+)*",
        "a whole number from 0, or with a type, such as a100:2",
    ),
    "cpus": ("0*[1-9][0-9]*", "a whole number from 1"),
    "memory": ("[0-9]+[kmgtKMGT]?", "a number such as 64G or 64000M; without a unit it is of MiB"),
    "time": (
        "(?i:[0-9]+(:[0-9]{1,2}){0,2}|[0-9]+-[0-9]{1,2}(:[0-9]{1,2}){0,2}|unlimited|infinite)",
        "minutes, or H:MM:SS, such as 8:00:00, or D-HH:MM:SS",
    ),
}


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("submit", arguments)
    _check_options(words)
    helpers = int(words.knob("machines")) - 1
    prolog = _read_prolog(words)
    points, _ = compose(Arguments.parse(words.overrides))
    for point in points:
        _check_plan(point, has_prolog=bool(prolog))
    if "--dry-run" not in words.flags:
        _check_sbatch()
    folder = make_new_folder(Path("jobs") / points[0].recipe.replace("/", "-"))
    run, help_ = folder / "run.sbatch", folder / "help.sbatch"
    write_text(run, render_run(words, points[0], folder, prolog))
    if helpers:
        write_text(help_, render_helper(words, points[0], folder, prolog))
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


def _check_options(words: Words) -> None:
    """Slurm would name its own options, and only once the job files are written."""
    faults = [
        f"{knob}={value}: expected {expected}."
        for knob, (pattern, expected) in READABLE.items()
        if (value := words.knob(knob)) and not re.fullmatch(pattern, value, re.ASCII)
    ]
    if faults:
        raise UserError("\n".join([*faults, f"  {describe_usage('submit')}"]))


def _check_plan(cfg: Config, has_prolog: bool) -> None:
    """As `strop plan`, but for what only the machines of the job can tell."""
    cfg = cfg.model_copy(update={"dry_run": True})  # nothing is written
    run_plan = outline_plan(cfg, select_targets(plan(cfg), cfg.until))
    # A prolog may bring packages and keys that are not here.
    fits = TrainingFits(run_plan, is_here=False)
    faults = run_plan.faults if has_prolog else find_faults(cfg, run_plan, fits)
    if faults:
        raise UserError(*faults)


def _check_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise UserError(
            "strop submit: no sbatch here, so this machine submits no Slurm jobs.\n"
            "  Type this on the cluster's login machine; --dry-run shows the jobs without it."
        )


def _format_submit(file: Path) -> str:
    return shlex.join(["sbatch", str(file)])


def render_run(words: Words, cfg: Config, folder: Path, prolog: str) -> str:
    command = shlex.join([sys.executable, "-m", "pipeline", "run", *words.overrides])
    job = shlex.quote(str(folder / "run.sbatch"))
    waits_for_batch = (
        "# It waits for a batch of a judge.",
        f'"RUNNING {INTERRUPTED} ") sbatch --begin=now+30minutes {job} ;;',
    )
    return (
        f"{_render_head(words, cfg, folder, 'run')}{sbatch.REQUEUE_HEAD}\n"
        f"{prolog}{sbatch.render_requeued(command, *waits_for_batch)}"
    )


def render_helper(words: Words, cfg: Config, folder: Path, prolog: str) -> str:
    """It waits long: the steps that it can help with are minutes or hours apart."""
    (cfg.runs / cfg.recipe).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline", "work", str(cfg.runs / cfg.recipe), "wait=3600"]
    return f"""{_render_head(words, cfg, folder, "help")}
{prolog}exec {shlex.join(command)}
"""


def _render_head(words: Words, cfg: Config, folder: Path, name: str) -> str:
    options = {option: words.knobs[knob] or None for knob, option in OPTIONS.items()}
    number = "%j" if name == "run" else "%A-%a"
    output = f"{folder.absolute()}/{name}-{number}.log"
    return sbatch.render_head(f"{cfg.recipe.replace('/', '-')}-{name}", output, options)


def _read_prolog(words: Words) -> str:
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
    return sbatch.submit(words, describe_usage("submit"))
