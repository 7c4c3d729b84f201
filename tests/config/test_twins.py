"""scale=twin: each recipe of the field has a small double with the same objective and shapes."""

import json
import re

import pytest

from pipeline.config.compose import Arguments, compose
from pipeline.errors import UserError
from tests.support import twin_rows
from tests.support.house import HOUSE, composed
from tests.support.twins import NAMES, TWINS

OF_THE_FIELD = [
    path.stem for path in (HOUSE / "recipes").glob("*.yaml") if "# Licences: " in path.read_text()
]


def read_fault(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(Arguments.parse(list(words)))
    return str(caught.value)


def test_every_recipe_of_the_field_has_a_twin():
    assert set(OF_THE_FIELD) <= set(NAMES)
    assert set(NAMES) == {path.stem for path in TWINS.glob("*.yaml")}


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """Of course_week, whose prompts are the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Is it safe?", "severity": "low"}\n')


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_keeps_what_its_recipe_shows(name, own_files):
    full, twin = composed(f"recipes={name}"), composed(f"recipes={name}", "scale=twin")
    for place in ("rounds", "init", "train_on", "gate"):
        assert getattr(twin, place) == getattr(full, place), place
    for knob in ("trainer", "loss", "loss_weights", "beta", "scheduler", "epochs", "args", "clip"):
        assert getattr(twin.train, knob) == getattr(full.train, knob), knob
    assert twin.train.adapter.kind == full.train.adapter.kind
    assert (twin.pair.strategy, twin.pair.mix) == (full.pair.strategy, full.pair.mix)
    assert twin.reference.model == full.reference.model
    assert twin.score.scorers.keys() == full.score.scorers.keys()
    assert twin.evaluate.score.scorers.keys() == full.evaluate.score.scorers.keys()
    assert twin.template.kwargs == full.template.kwargs
    settings = [
        [(one.temperature, one.top_p, one.min_p) for one in cfg.sample.settings.values()]
        for cfg in (full, twin)
    ]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_asks_no_hub_and_expects_no_published_figure(name):
    cfg = composed(f"recipes={name}", "scale=twin")
    assert '"hub"' not in json.dumps(cfg.model_dump(mode="json"))
    assert (cfg.sft.kind, cfg.base.kind, cfg.expect) == ("train", "tiny", None)
    assert cfg.recipe == f"twins/{name}"


def test_scale_full_is_the_recipe():
    full, plain = composed("recipes=olmo2_1b", "scale=full"), composed("recipes=olmo2_1b")
    assert full == plain


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["scale=twin"], r"scale=twin: .*none is named\.\n  Give recipes=NAME too\. Known: "),
        (["scale=twin", "recipes=zephyr_7"], r"recipes=zephyr_7 has no twin\. .*zephyr_7b"),
        (["scale=tiny", "recipes=zephyr_7b"], r"scale=tiny: expected twin or full"),
        (["scale=twin", "scale=full", "recipes=zephyr_7b"], r"scale=twin,full: expected"),
    ],
)
def test_a_scale_that_is_not_there_is_refused(words, fault):
    assert re.search(fault, read_fault(*words))


def test_what_is_typed_beats_the_twin():
    assert composed("recipes=olmo2_1b", "scale=twin", "train.beta=0.3").train.beta == 0.3


def test_the_rows_of_twins_are_those_that_the_generator_writes():
    files = {path.stem: path for path in (TWINS / "data").glob("*.jsonl")}
    made = twin_rows.make_files()
    assert files.keys() == made.keys()
    for name, rows in made.items():
        text = files[name].read_text()
        assert [json.loads(line) for line in text.splitlines()] == rows, name
        assert len(text) < 32_000, name
