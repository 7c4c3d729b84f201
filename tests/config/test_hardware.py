"""`hardware=`: a class of machine decides how work is spread, and never what is made."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Checkpoint, Config
from pipeline.plan import plan
from pipeline.resources.model_shape import parse_shape
from pipeline.resources.training_memory import ProcessMemory
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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_class_changes_no_fingerprint_and_where_it_runs_alone(recipe, own_files):
    words = [f"recipes={recipe}", *SWEPT.get(recipe, [])]
    auto = composed(*words)
    for name in CLASSES:
        cfg = composed(*words, f"hardware={name}")
        assert list_fingerprints(cfg) == list_fingerprints(auto), name
        there, here = (list_leaves(one.model_dump(mode="json")) for one in (auto, cfg))
        changed = {path for path in there | here if there.get(path) != here.get(path)}
        assert all({"runtime", "cluster"} & {*path} for path in changed - {("command",)}), name


def test_eight_gpus_share_a_full_model_and_copy_an_adapter_s():
    full = composed("recipes=zephyr_7b", "hardware=8x80g").train
    assert (full.adapter.kind, full.runtime.launch) == ("full", "fsdp2")
    for adapter in ("lora", "qlora"):
        small = composed("recipes=zephyr_7b", "hardware=8x80g", f"adapter={adapter}").train
        assert (small.adapter.kind, small.runtime.launch) == (adapter, "auto")


def test_what_is_typed_beats_the_class():
    cfg = composed("recipes=zephyr_7b", "hardware=8x80g", "train.runtime.launch=zero2")
    assert cfg.train.runtime.launch == "zero2"


# Widths of the published models, as their config.json has them.
WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)
MODELS = {
    "alignment-handbook/mistral-7b-sft-constitutional-ai": (4096, 14336, 32, 32, 32000, 8),
    "alignment-handbook/zephyr-7b-sft-full": (4096, 14336, 32, 32, 32000, 8),
    "alignment-handbook/zephyr-7b-sft-qlora": (4096, 14336, 32, 32, 32000, 8),
    "allenai/Llama-3.1-Tulu-3-8B-SFT": (4096, 14336, 32, 32, 128264, 8),
    "allenai/OLMo-2-0425-1B-SFT": (2048, 8192, 16, 16, 100352, 16),
    "HuggingFaceH4/mistral-7b-sft-beta": (4096, 14336, 32, 32, 32000, 8),
    "HuggingFaceTB/SmolLM3-3B-checkpoints": (2048, 11008, 36, 16, 128256, 4),
    "loubnabnl/smollm2-1.7B-sft": (2048, 8192, 24, 32, 49152, 32),
    "meta-llama/Llama-2-7b-chat-hf": (4096, 11008, 32, 32, 32000, 32),
    "meta-llama/Meta-Llama-3-8B-Instruct": (4096, 14336, 32, 32, 128256, 8),
    "mistralai/Mistral-7B-v0.1": (4096, 14336, 32, 32, 32000, 8),
    "Qwen/Qwen2.5-1.5B-Instruct": (1536, 8960, 28, 12, 151936, 2),
    "Qwen/Qwen2.5-Math-7B": (3584, 18944, 28, 28, 152064, 4),
    "RLHFlow/LLaMA3-SFT-v2": (4096, 14336, 32, 32, 128256, 8),
}
TIED = (
    "Qwen/Qwen2.5-1.5B-Instruct",
    "loubnabnl/smollm2-1.7B-sft",
    "HuggingFaceTB/SmolLM3-3B-checkpoints",
)
GPUS = {"1x24g": (1, 24), "1x80g": (1, 80), "8x80g": (8, 80)}


def list_promises(recipe: str) -> list[tuple[str, str]]:
    """What the line `Hardware` says: each class, and the words to add on it."""
    text = (HOUSE / "recipes" / f"{recipe}.yaml").read_text()
    line = re.search(r"^# Hardware: (.*)$", text, re.M)
    if line is None:
        return []
    alone, _, added = line[1].split(". ")[0].partition("; on ")
    promises = [(name, "") for name in re.findall(r"\dx\d\dg", alone)]
    name, _, words = added.partition(" add ")
    return [*promises, (name, words)] if added else promises


PROMISES = [(recipe, *promise) for recipe in RECIPES for promise in list_promises(recipe)]


@pytest.mark.parametrize(("recipe", "name", "added"), PROMISES)
def test_a_recipe_s_training_fits_the_classes_that_its_head_names(recipe, name, added, own_files):
    words = added.split() if added else []
    cfg = composed(f"recipes={recipe}", f"hardware={name}", "dtype=bfloat16", *words)
    assert isinstance(cfg.sft, Checkpoint)
    *widths, keys = MODELS[cfg.sft.model]
    config = {**dict(zip(WIDTHS, widths, strict=True)), "num_key_value_heads": keys}
    shape = parse_shape({**config, "tie_word_embeddings": cfg.sft.model in TIED})
    assert shape
    world, gigabytes = GPUS[name]
    assert cfg.train.explain_misfit(world) is None
    rows = cfg.train.loss_group_per_process(world) or 1
    needed = ProcessMemory(shape, cfg.train, rows, cfg.train.max_length, world, gpu=True).peak
    assert needed.total < cfg.train.runtime.memory * gigabytes * 2**30, str(needed)


def test_the_heads_promise_something():
    assert len(PROMISES) >= 16 and {name for _, name, _ in PROMISES} == set(CLASSES)
