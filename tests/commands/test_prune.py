"""Prune removes nothing of the user's: what it takes for the store's, and what it leaves."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import store
from pipeline.artifacts import STORE_MARKER, write_json, write_text
from pipeline.commands import store as usage
from pipeline.driver.store_users import MARKER_LEASE, RUNS_MARKER, register_runs
from pipeline.errors import UserError
from pipeline.resources import leases
from pipeline.status import RunPlan, find_named_steps
from pipeline.step import Identity, Step
from tests.support.house import HOUSE, SMALL, composed

NAMES = [f"{number:012x}" for number in range(10)]
STALE = NAMES[0]  # named by no run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A store of two samples, one of which a run needs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES[:2]:
        make_step(Path("store"), "sample", name)
    write_json(Path("runs/mine/now") / store.PLAN, {NAMES[1]: "sample"})
    register_runs(Path("store"), Path("runs"))
    return tmp_path


def make_step(
    root: Path,
    stage: str,
    name: str,
    suffix: str = "",
    story: str = "",
    files: tuple[str, ...] = ("rows.txt",),
) -> Path:
    folder = root / stage / f"{name}{suffix}"
    for file in files:
        write_text(folder / file, "paid for")
    write_json(
        folder / store.STEP,
        {"stage": stage, "fingerprint": name, "inputs": {}, "spent": 0, "story": story},
    )
    if suffix != ".partial":
        told = {
            "stage": stage,
            "fingerprint": name,
            "inputs": {},
            "config": {},
            "cost": {},
            "seconds": 1,
        }
        write_json(folder / store.MANIFEST, {**told, "files": store.list_files(folder)})
    return folder


RELEASED = json.dumps({"state": leases.RELEASED})


def everything(folder: Path) -> dict[str, bytes]:
    """What a person may have lying about: all but the leases of who uses the store."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and store.IN_USE not in path.parts
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(capsys, *words: str) -> str:
    assert usage.main([*words]) == 2
    return capsys.readouterr().err


# ── what is not a store's ─────────────────────────────────────────────────────────────────────────


