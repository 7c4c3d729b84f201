"""A published adapter opens in PEFT and transformers, from anywhere, after its store was moved."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import store
from pipeline.artifacts import PLACE_FILE, Model, write_adapter_config, write_json
from pipeline.commands.export import main as export
from pipeline.config import TrainConfig
from pipeline.errors import ALREADY_BUILT
from pipeline.models import merging
from pipeline.models.merging import MERGED
from pipeline.stages import train
from tests.support.house import HOUSE, SMALL, Toys, fingerprints
from tests.support.preferences import LORA, dpo, write_logps, write_pairs
from tests.support.tiny import tiny_model

SFT, ADAPTER = "sft/aaaaaaaaaaaa", "train/dddddddddddd"
PEFT = {"peft_type": "LORA", "base_model_name_or_path": SFT, "revision": None, "r": 4}
OPEN = """
import sys
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": "red"}]
ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
for kind in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
    model = kind.from_pretrained(sys.argv[1]).eval()
    assert any("lora" in name for name, _ in model.named_parameters())
    print(model(**ids).logits[0, -1].sum().item())
"""


def opened_elsewhere(folder: Path, cwd: Path) -> list[float]:
    """The logits' sums that PEFT and transformers give in a fresh process without this project."""
    command = [sys.executable, "-c", OPEN, str(folder)]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(line) for line in done.stdout.split()]


def train_adapter(place: Path, sft: Model | None = None) -> Model:
    """Train an adapter in a new store, on an SFT model there."""
    sft = sft or tiny_model(place / SFT)
    pairs = write_pairs(place / "pair" / "bbbbbbbbbbbb", sft)
    logps = write_logps(place / "reference" / "cccccccccccc", sft, pairs)
    cfg = dpo({**LORA, "learning_rate": 2e-2})
    return train.run(cfg, place / ADAPTER, init=sft, reference=sft, pairs=[pairs], logps=[logps])


def files(model: Model) -> list[dict]:
    return store.list_files(model.path)


