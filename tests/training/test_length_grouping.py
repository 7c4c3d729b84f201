"""No padding, or little, is computed, and losses and gradients are TRL's.

On a CPU all rows are one. On a GPU rows of similar length share a pass.
"""

import polars as pl
import pytest

from pipeline.artifacts import read_table, write_table
from pipeline.config import TrainConfig
from pipeline.training.row_packing import RowPacking
from pipeline.training.trainers.length_grouping import SeparateRows
from tests.support.preferences import LORA, dpo, write_logps
from tests.training.test_guards import Round, metric_by_step

TRAINERS = {
    "dpo": {},
    "ld_dpo": {"reference_logps": "online", "args": {"ld_alpha": 0.5}},
    "wpo": {"args": {"use_weighting": True}},
    "aot": {"loss": ["aot"], "loss_group": 8},
    "rpo": {"loss": ["sigmoid", "sft"], "loss_group": 8},
    "simpo": {"reference_logps": "none", "loss": ["simpo"]},
    "cpo": {"reference_logps": "none", "loss": ["sigmoid", "sft"], "loss_group": 8},
    "orpo": {"reference_logps": "none", "loss": ["orpo"], "loss_group": 8},
    "kto": {"trainer": "kto", "reference_logps": "online", "loss": ["kto"], "loss_group": 8},
}


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    """Pairs whose rejected answers are four times as long as they were."""
    round_ = Round(tmp_path_factory.mktemp("store"))
    for file, column in (
        ("train", "rejected_token_ids"),
        ("dev", "rejected_token_ids"),
        ("unpaired", "token_ids"),
    ):
        table = read_table(path := round_.pairs.path / f"{file}.parquet")
        long = pl.concat_list([column] * 4)
        if "label" in table.columns:
            long = pl.when("label").then(column).otherwise(long)
        write_table(path, table.with_columns(long.alias(column)))
    round_.logps = write_logps(
        round_.store / "reference" / "bbbbbbbbbbbb", round_.sft, round_.pairs
    )
    return round_


def settings(**changes) -> TrainConfig:
    return dpo(max_length=250, shared_prompt=False, **changes)


@pytest.fixture(params=["passes", "packed"])
def way(request, monkeypatch) -> str:
    if request.param == "passes":
        monkeypatch.setattr(RowPacking, "_cut_into_segments", lambda self: "as on a GPU")
    return request.param


@pytest.mark.model
@pytest.mark.parametrize("name", TRAINERS)
def test_losses_and_gradients_are_those_of_the_padded_batch(round_, name, way):
    """Also where a loss compares or averages the rows of a batch: it sees the same ones."""
    changes = {"batch": 8, "micro_batch": 8, **TRAINERS[name]}
    given = {"dev": None} | (
        {"reference": None} if changes.get("reference_logps") == "none" else {}
    )
    runs = [
        round_.train(
            f"{name}-{way}-{cut}", settings(adapter=LORA, by_length=cut, **changes), **given
        )
        for cut in (True, False)
    ]
    for figure in ("loss", "grad_norm", "eval_loss"):
        ours, theirs = (metric_by_step(run, figure) for run in runs)
        assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-4)
    assert len(metric_by_step(runs[0], "loss")) >= 3


@pytest.mark.model
def test_less_goes_through_the_model_and_all_of_it_is_attended(round_, monkeypatch, way):
    import torch
    from transformers import LlamaModel

    computed, attended, plain = {True: 0, False: 0}, {True: 0, False: 0}, LlamaModel.forward

    def count_tokens(self, *args, **kwargs):
        if torch.is_grad_enabled():
            mask, segments = kwargs["attention_mask"], kwargs.get("segments")
            computed[cut] += kwargs["input_ids"].numel()
            # By segments no token is computed that predicts nothing: the last of each row.
            attended[cut] += sum(each.length + 1 for each in segments) if segments else mask.sum()
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", count_tokens)
    for cut in (True, False):
        changes = {"by_length": cut, "batch": 8, "micro_batch": 8}
        round_.train(f"count-{way}-{cut}", settings(**changes), dev=None)
    assert attended[True] == attended[False] < computed[False]
    share = computed[True] / attended[True]
    assert share < 1 if way == "packed" else 1 < share < 0.7 * computed[False] / attended[False]


@pytest.mark.slow
@pytest.mark.model
def test_two_processes_cut_their_own_batches_and_give_the_losses_of_one(round_):
    """Their numbers of passes differ: nothing in a pass may wait for the other process."""
    one = round_.train("one", settings(batch=8, micro_batch=8, by_length=False))
    two = round_.train("two", settings(batch=8, micro_batch=4, processes=2))
    assert metric_by_step(two, "loss") == pytest.approx(metric_by_step(one, "loss"), abs=1e-5)
    assert metric_by_step(two, "grad_norm") == pytest.approx(
        metric_by_step(one, "grad_norm"), rel=1e-4
    )


def test_a_batch_that_is_padded_on_the_left_is_no_batch_of_a_trainer():
    import torch

    ids = torch.ones(2, 400, dtype=torch.long)
    mask = ids.clone()
    mask[0, :350] = 0
    with pytest.raises(ValueError, match="not padded there"):
        SeparateRows(ids, mask).forward(torch.nn.Identity(), [[0], [1]])
