"""base and sft: the tiny model, what a checkpoint is refused for, adapters merged, training on
exactly the answers."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.artifacts import Decontamination, Model, Samples, Scores, write_table
from pipeline.config import BestOfNConfig, Checkpoint, SftTraining, TinyBase
from pipeline.data import decontamination, synthetic
from pipeline.errors import StageError, UserError
from pipeline.resources.inference_memory import read_needs
from pipeline.resources.model_shape import read_shape
from pipeline.stages import base, sft
from pipeline.store import hash_content, list_files
from tests.stages import test_pair
from tests.support.house import HOUSE
from tests.support.tiny import CHAT, tiny_llama, tiny_model

TINY = TinyBase(kind="tiny", vocabulary=300, hidden=32, layers=1, heads=2, context=128, seed=0)
QUESTION = [{"role": "user", "content": "Tell me about the otter."}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "It swims."}]

pytestmark = pytest.mark.model  # each opens or trains a little model


def checkpoint(folder: Path | str, **changes: Any) -> Checkpoint:
    values = {
        "kind": "checkpoint",
        "model": str(folder),
        "revision": None,
        "trust": {"remote_code": False, "pickled_weights": False},
        "template": {"chat_template": None, "kwargs": {}},
        "dtype": "float32",
    }
    return Checkpoint(**{**values, **changes})


def hashes(folder: Path) -> dict[str, str]:
    """What would be published: every file by its hash."""
    return {entry["path"]: entry["sha256"] for entry in list_files(folder)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of a stranger's."""
    return Path(tiny_model(tmp_path / "stranger").weights)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ── base=tiny ─────────────────────────────────────────────────────────────────────────────────────


def test_the_tiny_base_is_the_same_bytes_again_and_others_by_seed(tmp_path: Path) -> None:
    one, two = (hashes(base.run(TINY, tmp_path / name).path) for name in ("one", "two"))
    other = hashes(base.run(TINY.model_copy(update={"seed": 1}), tmp_path / "other").path)
    assert one == two
    assert one["weights/model.safetensors"] != other["weights/model.safetensors"]


