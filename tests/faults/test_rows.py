"""The user's rows: prompts, preferences, demonstrations and labels in all shapes of files.

A column that no prompt needs is left out of rows in which it cannot be kept, with a warning. A
prompt that cannot be used is a bad row.
"""

import datetime
import decimal
import json
import os
from pathlib import Path

import polars as pl
import pytest

from pipeline.__main__ import run_command
from pipeline.artifacts import scan_tables
from pipeline.config import FileRows, PreferenceRows, PromptRows
from pipeline.data import readers
from pipeline.data.jsonl import MAX_DEPTH, read_lines
from pipeline.data.label_files import read_labels
from pipeline.data.preferences import read_preferences
from pipeline.data.prompts import read_prompts
from pipeline.errors import UserError
from tests.faults.planted import SCRIPTED, Fault, World, hold

GOOD = [{"prompt": f"Tell me {number} things about the sea."} for number in range(30)]
ROWS = [
    "until=prompts",
    "score=rules",
    "sft.model=hub/model",
    f"sft.revision={'0' * 40}",
    "prompts.near_duplicate_threshold=null",
]
ROWS += ["prompts.split={dev: 5, test: 5}"]
SURROGATE = '"\\ud800"'  # as JSON spells half a character


def lines(*bad: str) -> str:
    return "\n".join([*map(json.dumps, GOOD), *bad]) + "\n"


def given(world: World, file: str, *words: str) -> None:
    world.words = [*ROWS, f"prompts.path={file}", *words]


def nested(text: str, depth: int = 600) -> str:
    return "[" * depth + text + "]" * depth


# ── through the command ───────────────────────────────────────────────────────────────────────────


def row(line: str, *words: str):
    def plant(world: World) -> None:
        world.write("rows.jsonl", lines(line))
        given(world, "rows.jsonl", *words)

    return plant


def odd_table(world: World) -> None:
    texts = [one["prompt"] for one in GOOD]
    table = {
        "prompt": texts,
        "when": [datetime.datetime(2024, 1, 1)] * 30,
        "picture": [b"\x89PNG"] * 30,
        "price": [decimal.Decimal("1.50")] * 30,
        "rating": [float("nan"), *[1.0] * 29],
        "id": [*map(float, range(29)), float("nan")],
    }
    pl.DataFrame(table).write_parquet(world.folder / "rows.parquet")
    given(world, "rows.parquet")


def odd_table_is_whole(world: World) -> None:
    [out] = (world.folder / "store" / "prompts").glob("*/funnel.json")
    funnel = json.loads(out.read_text())
    assert (funnel["in"], sum(funnel["out"].values()), funnel["dropped"]) == (30, 30, {})
    left_out = funnel["columns_left_out"]["prompts"]
    assert {name: one["rows"] for name, one in left_out.items()} == {
        "when": 30,
        "picture": 30,
        "price": 30,
        "rating": 1,
    }
    train = pl.read_parquet(out.parent / "train" / "prompts.parquet")
    assert set(train["prompt_id"]) <= {str(number) for number in range(29)} | {
        name for name in train["prompt_id"] if len(name) == 16
    }


def all_skipped(world: World) -> None:
    world.write("rows.jsonl", "\n".join(f'{{"prompt": {nested("1")}}}' for _ in range(3)))
    given(world, "rows.jsonl", "prompts.on_bad_row=skip")


def far_away_date(world: World) -> None:
    times = pl.Series("when", [2**62] * 30).cast(pl.Datetime("us"))
    pl.DataFrame([*GOOD]).with_columns(times).write_parquet(world.folder / "rows.parquet")
    given(world, "rows.parquet")


