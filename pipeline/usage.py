"""`make store`: what lies in the store, how large it is and which runs use it. `make prune`: empties what no run names.

A run names all Steps of its plan; to let its work go, remove its folder under runs/. Pruned Steps keep their manifest
(hollow), so that what was made from them stays built; unfinished work and replaced results go wholly.
"""

import fcntl
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import store
from pipeline.errors import DONE, REFUSED, Refusal
from pipeline.plural import many


@dataclass(frozen=True)
class Kept:
    """One folder of the store. `state`: built, hollow, unfinished or replaced."""

    path: Path
    state: str
    size: int
    runs: list[str] = field(default_factory=list)

    @property
    def spare(self) -> bool:
        return not self.runs and self.state != "hollow"


def main(arguments: list[str]) -> int:
    options = {word for word in arguments if word.startswith("-")}
    places = [Path(word) for word in arguments if not word.startswith("-")] + [Path("store"), Path("runs")]
    try:
        if unknown := options - {"--prune", "--yes"}:
            raise Refusal(f"{' '.join(sorted(unknown))}: unknown. Known: --prune, --yes, and the folders: STORE RUNS")
        found = list(kept(*places[:2]))
        store.name_bases(places[0])
        if "--prune" not in options:
            show(found)
        elif not (spare := [each for each in found if each.spare]):
            print("nothing to prune: every finished step is named by a run")
        else:
            show(spare)
            prune(places[0], spare, sure="--yes" in options)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return REFUSED
    return DONE


def kept(root: Path, runs: Path) -> Iterator[Kept]:
    if not root.is_dir():
        raise Refusal(f"{root}: no store lies here. Go to the folder of your runs, or give it: make store ARGS=FOLDER")
    users = named(runs)
    for path in sorted(root.glob("*/*")):
        if not path.is_dir() or path.parent.name.startswith(".") or path.name.startswith("."):
            continue
        fingerprint, _, rest = path.name.partition(".")
        manifest = store.read_manifest(path)
        state = "replaced" if rest.startswith("old-") else "unfinished" if rest or manifest is None else "built"
        if manifest and store.hollow(manifest):
            state = "hollow"
        yield Kept(path, state, size_of(path), [] if state == "replaced" else users[fingerprint])


def named(runs: Path) -> dict[str, list[str]]:
    """Fingerprint → the runs whose ledger names it, a sweep's points among them."""
    users: dict[str, list[str]] = defaultdict(list)
    for plan in sorted(runs.rglob(store.PLAN)):
        for fingerprint in json.loads(plan.read_text()):
            users[fingerprint].append(plan.parent.relative_to(runs).as_posix())
    return users


def size_of(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir() or file.is_symlink())


def show(found: list[Kept]) -> None:
    for each in found:
        users = f"{each.runs[-1]}{f' and {len(each.runs) - 1} more' if each.runs[1:] else ''}" if each.runs else "–"
        print(f"{each.path.parent.name:<10} {each.path.name:<40} {each.state:<10} {megabytes(each.size):>12}  {users}")
    print(f"{many(len(found), 'step')}, {megabytes(sum(each.size for each in found))}")


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def prune(root: Path, spare: list[Kept], sure: bool) -> None:
    if not sure:
        raise Refusal('Nothing was removed. To remove these: make prune ARGS="--yes"')
    with alone(root):
        for each in spare:
            manifest = store.read_manifest(each.path)
            if each.state == "built" and manifest:
                store.hollow_out(each.path, manifest)
            else:
                shutil.rmtree(each.path)
    print(f"removed {megabytes(sum(each.size for each in spare))}")


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """While this is held no step is being built."""
    with ExitStack() as held:
        for file in sorted(root.glob("*/.locks/*")):
            handle = held.enter_context(file.open("a+"))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                name = f"{file.parent.parent.name}/{file.name}"
                raise Refusal(f"{name} is being built. Prune when no run is at work.") from error
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
