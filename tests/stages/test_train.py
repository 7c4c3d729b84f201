"""DPO on ready ids: the sampler's tokens, TRL's losses, a right reference, exact resume, nothing
half published."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.artifacts import Logps, Model, Pairs, write_json, write_table
from pipeline.config import TrainConfig
from pipeline.errors import StageError, UserError
from pipeline.stages import train
from tests.support.preferences import LORA, dpo, write_logps, write_pairs
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.model


class Round:
    """A published SFT model with its pairs and their reference values, in a store of its own."""

    def __init__(self, store: Path):
        self.store = store
        self.sft = tiny_model(store / "sft" / "aaaaaaaaaaaa")
        self.other = tiny_model(store / "sft" / "cccccccccccc", seed=1)
        self.pairs = write_pairs(store / "pair" / "aaaaaaaaaaaa", self.sft)
        self.logps = write_logps(store / "reference" / "aaaaaaaaaaaa", self.sft, self.pairs)

    def inputs(self, **changes) -> dict:
        return {
            "init": self.sft,
            "reference": self.sft,
            "pairs": [self.pairs],
            "logps": [self.logps],
            **changes,
        }

    def train(self, name: str, cfg: TrainConfig, **changes) -> Model:
        return train.run(cfg, self.store / "train" / name, **self.inputs(**changes))


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def full(round_) -> Model:
    return round_.train("full", dpo())


@pytest.fixture(scope="module")
def lora(round_) -> Model:
    return round_.train("lora", dpo(LORA))


def published(model: Model) -> dict[str, bytes]:
    files = [path for path in model.path.rglob("*") if path.is_file()]
    names = {path.relative_to(model.path).as_posix(): path for path in files}
    found = {
        name: path.read_bytes() for name, path in names.items() if not name.startswith("scratch/")
    }
    cost = json.loads(found["cost.json"])
    for name in ("loop", "step", "evaluation"):
        del cost[f"{name}_seconds"]  # of the clock; the other figures are the training's own
    return {**found, "cost.json": json.dumps(cost).encode()}


def losses(model: Model) -> list[float]:
    return [entry["loss"] for entry in model.read_metrics() if "loss" in entry]


def chosen_logps(model: Model, pairs: Pairs) -> list[float]:
    from pipeline.models import loading, logprobs

    rows = pairs.read_dev()
    ids = rows["prompt_token_ids"].to_list(), rows["chosen_token_ids"].to_list()
    return logprobs.compute_logps(loading.load(model, "float32"), *ids, 512)


def padded_with(round_: Round, pad: str, folder: Path) -> Model:
    model = Model(shutil.copytree(round_.sft.path, folder))
    file = model.tokenizer / "tokenizer_config.json"
    write_json(file, {**json.loads(file.read_text()), "pad_token": pad})
    return model


def trainer_on(round_: Round, cfg: TrainConfig, out: Path, init: Model, reference: Model):
    from pipeline.training import build
    from pipeline.training.monitoring import guards

    rows = {
        part: train.prepare_pairs(cfg, [round_.pairs], part, [round_.logps])
        for part in ("train", "dev")
    }
    watch = guards.build_guards(cfg, init, reference, None, rows["dev"], out)
    return build.build_trainer(
        cfg, build.load_policy(cfg, init), init, reference, rows, out, watch
    )[0]


# ── what is trained is what was sampled ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("pad", ["<pad>", "<|end|>"])
def test_the_batch_holds_the_sampler_s_own_ids(round_, tmp_path, pad):
    """Also when padding is the end mark: what is learned follows from lengths, so the last token is
    always in it."""
    padded = padded_with(round_, pad, tmp_path / "sft" / "padded")
    trainer = trainer_on(round_, dpo(), tmp_path / "out", init=padded, reference=round_.sft)
    assert trainer.processing_class.pad_token == pad

    rows = round_.pairs.read_train().to_dicts()
    expected = {
        (*r["prompt_token_ids"], *r[f"{s}_token_ids"]): r[f"{s}_token_ids"]
        for r in rows
        for s in ("chosen", "rejected")
    }
    seen = set()
    for batch in trainer.get_train_dataloader():
        for ids, attended, learned in zip(
            batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
        ):
            row = tuple(ids[attended.bool()].tolist())
            assert ids[learned.bool()].tolist() == expected[row]
            assert row.count(1) == 1 and row[0] == 1  # one BOS
            assert ids[learned.bool()][-1] == 2  # the end mark is learned
            seen.add(row)
    assert seen == set(expected)


def test_losses_are_those_of_plain_trl_on_the_same_text(round_, tmp_path):
    """TRL tokenises the conversations itself, loads its own reference and asks it as it goes. Its
    warm-up differs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from pipeline.models import loading
    from pipeline.training import build

    cfg = dpo(warmup=0.0)
    own = round_.train("at full rate", cfg)
    settings = {
        **build.trainer_arguments(cfg, tmp_path, evaluates=False),
        "precompute_ref_log_probs": False,
        "save_strategy": "no",
    }
    theirs = {field.name for field in fields(DPOConfig)}  # ours say what is not TRL's
    plain = DPOTrainer(
        model=loading.load_merged(round_.sft),
        args=DPOConfig(**{name: settings[name] for name in theirs & settings.keys()}),
        train_dataset=Dataset.from_list(
            round_.pairs.read_train().select("prompt", "chosen", "rejected").to_dicts()
        ),
        processing_class=loading.load_tokenizer(round_.sft),
    )
    assert (
        plain.train_dataset["chosen_ids"] == round_.pairs.read_train()["chosen_token_ids"].to_list()
    )
    plain.train()
    assert losses(own) == pytest.approx(
        [entry["loss"] for entry in plain.state.log_history if "loss" in entry], abs=1e-5
    )
    assert len(losses(own)) == 6