def test_a_home_directory_loses_nothing(tmp_path, monkeypatch, capsys):
    """Folders two deep, some named as a stage and a fingerprint are."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "Documents/thesis",
        "train/photos",
        f"sample/{STALE}",
        f"sample/{STALE}.partial",
        ".ssh/keys",
    ):
        write_text(tmp_path / "home" / name / "mine.txt", "years")
    Path("runs").mkdir()
    before = everything(tmp_path)
    assert STORE_MARKER in refused(capsys, "store=home", "--prune", "--yes")
    assert "home: one word too many" in refused(capsys, "home", "runs", "--prune", "--yes"), (
        "as it was typed before"
    )
    register_runs(Path("home"), Path("runs"))  # even where a run has used it as a store
    before = everything(tmp_path)
    assert usage.main(["store=home", "--prune", "--yes"]) == 0
    assert everything(tmp_path) == before and "nothing to prune" in capsys.readouterr().out
    assert usage.main(["store=home"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("foreign") == 2 and "thesis" not in listed and "photos" not in listed


@pytest.mark.parametrize("hollow", [False, True])
def test_a_step_in_which_a_person_keeps_a_file_stays_and_is_named(place, capsys, hollow):
    step = place / "store" / "sample" / STALE
    write_text(step / "merged" / "config.json", "made by merging")
    store.note_outside(step, ["merged/config.json"])
    if hollow:
        store.prune(step, json.loads((step / store.MANIFEST).read_text()))
    write_text(step / "notes" / "mine.txt", "years")
    before = everything(place)
    assert usage.main(["--prune", "--yes"]) == 0
    shown = capsys.readouterr().out
    assert everything(place) == before and "nothing to prune" in shown
    assert f"{STALE}" in shown and "kept: only you can decide" in shown
    assert usage.main([]) == 0 and "notes/mine.txt" in capsys.readouterr().out
    work = store.partial_folder(step)
    write_text(work / "rows.txt", "again")
    store.publish(work, step)
    [aside] = step.parent.glob(f"{STALE}.old-*")
    assert (aside / "notes" / "mine.txt").read_text() == "years", "nor does making it again take it"
    (aside / "notes" / "mine.txt").unlink()
    assert usage.main(["--prune", "--yes"]) == 0 and not aside.exists()


@pytest.mark.parametrize(
    "file", ["README.md", "merged/model-q4.gguf", "scratch/todo.txt", ".draft.tmp"]
)
def test_a_file_with_a_name_of_ours_that_the_store_did_not_write_stays(place, capsys, file):
    step = place / "store" / "sample" / STALE
    write_text(step / "cost.json", "{}")
    store.note_outside(step, ["cost.json"])
    write_text(step / ".manifest.json.tmp", "what a killed write leaves")
    write_text(step / file, "years")
    assert usage.main(["--prune", "--yes"]) == 0
    assert (step / file).read_text() == "years" and file in capsys.readouterr().out
    (step / file).unlink()
    assert usage.main(["--prune", "--yes"]) == 0
    assert [path.name for path in step.iterdir() if path.is_file()] == [store.MANIFEST]


def test_a_card_that_the_user_edited_stays(place, capsys):
    step = place / "store" / "sample" / STALE
    write_text(step / "README.md", "as the stage wrote it")
    store.note_outside(step, ["README.md"])
    (step / "README.md").write_text("for the hub")
    assert usage.main(["--prune", "--yes"]) == 0
    assert (step / "README.md").is_file() and "README.md" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["", ".old-unknown", f".old-{'a' * 16}-2"])
def test_a_folder_of_which_it_is_unknown_what_the_store_wrote_stays_and_is_named(
    place, capsys, suffix
):
    step = make_step(Path("store"), "sample", NAMES[3], suffix)
    (step / store.MANIFEST).write_text("{")
    write_text(step / "notes.txt", "years")
    assert usage.main(["--prune", "--yes"]) == 0
    output = capsys.readouterr().out
    assert (step / "notes.txt").is_file() and f"{NAMES[3]}{suffix}" in output


def test_setting_the_same_content_aside_twice_keeps_what_the_user_put_there(place):
    for note in ("first.txt", "second.txt", None):
        step = make_step(Path("store"), "sample", NAMES[3])
        if note:
            write_text(step / note, "years")
        store.set_aside(step, "a" * 16)
    asides = sorted(step.parent.glob(f"{NAMES[3]}.old-*"))
    notes = [file.name for aside in asides for file in aside.glob("*.txt")]
    assert [note for note in notes if note != "rows.txt"] == ["first.txt", "second.txt"]


def test_links_are_neither_followed_nor_removed(place, tmp_path, capsys):
    mine = tmp_path / "mine"
    make_step(mine, "sample", NAMES[5])
    (place / "store" / "sample" / NAMES[5]).symlink_to(mine / "sample" / NAMES[5])
    (place / "store" / "train").symlink_to(mine / "sample")
    (place / "store" / "sample" / STALE / "linked").symlink_to(mine)
    assert usage.main(["--prune", "--yes"]) == 0
    assert (mine / "sample" / NAMES[5] / "rows.txt").is_file() and (
        place / "store" / "sample" / NAMES[5]
    ).is_symlink()
    assert not (place / "store" / "sample" / STALE / "rows.txt").exists()


def test_leases_of_a_stage_on_another_disk_are_no_leftovers(place):
    lease = place / "big" / store.LEASES / NAMES[5] / "000001"
    write_text(lease, RELEASED)
    (place / "store" / "score").symlink_to(place / "big")
    assert usage.main(["--prune", "--yes"]) == 0 and lease.is_file()


def test_names_of_other_forms_stay(place):
    names = [
        f"sample/{STALE}-copy",
        f"sample/{STALE[:-1]}",
        f"sample/{STALE.replace('0', 'A')}",
        f"mine/{STALE}",
    ]
    for name in names:
        write_text(place / "store" / name / "mine.txt", "x")
    write_text(
        place / "store" / "sample" / f"{NAMES[7]}.partial" / "mine.txt",
        "a step's name, and no record of it",
    )
    write_text(place / "store" / "notes.txt", "x")
    assert usage.main(["--prune", "--yes"]) == 0
    kept = [*names, f"sample/{NAMES[7]}.partial"]
    assert all((place / "store" / name / "mine.txt").is_file() for name in kept)
    assert (place / "store" / "notes.txt").is_file() and not (
        place / "store" / "sample" / STALE / "rows.txt"
    ).exists()


# ── whose runs are asked ──────────────────────────────────────────────────────────────────────────


def test_a_runs_folder_that_the_store_does_not_know_is_refused(place, capsys):
    Path("rums").mkdir()
    before = everything(place)
    said = refused(capsys, "runs=rums", "--prune", "--yes")
    assert "runs=rums" in said and str(place / "runs") in said
    assert "runs=nowhere" in refused(capsys, "runs=nowhere", "--prune", "--yes")
    assert "expected a value" in refused(capsys, "runs=", "--prune", "--yes")
    assert "expected a value" in refused(capsys, "store=", "--prune", "--yes")
    assert everything(place) == before


def test_every_runs_folder_of_the_store_is_asked(place):
    """Two projects share a store: pruning one of them leaves what the other needs."""
    write_json(Path("other/x/now") / store.PLAN, {STALE: "sample"})
    register_runs(Path("store"), Path("other"))
    assert usage.main(["--prune", "--yes"]) == 0
    assert (place / "store" / "sample" / STALE / "rows.txt").is_file()


def test_a_runs_folder_that_is_away_is_refused_until_it_is_forgotten(place, capsys):
    write_json(Path("other/x/now") / store.PLAN, {NAMES[1]: "sample"})
    register_runs(Path("store"), Path("other"))
    Path("other").rename("unplugged")
    Path("other").mkdir()  # where its disk would be mounted
    before = everything(place)
    said = refused(capsys, "--prune", "--yes")
    assert str(place / "other") in said and everything(place) == before
    command = said[said.index("strop store") :].split()  # what is to be typed
    assert usage.main(command[2:]) == 0
    assert usage.main(["--prune", "--yes"]) == 0
    assert not (place / "store" / "sample" / STALE / "rows.txt").exists()


def test_a_runs_folder_that_is_there_is_not_forgotten(place, capsys):
    assert "forget=runs: this folder exists" in refused(capsys, "forget=runs")
    assert "does not know" in refused(capsys, "forget=elsewhere")
    assert str(place / "runs") in json.loads((place / "store" / STORE_MARKER).read_text())["runs"]


def test_a_store_from_before_the_marker_is_taken_over_by_a_run_and_loses_no_other_project_s_steps(
    place, capsys
):
    """A first run's marker knows its runs folder; the steps say which other runs made them."""
    make_step(Path("store"), "sample", NAMES[2], story=str(place / "older" / "x" / "then"))
    write_json(Path("older/x/then") / store.PLAN, {NAMES[2]: "sample", STALE: "sample"})
    (place / "store" / STORE_MARKER).unlink()
    assert "repeat a run" in refused(capsys, "--prune", "--yes")
    register_runs(Path("store"), Path("runs"))
    assert usage.main(["--prune", "--yes"]) == 0
    assert all(
        (place / "store" / "sample" / name / "rows.txt").is_file() for name in (NAMES[2], STALE)
    )


