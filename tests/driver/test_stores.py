"""Several stores: the first is written, the others are read where they are. Toy stages."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from pipeline import store
from pipeline.artifacts import (
    ADAPTER_CONFIG,
    MODEL_FILE,
    Model,
    find_step,
    open_artifact,
    read_other_stores,
    write_json,
    write_text,
)
from pipeline.commands.export import lock_readable
from pipeline.commands.find_model import FoundModel
from pipeline.driver.run import make_repeat_command, run_point
from pipeline.driver.store_users import register_runs
from pipeline.errors import UserError
from tests.faults.test_store_faults import set_toys
from tests.support.house import SMALL, Toys, composed

UNTIL_SAMPLE = [*SMALL, "until=sample"]
UNTIL_SCORE = [*SMALL, "until=score@1"]
THEIRS = ["store=team", "runs=theirs"]
BOTH = "store=[mine,team]"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    toys = Toys(tmp_path_factory.mktemp("built"))
    toys.run(*UNTIL_SAMPLE, *THEIRS)
    return toys.folder / "team"


@pytest.fixture
def toys(tmp_path, built):
    """A team's store that is built up to `sample` and cannot be written."""
    shutil.copytree(built, tmp_path / "team")
    set_writable(tmp_path / "team", False)
    yield Toys(tmp_path)
    set_writable(tmp_path / "team", True)


def set_writable(root: Path, may_write: bool) -> None:
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod((path.stat().st_mode | 0o200) if may_write else path.stat().st_mode & 0o555)


def see(root: Path) -> dict[str, tuple]:
    """All that a write would change, also one by root."""
    found = {}
    for path in (root, *sorted(root.rglob("*"))):
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = stat.st_mtime_ns, stat.st_ino, stat.st_mode, content
    return found


def list_built(root: Path) -> list[str]:
    steps = root.glob("*/*/manifest.json")
    return sorted(f"{step.parent.parent.name}" for step in steps)


def list_links(folder: Path) -> dict[str, str]:
    """The store that each link of the newest run leads into, by stage."""
    links = (folder / "runs" / "latest" / "store").iterdir()
    return {link.name.split("-")[1]: link.readlink().parts[-3] for link in links}


@pytest.mark.long
def test_what_the_team_has_built_is_read_and_only_the_rest_is_built(toys):
    before = see(toys.folder / "team")
    output = toys.run(*UNTIL_SCORE, BOTH)
    assert toys.built(output) == ["score round 1"] and "✓ sample" in output
    assert list_built(toys.folder / "mine") == ["score"]
    links = {"prompts": "team", "sft": "team", "sample": "team", "score": "mine"}
    assert list_links(toys.folder) == links
    assert toys.built(toys.run(*UNTIL_SCORE, BOTH, "verify=true")) == []
    planned = toys.run(*UNTIL_SCORE, BOTH, "dry_run=true")
    assert "4 steps, 0 to do" in planned, planned
    assert see(toys.folder / "team") == before

    toys.run(*UNTIL_SCORE, "store=alone")  # the same bytes as without the team
    [ours] = (toys.folder / "mine" / "score").glob("*/manifest.json")
    [alone] = (toys.folder / "alone" / "score").glob("*/manifest.json")
    assert json.loads(ours.read_text())["files"] == json.loads(alone.read_text())["files"]


@pytest.mark.long
def test_what_is_damaged_there_is_built_here_and_what_is_damaged_here_is_read_there(toys):
    [theirs] = (toys.folder / "team" / "sample").glob("*/shard-1.txt")
    set_writable(toys.folder / "team", True)
    sound = theirs.read_text()
    theirs.write_text("-" * len(sound))
    before = see(toys.folder / "team")
    assert toys.built(toys.run(*UNTIL_SAMPLE, BOTH)) == [], "its sizes are right"
    assert toys.built(toys.run(*UNTIL_SAMPLE, BOTH, "verify=true")) == ["sample round 1"]
    assert list_links(toys.folder)["sample"] == "mine" and see(toys.folder / "team") == before

    theirs.write_text(sound)
    [ours] = (toys.folder / "mine" / "sample").glob("*/shard-1.txt")
    ours.unlink()
    output = toys.run(*UNTIL_SAMPLE, BOTH)
    assert toys.built(output) == [] and "damaged: shard-1.txt is missing" in output
    assert list_links(toys.folder)["sample"] == "team"
    assert not ours.parent.exists() and list(ours.parent.parent.glob("*.old-*"))