def cut_table(world: World) -> None:
    pl.DataFrame(GOOD).write_parquet(world.folder / "whole.parquet")
    whole = (world.folder / "whole.parquet").read_bytes()
    world.write("rows.parquet", whole[: len(whole) // 2])
    given(world, "rows.parquet")


FAULTS = [
    Fault("a label nested 600 deep", row(f'{{"prompt": "?", "label": {nested("1")}}}'), 0,
          says=("! prompts", "label")),
    Fault("a prompt nested 600 deep", row(f'{{"prompt": {nested("1")}}}'), 2,
          says=("line 31", "on_bad_row=skip")),
    Fault("all rows bad and skipped", all_skipped, 2, says=("line 1 and 2 more:", "prompt")),
    Fault("a table with odd columns and float ids", odd_table, 0,
          says=("when", "picture", "price", "rating"),
          kept=odd_table_is_whole),
    Fault("a date beyond the year 9999", far_away_date, 2, says=("rows.parquet", "row 0")),
    Fault("half a table", cut_table, 2, says=("rows.parquet", "parquet")),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_rows(fault, tmp_path):
    hold(fault, tmp_path)


# ── prompts, row by row ───────────────────────────────────────────────────────────────────────────


def read(folder: Path, *rows: str, on_bad_row: str = "skip"):
    """Bad rows next to a good one, so that there is something to read."""
    path = folder / "rows.jsonl"
    path.write_bytes(
        "\n".join([*rows, '{"prompt": "the good one"}']).encode("utf-8", "surrogatepass")
    )
    asked = PromptRows(source=FileRows(kind="file", path=str(path)), shape="auto", columns={})
    return read_prompts(asked, "prompts", on_bad_row)


@pytest.mark.parametrize(
    ("line", "column", "why"),
    [
        ('{"prompt": "a", "score": NaN}', "score", "NaN"),
        ('{"prompt": "a", "score": 1e999}', "score", "infinity"),
        ('{"prompt": "a", "label": "b\\u0000"}', "label", "NUL"),
        (f'{{"prompt": "a", "label": {SURROGATE}}}', "label", "surrogate"),
        (f'{{"prompt": "a", {SURROGATE}: 1}}', "\\ud800", "surrogate"),
        (
            f'{{"prompt": "a", "label": {nested("1", MAX_DEPTH + 1)}}}',
            "label",
            f"more than {MAX_DEPTH} deep",
        ),
    ],
)
def test_a_column_that_no_prompt_needs_is_left_out_and_the_row_stays(tmp_path, line, column, why):
    found = read(tmp_path, line)
    assert found.bad == [] and found.rows["columns"].to_list() == ["{}", "{}"]
    [(name, left)] = found.left_out.items()
    assert (name, left.place, left.rows) == (column, "line 1", 1) and why in left.why


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt": "a\\u0000"}', "NUL"),
        (f'{{"prompt": "a", "id": {SURROGATE}}}', "surrogate"),
        (f'{{"turns": ["a", {SURROGATE}]}}', "prompt"),
        (f'{{"prompt": "a", "system": {SURROGATE}}}', "surrogate"),
        ('{"prompt": "a", "id": 1.5}', "id is 1.5"),
        ('{"prompt": "a", "id": 1e999}', "id is inf"),
        (f'{{"prompt": "a", "id": "{"x" * 100_000}\\u0000"}}', "NUL"),
        (f'{{"prompt": [{{"role": "user", "content": "a", "more": {nested("1")}}}]}}', "deep"),
        (f'{{"prompt": {"9" * 5000}}}', "not JSON"),
        (f"{nested('1', 100_000)}", "not JSON"),
    ],
)
def test_what_a_prompt_needs_and_cannot_be_used_is_a_bad_row_with_its_reason(tmp_path, line, why):
    found = read(tmp_path, '{"prompt": "first"}', line)
    [(place, fault)] = found.bad
    assert place == "line 2" and why in fault and len(fault) <= 301
    fault.encode()
    with pytest.raises(UserError, match="line 2: "):
        read(tmp_path, '{"prompt": "first"}', line, on_bad_row="fail")


def test_whole_floats_are_ids_and_a_missing_one_is_none(tmp_path):
    found = read(
        tmp_path,
        '{"prompt": "a", "id": 7.0}',
        '{"prompt": "b", "id": NaN}',
        '{"prompt": "c", "id": 7}',
    )
    assert found.rows["prompt_id"][0] == "7" and len(found.rows["prompt_id"][1]) == 16
    assert found.bad == [("line 3", "id '7' is on an earlier line already")]


# ── preferences and labels ────────────────────────────────────────────────────────────────────────


def preferences(folder: Path, *rows: str):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows))
    told = {"shape": "auto", "columns": {}, "on_bad_row": "skip", "unpaired_threshold": None}
    return read_preferences(PreferenceRows(source=FileRows(kind="file", path=str(path)), **told))