def test_the_tiny_base_is_asked_with_one_bos_and_ends_turns_with_eos(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = base.run(TINY, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer)
    model = AutoModelForCausalLM.from_pretrained(made.weights)
    ids = tokenizer.apply_chat_template(ANSWERED, return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 1 == ids.index(tokenizer.bos_token_id) + 1
    assert ids[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    strange = "Ünïcode 北京 \U0001f9a6 <|end of text|>"
    assert tokenizer.decode(tokenizer(strange)["input_ids"]) == strange
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == TINY.vocabulary


@pytest.mark.parametrize(("knob", "value"), [("vocabulary", 200), ("heads", 3)])
def test_a_tiny_base_that_cannot_be_is_refused(tmp_path: Path, knob: str, value: int) -> None:
    with pytest.raises(UserError, match=f"base.{knob}={value}"):
        base.run(TINY.model_copy(update={knob: value}), tmp_path)


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", [base, sft])
def test_a_checkpoint_becomes_a_reference_and_no_copy(
    folder: Path, tmp_path: Path, stage: Any
) -> None:
    made = stage.run(checkpoint(folder), tmp_path / "store" / stage.__name__ / "f.partial")
    assert made.weights == folder
    assert made.record["content"]
    assert not list(made.path.rglob("*.safetensors"))
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    again = stage.run(checkpoint(folder), tmp_path / "store" / stage.__name__ / "g.partial")
    assert again.record["content"] != made.record["content"]


def test_a_chat_template_is_taken_from_a_file(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"no chat template.*\n.*template.chat_template=FILE"):
        sft.run(checkpoint(folder), tmp_path / "a")
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}")
    template = {"chat_template": str(file), "kwargs": {}}
    made = sft.run(checkpoint(folder, template=template), tmp_path / "b")
    shown = AutoTokenizer.from_pretrained(made.tokenizer).apply_chat_template(
        QUESTION, tokenize=False
    )
    assert shown == "[Tell me about the otter.]<|end|>"


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def a_shard_missing(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_tensor_missing(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=64)


def classifier(folder: Path) -> None:
    edit(folder / "config.json", architectures=["LlamaForSequenceClassification"])


def no_text_model(folder: Path) -> None:
    edit(folder / "config.json", architectures=None, model_type="vit")


def own_code(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})


def small_embedding(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=100)


def no_eos(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)


def broken_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("root:x:0:0:root:/root:/bin/bash")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (shutil.rmtree, "there is no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer that opens"),
        (without_weights, "it has no weights"),
        (pickled, r"only pickled weights \(pytorch_model.bin\).*\n.*trust.pickled_weights=true"),
        (cut_short, "model.safetensors does not open"),
        (a_shard_missing, "names model-00002-of-00002.safetensors, not there"),
        (a_tensor_missing, r"lack 1 tensor \(model.layers.1.mlp.up_proj.weight is one\)"),
        (other_shape, "weights do not fit its config.json"),
        (classifier, "LlamaForSequenceClassification, which is not a causal language model"),
        (no_text_model, "not a causal language model"),
        (own_code, r"auto_map in config.json.*\n.*trust.remote_code=true"),
        (small_embedding, "320 tokens, its embedding 100 rows"),
        (no_eos, "no EOS token"),
        (broken_template, "does not take one user message"),
        (no_template, "leaves out the user's message"),
    ],
)
def test_a_checkpoint_is_refused(folder: Path, tmp_path: Path, harm: Any, said: str) -> None:
    harm(folder)
    with pytest.raises(UserError, match=said) as refusal:
        sft.run(checkpoint(folder), tmp_path / "out")
    assert str(folder) in str(refusal.value)
    assert not (tmp_path / "out" / "model.json").exists()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.json", "null", "not a JSON object"),
        ("config.json", "[" * 100_000, "not readable as JSON"),
        ("tokenizer.json", "{}", "no tokenizer that opens"),
        ("tokenizer_config.json", '{"eos_token": 5}', "no tokenizer that opens"),
        ("generation_config.json", "[]", "do not fit its config.json"),
        ("model.safetensors.index.json", "{}", "its weight_map names no files"),
        ("model.safetensors.index.json", "null", "not a JSON object"),
    ],
)
def test_a_checkpoint_whose_json_is_another_is_refused(
    folder: Path, tmp_path: Path, file: str, text: str, said: str
) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=said):
        sft.run(checkpoint(folder), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", "x"),
        ("architectures", 5),
        ("model_type", []),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("eos_token_id", {}),
        ("dtype", "x"),
        ("quantization_config", "x"),
        ("text_config", None),
    ],
)
def test_a_value_of_another_type_in_config_json_ends_in_no_traceback(
    folder: Path, tmp_path: Path, name: str, value: Any
) -> None:
    edit(folder / "config.json", **{name: value})
    with contextlib.suppress(UserError):
        sft.run(checkpoint(folder), tmp_path / "out")
    read_shape(folder), read_needs(folder, "float32", 64)


def test_what_is_trusted_by_name_is_let_in(folder: Path, tmp_path: Path) -> None:
    pickled(folder)
    trust = {"remote_code": False, "pickled_weights": True}
    assert sft.run(checkpoint(folder, trust=trust), tmp_path / "out").weights == folder


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────