def test_every_pair_weighs_the_same_however_a_step_is_split(round_):
    """24 pairs in steps of 14: the last step holds 10, which micro-batches of 7 take as 7 and 3."""
    cfgs = [dpo(batch=14, micro_batch=size, warmup=0.0) for size in (14, 7)]
    whole, uneven = (losses(round_.train(f"micro-{cfg.runtime.micro_batch}", cfg)) for cfg in cfgs)
    assert abs(whole[1] - whole[0]) > 1e-3
    assert uneven == pytest.approx(whole, abs=1e-5)


def test_every_dev_pair_weighs_the_same_however_a_look_is_split(round_):
    """TRL takes the mean of its batches' means, the last and smaller one's too."""
    names = [
        f"eval_{name}" for name in ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen")
    ]
    looks = []
    for size in (6, 3):
        rows = round_.train(
            f"look-{size}", dpo(batch=6, micro_batch=size, learning_rate=1e-2, eval_every=2)
        ).read_metrics()
        looks.append([row[name] for row in rows for name in names if name in row])
    assert round_.pairs.read_dev().height % 3, "or no batch is smaller"
    assert looks[0] == pytest.approx(looks[1], abs=1e-4)


def test_what_a_cluster_says_of_other_processes_changes_nothing_here(round_, full, monkeypatch):
    """Kubernetes' jobs set these for every container; one that trains alone would take a quarter of
    each step."""
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert losses(round_.train("in a cluster", dpo(micro_batch=1))) == pytest.approx(
        losses(full), abs=1e-5
    )


# ── the reference ─────────────────────────────────────────────────────────────────────────────────


def test_the_first_loss_is_that_of_no_margin(full, lora):
    assert losses(full)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(lora)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_values_of_another_model_are_caught_before_the_first_step(round_, tmp_path):
    wrong = write_logps(tmp_path / "wrong", round_.other, round_.pairs)
    with pytest.raises(
        StageError, match=r"the reference is wrong.*before its first step by [\d.]+ nats"
    ):
        round_.train("wrong", dpo(), logps=[wrong])
    with pytest.raises(
        StageError, match=r"the reference is wrong.*computed again with the reference model"
    ):
        round_.train("wrong", dpo(), reference=round_.other)
    assert not (round_.store / "train" / "wrong" / "model.json").exists()
    assert not (round_.store / "train" / "wrong" / "metrics.jsonl").exists()


def test_a_value_that_is_no_number_is_no_small_difference():
    from pipeline.training.monitoring import reference_check

    rows = {f"ref_{side}_logps": [-1.0, -2.0, -3.0] for side in ("chosen", "rejected")}
    rows |= {f"{side}_ids": [[1]] * 3 for side in ("chosen", "rejected")}
    found = {"chosen": [-1.0, -2.0, -3.0], "rejected": [-1.0, math.nan, -3.0]}
    with pytest.raises(StageError, match="the reference is wrong.* by nan nats"):
        reference_check._compare_logps(dpo(), found, rows, "of the model")


