"""`hardware=`: a class of machine decides how work is spread, and never what is made."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.plan import plan
from tests.support.house import HOUSE, composed, identity_of, named

RECIPES = sorted(path.stem for path in (HOUSE / "recipes").glob("*.yaml"))
CLASSES = ("1x24g", "1x80g", "8x80g")
SWEPT = {"sweep_smoke": ["hydra.mode=RUN"]}  # one point of it


def list_leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        place: leaf
        for name, part in value.items()
        for place, leaf in list_leaves(part, (*path, name)).items()
    }


def list_fingerprints(cfg: Config) -> dict[str, str]:
    return {name: identity_of(step) for name, step in named(plan(cfg)).items()}


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """Of recipes that begin with prompts of one's own."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "Is it safe?", "severity": "low"}\n')


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_class_changes_no_fingerprint_and_runtime_keys_alone(recipe, own_files):
    words = [f"recipes={recipe}", *SWEPT.get(recipe, [])]
    auto = composed(*words)
    for name in CLASSES:
        cfg = composed(*words, f"hardware={name}")
        assert list_fingerprints(cfg) == list_fingerprints(auto), name
        there, here = (list_leaves(one.model_dump(mode="json")) for one in (auto, cfg))
        changed = {path for path in there | here if there.get(path) != here.get(path)}
        assert all("runtime" in path for path in changed - {("command",)}), name
        if cfg.prompts.kind != "playground":  # for a laptop; the others have to suit eight GPUs
            assert cfg.train.explain_misfit(8) is None, name


def test_eight_gpus_share_a_full_model_and_copy_an_adapter_s():
    full = composed("recipes=zephyr_7b", "hardware=8x80g").train
    assert (full.adapter.kind, full.runtime.launch) == ("full", "fsdp2")
    for adapter in ("lora", "qlora"):
        small = composed("recipes=zephyr_7b", "hardware=8x80g", f"adapter={adapter}").train
        assert (small.adapter.kind, small.runtime.launch) == (adapter, "auto")


def test_what_is_typed_beats_the_class():
    cfg = composed("recipes=zephyr_7b", "hardware=8x80g", "train.runtime.launch=zero2")
    assert cfg.train.runtime.launch == "zero2"
