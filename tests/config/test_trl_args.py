"""What `train.args` may contain: what the installed TRL reads and no knob of our own sets."""

import inspect
import re

import pytest

from pipeline.config.base import name_own_knobs
from pipeline.config.trl_args import (
    CONFIG_CLASS,
    DPO_LOSSES,
    IGNORED_ARGS,
    LOSSES,
    OWN_LOSSES,
    REMOVED_ARGS,
    REMOVED_LOSSES,
    SET_BY_STAGE,
    SMOOTHED_LOSSES,
    check_args,
    load_trl_fields,
)
from pipeline.errors import UserError
from tests.support.house import SMALL, composed


def refused(
    args: dict, loss: str | list[str] = "sigmoid", logps: str = "precomputed", dropout: float = 0.0
) -> str:
    with pytest.raises(ValueError) as error:
        check_args("dpo", args, [loss] if isinstance(loss, str) else loss, logps, dropout)
    return name_own_knobs(str(error.value), "train", "train")


def test_what_trl_reads_passes():
    check_args(
        "dpo",
        {"optim": "adafactor", "use_weighting": True, "f_divergence_type": "forward_kl"},
        ["sigmoid"],
        "precomputed",
    )
    check_args("dpo", {"label_smoothing": 0.1}, ["robust", "sft"], "precomputed")
    check_args(
        "dpo",
        {"ld_alpha": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 8},
        ["sigmoid"],
        "online",
    )
    check_args("dpo", {"disable_dropout": False}, ["ipo"], "precomputed", dropout=0.1)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            {"optimm": "adamw_torch"},
            "args.optimm is not a field of TRL's DPOConfig. Did you mean optim",
        ),
        ({"padding_free": True}, "args.padding_free would be ignored"),
        (
            {"truncation_mode": "keep_start"},
            "args.truncation_mode would be ignored: nothing is cut",
        ),
        (
            {"label_smoothing": 0.1},
            "args.label_smoothing would be ignored by sigmoid: use train=cdpo",
        ),
        ({"discopop_tau": 0.1}, "args.discopop_tau would be ignored without loss=[discopop]"),
        (
            {"ref_model_mixup_alpha": 0.1},
            "args.ref_model_mixup_alpha would be ignored without args.sync_ref_model=true",
        ),
        ({"per_device_train_batch_size": 4}, "set by the stage: use train.batch"),
        ({"hub_token": "x"}, "args.hub_token is set by the stage: a run uploads nothing"),
        (
            {"train_sampling_strategy": "group_by_length"},
            "train_sampling_strategy=group_by_length reads one length of a row, and a pair has two:"
            " use runtime.by_length=true",
        ),
        ({"push_to_hub": True}, "args.push_to_hub is set by the stage: a run uploads nothing"),
        ({"report_to": "wandb"}, "args.report_to is set by the stage: use tracker=wandb"),
        (
            {"trackio_space_id": "x"},
            "args.trackio_space_id would be ignored: trackio is not supported",
        ),
        (
            {"ld_alpha": 0.5},
            "args.ld_alpha changes the reference's values during training:"
            " use reference_logps=online",
        ),
    ],
)
def test_what_would_be_ignored_or_contradicted_is_refused(args, words):
    assert words in refused(args)


def test_losses_and_their_own_needs():
    assert "loss: sigmod is not a loss of the installed TRL. Did you mean sigmoid" in refused(
        {}, "sigmod"
    )
    assert "exo_pair needs args.label_smoothing" in refused({}, "exo_pair")
    assert "adapter.dropout is switched off by TRL" in refused({}, dropout=0.1)


def test_every_fault_is_said_at_once_on_the_command_line():
    with pytest.raises(UserError) as error:
        composed(*SMALL, "train.args={padding_free: true, bata: 1}", "train.loss=[hinge,ippo]")
    assert all(
        word in str(error.value) for word in ("padding_free", "bata", "ippo", "Did you mean ipo")
    )


@pytest.mark.model
def test_losses_and_who_reads_smoothing_are_those_of_the_installed_trl():
    from trl import DPOTrainer

    source = inspect.getsource(DPOTrainer._compute_loss)
    parts = dict(
        zip(
            re.findall(r'if loss_type == "(\w+)"', source),
            re.split(r'if loss_type == "\w+"', source)[1:],
            strict=True,
        )
    )
    assert set(parts) == set(DPO_LOSSES)
    assert {name for name, part in parts.items() if "self.label_smoothing" in part} == set(
        SMOOTHED_LOSSES["dpo"]
    ) - {"cdpo", *OWN_LOSSES}


def test_what_the_stage_sets_exists_in_trl():
    fields = {
        field for trainer in CONFIG_CLASS.values() for field in load_trl_fields()[trainer]["fields"]
    }
    assert {*SET_BY_STAGE, *IGNORED_ARGS} <= fields


def test_what_is_called_gone_is_gone():
    assert not set(REMOVED_ARGS) & set(load_trl_fields()["DPOConfig"]["fields"])
    assert not set(REMOVED_LOSSES) & set(LOSSES["dpo"])


@pytest.mark.model
def test_kto_and_our_own_trainer_have_the_losses_that_are_listed():
    from trl import KTOConfig

    from pipeline.training.trainers.losses import LOSSES as OWN

    assert set(OWN) == set(OWN_LOSSES)
    assert set(KTOConfig.__dataclass_fields__["loss_type"].metadata["choices"]) == set(
        LOSSES["kto"]
    )
