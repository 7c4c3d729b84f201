"""Faults planted in a store and in a runs folder, and what a run makes of each: a row a fault.

Each row is planted into a store that is built up to `sample` with toy stages. Then the real driver
repeats the run in this process: an exception here is a traceback that the user would have seen.
"""

import errno
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import store
from pipeline.artifacts import STORE_MARKER, Model, read_json, read_table, write_json
from pipeline.driver import worker
from pipeline.driver.outline import prepare_plan, select_targets
from pipeline.driver.run import run_point
from pipeline.errors import UserError, explain_disk_fault
from pipeline.plan import plan
from pipeline.report.analysis.eval_results import read_training_summary
from pipeline.scorers.judging import JudgeRequest, Response
from pipeline.scorers.judging.verdict_cache import VerdictSource, VerdictStore
from pipeline.status import RunPlan, read_statuses
from tests.support.house import HOUSE, SMALL, composed

UNTIL_SAMPLE = [*SMALL, "until=sample"]


@dataclass
class World:
    """A folder with a store and its runs; `run_dir` is the folder of the run that is made in it."""

    folder: Path
    run_dir: Path | None = None

    @property
    def sample(self) -> Path:
        [made] = (
            path
            for path in (self.folder / "store" / "sample").iterdir()
            if store.STEP_NAME.fullmatch(path.name)
        )
        return made

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, *words: str) -> int:
        places = f"store={self.folder}/store", f"runs={self.folder}/runs"
        return run_point(composed(*UNTIL_SAMPLE, *places, *words), self.run_dir)


@dataclass(frozen=True)
class Fault:
    name: str
    plant: Callable[[World], None]
    code: int
    says: tuple[str, ...]
    kept: tuple[str, ...] = ()  # files that are still there, from the World's folder on


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store up to `sample` and its run, made once and copied for each fault."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        set_toys(patch)
        assert World(folder).run() == 0
    return folder


def set_toys(patch: pytest.MonkeyPatch, stages: str = "tests.support.toys") -> None:
    patch.setenv("PIPELINE_STAGES", stages)
    patch.setenv("PYTHONPATH", str(HOUSE))


@pytest.fixture
def world(built, tmp_path, monkeypatch):
    set_toys(monkeypatch)
    shutil.copytree(built, tmp_path, symlinks=True, dirs_exist_ok=True)
    return World(tmp_path)


# ── how each is planted ───────────────────────────────────────────────────────────────────────────


def manifest(data: bytes) -> Callable[[World], None]:
    return lambda world: (world.sample / store.MANIFEST).write_bytes(data) and None


def changed(**changes: object) -> Callable[[World], None]:
    def plant(world: World) -> None:
        told = {**json.loads((world.sample / store.MANIFEST).read_text()), **changes}
        (world.sample / store.MANIFEST).write_text(
            json.dumps({name: value for name, value in told.items() if value != "gone"})
        )

    return plant


def manifest_is(place: str) -> Callable[[World], None]:
    def plant(world: World) -> None:
        file = world.sample / store.MANIFEST
        file.unlink()
        file.symlink_to(place)

    return plant


def manifest_is_a_folder(world: World) -> None:
    (world.sample / store.MANIFEST).unlink()
    (world.sample / store.MANIFEST).mkdir()


def link_as(suffix: str, target: str) -> Callable[[World], None]:
    """A symlink where the step's folder belongs, to a folder of somebody's, or to nowhere."""

    def plant(world: World) -> None:
        world.write("mine/thesis.txt", "years")
        place = world.sample
        shutil.rmtree(place)
        place.with_name(place.name + suffix).symlink_to(world.folder / target)

    return plant


def file_as_step(world: World) -> None:
    place = world.sample
    shutil.rmtree(place)
    place.write_text("mine")


def stage_is(text: str | None) -> Callable[[World], None]:
    """A file, or else a symlink to nowhere, where the folder of a stage belongs."""

    def plant(world: World) -> None:
        place = world.sample.parent
        shutil.rmtree(place)
        place.symlink_to(world.folder / "unmounted") if text is None else place.write_text(text)

    return plant


def broken_step_in_partial(world: World) -> None:
    place = world.sample
    place.rename(store.partial_folder(place))
    (store.partial_folder(place) / store.MANIFEST).unlink()
    (store.partial_folder(place) / store.STEP).write_bytes(b"\xff{")


def latest_is_a_folder(world: World) -> None:
    (world.folder / "runs" / "latest").unlink()
    world.write("runs/latest/thesis.txt", "years")


