"""The attention that a training is given, and the parallelism that it is not."""

from types import SimpleNamespace

import pytest

from pipeline.errors import UserError
from pipeline.training import build, session
from tests.support.preferences import dpo
from tests.training.test_shared_prompt import random_model

pytestmark = pytest.mark.model


@pytest.mark.parametrize(
    ("kind", "attention"),
    [("llama", "flash_attention_2"), ("llama", "kernels-community/none"), ("bloom", "flex")],
    ids=["not installed", "not there", "not for this model"],
)
def test_attention_that_transformers_does_not_give_is_refused(kind, attention):
    with pytest.raises(UserError, match=f"^train.attention={attention}: (.|\n)*=auto"):
        build.set_attention(random_model(kind), dpo(attention=attention))


def test_attention_is_the_one_that_was_asked_for():
    for attention, name in (("sdpa", "sdpa"), ("flex", "flex_attention"), ("auto", "sdpa")):
        module = build.set_attention(random_model(), dpo(attention=attention))
        assert module.config._attn_implementation == name
        assert "attn" not in module.config.to_json_string(), "of the machine, not of the model"


def test_rows_that_accelerate_s_environment_would_split_are_refused(monkeypatch):
    from accelerate.parallelism_config import ParallelismConfig

    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    accelerator = SimpleNamespace(parallelism_config=ParallelismConfig())
    with pytest.raises(UserError, match="unset ACCELERATE_USE_PARALLELISM_CONFIG"):
        session._check_processes(SimpleNamespace(accelerator=accelerator), dpo(), 2)