def adapter_on(base_folder: Path, place: Path) -> Path:
    """A LoRA adapter that changes the logits, as someone else's training leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.save_pretrained(place)
    return place


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 80, 90, 100, 110]])).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_merged_with_its_base(folder: Path, tmp_path: Path, dtype: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = adapter_on(folder, tmp_path / "adapter")
    plain = logits(AutoModelForCausalLM.from_pretrained(folder))
    beside = logits(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    )
    made = sft.run(checkpoint(adapter, dtype=dtype), tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(made.weights)
    assert merged.dtype == getattr(torch, dtype)
    assert made.weights == tmp_path / "out" / "weights" == made.tokenizer
    assert (logits(merged).float() - beside).abs().max() < (1e-4 if dtype == "float32" else 0.2)
    assert (beside - plain).abs().max() > 1


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            lambda adapter, base_folder: shutil.rmtree(base_folder),
            "its base is missing: .*there is no such folder",
        ),
        (lambda adapter, base_folder: own_code(base_folder), "trust.remote_code=true"),
        (lambda adapter, base_folder: without_weights(base_folder), "it has no weights"),
        (
            lambda adapter, base_folder: edit(
                adapter / "adapter_config.json", base_model_name_or_path=None
            ),
            "no base model",
        ),
        (
            lambda adapter, base_folder: (adapter / "adapter_model.safetensors").rename(
                adapter / "adapter_model.bin"
            ),
            "only pickled weights",
        ),
        (
            lambda adapter, base_folder: tiny_llama(base_folder, hidden=64),
            "has other sizes than the layers of its base .*\n  Name",
        ),
        (
            lambda adapter, base_folder: edit(
                adapter / "adapter_config.json", target_modules=["no_such_layer"]
            ),
            "this adapter does not open .*\n  Correct",
        ),
        (
            lambda adapter, base_folder: (adapter / "adapter_config.json").write_text("null"),
            "not a JSON object",
        ),
    ],
)
def test_an_adapter_is_refused(folder: Path, tmp_path: Path, harm: Any, said: str) -> None:
    adapter = adapter_on(folder, tmp_path / "adapter")
    harm(adapter, folder)
    with pytest.raises(UserError, match=said):
        sft.run(checkpoint(adapter), tmp_path / "out")


# ── sft=train ─────────────────────────────────────────────────────────────────────────────────────


def training(**changes: Any) -> SftTraining:
    values = {
        "kind": "train",
        "data": {"kind": "playground", "rows": 48, "constraints": 3, "obeyed": 0.5, "seed": 0},
        "decontamination": {"ngram": 13},
        "learning_rate": 1e-3,
        "epochs": 1.0,
        "batch": 8,
        "scheduler": "cosine",
        "warmup": 0.1,
        "weight_decay": 0.0,
        "clip": 1.0,
        "max_length": 256,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "seed": 0,
        "template": {"chat_template": None, "kwargs": {}},
        "runtime": {"micro_batch": 8, "save_every": 2, "tracker": None},
    }
    return SftTraining(**{**values, **changes})


@pytest.mark.model
def test_weights_that_no_step_changed_are_told_to_be_so(
    folder: Path, tmp_path: Path, capfd: Any
) -> None:
    for rate, said in (
        (1e-60, True),
        (1e-3, False),
    ):  # a row of zeros moves at any rate that float32 can hold
        train(training(learning_rate=rate), tmp_path / str(rate))
        told = capfd.readouterr().err
        assert ("! sft: its weights are those that it started from, byte for byte" in told) == said
        assert ("more sft.epochs or a smaller sft.batch" in told) == said


def fenced(folder: Path, texts: list[str], ngram: int = 13) -> Decontamination:
    write_table(
        folder / "ngrams.parquet",
        decontamination.ngram_table(
            gram for text in texts for gram in decontamination.hash_ngrams(text, ngram)
        ),
    )
    return Decontamination(folder)


def train(cfg: SftTraining, out: Path, texts: list[str] | None = None) -> Model:
    """On a base made for it, behind a decontamination around `texts`."""
    start = out.parent / "base" / "tiny"
    if not start.exists():
        base.run(TINY.model_copy(update={"context": 256}), start)
    return sft.run(
        cfg,
        out,
        base=Model(start),
        decontamination=fenced(out.parent / "decontamination", texts or []),
    )


def batch_of(
    cfg: SftTraining, made: Model, out: Path, rows: list[list[dict]]
) -> tuple[Any, dict[str, Any]]:
    from pipeline.backends.chat import ModelTokenizer
    from pipeline.models import loading
    from pipeline.training.trainers.sft import build_trainer, encode

    tokenizer = loading.load_tokenizer(made)
    examples = [encode(ModelTokenizer(made), row, {}) for row in rows]
    trainer, _ = build_trainer(cfg, loading.load_merged(made), tokenizer, examples, out)
    return tokenizer, next(iter(trainer.get_train_dataloader()))


def trained_text(tokenizer: Any, labels: Any) -> str:
    return tokenizer.decode([token for token in labels.tolist() if token != -100])


TURNS = [
    [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Uno."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Not trained."},
        {"role": "user", "content": "And two?"},
        {"role": "assistant", "content": "Dos, and a longer answer."},
    ],
]


@pytest.mark.model
@pytest.mark.parametrize("pad", ["<pad>", "<|end|>"])
def test_the_loss_sees_the_answer_with_its_eos_and_nothing_else(tmp_path: Path, pad: str) -> None:
    made = tiny_model(tmp_path / "sft" / "x")
    edit(made.tokenizer / "tokenizer_config.json", pad_token=pad)
    tokenizer, batch = batch_of(training(), made, tmp_path / "out", TURNS)
    trained = {trained_text(tokenizer, labels) for labels in batch["labels"]}
    assert trained == {"Uno.<|end|>", "Dos, and a longer answer.<|end|>"}
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert ids.tolist().count(tokenizer.bos_token_id) == 1
        assert all(
            label in (-100, token)
            for token, label in zip(ids.tolist(), labels.tolist(), strict=True)
        )


@pytest.mark.model
def test_what_a_template_writes_after_eos_is_not_trained(tmp_path: Path) -> None:
    made = tiny_model(
        tmp_path / "sft" / "x",
        template=CHAT.replace("<|end|>{% endfor %}", "<|end|>\n{% endfor %}"),
    )
    tokenizer, batch = batch_of(training(), made, tmp_path / "out", TURNS[:1])
    assert trained_text(tokenizer, batch["labels"][0]) == "Uno.<|end|>"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHAT.replace("<|end|>", "<|user|>"), "does not close an answer with a stop token"),
        (
            CHAT.replace("{{ m.content }}", "{{ m.content }}{{ loop.length }}"),
            r"They part at(.|\n)*template.chat_template=FILE",
        ),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused(
    tmp_path: Path, template: str, said: str
) -> None:
    from pipeline.backends.chat import ModelTokenizer
    from pipeline.training.trainers.sft import encode

    made = tiny_model(tmp_path / "sft" / "x", template=template)
    with pytest.raises(UserError, match=said):
        encode(ModelTokenizer(made), ANSWERED, {})


@pytest.mark.model
def test_training_stopped_after_a_checkpoint_ends_with_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback

    from pipeline.training.trainers import sft as training_room

    class PowerCut(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    whole = hashes(train(training(), tmp_path / "whole").path)
    with monkeypatch.context() as patch:
        original = training_room.build_trainer

        def and_cut(*args: Any) -> Any:
            trainer, ledger = original(*args)
            trainer.add_callback(PowerCut())
            return trainer, ledger

        patch.setattr(training_room, "build_trainer", and_cut)
        with pytest.raises(KeyboardInterrupt):
            train(training(), tmp_path / "cut")
    found = sorted(
        path.name for path in (tmp_path / "cut" / "scratch" / "checkpoints").glob("checkpoint-*")
    )
    assert found == ["checkpoint-4"]
    (
        tmp_path / "cut" / "scratch" / "checkpoints" / "checkpoint-99"
    ).mkdir()  # begun, never finished
    assert hashes(train(training(), tmp_path / "cut").path) == whole
    assert "weights/model.safetensors" in whole
    lines = [
        json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.model
def test_half_the_micro_batch_gives_the_same_losses(tmp_path: Path) -> None:
    halves = train(
        training(runtime={"micro_batch": 4, "save_every": 100, "tracker": None}),
        tmp_path / "halves",
    )
    whole = train(training(), tmp_path / "whole")
    losses = [[line["loss"] for line in model.read_metrics()] for model in (halves, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.model
def test_demonstrations_behind_the_fence_or_too_long_are_left_out_and_accounted_for(
    tmp_path: Path,
) -> None:
    cfg = training(max_length=130)
    asked = [row["messages"][0]["content"] for row in synthetic.generate_demonstrations(cfg.data)]  # type: ignore[arg-type]
    made = train(cfg, tmp_path / "out", [asked[3].upper().replace(".", " !"), asked[7]])
    dropped = pl.read_parquet(made.path / "dropped.parquet")
    funnel = json.loads((made.path / "funnel.json").read_text())
    overlap = dropped.filter(pl.col("reason") == "overlap with evaluation")
    assert {"row 4", "row 8"} <= set(overlap["row"])
    assert funnel["dropped"] == {
        "overlap with evaluation": overlap.height,
        "too long": dropped.height - overlap.height,
    }
    assert 0 < dropped.height - overlap.height < 40
    assert funnel["in"] == 48 == funnel["out"] + dropped.height


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of 48 demonstrations none is left .*too long"):
        train(training(max_length=5), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"runtime": {"micro_batch": 3, "save_every": 2, "tracker": None}},
            "give runtime.micro_batch=2",
        ),
        ({"dtype": "float16"}, "bfloat16"),
    ],
)
def test_a_training_that_cannot_be_is_refused(changes: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        training(**changes)


def test_a_file_of_demonstrations_is_read_and_its_broken_lines_named(tmp_path: Path) -> None:
    from pipeline.config import JsonlDemonstrations
    from pipeline.data.demonstrations import read_demonstrations

    file = tmp_path / "mine.jsonl"
    rows = [
        {"messages": ANSWERED},
        {"messages": QUESTION},
        {"text": "?"},
        {"messages": [*QUESTION, {"role": "assistant"}]},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n{")
    cfg = JsonlDemonstrations(kind="jsonl", path=str(file), on_bad_row="skip")
    lines = read_demonstrations(cfg)
    assert lines.rows == rows[:1]
    assert [number for number, _ in lines.bad] == [2, 3, 4, 5]
    with pytest.raises(UserError, match="4 of 5 lines"):
        read_demonstrations(cfg.model_copy(update={"on_bad_row": "fail"}))


@pytest.mark.model
def test_a_loss_that_is_no_number_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not finite|is nan|is inf"):
        train(training(learning_rate=1e30, clip=1e30), tmp_path / "out")
    assert not (tmp_path / "out" / "model.json").exists()
    assert not (tmp_path / "out" / "weights").exists()


# ── sft=best_of_n ─────────────────────────────────────────────────────────────────────────────────


def refitting(**changes: Any) -> BestOfNConfig:
    values = {
        **training().model_dump(exclude={"kind", "data", "decontamination", "template"}),
        "learning_rate": 1e-2,
        "batch": 4,
    }
    values |= {
        "kind": "best_of_n",
        "scorer": "rules",
        "min_score": None,
        "answers": "samples",
        "runtime": {"micro_batch": 4, "save_every": 2, "tracker": None},
    }
    return BestOfNConfig(**{**values, **changes})


def round_of(
    folder: Path, made: Model, answers: dict[str, list]
) -> tuple[list[Samples], list[Scores]]:
    """`prompt → [(text, score, finish)]`, each prompt's first answer in one wave, the others in the
    next."""
    samples, scores = [], []
    chat = test_pair.ModelTokenizer(made)
    for wave, part in enumerate((slice(0, 1), slice(1, None))):
        drawn, marks = [], []
        for prompt, texts in answers.items():
            for index, (text, score, finish) in [*enumerate(texts)][part]:
                drawn.append(test_pair.sample_row(chat, prompt, f"{prompt}-{index}", text, finish))
                marks.append(test_pair.score_row(prompt, f"{prompt}-{index}", score))
        # Joins are by id: the scores lie in another order than the samples.
        write_table(
            folder / f"a{wave}/samples/0.parquet", pl.DataFrame(drawn, schema=test_pair.SAMPLE)
        )
        write_table(
            folder / f"b{wave}/scores/0.parquet", pl.DataFrame(marks[::-1], schema=test_pair.SCORE)
        )
        samples.append(Samples(folder / f"a{wave}"))
        scores.append(Scores(folder / f"b{wave}"))
    return samples, scores


ROUND = {
    "best": [("one", 0.2, "stop"), ("two", 0.9, "stop"), ("three", 0.5, "stop")],
    "cut": [("one", 0.7, "stop"), ("two", 1.0, "length"), ("  ", 1.0, "stop")],
    "tied": [("one", 0.7, "stop"), ("two", 0.7, "stop")],
    "begun": [("one", 0.7, "stop"), ("<s>two", 0.9, "stop")],
    "poor": [("one", 0.2, "stop"), ("two", 0.3, "stop")],
    "unscored": [("one", None, "stop"), ("two", 0.9, "length")],
    "endless": [("one", 0.9, "length"), ("two", 0.8, "length")],
    "long": [("so " * 300, 0.9, "stop"), ("two", 0.8, "stop")],
}


def test_each_prompt_s_best_finished_sample_is_its_demonstration(tmp_path: Path) -> None:
    from pipeline.data.best_samples import select_best

    made = tiny_model(tmp_path / "sft" / "x", layers=1)
    samples, scores = round_of(tmp_path / "in", made, ROUND)
    best, log = select_best(refitting(min_score=0.7), samples, scores, bos=1)
    assert best["sample_id"].to_list() == ["begun-0", "best-1", "cut-0", "tied-0"]
    drawn = pl.concat(each.read() for each in samples)
    for row in best.iter_rows(named=True):
        [sampled] = drawn.filter(sample_id=row["sample_id"]).to_dicts()
        assert [row[name] == sampled[name] for name in ("prompt_token_ids", "token_ids")] == [
            True,
            True,
        ]
    assert dict(log.table().select("row", "reason").rows()) == {
        "poor": "score too low",
        "unscored": "no score",
        "endless": "no finished sample",
        "long": "too long",
    }
    everyone, _ = select_best(refitting(), samples, scores, bos=1)
    assert everyone["sample_id"].to_list() == ["begun-0", "best-1", "cut-0", "poor-1", "tied-0"]
    with pytest.raises(
        UserError, match=r"best_of_n.scorer=judge: no such scorer in the scores. .*rules"
    ):
        select_best(refitting(scorer="judge"), samples, scores, bos=1)


def test_a_refit_makes_the_best_answers_likelier_and_keeps_what_the_model_says_of_itself(
    tmp_path: Path,
) -> None:
    from pipeline.models import loading
    from pipeline.models.logprobs import compute_logps

    made = tiny_model(tmp_path / "store" / "sft" / "x")
    ends = {"eos_token_id": [2, 51]}
    edit(Path(made.weights) / "generation_config.json", **ends)
    answers = {
        f"p{i}": [(f"name {i} facts", 0.9, "stop"), ("the old lantern", 0.2, "stop")]
        for i in range(16)
    }
    samples, scores = round_of(tmp_path / "in", made, answers)
    out = tmp_path / "store" / "sft" / "y"
    refit = sft.run(refitting(epochs=4.0), out, base=made, samples=samples, scores=scores)

    rows = pl.concat(each.read() for each in samples).sort("sample_id")
    gains = {}
    for which in ("-0", "-1"):
        told = rows.filter(pl.col("sample_id").str.ends_with(which))
        ids = told["prompt_token_ids"].to_list(), told["token_ids"].to_list()
        before, after = (
            sum(compute_logps(loading.load(m, "float32"), *ids, 512)) for m in (made, refit)
        )
        gains[which] = after - before
    assert gains["-0"] > 100 and gains["-0"] > 2 * gains["-1"], gains
    assert json.loads((out / "weights" / "generation_config.json").read_text())["eos_token_id"] == [
        2,
        51,
    ]
    assert json.loads((out / "funnel.json").read_text()) == {"in": 16, "out": 16, "dropped": {}}
    assert len(refit.read_metrics()) == 16
    with pytest.raises(
        UserError,
        match=r"of 16 demonstrations none is left .*score too low.*\n.*Lower best_of_n.min_score",
    ):
        sft.run(refitting(min_score=2.0), tmp_path / "z", base=made, samples=samples, scores=scores)


@pytest.mark.slow
def test_a_checkpoint_that_moved_is_opened_where_it_lies_now(folder: Path, tmp_path: Path) -> None:
    """The same bytes are the same step; what lies at their old place by now must never be taken for
    them."""
    words = ["prompts=playground", "dtype=float32", "until=sft"]

    def built(place: Path) -> tuple[str, str, str]:
        command = [sys.executable, "-m", "pipeline", f"sft.model={place}", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(HOUSE)}, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        step = tmp_path / done.stdout.decode().splitlines()[-1]
        manifest = json.loads((step / "manifest.json").read_text())
        return step.name, hash_content(manifest), str(Model(step).weights)

    before = built(folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    after = built(moved)
    assert before[:2] == after[:2], "neither fingerprint nor content knows the place"
    assert after[2] == str(moved) != before[2]
