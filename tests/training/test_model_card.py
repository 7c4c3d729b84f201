"""A trained model's card and curves: valid for the hub, reproducible, without local paths."""

import json
import shlex
from pathlib import Path

import pytest

from pipeline import store
from pipeline.artifacts import Model, write_json, write_text
from pipeline.training.monitoring import curves, model_card
from tests.support.house import HOUSE, SMALL, Toys, composed
from tests.support.preferences import LORA, dpo

METRICS = [
    {
        "step": 0,
        "eval_loss": 0.69,
        "eval_kl": 0.0,
        "eval_rewards/chosen": 0.0,
        "eval_rewards/rejected": 0.0,
    },
    *(
        {"step": step, "loss": 0.7 - step / 100, "rewards/margins": step / 10}
        for step in range(1, 9)
    ),
    {
        "step": 8,
        "eval_loss": 0.6,
        "eval_kl": 1.5,
        "eval_rewards/chosen": -0.1,
        "eval_rewards/rejected": -0.5,
    },
]


@pytest.fixture
def trained_folder(tmp_path) -> Path:
    """A training's files, with the driver's step.json and the ancestors in the store."""
    out = tmp_path / "store" / "train" / "bbbbbbbbbbbb"
    write_text(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in METRICS))
    write_json(
        out / "training.json",
        {"steps": 8, "planned": 9, "kept": 8, "stopped": "KL", "symptoms": []},
    )
    ancestors = {
        "prompts": {"kind": "hub", "dataset": "owner/prompts"},
        "sft": {"kind": "checkpoint", "model": "owner/sft-model"},
        "pair": {"mix": {"offline": 0}},
    }
    listed = []
    for stage, config in ancestors.items():
        folder = tmp_path / "store" / stage / "aaaaaaaaaaaa"
        write_json(folder / "manifest.json", {"config": config})
        if stage == "sft":
            record = {"weights": "weights", "gguf": {"license": "apache-2.0"}}
            write_json(folder / "model.json", record)
        listed.append({"stage": stage, "label": 0, "fingerprint": folder.name, "path": str(folder)})
    rehearsal = f"train.rehearsal.data.path={tmp_path}/rows.jsonl"
    command = f"strop run sft.model=owner/sft-model {rehearsal} until=train@1"
    write_text(tmp_path / "rows.jsonl", "{}")
    write_json(out / "step.json", {"ancestors": listed, "command": command})
    return out


def read(out: Path, cfg=None) -> str:
    sft = Model(out.parent.parent / "sft" / "aaaaaaaaaaaa")
    model_card.write(
        cfg or dpo(), out, {"start": [sft], "reference": [sft], "pairs": [], "reference values": []}
    )
    return (out / "README.md").read_text()


def test_the_hub_reads_the_card(trained_folder):
    from huggingface_hub import ModelCard

    known = ModelCard(read(trained_folder)).data.to_dict()
    assert known["base_model"] == ["owner/sft-model"] and known["datasets"] == ["owner/prompts"]
    assert known["license"] == "apache-2.0"
    assert known["library_name"] == "transformers" and {"trl", "dpo", "sigmoid"} <= set(
        known["tags"]
    )
    assert ModelCard(read(trained_folder, dpo(LORA))).data.to_dict()["library_name"] == "peft"


def test_the_card_has_lineage_command_and_curves_without_a_place_of_this_machine(
    trained_folder, tmp_path
):
    told = read(trained_folder)
    assert "prompts/aaaaaaaaaaaa, sft/aaaaaaaaaaaa, pair/aaaaaaaaaaaa." in told
    assert "train.rehearsal.data.path=…/rows.jsonl until=train@1" in told
    assert "](curves.png)" in told and "Stopped at step 8: KL." in told
    assert str(tmp_path) not in told


def test_a_card_is_outside_content(trained_folder):
    """Two commands may share a training: whoever made it first, what follows it stays."""
    read(trained_folder)
    files = [entry["path"] for entry in store.list_files(trained_folder)]
    assert files == ["metrics.jsonl", "training.json"]


def test_curves_are_the_same_bytes_whatever_a_user_has_set(tmp_path):
    import matplotlib

    curves.draw(METRICS, 8, tmp_path / "plain")
    with matplotlib.rc_context({"figure.dpi": 300, "font.size": 20, "axes.facecolor": "black"}):
        curves.draw(METRICS, 8, tmp_path / "own")
    plain = (tmp_path / "plain" / "curves.png").read_bytes()
    assert plain.startswith(b"\x89PNG") and plain == (tmp_path / "own" / "curves.png").read_bytes()
    assert b"Software" not in plain and b"tEXt" not in plain
    curves.draw(METRICS, 4, tmp_path / "earlier")
    assert (tmp_path / "earlier" / "curves.png").read_bytes() != plain


def test_a_training_that_logged_nothing_but_a_loss_is_drawn(tmp_path):
    curves.draw([{"step": 1, "loss": 0.7}], 1, tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 5000


# ── the command ───────────────────────────────────────────────────────────────────────────────────


WATCHED = "tracker=wandb", "tracker.name=mine"


def test_the_command_is_what_was_typed_without_where_and_how_far(tmp_path):
    cfg = composed(
        "recipes=smoke",
        "train.beta=0.2",
        f"store={tmp_path}",
        "until=score",
        "sft.data.rows=50",
        *WATCHED,
    )
    assert cfg.command == "strop run recipes=smoke train.beta=0.2 sft.data.rows=50"
    again = composed(*shlex.split(cfg.command)[2:])
    assert again.train.model_dump(exclude={"runtime"}) == cfg.train.model_dump(exclude={"runtime"})
    assert again.sft.model_dump(exclude={"runtime"}) == cfg.sft.model_dump(exclude={"runtime"})


def test_a_point_s_command_makes_that_point_alone():
    from pipeline.config.compose import Arguments, compose

    points, _ = compose(Arguments.parse(["recipes=sweep_smoke"]))
    points, several = compose(Arguments.parse(shlex.split(points[2].command)[2:]))
    assert not several and (points[0].train.beta, points[0].train.learning_rate) == (0.2, 6e-5)


@pytest.mark.long
def test_the_driver_tells_each_step_its_command(tmp_path):
    Toys(tmp_path).run(*SMALL, "until=sample@1")
    [record] = (tmp_path / "runs" / "run").glob("*/steps/*-sample-*.json")
    step = json.loads(record.read_text())
    assert step["command"] == f"strop run {shlex.join(SMALL)} until=sample@1"
    assert Path(step["story"]) == record.parent.parent and HOUSE not in Path(step["story"]).parents
