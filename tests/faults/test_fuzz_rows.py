"""Rows of any kind: each is read, skipped with a reason that can be kept, or refused in words."""

import json
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.config import DemonstrationsConfig, FileRows, PreferenceRows, PromptRows
from pipeline.data.demonstrations import read_demonstrations
from pipeline.data.label_files import read_labels
from pipeline.data.preferences import read_preferences
from pipeline.data.prompts import build_prompt_row, read_prompts
from pipeline.errors import UserError
from tests.faults.fuzzing import briefly, for_a_while, texts, values

NAMES = [
    "prompt",
    "messages",
    "conversations",
    "instruction",
    "input",
    "turns",
    "question",
    "id",
    "system",
    "answer",
]
NAMES += [
    "chosen",
    "rejected",
    "chosen_score",
    "label",
    "completion",
    "responses",
    "rewards",
    "scores",
]
NAMES += ["sample_id", "score", "a_id", "b_id", "verdict", "annotator", "chosen_id", "rejected_id"]
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt"]) | values
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": texts | values}, optional={"from": roles, "value": values}
    ),
    max_size=3,
)
rows = (
    st.dictionaries(st.sampled_from(NAMES) | texts, values | messages | texts, max_size=6) | values
)
lines = rows.map(json.dumps).map(lambda text: text.encode("utf-8", "surrogatepass"))
broken = st.tuples(lines, st.integers(0, 200), st.binary(max_size=3)).map(
    lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 1 :]
)
files = st.lists(lines | broken | st.binary(max_size=40), max_size=6).map(b"\n".join)


def read(data: bytes, suffix: str, on_bad_row: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(data)
        source = FileRows(kind="file", path=str(path))
        told = {"source": source, "shape": "auto", "columns": {}}
        demonstrations = {"kind": "jsonl", "path": str(path), "on_bad_row": on_bad_row}
        for reader in (
            lambda: kept(read_prompts(PromptRows(**told), "prompts", on_bad_row)),
            lambda: read_preferences(
                PreferenceRows(**told, on_bad_row=on_bad_row, unpaired_threshold=0.5)
            ),
            lambda: read_demonstrations(
                TypeAdapter(DemonstrationsConfig).validate_python(demonstrations)
            ),
            lambda: read_labels(path),
        ):
            try:
                found = reader()
            except UserError as refusal:
                said = str(refusal)
                printable(said)
            else:
                bad = [] if isinstance(found, list) else [str(fault) for _, fault in found.bad]
                pl.DataFrame({"fault": bad}, schema={"fault": pl.String})
                assert all(len(fault) <= 301 for fault in bad)


def printable(said: str) -> None:
    said.encode()
    assert len(said) < 20_000


def kept(found):
    """As the stage writes them: every prompt, and every column of it, comes back."""
    with tempfile.TemporaryDirectory() as folder:
        found.rows.write_parquet(Path(folder) / "rows.parquet")
        back = pl.read_parquet(Path(folder) / "rows.parquet")
    assert back.equals(found.rows)
    for row in back.iter_rows(named=True):
        assert isinstance(json.loads(row["columns"]), dict)
        build_prompt_row(row["prompt"], {})
    return found


KINDS = {"data": files, "suffix": st.sampled_from([".jsonl", ".json", ".csv", ".parquet"])}
KINDS["on_bad_row"] = st.sampled_from(["fail", "skip"])


def test_any_rows_are_read_or_refused():
    briefly(read, **KINDS)


@pytest.mark.slow
def test_any_rows_are_read_or_refused_for_a_while():
    for_a_while(read, **KINDS)
