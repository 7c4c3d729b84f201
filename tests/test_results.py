"""Runs opened from Python, as a notebook does."""

from pathlib import Path

import polars as pl
import pytest

import pipeline
from pipeline.artifacts import write_json, write_table
from pipeline.config import Block
from pipeline.driver import executor
from pipeline.step import Step


@pytest.fixture
def run(tmp_path):
    """Two rounds of pairs and samples, an evaluation's samples, a model; as links of a run."""
    for place, label in enumerate(
        ["pair-1", "sample-1", "pair-2", "sample-2", "sample-test-sft", "train-2"]
    ):
        stage, _, name = label.partition("-")
        folder = tmp_path / "store" / stage / f"{place:012d}"
        if stage == "pair":
            for part in ("train", "dev"):
                write_table(
                    folder / f"{part}.parquet", pl.DataFrame({"chosen_id": [f"{name} {part}"]})
                )
        if stage == "sample":
            write_table(folder / "samples" / "00000.parquet", pl.DataFrame({"sample_id": [name]}))
        if stage == "train":
            write_json(folder / "model.json", {"weights": "weights", "tokenizer": "weights"})
            (folder / "weights").mkdir()
        link = tmp_path / "run" / "store" / f"{place:02d}-{label}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
    write_json(
        tmp_path / "run" / "ledger.json",
        [{"stage": "sft", "label": 0}, {"stage": "pair", "label": 2}],
    )
    return pipeline.open(tmp_path / "run")


def test_the_last_round_unless_another_is_named(run):
    assert run.pairs.select("chosen_id", "split").rows() == [("2 train", "train"), ("2 dev", "dev")]
    assert run.samples["sample_id"].to_list() == ["2"]
    assert run.artifact("sample", 1).read()["sample_id"].to_list() == ["1"]
    assert run.artifact("sample", "test sft").read()["sample_id"].to_list() == ["test-sft"]
    assert Path(run.model.weights).is_dir()
    assert run.steps()["label"].to_list() == ["", "2"]
    assert list(run.pairs.to_pandas().columns) == ["chosen_id", "split"]


def test_what_is_not_there_is_said_with_what_is(run, tmp_path):
    with pytest.raises(LookupError, match=r"no score. It has: pair-1, sample-1.*train-2"):
        run.scores  # noqa: B018
    with pytest.raises(FileNotFoundError, match="no run here"):
        pipeline.open(tmp_path / "elsewhere")


def test_links_past_a_hundred_steps_still_lie_in_the_order_of_the_plan(tmp_path):
    for number, round_ in ((9, 1), (99, 2), (100, 3)):
        executor._link_step(tmp_path, Step("pair", Block(), round_), tmp_path / "none", number)
    assert [path.name.rpartition("-")[2] for path in sorted((tmp_path / "store").iterdir())] == [
        "1",
        "2",
        "3",
    ]


def test_each_seed_of_the_last_round_is_a_row(run, tmp_path):
    folder = tmp_path / "store" / "evaluate" / "aaaaaaaaaaaa"
    (tmp_path / "run" / "store" / "90-evaluate-report").symlink_to(folder)
    write_json(folder / "report.json", {})
    assert run.replicates.is_empty()
    row = {"model": "round-2", "scorer": "rules", "gain": 0.1}
    write_json(folder / "report.json", {"replicates": [row, {**row, "model": "round-2-seed-43"}]})
    assert run.replicates["model"].to_list() == ["round-2", "round-2-seed-43"]
    link = tmp_path / "run" / "store" / "91-train-round-2-seed-43"
    link.symlink_to(tmp_path / "store" / "pair" / "000000000000")
    assert run.model.path.parent.name == "train", "the first seed's"
