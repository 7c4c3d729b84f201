"""A checkpoint's tokenizer: texts of completions."""

import random

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline.artifacts import Model
from pipeline.backends import Completion
from pipeline.backends.chat import ModelTokenizer
from tests.support.tiny import tiny_model


class Shouting(PreTrainedTokenizerFast):
    """Decodes in its own way, as some models' code does."""

    def _decode(self, *args, **kwargs):
        return super()._decode(*args, **kwargs).upper()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "tiny")


def draw(chat: ModelTokenizer) -> list[Completion]:
    """Any ids, special ones among them; some end with the stop token alone."""
    chance, completions = random.Random(0), []
    for at in range(200):
        ids = [chance.randrange(len(chat.tokenizer)) for _ in range(at % 9)]
        ended = at % 3 == 0
        reason = "stop" if ended else "length"
        completions.append(Completion(str(at), [*ids, chat.eos] if ended else ids, None, reason))
    return completions


@pytest.mark.model
@pytest.mark.parametrize("kind", [PreTrainedTokenizerFast, Shouting])
def test_completions_are_decoded_together_as_transformers_decodes_each(model, kind):
    chat = ModelTokenizer(model, kind.from_pretrained(model.tokenizer))
    completions = draw(chat)
    without_end = [
        one.token_ids[:-1] if one.finish_reason == "stop" else one.token_ids for one in completions
    ]
    expected = [
        chat.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in without_end
    ]
    assert chat.decode_all(completions) == expected == [chat.decode(one) for one in completions]
    for ids in without_end:
        spelled = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        assert chat.decode_raw(ids) == chat.tokenizer.decode(ids, **spelled)
    assert any(text.isupper() for text in expected) and chat.decode_all([]) == []
    if kind is PreTrainedTokenizerFast:
        assert len({*expected}) > 50, "no text is lost"