def test_values_of_other_pairs_are_caught(round_, tmp_path):
    """Every value is there, under the id of its neighbour."""
    table = round_.logps.read()
    write_table(
        tmp_path / "logps.parquet",
        table.with_columns(logp=pl.col("logp").shift(1, fill_value=table["logp"][-1])),
    )
    with pytest.raises(StageError, match="the reference is wrong"):
        round_.train("shifted", dpo(), logps=[Logps(tmp_path)])


def test_a_trainer_that_asks_another_reference_is_caught_by_its_first_loss(round_, tmp_path):
    from pipeline.training.monitoring import reference_check

    rows = (
        train.prepare_pairs(dpo(reference_logps="online"), [round_.pairs], "train", [])
        .head(16)
        .to_dict(as_series=False)
    )
    right, wrong = (
        trainer_on(
            round_,
            dpo(reference_logps="online"),
            tmp_path / model.path.name,
            init=round_.sft,
            reference=model,
        )
        for model in (round_.sft, round_.other)
    )
    reference_check.check_start(dpo(reference_logps="online"), right, rows)
    with pytest.raises(
        StageError, match=r"the first loss should be ln 2 = 0.693147, and TRL's is .* on 16 pairs"
    ):
        reference_check.check_start(dpo(reference_logps="online"), wrong, rows)


def test_training_from_elsewhere_takes_the_reference_s_values(round_, full):
    """A second round: it starts from the first one's model and is still held to SFT."""
    second = round_.train("second", dpo(), init=full)
    assert losses(second)[0] != pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize(
    "start", ["new adapter", "its own adapter", "held to the base", "held to another"]
)
def test_live_and_ready_references_agree(round_, full, lora, tmp_path, start):
    """TRL asks the disabled adapter, or a reference module, as it goes; `reference` asked them
    before."""
    init, reference = {
        "new adapter": (round_.sft, round_.sft),
        "its own adapter": (lora, lora),
        "held to the base": (lora, round_.sft),
        "held to another": (lora, full),
    }[start]
    logps = write_logps(tmp_path / "logps", reference, round_.pairs)
    ready = round_.train(f"ready {start}", dpo(LORA), init=init, reference=reference, logps=[logps])
    live = round_.train(
        f"live {start}",
        dpo(LORA, reference_logps="online"),
        init=init,
        reference=reference,
        logps=None,
    )
    assert losses(live) == pytest.approx(losses(ready), abs=1e-5)


def test_bfloat16_starts_from_its_reference_too(round_, tmp_path):
    logps = write_logps(tmp_path / "logps", round_.sft, round_.pairs, dtype="bfloat16")
    model = round_.train("half", dpo(dtype="bfloat16"), logps=[logps])
    assert json.loads((model.path / "weights" / "config.json").read_text())["dtype"] == "bfloat16"
    wrong = write_logps(tmp_path / "wrong", round_.other, round_.pairs, dtype="bfloat16")
    with pytest.raises(StageError, match="nats per token"):
        round_.train("half wrong", dpo(dtype="bfloat16"), logps=[wrong])


# ── what is published ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_is_published_is_what_was_trained(round_, kind, request):
    """The last look at the dev pairs and the model opened from its folder give the same
    log-probabilities."""
    model = request.getfixturevalue(kind)
    last = [entry for entry in model.read_metrics() if "eval_loss" in entry][-1]
    assert last["step"] == 6
    found = chosen_logps(model, round_.pairs)
    assert last["eval_logps/chosen"] == pytest.approx(sum(found) / len(found), abs=1e-3)
    assert found != pytest.approx(chosen_logps(round_.sft, round_.pairs), abs=1e-2)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_no_pickle_and_no_place_of_this_machine_is_published(round_, kind, request):
    files = published(request.getfixturevalue(kind))
    files.pop("adapter/adapter_config.json", None)  # it names the base's place, outside content
    assert {Path(name).suffix for name in files} <= {
        ".safetensors",
        ".json",
        ".jsonl",
        ".jinja",
        ".md",
        ".png",
    }
    assert not [name for name, data in files.items() if str(round_.store).encode() in data]


def test_the_trainer_s_marks_do_not_reach_the_published_config(round_, tmp_path):
    """TRL writes its tokenizer's padding into the model's config; a user's model keeps what it
    said."""
    init = padded_with(round_, "<|end|>", tmp_path / "sft" / "padded")
    model = round_.train("marks", dpo(batch=24), init=init)
    for name in ("config.json", "generation_config.json"):
        assert (model.weights / name).read_bytes() == (init.weights / name).read_bytes()


