"""Attention and kernels are checked before anything is built."""

import re

import pytest

from pipeline.config import kernels
from pipeline.errors import UserError
from tests.support.house import SMALL, composed, fingerprints
from tests.support.preferences import dpo

ON_A_CARD = {"attention": "flash_attention_2", "dtype": "bfloat16"}


def explain(installed: tuple[str, ...], gpus: int, monkeypatch, **changes) -> str | None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: name in installed)
    return dpo(**changes).explain_misfit(gpus)


@pytest.mark.parametrize(
    ("attention", "installed", "gpus", "words"),
    [
        (
            "flash_attention_2",
            (),
            1,
            "attention=flash_attention_2 needs the package flash-attn, which is not installed",
        ),
        (
            "flash_attention_2",
            (),
            0,
            "flash-attn, which is not installed, and a GPU, and this machine has none",
        ),
        ("flash_attention_2", ("flash_attn",), 0, "needs a GPU, and this machine has none"),
        ("flash_attention_3", ("flash_attn",), 1, "needs the package kernels"),
        ("kernels-community/flash-attn2", (), 1, r"\(pip install kernels\)"),
        ("flex", (), 0, "train.attention=flex needs a GPU"),
    ],
)
def test_what_a_machine_lacks_is_named(monkeypatch, attention, installed, gpus, words):
    changes = {**ON_A_CARD, "attention": attention}
    fault = explain(installed, gpus, monkeypatch, **changes) or ""
    assert re.search(words, fault) and "Give train.attention=auto" in fault


@pytest.mark.parametrize(
    ("attention", "installed"),
    [
        ("flash_attention_2", ("flash_attn",)),
        ("flash_attention_2", ("kernels",)),  # transformers takes it from the hub
        ("flash_attention_3", ("flash_attn_interface",)),
        ("kernels-community/flash-attn2", ("kernels",)),
        ("flex", ()),
        ("sdpa", ()),
        ("auto", ()),
    ],
)
def test_what_is_there_passes(monkeypatch, attention, installed):
    assert explain(installed, 1, monkeypatch, **{**ON_A_CARD, "attention": attention}) is None


def test_flash_attention_needs_half_precision(monkeypatch):
    fault = explain(("flash_attn",), 1, monkeypatch, **{**ON_A_CARD, "dtype": "float32"})
    assert fault and "half precision" in fault and "Give train.dtype=bfloat16" in fault


def test_kernels_and_offloading_among_trl_s_arguments(monkeypatch):
    liger, offloading = {"use_liger_kernel": True}, {"activation_offloading": True}
    assert "liger-kernel, which is not" in (explain((), 1, monkeypatch, args=liger) or "")
    for args in (liger, offloading):
        fault = explain(("liger_kernel",), 0, monkeypatch, args=args)
        assert fault and f"train.args.{next(iter(args))}=true needs a GPU" in fault
        assert explain(("liger_kernel",), 1, monkeypatch, args=args) is None


def refuse(*words: str) -> str:
    with pytest.raises(UserError) as refusal:
        composed(*SMALL, *words)
    return str(refusal.value)


def test_an_unknown_attention_is_refused_with_those_there_are():
    for name in ("flash", "flex_attention", "kernels-community/", "someone/flash"):
        text = refuse(f"train.attention={name}")
        assert f"train.attention={name!r}: expected auto, sdpa, flash_attention_2" in text


@pytest.mark.parametrize("key", ["parallel.context", "args.parallelism_config"])
def test_context_parallelism_is_refused_by_name(key):
    """TRL sums an answer's log-probability in one process: it would train on a part of each."""
    text = refuse(f"train.{key}=2")
    assert f"train.{key.split('.')[0]}" in text and "ring or Ulysses" in text


def test_attention_changes_no_fingerprint():
    """Kernels compute the same up to rounding: a finished training is not repeated."""
    words = "recipes=smoke", "rounds=1"
    assert fingerprints(*words, "train.attention=flex") == fingerprints(*words)