def disk_at(file: str, device: str) -> Callable[[World], None]:
    """The run's own file is written to a device that is full, or that fails."""

    def plant(world: World) -> None:
        world.run_dir = world.folder / "runs" / "run" / "now"
        scratch = world.run_dir / Path(file).with_name(f".{Path(file).name}.tmp")
        scratch.parent.mkdir(parents=True)
        scratch.symlink_to(device)

    return plant


FULL, FAILING = "/dev/full", "/proc/self/mem"
DAMAGED = "damaged: its manifest.json cannot be read"
FAULTS = [
    Fault("a manifest that is {}", manifest(b"{}"), 0, (DAMAGED,)),
    Fault("a manifest that is []", manifest(b"[]"), 0, (DAMAGED,)),
    Fault("a manifest that is not UTF-8", manifest(b"\xff\xfe{"), 0, (DAMAGED,)),
    Fault("a manifest nested too deep", manifest(b"[" * 100_000), 0, (DAMAGED,)),
    Fault(
        "a manifest of a number too long",
        manifest(b'{"files": ' + b"9" * 5000 + b"}"),
        0,
        (DAMAGED,),
    ),
    Fault("a manifest that was cut", manifest(b'{"stage": "samp'), 0, (DAMAGED,)),
    Fault("a manifest with NaN", changed(seconds=float("nan")), 0, (DAMAGED,)),
    Fault("a manifest of other types", changed(inputs=[1]), 0, (DAMAGED,)),
    Fault(
        "a manifest without seconds",
        changed(seconds="gone"),
        0,
        ("damaged: its manifest has no seconds",),
    ),
    Fault(
        "a manifest that leads out of its folder",
        changed(files=[{"path": "../../x", "size": 1, "sha256": "a"}]),
        0,
        (DAMAGED,),
    ),
    Fault(
        "a manifest that is a folder", manifest_is_a_folder, 2, ("manifest.json: Is a directory",)
    ),
    Fault(
        "a manifest on a failing disk",
        manifest_is(FAILING),
        2,
        ("manifest.json: Input/output error", "dmesg"),
    ),
    Fault(
        "a link named like a step",
        link_as("", "mine"),
        2,
        ("a symlink is in the place of a step's folder", "mv "),
        ("mine/thesis.txt",),
    ),
    Fault(
        "a link to nowhere named like a step",
        link_as("", "nowhere"),
        2,
        ("a symlink is in the place of a step's folder", "mv "),
    ),
    Fault(
        "a link named like unfinished work",
        link_as(".partial", "mine"),
        2,
        (".partial",),
        ("mine/thesis.txt",),
    ),
    Fault(
        "a file named like a step",
        file_as_step,
        2,
        ("a file is in the place of a step's folder", "mv "),
    ),
    Fault(
        "a file named like a stage",
        stage_is("mine"),
        2,
        ("sample: a file", "mv -n "),
        ("store/sample",),
    ),
    Fault("a link to nowhere named like a stage", stage_is(None), 2, ("sample: a file, or",)),
    Fault("unfinished work with a broken step.json", broken_step_in_partial, 0, ("■ sample",)),
    Fault(
        "runs/latest is a folder",
        latest_is_a_folder,
        0,
        ("runs/latest",),
        ("runs/latest/thesis.txt",),
    ),
    Fault(
        "a full disk at the config",
        disk_at("config.yaml", FULL),
        2,
        ("No space left", "runs=FOLDER"),
    ),
    Fault(
        "a full disk at the plan", disk_at(store.PLAN, FULL), 2, ("No space left", "runs=FOLDER")
    ),
    Fault(
        "a full disk at the ledger",
        disk_at("ledger.json", FULL),
        2,
        ("ledger.json: No space", "runs=FOLDER"),
    ),
    Fault(
        "a failing disk at the ledger",
        disk_at("ledger.json", FAILING),
        2,
        ("Input/output error", "dmesg"),
    ),
    Fault(
        "a broken marker",
        lambda world: world.write(f"store/{STORE_MARKER}", "{") and None,
        2,
        (STORE_MARKER,),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_ends_in_words_and_loses_nothing(world, capfd, fault):
    fault.plant(world)
    assert world.run() == fault.code
    output = "".join(capfd.readouterr())
    assert [
        words for words in fault.says if words not in output
    ] == [] and "Traceback" not in output
    assert [name for name in fault.kept if not (world.folder / name).is_file()] == []


def test_a_step_with_a_broken_manifest_is_kept_aside_when_it_is_made_again(world):
    place = world.sample
    manifest(b"{}")(world)
    assert world.run() == 0
    aside = place.with_name(f"{place.name}.old-unknown")
    assert sorted(file.name for file in aside.glob("shard-*")) == [
        f"shard-{n}.txt" for n in range(3)
    ]


def test_a_second_broken_manifest_replaces_nothing_of_the_first(world):
    for note in ("first", "second"):
        manifest(b"{}")(world)
        (world.sample / "note.txt").write_text(note)
        assert world.run() == 0
    asides = sorted(world.sample.parent.glob(f"{world.sample.name}.old-*"))
    assert [(aside / "note.txt").read_text() for aside in asides] == ["first", "second"]
    assert [aside.name.partition(".")[2] for aside in asides] == ["old-unknown", "old-unknown-2"]


def test_a_second_damage_of_the_same_step_replaces_nothing_of_the_user_s(world):
    (world.sample / "notes.txt").write_text("years")
    for size in (3, 4):
        os.truncate(world.sample / "shard-0.txt", size)
        assert world.run() == 0
    [notes] = world.sample.parent.glob("*/notes.txt")
    assert notes.parent.name.startswith(f"{world.sample.name}.old-")


def test_a_file_of_the_user_s_in_unfinished_work_becomes_no_part_of_the_step(
    world, monkeypatch, capsys
):
    place, work = world.sample, store.partial_folder(world.sample)
    shutil.rmtree(place)
    monkeypatch.setenv("TOY_REFUSE", "sample")
    assert world.run() == 2
    (work / "analysis.csv").write_text("years")
    assert store.explain_foreign_files(work).startswith("has analysis.csv,")
    monkeypatch.delenv("TOY_REFUSE")
    capsys.readouterr()
    assert world.run() == 2
    assert f"{work / 'analysis.csv'}: " in (output := "".join(capsys.readouterr()))
    assert "mv " in output and (work / "analysis.csv").is_file()
    (work / "analysis.csv").unlink()
    assert world.run() == 0 and not store.find_foreign_files(place)


def test_work_whose_record_is_broken_is_set_aside_and_not_gone_on_with(world):
    broken_step_in_partial(world)
    assert world.run() == 0
    [aside] = (world.folder / "store" / "sample").glob("*.old-unknown")
    assert (aside / "shard-0.txt").is_file() and (world.sample / "shard-0.txt").is_file()


# ── bytes that changed ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("at", [40, -30, -1], ids=["page", "footer", "end"])
def test_a_flipped_byte_in_a_table_names_the_file_and_verify(tmp_path, at):
    import polars as pl

    file = tmp_path / "x.parquet"
    pl.DataFrame({"id": [f"prompt {n}" for n in range(200)]}).write_parquet(
        file, compression="zstd", statistics=False
    )
    data = bytearray(file.read_bytes())
    data[at] ^= 0xFF
    file.write_bytes(data)
    remedy = r"command of its run.*verify=true"  # trace, label and edit do not take verify
    with pytest.raises(UserError, match=rf"(?s)x\.parquet: cannot be read as parquet.*{remedy}"):
        read_table(file)


def test_a_record_that_changed_names_the_file_and_verify(tmp_path):
    (tmp_path / "funnel.json").write_bytes(b'{"out": \xff}')
    with pytest.raises(UserError, match=r"(?s)funnel\.json: cannot be read as JSON.*verify=true"):
        read_json(tmp_path / "funnel.json")
    unfinished = tmp_path / "0123456789ab.partial" / "cost.json"
    write_json(unfinished, {})
    unfinished.write_text("[" * 100_000)
    with pytest.raises(
        UserError, match="Remove this file"
    ):  # nothing verifies what is not finished
        read_json(unfinished)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("text", ["null", "[]", "{}", '{"weights": 5}', '{"base": 5}', "[" * 9999])
def test_a_record_of_another_value_does_not_break_the_plan(world, capfd, text, verify):
    for stage, name in (("prompts", "funnel.json"), ("sft", "model.json")):
        for made in (world.folder / "store" / stage).glob("[0-9a-f]" * 12):
            (made / name).write_text(text)
    assert world.run("dry_run=true", f"verify={verify}") == 0
    assert "to do" in capfd.readouterr().out


@pytest.mark.parametrize("text", ["null", "[]", "{}", '{"weights": 5}'])
def test_a_model_s_record_of_another_value_names_the_file_and_verify(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"(?s)model\.json: cannot be read.*verify=true"):
        _ = Model(tmp_path).weights


def test_a_training_s_summary_of_another_value_is_named(tmp_path):
    (tmp_path / "training.json").write_text("null")
    with pytest.raises(UserError, match=r"training\.json: cannot be read"):
        read_training_summary(Model(tmp_path))


def test_a_stage_that_breaks_on_changed_bytes_says_whose_they_are(tmp_path):
    """A flipped byte of a page without a checksum is read as another text, and breaks later."""
    made = tmp_path / "store" / "prompts" / "0123456789ab"
    for part in ("train", "dev"):
        write_json(made / part / "rows.json", [part])
    told = {
        "stage": "prompts",
        "fingerprint": made.name,
        "inputs": {},
        "config": {},
        "cost": {},
        "seconds": 1,
    }
    write_json(made / store.MANIFEST, {**told, "files": store.list_files(made)})
    inputs = {part: {"path": str(made), "part": part} for part in ("train", "dev")}
    assert worker.describe_damage(inputs) == []
    (made / "dev" / "rows.json").write_text('[\n "dex"\n]\n')
    first, advice = worker.describe_damage(inputs)
    assert first.startswith(f"{made}/dev/rows.json: ") and "verify=true" in advice
    assert worker.describe_damage({"train": inputs["train"]}) == [], "the other part is not read"


@pytest.mark.long
def test_a_flipped_byte_in_a_run_s_prompts_is_found_and_verify_makes_them_anew(
    tmp_path, monkeypatch, capfd
):
    set_toys(monkeypatch, "tests.support.drawn")
    world, scripted = World(tmp_path), "backend@sample.backend=scripted"
    assert world.run(scripted) == 0
    shutil.rmtree(world.sample)
    [file] = (tmp_path / "store" / "prompts").glob("*/train/prompts.parquet")
    data = bytearray(file.read_bytes())
    data[-20] ^= 0xFF
    file.write_bytes(data)
    assert world.run(scripted) == 2
    assert "verify=true" in (said := "".join(capfd.readouterr())) and "Traceback" not in said
    assert world.run(scripted, "verify=true") == 0


# ── verdicts ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("as_folder", [True, False], ids=["a folder", "garbage"])
def test_verdicts_that_are_no_database_are_refused_and_stay(tmp_path, as_folder):
    file = tmp_path / "verdicts.sqlite"
    if as_folder:
        file.mkdir()
    else:
        file.write_bytes(b"not a database, and longer than its header would be" * 40)
    with pytest.raises(UserError, match=r"(?s)verdicts\.sqlite: cannot be used.*mv "):
        VerdictStore(file)
    assert file.exists()


def test_verdicts_damaged_in_the_middle_are_refused_when_they_are_read(tmp_path):
    file, who = tmp_path / "verdicts.sqlite", VerdictSource("judge", "", "template")
    verdicts = VerdictStore(file)
    question = JudgeRequest(({"role": "user", "content": "?"},), ("A", "B"), "texts", "ab")
    keys = [f"{number:064x}" for number in range(200)]
    for key in keys:
        verdicts.save(key, who, question, Response("A" * 500))
    verdicts.close()
    damaged = bytearray(file.read_bytes())
    damaged[4096:] = b"\xff" * (
        len(damaged) - 4096
    )  # all pages but the first, which holds the schema
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"(?s)verdicts\.sqlite: cannot be used.*mv "):
        VerdictStore(file).load_responses(keys)


def test_the_command_that_moves_damaged_verdicts_away_replaces_none_of_before(tmp_path):
    file = tmp_path / "verdicts.sqlite"
    for text in ("first", "second"):
        file.write_text(text * 400)
        with pytest.raises(UserError) as refusal:
            VerdictStore(file)
        subprocess.run(str(refusal.value).rpartition(": ")[2], shell=True, check=True)
    moved = sorted(path.read_text()[:6] for path in tmp_path.glob("*.broken*"))
    assert moved == ["firstf", "second"]


def test_a_database_of_something_else_is_refused_and_stays_as_it_is(tmp_path):
    with closing(sqlite3.connect(tmp_path / "mine.db")) as file:
        file.execute("CREATE TABLE mine (x)")
    before = (tmp_path / "mine.db").read_bytes()
    with pytest.raises(UserError, match=r"mine\.db: "):
        VerdictStore(tmp_path / "mine.db")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.db"]
    assert (tmp_path / "mine.db").read_bytes() == before


# ── disks ─────────────────────────────────────────────────────────────────────────────────────────


def test_faults_of_the_disk_are_told_from_others():
    assert "fails.bin: Input/output error" in str(
        explain_disk_fault(OSError(errno.EIO, "x", "fails.bin"))
    )
    assert "a/b: No space left" in str(explain_disk_fault(OSError(errno.ENOSPC, "x"), Path("a/b")))
    assert "a/b: No space left" in str(
        explain_disk_fault(ValueError(os.strerror(errno.ENOSPC)), Path("a/b"))
    )
    full = OSError(errno.ENOSPC, "x", "a")
    assert "store=FOLDER" in str(explain_disk_fault(full))
    assert "FOLDER" not in str(explain_disk_fault(full, takes_folders=False))
    large = ValueError("Error while serializing: I/O error: File too large (os error 27)")
    assert "ulimit -f" in str(explain_disk_fault(large, Path("a/b")))
    for other in (
        ValueError("x"),
        ValueError("Connection refused (os error 111)"),
        ConnectionResetError(errno.ECONNRESET, "x"),
        TimeoutError(errno.ETIMEDOUT, "x"),
    ):
        assert explain_disk_fault(other, Path("a/b")) is None


# ── manifests of any bytes ────────────────────────────────────────────────────────────────────────

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = [
    "stage",
    "fingerprint",
    "inputs",
    "config",
    "files",
    "cost",
    "seconds",
    "pruned",
    "version",
    "created",
]
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {}, optional={"path": st.text() | JSON, "size": st.integers() | JSON, "sha256": JSON}
    ),
    max_size=3,
)
INPUTS = st.dictionaries(
    st.text(max_size=5),
    JSON | st.fixed_dictionaries({"content": JSON, "fingerprint": JSON}),
    max_size=2,
)
NEARLY = st.fixed_dictionaries(
    {}, optional={key: JSON | {"files": ENTRIES, "inputs": INPUTS}.get(key, JSON) for key in KEYS}
)


