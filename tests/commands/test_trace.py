"""The trace of one prompt, and a run's pairs as a file to edit."""

import json
import shlex
import subprocess
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import write_table
from pipeline.commands import edit, trace
from pipeline.pairing import selection
from pipeline.stages import offline

ROW = {
    "prompt": [{"role": "user", "content": "about p"}],
    "prompt_id": "p",
    "origin": "on-policy",
    "margin": 1.0,
}


@pytest.fixture
def run(tmp_path) -> Path:
    """Two rounds: p has a pair in the first and none in the second."""
    store = tmp_path / "run" / "store"
    for number in (1, 2):
        samples = [
            {"prompt_id": p, "sample_id": f"{p}-{number}-{i}", "prompt": ROW["prompt"],
             "completion": f"answer {i}\nof {p}", "token_ids": [i, i], "finish_reason": "stop",
             "setting": "draw"}
            for p in "pq" for i in (0, 1)
        ]  # fmt: skip
        scores = [
            {
                "sample_id": s["sample_id"],
                "prompt_id": s["prompt_id"],
                "scorer": "rules",
                "status": "ok",
            }
            for s in samples
        ]
        scores = [
            {**row, "score": 0.25 if number == 2 else float(row["sample_id"][-1])} for row in scores
        ]
        write_table(
            store / f"0{number}-sample-{number}" / "samples" / "0.parquet", pl.DataFrame(samples)
        )
        write_table(
            store / f"1{number}-score-{number}" / "scores" / "0.parquet", pl.DataFrame(scores)
        )
        pair = {
            **ROW,
            "chosen_id": "p-1-1",
            "rejected_id": "p-1-0",
            "chosen_score": 1.0,
            "rejected_score": 0.0,
        }
        pair |= {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        pairs = pl.DataFrame([pair] if number == 1 else [], schema=offline.PAIR)
        dropped = (
            [{"kind": "prompt", "prompt_id": "p", "reason": "tie", "detail": "2 usable samples"}]
            if number == 2
            else []
        )
        for name, table in {
            "train": pairs,
            "dev": pairs.clear(),
            "dropped": pl.DataFrame(dropped, schema=selection.DROPPED),
        }.items():
            write_table(store / f"2{number}-pair-{number}" / f"{name}.parquet", table)
    return tmp_path / "run"


def test_a_prompt_s_story_runs_from_candidates_to_pair_or_reason(run, capsys):
    assert trace.main(["p", str(run)]) == 0
    told = capsys.readouterr().out
    assert (
        "round 1: 2 answers to" in told
        and "p-1-1  draw: rules 1, 2 tokens, stop\n    answer 1⏎of p" in told
    )
    assert "round 1, pair (train, on-policy, margin 1): p-1-1 over p-1-0" in told
    assert "round 2, dropped prompt: tie (2 usable samples)" in told and "of q" not in told


def test_an_unknown_prompt_or_run_is_refused(run, capsys):
    assert [
        trace.main(words) for words in (["nobody", str(run)], ["p", str(run / "none")], [])
    ] == [2, 2, 2]
    said = capsys.readouterr().err
    assert (
        "does not know this prompt" in said
        and "prompt_id of a prompts.parquet in" in said
        and "strop trace p runs/RECIPE/TIME" in said
        and "trace needs a PROMPT_ID" in said
    )


def test_a_prompt_without_samples_is_found_where_it_is(run, capsys):
    prompts = run / "store" / "000-prompts"
    ids = pl.DataFrame({"prompt_id": ["held"]})
    write_table(prompts / "test" / "prompts.parquet", ids)
    row = {"prompt_id": ["short"], "reason": ["overlap with test"], "detail": ["13 words"]}
    write_table(prompts / "dropped.parquet", pl.DataFrame(row))
    assert [trace.main([name, str(run)]) for name in ("held", "short")] == [2, 2]
    held, short = capsys.readouterr().err.splitlines()
    assert "has this prompt in test, and sampled no answer to it" in held
    assert "dropped this prompt: overlap with test (13 words)" in short


def test_a_run_s_pairs_become_lines_to_edit(run, capsys):
    assert edit.main([str(run), "1"]) == 0
    file = Path(capsys.readouterr().out.strip())
    [row] = [json.loads(line) for line in file.read_text().splitlines()]
    assert (row["action"], row["chosen_id"], row["rejected_id"], row["chosen"]) == (
        "keep",
        "p-1-1",
        "p-1-0",
        "chosen",
    )
    assert edit.main([str(run), "7"]) == 2 and "has pairs of round 1, 2" in capsys.readouterr().err


def test_a_file_that_was_corrected_by_hand_is_never_written_over(run, capsys):
    assert edit.main([str(run), "1"]) == 0
    file = Path(capsys.readouterr().out.strip())
    assert edit.main([str(run), "1"]) == 0 and capsys.readouterr().out.strip() == str(file), (
        "as it was written"
    )
    corrected = file.read_text().replace('"keep"', '"drop"')
    file.write_text(corrected)
    for words in ([str(run), "1"], [str(run), "2"], [str(run)]):
        assert edit.main(words) == 2
        said = capsys.readouterr().err
        assert f"pair.edits.{[*words, '2'][1]}={file}" in said and f"mv -n {file}" in said
        assert file.read_text() == corrected


def test_the_command_that_moves_a_corrected_file_away_replaces_none_of_before(run, capsys):
    run = run.rename(run.with_name("it's a run"))
    for note in ("first", "second"):
        assert edit.main([str(run), "1"]) == 0
        shown = capsys.readouterr()
        file = Path(shown.out.strip())
        assert shlex.quote(f"pair.edits.1={file}") in shown.err
        file.write_text(note)
        assert edit.main([str(run), "1"]) == 2
        command = capsys.readouterr().err.rpartition("first: ")[2]
        subprocess.run(command, shell=True, check=True)
    assert sorted(file.read_text() for file in run.glob("pairs.jsonl.*")) == ["first", "second"]


def test_where_it_is_written_is_the_run_s_own_folder_and_not_the_latest(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    Path("latest").symlink_to(run)
    assert edit.main(["latest", "1"]) == 0
    shown = capsys.readouterr()
    assert (
        shown.out.strip() == f"{run.name}/pairs.jsonl"
        and f"pair.edits.1={run.name}/pairs.jsonl" in shown.err
    )
