"""Rules score the finished shards while the others are sampled; the scores are the same."""

from pathlib import Path

import pytest

from pipeline import store
from pipeline.driver.early_scoring import has_shards_to_score
from tests.stages.test_sample import SCRIPTED, Drawn

SCORED = [*SCRIPTED, "until=score@1", "sample.per_round=60", "sample.shard=2"]


def make_runners(folder: Path, *names: str) -> dict[str, Drawn]:
    for name in names:
        (folder / name).mkdir()
    return {name: Drawn(folder / name) for name in names}


def scores_of(drawn: Drawn) -> dict:
    return {name: files for name, files in drawn.files().items() if name.startswith("score/")}


@pytest.mark.long
def test_scores_begin_while_samples_are_made_and_are_those_of_one_after_the_other(tmp_path):
    drawn = make_runners(tmp_path, "early", "late")
    output = drawn["early"].run(*SCORED, shard_pause="0.2")
    drawn["late"].run(*SCORED)
    early = list(drawn["early"].folder.glob("runs/run/*/early/*/*.parquet"))
    assert 1 < len(early) <= 30
    [log] = drawn["early"].folder.glob("runs/run/*/logs/*-early_only.log")
    assert "while others are sampled" in log.read_text()
    assert scores_of(drawn["early"]) == scores_of(drawn["late"]) != {}
    assert output.count("■ score") == 1


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_run_scores_again_and_ends_with_the_same(tmp_path):
    drawn = make_runners(tmp_path, "killed", "whole")
    driver = drawn["killed"].start(*SCORED, shard_pause="1")
    while not list(drawn["killed"].folder.glob("runs/run/*/early/*/*.parquet")):
        assert driver.poll() is None, driver.communicate()
    driver.kill()
    driver.communicate()
    drawn["killed"].run(*SCORED)
    drawn["whole"].run(*SCORED)
    assert drawn["killed"].files() == drawn["whole"].files()


def test_answers_that_are_published_while_they_are_counted_are_not_scored_early(
    tmp_path, monkeypatch
):
    work = store.partial_folder(tmp_path / "sample" / "abc")
    work.mkdir(parents=True)
    (work / "shards.json").write_text("[]")
    glob = Path.glob

    def lose(folder: Path, pattern: str):
        if folder.name == "asked":
            raise FileNotFoundError(folder)
        return glob(folder, pattern)

    monkeypatch.setattr(Path, "glob", lose)
    assert not has_shards_to_score(tmp_path / "sample" / "abc")
