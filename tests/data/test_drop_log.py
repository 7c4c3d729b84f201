"""What a stage left out is counted once, with its reason, in one form for all stages."""

import json

import polars as pl
import pytest

from pipeline.artifacts import read_table
from pipeline.data.drop_log import DropLog
from pipeline.errors import UserError


def test_rows_and_tables_are_logged_in_order_and_counted(tmp_path):
    log = DropLog(5, row=pl.Int64)
    log.drop("bad row", "no prompt", row=3)
    table = pl.DataFrame({"row": [2, 1], "reason": "too long", "detail": "9", "more": 0})
    kept = log.record((pl.DataFrame({"row": [4, 5]}), table))
    assert kept["row"].to_list() == [4, 5] and log.table()["row"].to_list() == [3, 2, 1]
    funnel = log.publish(tmp_path, kept.height, order="row", pairs=1)
    assert funnel == {"in": 5, "out": 2, "dropped": {"bad row": 1, "too long": 2}, "pairs": 1}
    assert json.loads((tmp_path / "funnel.json").read_text()) == funnel
    assert read_table(tmp_path / "dropped.parquet")["row"].to_list() == [1, 2, 3]


def test_the_error_of_an_empty_stage_names_counts_file_and_remedy(tmp_path):
    log = DropLog(1, row=pl.String)
    assert log.describe() == "no row dropped" and log.table().columns == ["row", "reason", "detail"]
    log.drop("too long", "", row="line 1")
    with pytest.raises(UserError) as error:
        raise log.explain_empty("sft: of 1 row", tmp_path, "Raise sft.max_length.")
    assert str(error.value) == (
        "sft: of 1 row none is left (too long 1).\n"
        f"  Each one's reason is in {tmp_path / 'dropped.parquet'}. Raise sft.max_length."
    )
