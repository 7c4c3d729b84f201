"""The list of finished shards: what a killed process finds again, and what it costs to keep."""

import json

from pipeline.artifacts import write_text
from pipeline.hashing import hash_file
from pipeline.sampling import shards
from pipeline.sampling.shards import JOURNAL, ShardList, Shards


def make_names(count: int) -> list[str]:
    return [f"{at:05d}.parquet" for at in range(count)]


def make_entry(out: Shards, name: str) -> dict:
    write_text(out.sample_file(name), f"rows of {name}")
    return {name: {"sha256": hash_file(out.sample_file(name)), "tokens": 3}}


def test_a_killed_process_finds_every_shard_that_was_finished(tmp_path):
    out, names = Shards(tmp_path, 1), make_names(300)
    (tmp_path / "scratch").mkdir()
    killed = ShardList(out, names)
    for name in names[:251]:
        killed.add(make_entry(out, name))
    listed = json.loads((tmp_path / "shards.json").read_text())
    assert len(listed) < 251, "the last ones are in the journal alone"
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"00251.parquet": {"sha')
    again = ShardList(out, names)
    assert again.find_missing() == names[251:] and again.sum_figures()["tokens"] == 753
    assert len(json.loads((tmp_path / "shards.json").read_text())) == 251
    for name in names[251:]:
        again.add(make_entry(out, name))
    whole = json.loads((tmp_path / "shards.json").read_text())
    assert [*whole] == names and not (tmp_path / JOURNAL).exists()


def test_a_shard_that_is_made_twice_counts_once(tmp_path):
    out, names = Shards(tmp_path, 1), make_names(2)
    (tmp_path / "scratch").mkdir()
    finished = ShardList(out, names)
    for tokens in (5, 7):
        finished.add({names[0]: {"sha256": "", "tokens": tokens}})
    assert finished.sum_figures()["tokens"] == 7


def test_the_list_is_not_written_for_each_shard(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(shards, "write_json", lambda _, value: written.append(len(value)))
    (tmp_path / "scratch").mkdir()
    sums = []
    for count in (400, 1600):
        written.clear()
        finished = ShardList(Shards(tmp_path, 1), names := make_names(count))
        for name in names:
            finished.add({name: {"sha256": "", "tokens": 1}})
        assert written[-1] == count
        sums.append(sum(written) / count)
    assert sums[1] < 1.5 * sums[0], "it grows with the square of the shards"
