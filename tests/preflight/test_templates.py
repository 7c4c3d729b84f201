"""Chat templates and prompts with tools: refused before anything is built, or as soon as known."""

import json
from pathlib import Path

import pytest

from pipeline.backends.chat import ModelTokenizer
from pipeline.data.prompts import convert_row
from pipeline.data.tool_turns import pack_messages, read_calls
from pipeline.errors import UnrenderableTemplate, UserError
from pipeline.plan import plan
from pipeline.preflight.prompt_lengths import PromptTokenizer
from pipeline.scorers.tool_calls import find_difference
from tests.support.house import check_steps, composed
from tests.support.tiny import CHAT, tiny_model, tiny_tokenizer
from tests.support.tools import (
    TOOL_CHAT,
    WEATHER,
    answering,
    ask,
    call,
    calling,
    result,
    write_call,
)

TALK = [ask("Rome"), calling(call("Rome")), result('21 "warm"'), answering("Yes."), ask("Oslo")]
ROLE = "{% if m.role == 'tool' %}<|user|><tool_response>{{ m.content }}</tool_response><|end|>"
TEMPLATES = {
    "no tools": (CHAT, "it leaves out the tool get_weather"),
    "no calls": (
        TOOL_CHAT.replace("m.tool_calls or []", "[]"),
        "it leaves out the calls of a turn",
    ),
    "no results": (
        TOOL_CHAT.replace(ROLE, "{% if m.role == 'tool' %}"),
        "it leaves out the result of a tool",
    ),
    "refused": (
        TOOL_CHAT.replace(ROLE, "{% if m.role == 'tool' %}{{ raise_exception('no role tool') }}"),
        "no role tool",
    ),
}
AS_JSON = TOOL_CHAT.replace("{{ m.content }}</tool", "{{ m.content | tojson }}</tool")
LENGTH = TOOL_CHAT.replace("{{ m.content }}</tool", "{{ m.content | length }}</tool")
FAMILIES = {"plain": TOOL_CHAT, "as JSON": AS_JSON, "in another form": LENGTH}


def prompts(folder):
    rows = [{"prompt": f"name {n} rivers", "tool_calls": []} for n in range(20)]
    rows += [{"prompt": TALK, "tool_calls": [], "tools": [WEATHER]}]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def check(folder, template: str, *words: str) -> None:
    tiny_model(folder / "model", template=template, context=1024)
    given = [
        "score=json",
        "score.scorers.json.calls=tool_calls",
        f"prompts.path={prompts(folder)}",
        f"sft.model={folder / 'model' / 'weights'}",
        "prompts.split={dev: 2, test: 2}",
        "backend@sample.backend=transformers",
        "limits={prompt: 700, completion: 100}",
    ]
    check_steps(plan(composed(*given, *words)).ancestors())


@pytest.mark.model
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_leaves_tools_out_is_refused_before_anything_is_built(tmp_path, name):
    template, fault = TEMPLATES[name]
    with pytest.raises(UserError) as error:
        check(tmp_path, template)
    lines = str(error.value).splitlines()
    assert lines[0].endswith(
        f"its chat template does not render a prompt with tools: {fault}."
    ) or (fault in lines[0])
    assert "template.chat_template=FILE" in lines[1]


@pytest.mark.model
@pytest.mark.parametrize("name", FAMILIES)
def test_a_template_that_takes_tools_in_its_own_form_is_not_refused(tmp_path, name):
    check(tmp_path, FAMILIES[name])


@pytest.mark.model
def test_another_template_may_be_given(tmp_path):
    file = tmp_path / "tools.jinja"
    file.write_text(TOOL_CHAT)
    check(tmp_path, CHAT, f"template.chat_template={file}")
    (tmp_path / "broken.jinja").write_text(CHAT)
    with pytest.raises(UserError, match=r"broken\.jinja: its chat template does not render"):
        check(tmp_path, TOOL_CHAT, f"template.chat_template={tmp_path / 'broken.jinja'}")