@pytest.mark.long
def test_a_step_that_is_pruned_here_is_read_there(toys):
    toys.run(*UNTIL_SAMPLE, "store=mine")
    [sample] = (toys.folder / "mine" / "sample").glob("[0-9a-f]*")
    store.prune(sample, store.read_manifest(sample))
    output = toys.run(*UNTIL_SCORE, BOTH)
    assert toys.built(output) == ["score round 1"]
    assert list_links(toys.folder)["sample"] == "team"
    assert [path.name for path in sample.iterdir()] == [store.MANIFEST]


@pytest.mark.long
def test_the_last_step_of_a_run_may_be_there_too(toys):
    output = toys.run(*UNTIL_SAMPLE, BOTH)
    assert toys.built(output) == [] and list_built(toys.folder / "mine") == []
    assert output.splitlines()[-1].startswith("team/sample/")


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("[]", "expected a folder, or a list such as [mine,team]: the first is written"),
        ("[mine,'']", "expected a folder, such as ./folder"),
        ("[mine,3]", "expected a list of folders, such as [mine,team]"),
        ("[mine,mine]", "store=[mine,mine]: one is inside the other, or they are the same"),
        ("[mine,./mine/]", "one is inside the other, or they are the same"),
        ("[mine,mine/old]", "Give separate folders, such as store=[mine,team]"),
        ("[mine,runs]", "store=runs runs=runs: one is inside the other, or they are the same"),
    ],
)
def test_what_is_no_list_of_stores_is_refused(given, fault):
    with pytest.raises(UserError) as refused:
        composed(*UNTIL_SAMPLE, f"store={given}")
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("[mine,gone]", "store: gone is to be read, and no store is there"),
        ("[mine,empty]", "Mount its disk, or leave it out of the stores that you give"),
        ("[file,team]", "store=file: cannot be written (File exists)"),
    ],
)
def test_a_store_that_is_not_there_or_cannot_be_written_is_refused(
    tmp_path, monkeypatch, capsys, given, fault
):
    monkeypatch.chdir(tmp_path)
    set_toys(monkeypatch)
    for name in ("empty", "team/sample"):
        Path(name).mkdir(parents=True)
    Path("file").touch()
    assert run_point(composed(*UNTIL_SAMPLE, f"store={given}")) == 2
    assert fault in capsys.readouterr().err
    assert not Path("runs").exists() or not list(Path("runs").glob("*/*/plan.json"))


# ── where a step is ───────────────────────────────────────────────────────────────────────────────


def make_step(root: Path, name: str, text: str = "rows") -> Path:
    folder = root / name
    write_text(folder / "rows.txt", text)
    write_json(folder / store.STEP, {"stage": folder.parent.name, "inputs": {}, "config": {}})
    manifest = {"stage": folder.parent.name, "fingerprint": folder.name, "inputs": {}}
    manifest |= {"config": {}, "cost": {}, "seconds": 1}
    write_json(folder / store.MANIFEST, {**manifest, "files": store.list_files(folder)})
    return folder


def prune(folder: Path) -> None:
    store.prune(folder, store.read_manifest(folder))


def test_ours_comes_first_then_the_others_in_their_order(tmp_path):
    mine, team, old = (tmp_path / name for name in ("mine", "team", "old"))
    name = f"sample/{'a' * 12}"
    assert find_step(mine, name, [team, old]) == mine / name, "where it would be built"
    there = make_step(old, name)
    assert find_step(mine, name, [team, old]) == there
    assert find_step(mine, name, [old]) == there and find_step(mine, name, []) == mine / name
    make_step(team, name)
    assert find_step(mine, name, [team, old]) == team / name
    prune(team / name)
    assert find_step(mine, name, [team, old]) == old / name
    assert find_step(make_step(mine, name).parent.parent, name, [team, old]) == mine / name


