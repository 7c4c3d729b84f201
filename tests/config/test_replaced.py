"""A recipe's values for a file of conf/ go with it where another file is chosen."""

import pytest

from pipeline.config.compose import Arguments, compose
from pipeline.errors import UserError
from tests.support.house import composed

FILE = ["offline=file", "offline.source.path=rows.jsonl"]


def test_another_source_leaves_out_the_recipe_s():
    cfg = composed("recipes=kto_thumbs", *FILE)
    assert (cfg.offline.source.kind, cfg.offline.source.path) == ("file", "rows.jsonl")
    assert cfg.train.beta == composed("recipes=kto_thumbs").train.beta


def test_another_objective_leaves_out_what_only_the_recipe_s_takes():
    cfg = composed("recipes=simpo_llama3_armorm", "train=dpo", "train.beta=0.01")
    assert "simpo_gamma" not in cfg.train.args
    assert cfg.train.batch == 128


def test_a_recipe_that_inherits_one_replaces_its_files(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [olmo2_1b, override /offline: file, _self_]\n"
        "offline: {source: {path: rows.jsonl}}\n"
    )
    cfg = composed("--config-dir", str(tmp_path), "recipes=mine")
    assert (cfg.offline.source.kind, cfg.train.beta) == ("file", 5.0)


def test_a_block_that_was_none_keeps_all_of_the_chosen_file():
    cfg = composed("recipes=simpo_llama3_armorm", *FILE, "pair.mix={on_policy: 0.5, offline: 0.5}")
    assert cfg.offline.source.kind == "file"


def test_several_scorers_replace_one_and_leave_the_knobs_that_all_have():
    cfg = composed("recipes=smoke", "score=[rules,length]")
    assert [*cfg.score.scorers] == ["rules", "length"]
    assert cfg.score.max_failed == composed("recipes=smoke").score.max_failed


def test_what_is_typed_for_a_replaced_file_is_refused():
    with pytest.raises(UserError, match=r"offline\.source\.dataset is not a knob"):
        compose(Arguments.parse(["recipes=kto_thumbs", *FILE, "offline.source.dataset=a/b"]))