def test_a_model_that_another_run_starts_from_stays_with_its_base(place):
    """By its config, as typed, and by the run's plan where the path was a link."""
    base = make_step(Path("store"), "sft", NAMES[2])
    for name, link in ((NAMES[3], "store"), (NAMES[4], "runs/old/store/003-train-1")):
        step = make_step(Path("store"), "train", name)
        write_json(step / "model.json", {"base": f"sft/{base.name}"})
        if link != "store":
            Path(link).parent.mkdir(parents=True)
            Path(link).symlink_to(step.absolute())
    write_text(
        Path("runs/mine/now/config.yaml"), f"sft: {{model: ./store/train/{NAMES[3]}/merged}}"
    )
    words = ("sft.model=./runs/old/store/003-train-1/merged", "sft.revision=null", "until=sft")
    cfg = composed(*SMALL, *words)
    run_plan = RunPlan([Step("sft", cfg.sft)], [], Identity(str), Path("store"))
    write_json(Path("runs/mine/then") / store.PLAN, find_named_steps(run_plan))
    assert usage.main(["--prune", "--yes"]) == 0
    assert all(
        (place / "store" / name / "rows.txt").is_file()
        for name in (f"sft/{NAMES[2]}", f"train/{NAMES[3]}", f"train/{NAMES[4]}")
    )
    assert not (place / "store" / "sample" / STALE / "rows.txt").exists()


