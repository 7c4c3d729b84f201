"""`strop export`: a folder that other tools open, and that says what it is made of."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.artifacts import write_json, write_text
from pipeline.commands import export
from pipeline.commands.find_model import find_model
from pipeline.commands.origins import read_licence, split_card
from pipeline.models import loading
from tests.support.finished_run import SFT, TRAIN, make_run, seal

CONVERTER = """
import json, sys
from pathlib import Path
folder, out = Path(sys.argv[1]), Path(sys.argv[sys.argv.index("--outfile") + 1])
assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
if (Path(__file__).parent / "broken").exists():
    sys.exit("Model LlamaForCausalLM is not supported")
out.write_bytes(b"GGUF")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose start was a checkpoint with a licence file and a card."""
    folder = tmp_path_factory.mktemp("made")
    run = make_run(folder)
    start = folder / "start"
    write_text(start / "LICENSE", "Only on Sundays.")
    write_text(start / "README.md", "---\nlicense: mit\n---\n\n# Start\n")
    seal(folder / "store" / SFT, {"kind": "checkpoint", "model": str(start), "revision": None})
    return run


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield made
    for number, handler in kept.items():
        signal.signal(number, handler)


def sum_logits(module, tokenizer) -> float:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "red"}], return_tensors="pt", return_dict=True
    )
    return module(**prompt).logits[0, -1].sum().item()


@pytest.mark.model
def test_an_adapter_is_exported_merged_and_by_itself(run, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert export.main([str(run), "mine"]) == 0
    assert capsys.readouterr().out.strip() == "mine"
    tokenizer = AutoTokenizer.from_pretrained("mine")
    whole = sum_logits(AutoModelForCausalLM.from_pretrained("mine"), tokenizer)
    found = find_model(str(run), tmp_path / "x")
    assert whole == pytest.approx(
        sum_logits(loading.load(found.model, "float32"), tokenizer), abs=0.05
    )
    sft = find_model(f"{run}:sft", tmp_path / "x").model
    assert abs(whole - sum_logits(loading.load(sft, "float32"), tokenizer)) > 1

    from peft import PeftModel

    base = loading.load(sft, "float32")
    beside = PeftModel.from_pretrained(base, "mine/adapter").eval()
    assert sum_logits(beside, tokenizer) == pytest.approx(whole, abs=0.05)


@pytest.mark.model
def test_the_card_has_the_evaluation_the_origins_and_the_licence(run, tmp_path):
    assert export.main([str(run), "mine"]) == 0
    fields, body = split_card(Path("mine/README.md").read_text())
    assert fields["library_name"] == "transformers" and fields["license"] == "mit"
    assert fields["tags"] == ["dpo"], "what the training's card says stays"
    assert "# A training" in body and "round-1 scores more" in body
    assert "| model at the start | start | mit |" in body
    assert "| prompts | prompts.jsonl | unknown |" in body
    assert Path("mine/LICENSE").read_text() == "Only on Sundays."
    assert "start | mit" in Path("mine/NOTICE.md").read_text()
    config = json.loads(Path("mine/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == SFT
    texts = [file for file in Path("mine").rglob("*") if file.suffix in (".json", ".md", ".jsonl")]
    assert not [file for file in texts if str(run.parents[2]) in file.read_text()], "no local path"
    assert "/home/me" not in body


@pytest.mark.model
def test_whole_weights_are_copied_byte_for_byte(run):
    assert export.main([f"{run}:sft", "mine", "license=apache-2.0"]) == 0
    source = run.parents[2] / "store" / SFT / "weights"
    assert Path("mine/model.safetensors").read_bytes() == (
        (source / "model.safetensors").read_bytes()
    )
    assert not Path("mine/adapter").exists()
    assert split_card(Path("mine/README.md").read_text())[0]["license"] == "apache-2.0"


@pytest.mark.parametrize("out", ["taken", "link", "nowhere/deep"])
def test_a_folder_that_cannot_be_new_is_refused(run, tmp_path, capsys, out):
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert export.main([str(run), out]) == 2
    assert f"{out}: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "taken"]


@pytest.mark.model
def test_what_fails_leaves_nothing_behind(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run.parents[2] / "store", tmp_path / "copy")
    record = json.loads((tmp_path / "copy" / TRAIN / "model.json").read_text())
    record["peft"]["base_model_name_or_path"] = "sft/000000000000"
    write_json(tmp_path / "copy" / TRAIN / "model.json", record)
    assert export.main([f"copy/{TRAIN}", "mine"]) == 2
    assert "this adapter was made for the model sft/000000000000" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.model
def test_gguf_is_made_by_llama_cpp_s_converter(run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    assert export.main([str(run), "mine", "--gguf"]) == 2
    assert "LLAMA_CPP" in capsys.readouterr().err and not Path("mine").exists()

    tool = tmp_path / "llama.cpp"
    write_text(tool / "convert_hf_to_gguf.py", CONVERTER)
    monkeypatch.setenv("LLAMA_CPP", str(tool))
    assert export.main([str(run), "mine", "--gguf"]) == 0
    assert Path("mine/model.gguf").read_bytes() == b"GGUF"

    write_text(tool / "broken", "")
    assert export.main([str(run), "other", "--gguf"]) == 1
    error = capsys.readouterr().err
    assert "LlamaForCausalLM is not supported" in error and "Nothing was written" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama.cpp", "mine"]


def test_a_licence_is_read_from_a_card_or_named_by_its_file(tmp_path):
    assert read_licence(tmp_path) == "unknown"
    write_text(tmp_path / "LICENSE.txt", "…")
    assert read_licence(tmp_path) == "see LICENSE.txt"
    write_text(tmp_path / "README.md", "---\nlicense: [mit, other]\n---\n")
    assert read_licence(tmp_path) == "['mit', 'other']"
    write_text(tmp_path / "README.md", "---\n: [\n---\n")
    assert read_licence(tmp_path) == "see LICENSE.txt"