@pytest.mark.model
@pytest.mark.parametrize("name", [*TEMPLATES, *FAMILIES])
def test_the_sampler_refuses_what_the_preflight_refuses(tmp_path, name):
    template = TEMPLATES[name][0] if name in TEMPLATES else FAMILIES[name]
    tiny_tokenizer(tmp_path, template)
    messages = convert_row("prompt", {"prompt": TALK, "tools": [WEATHER]})["prompt"]
    fault = PromptTokenizer(tmp_path, None, None).find_tool_fault(messages, {})
    chat = open_tokenizer(tmp_path)
    if name in FAMILIES:
        assert fault is None
        assert PromptTokenizer(tmp_path, None, None).encode(messages, {}) == chat.encode(
            messages, {}
        )
        return
    assert TEMPLATES[name][1] in fault
    with pytest.raises(UnrenderableTemplate) as error:
        chat.encode(messages, {})
    assert TEMPLATES[name][1] in str(error.value) and "rows without tools" in str(error.value)


def open_tokenizer(folder) -> ModelTokenizer:
    from transformers import AutoTokenizer

    class Bare(ModelTokenizer):
        def __init__(self, tokenizer):
            self.tokenizer, self.source, self.bos = tokenizer, str(folder), tokenizer.bos_token_id
            self.stop_ids = [tokenizer.eos_token_id]

    return Bare(AutoTokenizer.from_pretrained(folder))


@pytest.mark.model
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507", "llama3_1", "llama3_2"])
def test_calls_as_published_templates_write_them_are_read_by_the_scorer(tmp_path, name):
    import trl

    template = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not template.exists():
        pytest.skip("this TRL does not ship the template")
    tiny_tokenizer(tmp_path, template.read_text())
    chat = open_tokenizer(tmp_path)
    messages = convert_row("prompt", {"prompt": TALK, "tools": [WEATHER]})["prompt"]
    prompt = chat.render(messages, {}, generation=True)
    calls = pack_messages([calling(call("Oslo"))])
    whole = chat.render([*messages, *calls], {}, generation=False)
    assert whole.startswith(prompt) and "get_weather" in prompt and "21" in prompt
    answer = whole.removeprefix(prompt).partition("<|im_end|>")[0].partition("<|eot_id|>")[0]
    assert find_difference(read_calls([call("Oslo")]), answer) is None
    for plain in ("llama3", "phi3"):  # these know no tools
        tiny_tokenizer(tmp_path, template.with_stem(plain).read_text())
        with pytest.raises(UnrenderableTemplate, match="it leaves out the tool get_weather"):
            open_tokenizer(tmp_path).render(messages, {}, generation=True)


@pytest.mark.model
def test_the_template_for_tools_is_taken_where_a_checkpoint_has_two(tmp_path):
    tiny_tokenizer(tmp_path, CHAT)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL_CHAT)
    messages = convert_row("prompt", {"prompt": TALK, "tools": [WEATHER]})["prompt"]
    words = PromptTokenizer(tmp_path, None, None)
    assert words.find_tool_fault(messages, {}) is None
    assert words.encode(messages, {}) == open_tokenizer(tmp_path).encode(messages, {})


@pytest.mark.model
def test_calls_as_an_answer_have_the_template_s_own_text_and_tokens(tmp_path):
    tiny_tokenizer(tmp_path, TOOL_CHAT)
    chat = open_tokenizer(tmp_path)
    prompt = convert_row("prompt", {"prompt": "warm?", "tools": [WEATHER]})["prompt"]
    calls = pack_messages([calling(call("Rome"), call("Oslo"), text="I look.")])
    text, ids = chat.write_answer(prompt, calls, {})
    assert text == f"I look.{write_call('Rome')}{write_call('Oslo')}"
    assert ids == [*chat.encode_text(text), chat.eos] == chat.encode_answer(prompt, text, {})