def test_a_run_where_the_disk_of_the_runs_is_not_mounted_releases_nothing(place, capsys):
    Path("runs").rename("unplugged")
    write_json(Path("runs/mine/later") / store.PLAN, {NAMES[3]: "sample"})
    register_runs(Path("store"), Path("runs"))
    before = everything(place)
    refusal = refused(capsys, "--prune", "--yes")
    assert f"{place / 'runs'}: " in refusal and everything(place) == before


def test_runs_that_lost_their_marker_are_not_forgotten(place, capsys):
    (place / "runs" / RUNS_MARKER).unlink()
    refusal = refused(capsys, "--prune", "--yes")
    assert f"no {RUNS_MARKER}" in refusal and "missing" not in refusal
    command = refusal[refusal.index("strop store") :].split()
    assert usage.main(command[2:]) == 0 and usage.main(["--prune", "--yes"]) == 0
    assert (place / "store" / "sample" / NAMES[1] / "rows.txt").is_file()
    assert not (place / "store" / "sample" / STALE / "rows.txt").exists()


def test_a_default_runs_folder_that_does_not_exist_is_no_fault_of_the_user_s(place, capsys):
    Path("runs").rename("other")
    register_runs(Path("store"), Path("other"))
    assert usage.main([f"forget={place}/runs"]) == 0 and capsys.readouterr().err == ""


def broken_plan(place: Path) -> None:
    write_text(place / "runs" / "broken" / "then" / store.PLAN, '["half')


def odd_plan(place: Path) -> None:
    write_text(place / "runs" / "broken" / "then" / store.PLAN, "[]")


def unmounted_recipe(place: Path) -> None:
    (place / "runs" / "broken").symlink_to(place / "nowhere")


@pytest.mark.parametrize(
    "plant", [broken_plan, odd_plan, unmounted_recipe], ids=lambda plant: plant.__name__
)
def test_a_run_of_which_nobody_knows_what_it_needs_keeps_everything(place, capsys, plant):
    plant(place)
    before = everything(place / "store")
    assert (
        "runs/broken" in refused(capsys, "--prune", "--yes")
        and everything(place / "store") == before
    )
    assert usage.main([]) == 0
    shown = capsys.readouterr()
    assert "runs/broken" in shown.err and STALE in shown.out


def test_a_run_in_a_linked_folder_is_asked_too(place):
    write_json(place / "big" / "then" / store.PLAN, {STALE: "sample"})
    (place / "runs" / "moved").symlink_to(place / "big")
    (place / "runs" / "moved" / "again").symlink_to(place / "runs")  # round and round
    (place / "runs" / "latest").symlink_to(place / "nowhere")  # its run was removed, as it may be
    assert usage.main(["--prune", "--yes"]) == 0
    assert (place / "store" / "sample" / STALE / "rows.txt").is_file()