def test_an_adapter_names_its_base_and_is_continued(round_, lora):
    named = {"base": "sft/aaaaaaaaaaaa", "adapter": "adapter", "tokenizer": "adapter"}
    assert lora.record == {**named, "peft": lora.record["peft"]}
    assert lora.record["peft"]["base_model_name_or_path"] == "sft/aaaaaaaaaaaa"
    config = json.loads((lora.adapter / "adapter_config.json").read_text())
    assert config == {**lora.record["peft"], "base_model_name_or_path": str(round_.sft.weights)}
    assert lora.weights == round_.sft.weights
    second = round_.train("continued", dpo(LORA), init=lora)
    assert second.record["base"] == "sft/aaaaaaaaaaaa"
    assert {path.name for path in second.adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        *(
            path.name
            for path in round_.sft.tokenizer.iterdir()
            if path.name.startswith(("tokenizer", "chat_template"))
        ),
    }


def test_full_training_of_an_adapter_starts_from_the_merged_weights(round_, lora, tmp_path):
    logps = write_logps(tmp_path / "logps", lora, round_.pairs)
    model = round_.train("merged", dpo(), init=lora, reference=lora, logps=[logps])
    assert model.record == {"weights": "weights", "tokenizer": "weights"}
    assert losses(model)[0] == pytest.approx(math.log(2), abs=1e-5)


def test_numbers_that_are_not_finite_stop_the_run(round_):
    with pytest.raises(StageError, match=r"(loss|grad_norm) is (nan|inf) at step"):
        round_.train("nan", dpo(learning_rate=1e30, warmup=0.0))
    left = round_.store / "train" / "nan"
    assert not (left / "model.json").exists() and not (left / "weights").exists()


def test_weights_that_are_not_finite_are_not_published():
    import torch

    from pipeline.models import loading

    layer = torch.nn.Linear(3, 2)
    loading.check_finite(layer)
    layer.weight.data[1, 2] = math.inf
    with pytest.raises(
        StageError, match=r"training has left 1 weight not finite .*weight is the first"
    ):
        loading.check_finite(layer)


# ── killed and run again ──────────────────────────────────────────────────────────────────────────

CHILD = """
import json, os, signal, sys
from dataclasses import fields
from pathlib import Path
from transformers import Trainer
from pipeline.artifacts import Logps, Model, Pairs
from pipeline.config import TrainConfig
from pipeline.stages import train
from pipeline.training.monitoring import callbacks

store, out, config, moment = sys.argv[1:]
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
plain_log, plain_save = callbacks.MetricsLog.on_log, Trainer._save_optimizer_and_scheduler

def on_log(self, args, state, control, **kwargs):
    plain_log(self, args, state, control, **kwargs)
    if state.global_step == 3 and moment == "in a step":
        kill()

def save(self, folder):
    if folder.endswith("checkpoint-4") and moment == "in a checkpoint":
        kill()
    plain_save(self, folder)

callbacks.MetricsLog.on_log, Trainer._save_optimizer_and_scheduler = on_log, save
sft = Model(Path(store, "sft/aaaaaaaaaaaa"))
train.run(TrainConfig(**json.loads(config)), Path(out), init=sft, reference=sft,
          pairs=[Pairs(Path(store, "pair/aaaaaaaaaaaa"))],
          logps=[Logps(Path(store, "reference/aaaaaaaaaaaa"))])
"""


@pytest.mark.parametrize(("kind", "moment"), [("full", "in a checkpoint"), ("lora", "in a step")])
def test_a_killed_training_ends_with_the_same_bytes(round_, kind, moment, request, capfd):
    whole = request.getfixturevalue(kind)
    cfg, name = dpo(LORA) if kind == "lora" else dpo(), f"killed {kind}"
    out = round_.store / "train" / name
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(round_.store),
        str(out),
        cfg.model_dump_json(),
        moment,
    ]
    assert (
        subprocess.run(command, cwd=Path(train.__file__).parents[2], capture_output=True).returncode
        == -signal.SIGKILL
    )
    assert (out / "scratch" / "checkpoints" / "checkpoint-2").is_dir()
    (out / "scratch" / "checkpoints" / "checkpoint-99").mkdir()

    again = round_.train(name, cfg)
    said = capfd.readouterr().err
    assert "checkpoint-99 is not complete" in said
    assert (
        "train 3/6" in said and "train 2/6" not in said
    )  # the finished steps were not trained again
    assert published(again) == published(whole)


