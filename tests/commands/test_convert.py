"""`strop convert`: another tool's file becomes a recipe that composes, and no key is lost silently.

The inputs in `tests/golden/convert/` hold the keys of the projects' published files.
`python -m tests.golden` writes their recipes anew.
"""

import contextlib
import datetime
import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import run_command
from pipeline.commands.convert.__main__ import convert_file, convert_keys
from pipeline.commands.convert.recipe import format_value
from pipeline.commands.convert.rows import UNREAD_TURNS
from pipeline.config import Config
from pipeline.config.trl_args import DPO_LOSSES
from pipeline.errors import UserError
from pipeline.plan import plan
from tests.golden.converted import FOLDER, INPUTS, render
from tests.support.house import composed

DPO = {
    "model_name_or_path": "owner/sft",
    "dataset_name": "owner/pairs",
    "beta": 0.1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
}
AXOLOTL = {
    "base_model": "owner/sft",
    "rl": "dpo",
    "datasets": [{"path": "owner/pairs", "type": "chatml.intel"}],
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 5e-7,
}
FACTORY = {
    "model_name_or_path": "owner/sft",
    "stage": "dpo",
    "dataset": "orca_pairs",
    "template": "llama3",
    "learning_rate": 5e-6,
    "gradient_accumulation_steps": 8,
}


def write(folder: Path, keys: object, name: str = "training.yaml") -> Path:
    file = folder / name
    file.write_text(keys if isinstance(keys, str) else yaml.safe_dump(keys))
    return file


def convert(folder: Path, keys: object, gpus: int = 1, method: str | None = None) -> str:
    return convert_file(write(folder, keys), gpus, method).render()


def compose_text(folder: Path, text: str) -> Config:
    (folder / "recipes").mkdir(exist_ok=True)
    (folder / "recipes" / "made.yaml").write_text(text)
    return composed("--config-dir", str(folder), "recipes=made")


def compose_keys(folder: Path, keys: object, gpus: int = 1, method: str | None = None) -> Config:
    return compose_text(folder, convert(folder, keys, gpus, method))


# ── the published files ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", INPUTS, ids=lambda file: file.stem)
def test_a_published_file_becomes_the_golden_recipe(file):
    golden = FOLDER / "recipes" / f"{file.stem}.yaml"
    assert render(file) == golden.read_text(), "type python -m tests.golden, and read the changes"


@pytest.mark.parametrize("file", INPUTS, ids=lambda file: file.stem)
def test_a_golden_recipe_composes_and_plans_a_training_on_the_file_s_rows_alone(file):
    cfg = composed("--config-dir", str(FOLDER), f"recipes={file.stem}")
    stages = [step.stage for step in plan(cfg).ancestors()]
    assert "train" in stages and "offline" in stages and cfg.pair.mix.on_policy == 0


@pytest.mark.parametrize("file", INPUTS, ids=lambda file: file.stem)
def test_every_key_of_a_file_is_named_in_its_recipe(file):
    keys, text = yaml.safe_load(file.read_text()), render(file)
    words = set(re.findall(r"\w+", text))
    assert [key for key in keys if key not in words] == []


def test_the_golden_values_are_those_of_the_files():
    cfg = composed("--config-dir", str(FOLDER), "recipes=handbook_dpo_full")
    assert (cfg.train.batch, cfg.train.beta, cfg.train.learning_rate) == (128, 0.01, 5e-7)
    assert (cfg.limits.prompt, cfg.limits.completion, cfg.train.epochs) == (512, 512, 1)
    cfg = composed("--config-dir", str(FOLDER), "recipes=axolotl_kto_qlora")
    adapter = cfg.train.adapter
    assert (adapter.kind, adapter.quantization.bits, adapter.rank) == ("qlora", 4, 32)
    assert cfg.train.args["desirable_weight"] == 0.2 and cfg.train.trainer == "kto"
    cfg = composed("--config-dir", str(FOLDER), "recipes=axolotl_dpo_lora")
    assert cfg.train.adapter.quantization.bits == 8 and cfg.train.args["optim"] == "adamw_bnb_8bit"
    cfg = composed("--config-dir", str(FOLDER), "recipes=llama_factory_dpo")
    assert (cfg.train.adapter.rank, cfg.train.adapter.alpha, cfg.train.epochs) == (8, 16, 3)
    assert cfg.pair.mix.per_round == 1000 and cfg.train.scheduler == "cosine"