@pytest.mark.slow
@pytest.mark.model
def test_an_adapter_opens_from_anywhere_and_after_its_store_was_moved(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there" / "deeper"
    model = train_adapter(here / "store")
    made = files(model)
    first = opened_elsewhere(model.adapter, tmp_path)
    assert first[0] == pytest.approx(first[1], abs=1e-4)

    there.mkdir(parents=True)
    shutil.move(here / "store", there / "store")
    store.rewrite_adapter_configs(there / "store")
    moved = Model(there / "store" / ADAPTER)
    assert opened_elsewhere(moved.adapter, Path("/")) == pytest.approx(first, abs=1e-6)
    assert files(moved) == made, "the path of a store is not part of the content"
    assert not list(moved.path.rglob(".*"))


@pytest.mark.slow
@pytest.mark.model
def test_two_stores_make_the_same_bytes_and_a_checkpoint_outside_is_named_too(tmp_path):
    own = train_adapter(tmp_path / "one" / "store")
    outside = shutil.copytree(own.weights, tmp_path / "my-sft")
    sft = tmp_path / "two" / "store" / SFT
    tokenizer = own.path.parent.parent / SFT / "weights"
    shutil.copytree(tokenizer, sft / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    write_json(sft / "model.json", {"revision": None, "content": "0", "tokenizer": "tokenizer"})
    write_json(sft / PLACE_FILE, {"weights": str(outside)})
    referring = train_adapter(tmp_path / "two" / "store", Model(sft))
    config = json.loads((referring.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(outside)
    known = {entry["path"]: entry["sha256"] for entry in files(referring)}
    same = {entry["path"]: entry["sha256"] for entry in files(own)}
    assert known == same

    write_json(sft / PLACE_FILE, {"weights": str(outside.rename(tmp_path / "renamed"))})
    store.rewrite_adapter_configs(tmp_path / "two" / "store")
    assert opened_elsewhere(referring.adapter, Path("/")) == pytest.approx(
        opened_elsewhere(own.adapter, Path("/")), abs=1e-6
    )


def write_records(root: Path, weights: dict) -> Model:
    """An adapter and its base as their records alone."""
    write_json(root / SFT / "model.json", {"tokenizer": "tokenizer", **weights})
    record = {"base": SFT, "adapter": "adapter", "tokenizer": "adapter", "peft": PEFT}
    write_json(root / ADAPTER / "model.json", record)
    return Model(root / ADAPTER)


def test_a_base_on_the_hub_is_named_with_its_revision(tmp_path):
    model = write_records(tmp_path, {"weights": "owner/name", "revision": "0" * 40})
    write_adapter_config(model)
    config = json.loads((model.adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", "0" * 40)
    assert config["r"] == 4


def test_repairing_a_store_leaves_alone_what_is_no_adapter_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = Path("store")
    (root / SFT / "weights").mkdir(parents=True)
    write_records(root, {"weights": "weights"})
    pruned = {"base": "sft/gone", "adapter": "adapter", "peft": PEFT}
    others = {
        "train/000000000000": pruned,
        "train/111111111111": {"weights": "weights"},
        f"{ADAPTER}.partial": pruned,
    }
    for name, record in others.items():
        write_json(root / name / "model.json", record)
    (root / "train" / "222222222222").mkdir()
    (root / "train" / "222222222222" / "model.json").write_text("{")
    store.rewrite_adapter_configs(root)
    assert [str(file) for file in root.rglob("adapter_config.json")] == [
        f"store/{ADAPTER}/adapter/adapter_config.json"
    ]
    written = root / ADAPTER / "adapter" / "adapter_config.json"
    assert json.loads(written.read_text())["base_model_name_or_path"] == str(
        tmp_path / "store" / SFT / "weights"
    )
    before = written.stat().st_mtime_ns
    store.rewrite_adapter_configs(root)
    assert written.stat().st_mtime_ns == before, "what is right is not written again"


# ── merged weights, asked for later ───────────────────────────────────────────────────────────────


def test_asking_for_merged_weights_is_no_other_training():
    lora = [*SMALL, "adapter=lora", "rounds=2"]
    asked = fingerprints(*lora, "train.adapter.save_merged=true")
    assert asked == fingerprints(*lora)
    assert asked != fingerprints(*lora, "train.adapter.rank=8")


def seal_model(model: Model, config: TrainConfig) -> None:
    """With a manifest, as the worker leaves it."""
    known = {
        "fingerprint": model.path.name,
        "inputs": {},
        "config": config.model_dump(mode="json"),
        "cost": {},
    }
    store.seal(model.path, {"stage": "train", "seconds": 1.0, **known, "files": files(model)})


@pytest.mark.slow
@pytest.mark.model
def test_merged_weights_are_had_after_training_and_nothing_is_trained_again(tmp_path, capsys):
    model, cfg = train_adapter(tmp_path / "store"), dpo({**LORA, "learning_rate": 2e-2})
    seal_model(model, cfg)
    seal_model(Model(tmp_path / "store" / SFT), cfg)
    wanting = cfg.model_copy(
        update={"adapter": cfg.adapter.model_copy(update={"save_merged": True})}
    )
    manifest = store.read_manifest(model.path)
    asked = {"stage": "train", "out": str(model.path), "inputs": {}, "place": None, "verify": True}
    write_json(tmp_path / "step.json", {**asked, "config": wanting.model_dump(mode="json")})
    command = [sys.executable, "-m", "pipeline.driver.worker", str(tmp_path / "step.json")]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True)
    assert done.returncode == ALREADY_BUILT, done.stderr
    assert "step" not in done.stderr and store.read_manifest(model.path) == manifest, (
        "it was not trained again"
    )
    assert not store.find_fault(model.path, manifest, {}, verify=True)

    assert export([str(model.path), str(tmp_path / "mine")]) == 0
    for folder in (model.path / MERGED, tmp_path / "mine"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            [{"role": "user", "content": "red"}], return_tensors="pt", return_dict=True
        )
        whole = AutoModelForCausalLM.from_pretrained(folder)(**ids).logits[0, -1].sum().item()
        assert whole == pytest.approx(opened_elsewhere(model.adapter, tmp_path)[0], abs=1e-2)
    assert export([str(model.path), str(tmp_path / "mine")]) == 2
    assert f"{tmp_path / 'mine'}:" in capsys.readouterr().err


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """An adapter's records, and a merge that writes one file."""
    model = write_records(tmp_path / "store", {"weights": "weights"})
    (tmp_path / "store" / SFT / "weights").mkdir(parents=True)
    write_json(model.path / "manifest.json", {"files": [], "config": {"dtype": "float32"}})

    def save_merged(model: Model, dtype: str, folder: Path) -> None:
        write_json(folder / "config.json", {})

    monkeypatch.setattr("pipeline.models.loading.save_merged", save_merged)
    monkeypatch.chdir(tmp_path)
    return model.path


def test_what_merging_adds_to_a_step_is_no_foreign_file_and_what_the_user_adds_is(adapter):
    merging.merge(adapter)
    assert (adapter / MERGED / "config.json").is_file()
    write_json(adapter / MERGED / "model-q4.gguf", "mine")
    files = [file.name for file in store.find_foreign_files(adapter)]
    assert files == ["model-q4.gguf", "model.json"], "the fixture's manifest lists no file"


def test_what_the_user_named_as_base_stays(adapter, tmp_path):
    for folder in (adapter, shutil.copytree(adapter, adapter.with_name("my-release"))):
        file = folder / "adapter" / "adapter_config.json"
        for name, expected in {
            "my-org/my-base": "my-org/my-base",
            str(tmp_path): str(tmp_path),
            f"/gone/store/{SFT}/weights": str(tmp_path / "store" / SFT / "weights"),
        }.items():
            write_json(file, {**PEFT, "base_model_name_or_path": name})
            store.rewrite_adapter_configs(tmp_path / "store")
            kept = json.loads(file.read_text())["base_model_name_or_path"]
            assert kept == (expected if folder == adapter else name)


@pytest.mark.long
def test_a_run_that_asks_for_merged_weights_later_merges_what_is_built(tmp_path):
    """Toys publish no adapter: the worker's refusal shows that it was asked to merge only."""
    toys, lora = Toys(tmp_path), [*SMALL, "adapter=lora", "until=train@1"]
    asking = [*lora, "train.adapter.save_merged=true"]
    toys.run(*lora)
    before = toys.notes("start")
    assert "will be merged" not in toys.run(*lora, "dry_run=true")
    planned = toys.run(*asking, "dry_run=true")
    assert "will be merged, without training again" in planned and ", 0 to do" in planned
    assert "it has no weights here" in toys.run(*asking, code=2)
    [step] = (
        path for path in (tmp_path / "store" / "train").iterdir() if not path.name.startswith(".")
    )
    (step / MERGED).mkdir()
    assert "it has no weights here" not in toys.run(*asking)
    assert toys.notes("start") == before, "nothing was trained or sampled again"