@pytest.fixture(scope="module")
def planned(built, tmp_path_factory) -> tuple[RunPlan, Path, dict]:
    """The plan over a copy of the store, its sample's folder and that one's whole manifest."""
    folder = tmp_path_factory.mktemp("fuzzed")
    shutil.copytree(built / "store", folder / "store", symlinks=True)
    cfg = composed(*UNTIL_SAMPLE, f"store={folder}/store", "dry_run=true")
    found = prepare_plan(cfg, select_targets(plan(cfg), cfg.until))
    place = found.folder(found.steps[-1])
    return found, place, json.loads((place / store.MANIFEST).read_text())


def never_raises(planned: tuple[RunPlan, Path, dict], data: bytes) -> None:
    """Whatever a manifest has, statuses are read, and only what is built counts as built."""
    found, place, _ = planned
    (place / store.MANIFEST).write_bytes(data)
    manifest = store.read_manifest(place)
    status, reason = read_statuses(found, verify=True)[found.fingerprint(found.steps[-1])]
    assert status is None or status == manifest
    assert (reason if status is None else not reason) and str(reason).isprintable()
    store.list_bases(place)


def bytes_of(value: object) -> bytes:
    return json.dumps(value).encode()


def mutated(planned: tuple[RunPlan, Path, dict], changes: dict, gone: list[str]) -> bytes:
    whole = {**planned[2], **changes}
    return bytes_of({name: value for name, value in whole.items() if name not in gone})


SOME = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SOME
@given(data=st.binary(max_size=60) | JSON.map(bytes_of) | NEARLY.map(bytes_of))
def test_no_manifest_makes_the_survey_raise(planned, data):
    never_raises(planned, data)


@SOME
@given(changes=NEARLY, gone=st.lists(st.sampled_from(KEYS), max_size=1))
def test_no_change_of_a_manifest_makes_the_survey_raise(planned, changes, gone):
    never_raises(planned, mutated(planned, changes, gone))


@pytest.mark.slow
@MANY
@given(data=st.binary(max_size=200) | JSON.map(bytes_of) | NEARLY.map(bytes_of))
def test_no_manifest_makes_the_survey_raise_for_long(planned, data):
    never_raises(planned, data)


@pytest.mark.slow
@MANY
@given(changes=NEARLY, gone=st.lists(st.sampled_from(KEYS), max_size=2))
def test_no_change_of_a_manifest_makes_the_survey_raise_for_long(planned, changes, gone):
    never_raises(planned, mutated(planned, changes, gone))