# ── asking ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "goes"), [("y", True), ("yes", True), ("n", False), ("", False), (None, False)]
)
def test_on_a_terminal_it_lists_and_asks(place, capsys, monkeypatch, answer, goes):
    def reply(question: str) -> str:
        assert STALE in capsys.readouterr().out and "[y/N]" in question
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", reply)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert usage.main(["--prune"]) == 0
    assert (place / "store" / "sample" / STALE / "rows.txt").exists() == (not goes)


def test_without_a_terminal_it_lists_and_says_what_to_type(place, capsys):
    assert usage.main(["--prune"]) == 2
    shown = capsys.readouterr()
    assert (
        STALE in shown.out
        and "--yes" in shown.err
        and (place / "store" / "sample" / STALE / "rows.txt").is_file()
    )


def test_what_a_run_names_by_the_time_of_the_answer_stays(place, capsys, monkeypatch):
    def reply(question: str) -> str:
        write_json(Path("runs/mine/later") / store.PLAN, {STALE: "sample"})
        return "y"

    monkeypatch.setattr("builtins.input", reply)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert usage.main(["--prune"]) == 0
    assert (place / "store" / "sample" / STALE / "rows.txt").is_file()


def test_while_a_run_is_at_work_nothing_is_removed(place, capsys):
    with store.lock_shared(Path("store"), lambda: pytest.fail("no prune is running")):
        assert "a run is at work" in refused(capsys, "--prune", "--yes")
    with store.lock_step(Path("store/sample") / NAMES[3], pytest.fail):
        assert f"sample/{NAMES[3]} is being built" in refused(capsys, "--prune", "--yes")
    assert (place / "store" / "sample" / STALE / "rows.txt").is_file()
    assert usage.main(["--prune", "--yes"]) == 0


def test_more_leases_than_files_may_be_open(place):
    for number in range(1100):
        (place / "store" / "sample" / store.LEASES / f"{number + 100:012x}").mkdir(parents=True)
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))  # noqa: E731
    command = [sys.executable, "-m", "pipeline", "store", "--prune", "--yes"]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=few)
    assert done.returncode == 0, done.stderr
    assert not list((place / "store" / "sample" / store.LEASES).iterdir()), (
        "leases of steps that are gone"
    )


# ── what killed processes leave ───────────────────────────────────────────────────────────────────


def test_leftovers_of_dead_runs_are_offered(place, capsys):
    make_step(Path("store"), "train", NAMES[4], ".partial")
    make_step(Path("store"), "train", NAMES[1], f".old-{'a' * 16}")
    for name in (
        ".contents.json.4711",
        ".writable-4711",
        f"sample/{store.LEASES}/{NAMES[8]}/000001",
        f"sample/{store.LEASES}/{NAMES[1]}/000001",
    ):
        write_text(place / "store" / name, RELEASED)
    write_json(place / "store" / ".contents.json", {"mine": "kept"})
    assert usage.main(["--prune", "--yes"]) == 0
    assert sorted(everything(place / "store")) == sorted(
        [
            ".contents.json",
            STORE_MARKER,
            f"{MARKER_LEASE}/000001",
            f"sample/{store.LEASES}/{NAMES[1]}/000001",
            f"sample/{STALE}/{store.MANIFEST}",
            *(f"sample/{NAMES[1]}/{name}" for name in ("rows.txt", store.STEP, store.MANIFEST)),
        ]
    )


def test_unfinished_work_that_a_run_names_can_be_gone_on_with(place):
    write_json(Path("runs/mine/killed") / store.PLAN, {NAMES[4]: "train"})
    kept = make_step(Path("store"), "train", NAMES[4], ".partial")
    assert usage.main(["--prune", "--yes"]) == 0 and (kept / "rows.txt").is_file()