def test_files_of_a_pruned_step_are_read_elsewhere_only_if_they_are_the_same(tmp_path):
    """Equal fingerprints do not mean equal bytes, and what was made here was made of ours."""
    mine, team, name = tmp_path / "mine", tmp_path / "team", f"sample/{'a' * 12}"
    prune(make_step(mine, name, "ours"))
    make_step(team, name, "theirs")
    assert find_step(mine, name, [team]) == mine / name
    shutil.rmtree(team)
    make_step(team, name, "ours")
    assert find_step(mine, name, [team]) == team / name


@pytest.fixture
def adapter(tmp_path, monkeypatch) -> Model:
    """An adapter in our store, whose base is in the team's."""
    monkeypatch.chdir(tmp_path)
    base, ours = Path("team/sft") / ("b" * 12), Path("mine/train") / ("a" * 12)
    write_text(base / "weights" / "model.safetensors", "weights")
    write_json(base / MODEL_FILE, {"weights": "weights", "tokenizer": "weights"})
    write_json(base / store.STEP, {})
    record = {"base": f"sft/{base.name}", "adapter": "adapter", "tokenizer": "adapter"}
    write_json(ours / MODEL_FILE, {**record, "peft": {"r": 4}})
    (ours / "adapter").mkdir()
    register_runs(Path("mine"), Path("runs"), [Path("team")])
    return Model(ours)


def test_a_base_in_another_store_is_opened_from_there(adapter, tmp_path):
    weights = tmp_path / "team" / "sft" / ("b" * 12) / "weights"
    assert adapter.weights == weights
    assert store.list_bases(adapter.path) == ["b" * 12]
    store.rewrite_adapter_configs(Path("mine"))
    config = json.loads((adapter.path / "adapter" / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(weights)
    gate = Path("mine/gate") / ("c" * 12)
    write_json(gate / MODEL_FILE, {"target": f"sft/{'b' * 12}"})
    assert open_artifact("gate", gate).weights == weights


def test_a_store_knows_what_its_runs_have_read_the_last_first(adapter, tmp_path):
    mine, others = Path("mine"), lambda: [path.name for path in read_other_stores(Path("mine"))]
    assert others() == ["team"]
    register_runs(mine, Path("runs"))
    assert others() == ["team"], "its bases are still there"
    register_runs(mine, Path("runs"), [Path("old"), Path("team")])
    assert others() == ["old", "team"]
    shutil.move("team", "moved")
    register_runs(mine, Path("runs"), [Path("moved")])
    assert others() == ["moved", "old", "team"]
    assert adapter.weights == tmp_path / "moved" / "sft" / ("b" * 12) / "weights"


def test_nothing_is_locked_in_a_store_that_is_only_read(adapter, tmp_path):
    write_text(Path("runs/mine/now/config.yaml"), "store: [mine,team]\n")
    base = Model(Path("team/sft") / ("b" * 12))
    with lock_readable(FoundModel("sft", "sft", base, Path("runs/mine/now"))):
        assert not (tmp_path / "team" / store.IN_USE).exists()
    with lock_readable(FoundModel("a", "a", adapter, Path("runs/mine/now"))):
        assert len([*Path("mine", store.IN_USE).iterdir()]) == 1


def test_the_command_that_repeats_a_run_names_all_stores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = composed(*UNTIL_SAMPLE, "store=[mine,'a team=[x]']")
    words = shlex.split(make_repeat_command(cfg).partition(" && ")[2])[2:]
    again = composed(*words)
    assert again.own_store == tmp_path / "mine"
    assert again.other_stores == (tmp_path / "a team=[x]",)


def test_verdicts_are_written_to_the_first_store():
    judged = ["+duel@evaluate.duels.j=default", "evaluate.duels.j.engine.model=m"]
    cfg = composed(*SMALL, *judged, BOTH)
    assert cfg.evaluate.duels["j"].runtime.verdicts == Path("mine/verdicts.sqlite")