def test_only_a_checkpoint_with_every_byte_is_whole(tmp_path, capsys):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from pipeline.training.monitoring.callbacks import CheckpointLedger

    ledger = CheckpointLedger(tmp_path)
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("model.safetensors", "optimizer.pt"):
            (folder / name).write_bytes(b"weights" * step)
        ledger.on_save(
            TrainingArguments(str(tmp_path)), TrainerState(global_step=step), TrainerControl()
        )
    assert ledger.find_newest() == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-2").exists()

    os.truncate(tmp_path / "checkpoint-4" / "optimizer.pt", 5)
    assert ledger.find_newest() is None
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    assert ledger.find_newest() is None
    assert capsys.readouterr().err.count("checkpoint-4 is not complete") == 2


# ── refused before anything is trained ────────────────────────────────────────────────────────────


def test_a_batch_that_micro_batches_cannot_make_is_refused():
    with pytest.raises(
        ValidationError, match=r"batch=4 is not a multiple of runtime.micro_batch=3.*micro_batch=2"
    ):
        dpo(micro_batch=3)


def test_a_pair_too_long_is_refused_and_not_cut(round_):
    with pytest.raises(
        UserError, match=r"train: \d+ of 24 train pairs cannot fit into train.max_length=40 tokens"
    ):
        round_.train("refused", dpo(max_length=40))


def test_a_pair_without_reference_values_is_refused(round_, tmp_path):
    one = round_.pairs.read_train()["rejected_id"][5]
    write_table(tmp_path / "logps.parquet", round_.logps.read().filter(pl.col("sample_id") != one))
    with pytest.raises(
        UserError, match=rf"no reference log-probability for 1 of 24 train pairs .*\n?.*{one}"
    ):
        round_.train("refused", dpo(), logps=[Logps(tmp_path)])


def test_no_pairs_are_refused(round_, tmp_path):
    write_table(tmp_path / "train.parquet", round_.pairs.read_train().clear())
    write_table(tmp_path / "dev.parquet", round_.pairs.read_dev())
    with pytest.raises(UserError, match="not one pair to train on"):
        round_.train("refused", dpo(), pairs=[Pairs(tmp_path)])


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"targets": ["q_proj", "w_proj"]}, "targets: w_proj: no module .*\n.*q_proj.*all-linear"),
        ({"targets": ["lm_head"]}, "lm_head: its adapter would never be trained"),
        ({"targets": r".*\.attention\..*"}, "no module's whole name matches"),
        (
            {"targets": "q_proj"},
            r"no module's whole name .*\n.*linear layers, in brackets \(.*q_proj",
        ),
    ],
)
def test_targets_that_cannot_be_trained_are_refused(round_, adapter, words):
    with pytest.raises(UserError, match=words):
        round_.train("refused", dpo({**LORA, **adapter}))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"optim": "adamw_foo"}, "adamw_foo is not a valid"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "argument 'foo'"),
    ],
)
def test_what_transformers_does_not_take_is_refused_before_a_step(round_, args, words):
    with pytest.raises(UserError, match=rf"train: TRL does not take these settings: .*{words}"):
        round_.train("refused", dpo(args=args))


def test_an_adapter_of_another_base_is_refused(round_, lora, tmp_path):
    moved = Model(shutil.copytree(lora.path, round_.store / "train" / "moved"))
    write_json(moved.path / "model.json", {**lora.record, "base": "sft/cccccccccccc"})
    with pytest.raises(
        UserError, match=r"made for the model sft/aaaaaaaaaaaa.*\n?.*sft/cccccccccccc"
    ):
        round_.train("refused", dpo(LORA), init=moved)
    with pytest.raises(UserError, match=r"adapter.rank=8, but training continues .* rank is 4"):
        round_.train("refused", dpo({**LORA, "rank": 8}), init=lora)


def test_tokens_of_another_tokenizer_are_refused(round_, tmp_path):
    strange = round_.pairs.read_train().with_columns(rejected_token_ids=pl.lit([5, 999]))
    write_table(tmp_path / "train.parquet", strange)
    write_table(tmp_path / "dev.parquet", round_.pairs.read_dev())
    with pytest.raises(UserError, match="token id 999"):
        round_.train("refused", dpo(), pairs=[Pairs(tmp_path)])