# ── what changes the result ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("loss", [*DPO_LOSSES, "aot_pair", "kto_pair"])
def test_each_loss_of_trl_is_an_objective(loss, tmp_path):
    if loss == "sft":
        return  # only in a mix
    keys = {**DPO, "loss_type": loss, "beta": 0.3}
    train = compose_keys(tmp_path, keys).train
    names = {"aot_pair": "aot", "kto_pair": "kto"}
    assert train.loss == [names.get(loss, loss)] and train.beta == 0.3


@pytest.mark.parametrize(
    ("keys", "loss", "args"),
    [
        ({"label_smoothing": 0.1}, ["cdpo"], {"label_smoothing": 0.1}),
        ({"loss_type": "robust", "label_smoothing": 0.2}, ["robust"], {"label_smoothing": 0.2}),
        ({"loss_type": "hinge", "label_smoothing": 0.2}, ["hinge"], {}),
        ({"rpo_alpha": 0.5}, ["sigmoid", "sft"], {}),
        ({"use_weighting": True}, ["sigmoid"], {"use_weighting": True}),
        ({"ld_alpha": 0.5}, ["sigmoid"], {"ld_alpha": 0.5}),
        ({"sync_ref_model": True, "ref_model_sync_steps": 9}, ["sigmoid"],
         {"sync_ref_model": True, "ref_model_sync_steps": 9, "ref_model_mixup_alpha": 0.6}),
        ({"reference_free": True}, ["sigmoid"], {}),
        ({"reference_free": True, "label_smoothing": 0.1}, ["cdpo"], {"label_smoothing": 0.1}),
        ({"reference_free": True, "loss_type": "robust"}, ["robust"], {"label_smoothing": 0.0}),
        ({"sync_ref_model": True}, ["sigmoid"],
         {"sync_ref_model": True, "ref_model_sync_steps": 512, "ref_model_mixup_alpha": 0.6}),
        ({"ref_model_sync_steps": 9, "discopop_tau": 0.1}, ["sigmoid"], {}),
        ({"loss_type": "orpo", "rpo_alpha": 0.5}, ["orpo"], {}),
        ({"cpo_alpha": 0.5}, ["sigmoid", "sft"], {}),
        ({"loss_type": "simpo", "beta": 2.0}, ["simpo", "sft"], {"simpo_gamma": 0.5}),
        ({"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0}, ["simpo"], {"simpo_gamma": 0.5}),
        ({"f_divergence_type": "js_divergence"}, ["sigmoid"],
         {"f_divergence_type": "js_divergence"}),
    ],
)  # fmt: skip
def test_what_a_loss_reads_is_carried(keys, loss, args, tmp_path):
    train = compose_keys(tmp_path, {**DPO, **keys}).train
    assert train.loss == loss and train.args == args


def test_a_file_for_a_trainer_without_a_reference_needs_none(tmp_path):
    free = compose_keys(tmp_path, {**DPO, "reference_free": True}).train
    assert (free.reference_logps, free.loss_weights, free.loss_group) == ("none", None, None)
    cpo = compose_keys(tmp_path, {**DPO, "cpo_alpha": 0.5}).train
    assert (cpo.reference_logps, cpo.loss_weights, cpo.loss_group) == ("none", [1.0, 0.5], 4)


def test_a_beta_that_would_be_refused_is_allowed_with_a_warning(tmp_path):
    text = convert(tmp_path, {**DPO, "loss_type": "sigmoid_norm", "beta": 0.05})
    assert "20 times less than sigmoid_norm usually has" in text
    assert compose_text(tmp_path, text).train.beta == 0.05
    assert "typical_beta" not in convert(tmp_path, {**DPO, "beta": 0.05})


def test_the_weight_of_imitation_is_the_second_weight(tmp_path):
    train = compose_keys(tmp_path, {**DPO, "rpo_alpha": 0.5, "label_smoothing": 0.1}).train
    assert (train.loss, train.loss_weights) == (["cdpo", "sft"], [1.0, 0.5])
    assert train.loss_group == 4  # the rows of a forward pass there


def test_the_batch_is_that_of_all_gpus(tmp_path):
    assert compose_keys(tmp_path, DPO).train.batch == 16
    assert compose_keys(tmp_path, DPO, gpus=8).train.batch == 128
    kto = compose_keys(tmp_path, {**DPO, "desirable_weight": 2.0}, gpus=8).train
    assert (kto.batch, kto.loss_group) == (128, 32)  # TRL averages its KL over all processes
    axolotl = {**AXOLOTL, "batch_size": 16, "gradient_accumulation_steps": None}
    assert compose_keys(tmp_path, axolotl, gpus=2).train.batch == 32


def test_an_absent_key_has_the_default_of_its_tool(tmp_path):
    train = compose_keys(tmp_path, DPO).train
    assert (train.epochs, train.scheduler, train.warmup) == (3, "linear", 0.0)
    assert train.learning_rate == 1e-6
    train = compose_keys(tmp_path, AXOLOTL).train
    assert (train.epochs, train.scheduler, train.warmup) == (1, "cosine", 0.03)
    train = compose_keys(tmp_path, {**FACTORY, "learning_rate": None}).train
    assert (train.learning_rate, train.adapter.rank, train.adapter.alpha) == (5e-5, 8, 16)


def test_a_rate_that_would_be_refused_is_allowed_with_a_warning(tmp_path):
    text = convert(tmp_path, {**DPO, "learning_rate": "5e-5"})
    assert "breaks more models" in text
    assert compose_text(tmp_path, text).train.learning_rate == 5e-5
    assert "breaks more models" not in convert(tmp_path, {**DPO, "learning_rate": "5e-7"})


@pytest.mark.parametrize(
    ("keys", "kind", "bits"),
    [
        ({}, "full", None),
        ({"adapter": "lora", "lora_r": 8}, "lora", None),
        ({"adapter": "lora", "lora_r": 8, "load_in_4bit": True}, "qlora", 4),
        ({"adapter": "lora", "lora_r": 8, "load_in_8bit": True}, "qlora", 8),
    ],
)
def test_a_base_in_few_bits_is_qlora(keys, kind, bits, tmp_path):
    adapter = compose_keys(tmp_path, {**AXOLOTL, **keys}).train.adapter
    assert adapter.kind == kind
    assert kind == "full" or getattr(adapter.quantization, "bits", None) == bits


def test_dropout_is_carried_only_where_the_trainer_keeps_it(tmp_path):
    lora = {**DPO, "use_peft": True, "lora_dropout": 0.05}
    assert compose_keys(tmp_path, lora).train.adapter.dropout == 0
    kept = compose_keys(tmp_path, {**lora, "disable_dropout": False}).train
    assert kept.adapter.dropout == 0.05 and kept.args["disable_dropout"] is False


@pytest.mark.parametrize(
    ("kind", "shape", "columns"),
    [
        ("chatml.intel", "intel", {}),
        ("llama3.argilla", "argilla", {}),
        ("chat_template.argilla_chat", "trl", {}),
        ("chatml.icr", "columns", {"prompt": "input", "chosen": "chosen", "rejected": "rejected"}),
        ({"field_prompt": "q", "field_chosen": "a", "field_rejected": "b"}, "columns",
         {"prompt": "q", "chosen": "a", "rejected": "b"}),
        ("chat_template.default", "conversation", {}),
    ],
)  # fmt: skip
def test_a_type_of_axolotl_is_a_shape(kind, shape, columns, tmp_path):
    keys = {**AXOLOTL, "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": kind}]}
    cfg = compose_keys(tmp_path, keys)
    assert cfg.offline.shape == shape and cfg.offline.columns == columns
    assert cfg.offline.source.path == cfg.prompts.path == "rows.jsonl"