def test_preferences_keep_rows_whose_other_columns_are_odd(tmp_path):
    pair = '{"prompt": "a", "chosen": "b", "rejected": "c", '
    found = preferences(
        tmp_path,
        f'{pair} "label": {nested("1")}}}',
        f'{pair} "note": {SURROGATE}}}',
        f'{pair} "chosen_score": {10**400}}}',
        f'{{"prompt": "a", "chosen": {SURROGATE}, "rejected": "c"}}',
    )
    assert [row["row"] for row in found.rows] == [1, 2, 3]
    assert found.rows[2]["pairs"][0]["chosen_score"] is None
    [(number, fault)] = found.bad
    assert number == 4 and "surrogate" in fault


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f'{{"sample_id": "a", "score": {10**400}}}', "is not a number"),
        (f'{{"sample_id": {SURROGATE}, "score": 1}}', "surrogate"),
        (nested("1", 100_000), "not a JSON object"),
        (f'{{"a_id": "a", "b_id": "b", "verdict": "{"x" * 100_000}"}}', "its verdict is"),
    ],
)
def test_odd_labels_are_refused_with_their_line(tmp_path, line, said):
    path = tmp_path / "labels.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=rf"labels.jsonl:1: .*{said}") as refusal:
        read_labels(path)
    assert len(str(refusal.value)) < 500


def test_a_run_in_a_folder_whose_name_is_a_pattern(tmp_path):
    folder = tmp_path / "x[1]*"
    folder.mkdir()
    prompts = folder / "a[1].parquet"
    pl.DataFrame(GOOD).write_parquet(prompts)
    words = [*ROWS, *SCRIPTED, f"prompts.path={prompts}", "until=sample@1"]

    def plant(world: World) -> None:
        world.words = words

    hold(Fault("", plant, 0), folder)
    shards = [*folder.glob("store/sample/*/samples/*.parquet")]
    assert scan_tables(shards).collect().height > 0


def plan_rows(tmp_path: Path, capfd) -> str:
    places = f"prompts.path={tmp_path / 'rows.jsonl'}", f"store={tmp_path / 'store'}"
    assert run_command(["plan", *ROWS, *places]) == 2
    return capfd.readouterr().out


def test_a_pipe_is_refused_before_anything_waits_for_it(tmp_path, capfd):
    os.mkfifo(tmp_path / "rows.jsonl")
    assert "rows.jsonl: not a regular file" in plan_rows(tmp_path, capfd)
    with pytest.raises(UserError, match=r"rows\.jsonl: a pipe, not a file"):
        [*read_lines(tmp_path / "rows.jsonl")]


def test_a_link_to_itself_among_the_files_is_named(tmp_path, capfd):
    (tmp_path / "rows.jsonl").mkdir()
    (tmp_path / "rows.jsonl" / "a.jsonl").write_text(lines())
    (tmp_path / "rows.jsonl" / "b.jsonl").symlink_to("b.jsonl")
    assert "b.jsonl: cannot be read (Too many levels" in plan_rows(tmp_path, capfd)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("state.json", "{}"),
        ("state.json", '{"_data_files": []}'),
        ("dataset_info.json", "null"),
        ("dataset_info.json", "[]"),
        ("dataset_dict.json", "{}"),
        ("dataset_dict.json", '{"splits": null}'),
        ("dataset_dict.json", '{"splits": []}'),
    ],
)
def test_a_dataset_folder_whose_json_is_another_is_refused(tmp_path, file, text):
    from datasets import Dataset

    folder = tmp_path / "saved"
    if file == "dataset_dict.json":
        folder.mkdir()
    else:
        Dataset.from_list(GOOD).save_to_disk(str(folder))
    (folder / file).write_text(text)
    source = FileRows(kind="file", path=str(folder))
    with pytest.raises(UserError, match=r"saved: (cannot be read as a|this) dataset folder"):
        [*readers.read_rows(source, "prompts")]