@pytest.mark.parametrize("suffix", ["", ".partial"], ids=["built", "unfinished"])
def test_what_a_killed_prune_left_is_offered_and_never_gone_on_with(
    place, monkeypatch, capsys, suffix
):
    """Killed before each removal in turn: the next prune finishes, and no half counts as whole."""
    removals = 0
    for kill_at in range(12):
        folder = make_step(
            Path("store"), "train", NAMES[6], suffix, files=("rows.txt", "sub/more.txt")
        )
        removals = 0
        with monkeypatch.context() as patch:

            def killed(call, limit=kill_at):
                def one(*arguments, **keywords):
                    nonlocal removals
                    removals += 1
                    if removals > limit:
                        raise KeyboardInterrupt
                    return call(*arguments, **keywords)

                return one

            for name in ("unlink", "rmdir"):
                patch.setattr(os, name, killed(getattr(os, name)))
            try:
                assert usage.main(["--prune", "--yes"]) == 0
                break  # it was killed at each of its removals by now
            except KeyboardInterrupt:
                pass
        whole = (folder / "rows.txt").is_file() and (folder / "sub" / "more.txt").is_file()
        assert whole or not (suffix and folder.exists()), (
            "unfinished work that lost files would be gone on with"
        )
        manifest = store.read_manifest(folder)
        assert suffix or (manifest and (store.is_pruned(manifest) or whole))
        assert usage.main(["--prune", "--yes"]) == 0
        left = sorted(
            path.name for path in (place / "store" / "train").rglob("*") if path.is_file()
        )
        assert left == ([] if suffix else [store.MANIFEST])
    assert removals > 3


def test_the_marker_is_made_with_the_store_and_names_each_runs_folder_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("store").mkdir()
    for runs in ("runs", "other", "runs"):
        register_runs(Path("store"), Path(runs))
    told = json.loads((tmp_path / "store" / STORE_MARKER).read_text())
    assert told["runs"] == [str(tmp_path / "other"), str(tmp_path / "runs")]
    assert (tmp_path / "runs" / RUNS_MARKER).is_file()


def test_a_run_waits_for_a_prune_and_a_prune_for_no_run(place):
    root, order = Path("store"), []
    with store.lock_exclusive(root):
        run = threading.Thread(target=enter, args=(root, order))
        run.start()
        while "waits" not in order:
            time.sleep(0.01)
        order.append("pruned")
    run.join()
    assert order == ["waits", "pruned", "at work"]
    with store.lock_shared(root, lambda: None), store.lock_shared(root, lambda: order.append("no")):
        with pytest.raises(UserError, match=rf"a run is at work \(pid {os.getpid()} on "):
            store.lock_exclusive(root).__enter__()
    with store.lock_exclusive(root), pytest.raises(UserError, match="Nothing was removed"):
        store.lock_exclusive(root).__enter__()
    assert order[3:] == [] and not list((root / store.IN_USE).iterdir())


def enter(root: Path, order: list[str]) -> None:
    with store.lock_shared(root, lambda: order.append("waits")):
        order.append("at work")


def test_a_run_of_another_machine_counts_until_it_gives_no_sign_of_life(place):
    """And the leases of killed runs are removed with what they no longer protect."""
    far = {"machine": ["far", "boot", ""], "pid": 1, "started": "1", "since": "today"}
    folder = Path("store") / store.IN_USE / "run-1"
    folder.parent.mkdir()
    lease = leases.Observer(me=lambda: far).try_acquire(folder)
    with pytest.raises(UserError, match=r"a run is at work \(pid 1 on far since today\)"):
        store.lock_exclusive(Path("store")).__enter__()
    long_ago = time.time() - leases.EXPIRY - 5
    os.utime(lease.file, (long_ago, long_ago))
    (folder.parent / "run-2").mkdir()  # of a run that begins just now
    with store.lock_exclusive(Path("store")):
        assert not folder.exists() and (folder.parent / "run-2").is_dir()