def reads_no_turns(text: str) -> bool:
    return UNREAD_TURNS in " ".join(text.replace("#", " ").split())


@pytest.mark.parametrize(
    ("keys", "columns"),
    [
        ({"field_messages": "talk"}, {"messages": "talk"}),
        ({"message_field_role": "from", "message_field_content": "value"},
         {"conversations": "messages"}),
        ({"message_property_mappings": {"role": "who", "content": "what"}}, None),
        ({"field_messages": "talk", "roles": {"user": ["human"]}}, None),
    ],
)  # fmt: skip
def test_turns_of_axolotl_are_read_by_their_keys_and_speakers(keys, columns, tmp_path):
    block = {"path": "rows.jsonl", "ds_type": "json", "type": "chat_template.default", **keys}
    text = convert(tmp_path, {**AXOLOTL, "datasets": [block]})
    assert reads_no_turns(text) == (columns is None)
    if columns:
        cfg = compose_text(tmp_path, text)
        sides = {"chosen": "chosen", "rejected": "rejected"}
        assert cfg.offline.columns == {**columns, **sides} and cfg.prompts.columns == columns


@pytest.mark.parametrize(
    ("entry", "columns", "asked"),
    [
        ({}, {}, {}),
        ({"columns": {"messages": "talk", "system": "rules"}},
         {"conversations": "talk", "system": "rules", "chosen": "chosen", "rejected": "rejected"},
         {"conversations": "talk", "system": "rules"}),
        ({"columns": {"messages": "talk", "kto_tag": "liked"},
          "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                   "assistant_tag": "assistant"}},
         {"messages": "talk", "label": "liked"}, {"messages": "talk"}),
        ({"tags": {"role_tag": "speaker"}}, None, None),
        ({"tags": {"user_tag": "customer"}}, None, None),
    ],
)  # fmt: skip
def test_turns_of_llama_factory_are_read_by_their_tags(entry, columns, asked, tmp_path):
    (tmp_path / "data").mkdir()
    table = {"mine": {"file_name": "p.json", "formatting": "sharegpt", **entry}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(table))
    text = convert(tmp_path, {**FACTORY, "dataset": "mine"})
    assert reads_no_turns(text) == (columns is None)
    if columns is not None:
        cfg = compose_text(tmp_path, text)
        assert (cfg.offline.columns, cfg.prompts.columns) == (columns, asked)
        assert cfg.offline.shape == ("columns" if columns else "conversation")


def test_a_prompt_inside_the_answers_is_read_there(tmp_path):
    chats = [{"path": "owner/chats", "type": "llama3.argilla_chat"}]
    cfg = compose_keys(tmp_path, {**AXOLOTL, "datasets": chats})
    assert (cfg.prompts.shape, cfg.prompts.columns) == ("columns", {"messages": "chosen"})


def test_dataset_info_names_the_rows_of_llama_factory(tmp_path):
    (tmp_path / "data").mkdir()
    entry = {"mine": {"file_name": "p.json", "ranking": True, "columns": {"prompt": "q"}}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(entry))
    cfg = compose_keys(tmp_path, {**FACTORY, "dataset": "mine"})
    assert cfg.offline.source.path == "data/p.json"
    assert cfg.offline.columns == {"prompt": "q", "chosen": "chosen", "rejected": "rejected"}


def test_what_has_no_counterpart_is_named_with_its_value_and_its_effect(tmp_path):
    text = convert(tmp_path, {**AXOLOTL, "wandb_run_id": "run-7", "tf32": True, "made_up": 3,
                              "learning_rat": 1, "strict": False})  # fmt: skip
    flat = " ".join(text.replace("#", " ").split())
    assert "wandb_run_id: run-7. Would have named the W&B run to continue." in flat
    assert "tf32: true. Would have multiplied float32 matrices in TF32" in flat
    lost, unknown = flat.split("Unknown to strop convert")
    assert "made_up: 3" in unknown and "learning_rat: 1. Did you mean learning_rate?" in unknown
    assert "made_up" not in lost and "nothing is lost: strict" in unknown


def test_a_value_that_is_carried_is_never_called_of_no_effect():
    """A part that reads a key and forgets to say so would have it listed as the default."""
    named = [
        (file.stem, line)
        for file in INPUTS
        for line in re.split(r"\n# (?! )", render(file))
        if "of no effect" in " ".join(line.replace("#", " ").split())
    ]
    # The file has lora_target_linear as well, which takes all layers.
    assert [name for name, line in named if "lora_target_modules" not in line] == []


def test_text_of_a_file_breaks_no_recipe(tmp_path):
    odd = 'a: "b"\n- {c}\x7f ${oc.env:HOME} # d'
    keys = {**DPO, "run_name": odd, "report_to": "wandb", "odd\nkey": odd, "chat_template": odd,
            "model_name_or_path": "./a b: c", "lr_scheduler_type": odd}  # fmt: skip
    cfg = compose_keys(tmp_path, keys)
    assert cfg.sft.model == "./a b: c" and cfg.train.runtime.tracker.name == odd


@pytest.mark.parametrize("value", [5e-7, 1e-10, 2e-4, 1.0, 3, "5e-7", "1", "yes", "a, b", "", None,
                                   True, [0.8, "a, b"], {"a b": "c: d"}])  # fmt: skip
def test_a_written_value_is_read_again_as_it_was(value):
    from omegaconf import OmegaConf

    assert OmegaConf.create(f"knob: {format_value(value)}").knob == value


ODD = [-1, 0, 0.5, 10**400, "", "x: [", "a\nb", True, [], [1], [[["x"]]], {"a": {"b": [1]}}, [{}],
       ["a", "b"], datetime.date(2026, 1, 1), float("nan"), "${x}"]  # fmt: skip


@pytest.mark.parametrize("file", INPUTS, ids=lambda file: file.stem)
def test_no_value_of_a_key_ends_in_a_traceback_or_in_a_file_that_is_not_yaml(file):
    keys = yaml.safe_load(file.read_text())
    for key, value in itertools.product(keys, ODD):
        with contextlib.suppress(UserError):
            text = convert_keys(file, {**keys, key: value}, 1, "dpo").render()
            made = yaml.load(text, yaml.CSafeLoader)
            assert set(made) <= {"defaults", *Config.model_fields}, (key, value)


# ── refused ──────────────────────────────────────────────────────────────────────────────────────

FAULTS = [
    ("", "this file is empty"),
    ("- a\n- b\n", "it holds a list"),
    ("rl: [dpo\n", "line 2: this is not YAML"),
    ("text only", "it holds one str"),
    ({"image": "nginx", "ports": [80]}, "not a training file of a tool that strop convert knows"),
    ({**AXOLOTL, "rl": None}, "this file trains SFT"),
    ({**AXOLOTL, "rl": "grpo"}, "rl: grpo: this file trains by rewards, online"),
    ({**AXOLOTL, "rl": "dop"}, "rl: dop: unknown. Did you mean dpo?"),
    ({**AXOLOTL, "rl": None, "reward_model": True}, "trains a reward model"),
    ({**AXOLOTL, "datasets": "owner/pairs"}, "datasets: owner/pairs: expected a list of blocks"),
    ({**AXOLOTL, "datasets": [{"type": "x"}]}, "expected a list of data sets, each with its path"),
    ({**AXOLOTL, "micro_batch_size": "two"}, "micro_batch_size: two: expected a number"),
    ({**AXOLOTL, "learning_rate": "fast"}, "learning_rate: fast: expected a number"),
    ({**AXOLOTL, "load_in_4bit": "maybe"}, "load_in_4bit: maybe: expected true or false"),
    ({**AXOLOTL, "adapter": "lora"}, "lora_r: null: expected the rank"),
    ({**AXOLOTL, "finetuning_type": "lora"}, "keys are those of several tools"),
    ({**FACTORY, "stage": "sft"}, "stage: sft: this file trains SFT"),
    ({**FACTORY, "stage": "ppo"}, "trains by rewards, online (PPO)"),
    ({**FACTORY, "stage": "rm"}, "trains a reward model"),
    ({**FACTORY, "pref_loss": "sigmod"}, "pref_loss: sigmod: no loss"),
    ({**FACTORY, "dataset": None}, "dataset: null: expected the name of a data set"),
    ({**DPO, "packing": True}, "packing: this file trains SFT"),
    ({**DPO, "num_generations": 8}, "trains by rewards, online"),
    ({**DPO, "beta": None}, "neither beta nor loss_type"),
    ({**DPO, "output_dir": "out/mistral-orpo"}, "its names say orpo"),
    ({**DPO, "dataset_name": None}, "dataset_name: null: expected the name of a data set"),
    ({**DPO, "model_name_or_path": None}, "model_name_or_path: null: expected a folder"),
    ({**DPO, "loss_weights": "heavy"}, "loss_weights: heavy: expected a list of numbers"),
]


@pytest.mark.parametrize(("keys", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_what_is_no_preference_training_is_refused(keys, words, tmp_path):
    with pytest.raises(UserError) as refusal:
        convert(tmp_path, keys)
    assert words in str(refusal.value) and str(tmp_path) in str(refusal.value)
    assert "\n  " in str(refusal.value) or "Did you mean" in str(refusal.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"rl: \xff\xfe")
    (tmp_path / "deep.yaml").write_text("[" * 100_000)
    (tmp_path / "cut.json").write_text('{"stage": "dpo",')
    for name in ("none.yaml", "bytes.yaml", "deep.yaml", "cut.json", "."):
        with pytest.raises(UserError):
            convert_file(tmp_path / name)


def test_a_missing_file_is_named_by_the_path_that_was_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(["convert", "none.yaml"]) == 2
    place = f"(looked for {tmp_path}/none.yaml)"
    assert f"none.yaml: there is no such file {place}" in capsys.readouterr().err


def test_the_method_decides_where_the_file_does_not(tmp_path):
    keys = {**DPO, "output_dir": "out/mistral-orpo"}
    assert compose_keys(tmp_path, keys, method="orpo").train.loss == ["orpo"]
    assert compose_keys(tmp_path, keys, method="dpo").train.trainer == "dpo"


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def test_the_recipe_is_printed_or_written_and_no_other_file_is_replaced(tmp_path, capsys):
    file, out = write(tmp_path, DPO), tmp_path / "my" / "recipes" / "mine.yaml"
    assert run_command(["convert", str(file), "gpus=2"]) == 0
    printed = capsys.readouterr().out
    assert "batch: 32" in printed
    for _ in range(2):  # the same recipe may be written again
        assert run_command(["convert", str(file), "gpus=2", f"out={out}"]) == 0
    assert out.read_text() == printed
    assert f"--config-dir {tmp_path / 'my'} recipes=mine" in capsys.readouterr().err
    assert run_command(["convert", str(file), "gpus=4", f"out={out}"]) == 2
    assert out.read_text() == printed and "it exists and differs" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["gpus=0", "gpus=many", "method=ppo", "gpu=8", "another.yaml"])
def test_a_word_that_is_wrong_is_refused(word, tmp_path):
    try:
        assert run_command(["convert", str(write(tmp_path, DPO)), word]) == 2
    except UserError:
        pytest.fail("the command reports its errors itself")
