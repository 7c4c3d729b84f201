"""Shards are written one by one, and finished by groups."""

from functools import partial
from types import SimpleNamespace

import pytest

from pipeline.sampling.writer import ShardWriter


@pytest.mark.parametrize("at_once", [True, False])
def test_a_shard_is_written_before_its_group_ends_and_finished_with_it(at_once):
    finished, written = {}, []
    writer = ShardWriter(SimpleNamespace(finish=finished.__setitem__), at_once)

    def write(shard: str) -> dict[str, dict[str, int]]:
        written.append(shard)
        return {shard: {"completions": len(written)}}

    for group, shard, ends_group in (("a", "a", False), ("b", "b", True), ("a", "c", False)):
        writer.add_shard(partial(write, shard), group, ends_group)
    writer.finish_all()
    assert written == ["a", "b", "c"]
    assert finished == {"b": {"b": {"completions": 2}}}, "of the group a one shard is missing"
    writer.add_shard(partial(write, "d"), "a", ends_group=True)
    writer.finish_all()
    writer.close()
    assert [*finished["a"]] == ["a", "c", "d"]
