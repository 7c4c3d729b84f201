"""Calls against expected calls: every common form is read, and nothing but the calls counts."""

import json
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import JsonScorer
from pipeline.data.readers import RowFault
from pipeline.data.tool_turns import add_tools, pack_messages
from pipeline.scorers import Answer
from pipeline.scorers.function import build_arguments
from pipeline.scorers.tool_calls import find_difference, parse_calls
from tests.scorers.test_rules import answer, run_scorer, scores
from tests.support.tools import WEATHER, ask, call, calling, result

CALLS = JsonScorer(kind="json", schema_file=None, calls="tool_calls", fenced=True, gold=False)
ROME = {"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}
OSLO = {"name": "get_weather", "arguments": {"city": "Oslo"}}
TIME = {"name": "get_time", "arguments": {}}
AS_TEXT = {"name": "get_weather", "arguments": json.dumps(ROME["arguments"])}
PARAMETERS = {"name": "get_weather", "parameters": ROME["arguments"]}

FORMS = {
    "hermes": f"<tool_call>\n{json.dumps(ROME)}\n</tool_call>",
    "hermes after text": f"I look it up.\n<tool_call>{json.dumps(ROME)}</tool_call>\n",
    "after reasoning": f"<think>Rome {{</think>\n<tool_call>{json.dumps(ROME)}</tool_call>",
    "llama": json.dumps(PARAMETERS),
    "llama with its tag": f"<|python_tag|>{json.dumps(PARAMETERS)}",
    "mistral": f"[TOOL_CALLS] [{json.dumps(ROME)}]",
    "plain": json.dumps(ROME, indent=1),
    "fenced": f"```json\n{json.dumps([ROME])}\n```",
    "openai": json.dumps({"type": "function", "id": "x", "function": AS_TEXT}),
    "other order of keys": '{"arguments": {"days": 2.0, "city": "Rome"}, "name": "get_weather"}',
    "a null is no argument": '{"name": "get_weather", "arguments":'
    ' {"city": "Rome", "days": 2, "unit": null}}',
}
WRONG = {
    "text": ("It is warm in Rome.", "it makes 0 of 1 expected calls"),
    "other function": (json.dumps({**ROME, "name": "get_time"}), "it does not call get_weather"),
    "other city": (json.dumps(OSLO), "it calls get_weather with other arguments"),
    "true is not 1": (
        '{"name": "get_weather", "arguments": {"city": "Rome", "days": true}}',
        "it calls get_weather with other arguments",
    ),
    "text is not a number": (
        '{"name": "get_weather", "arguments": {"city": "Rome", "days": "2"}}',
        "it calls get_weather with other arguments",
    ),
    "twice": (f"{json.dumps(ROME)}; {json.dumps(ROME)}", "it makes 2 of 1 expected calls"),
    "not closed": (f"<tool_call>{json.dumps(ROME)}", "malformed: a <tool_call> is not closed"),
    "torn": (json.dumps(ROME)[:-1], "malformed: calls are not JSON"),
    "torn between marks": ('<tool_call>{"name": </tool_call>', "malformed: a call is not JSON"),
    "no name": ('<tool_call>{"arguments": {}}</tool_call>', "malformed: a tool call is not {name"),
    "arguments not an object": (
        '{"name": "get_weather", "arguments": "Rome"}',
        "malformed: the arguments of a call of get_weather are not a JSON object",
    ),
    "NaN": ('{"name": "get_weather", "arguments": {"days": NaN}}', "malformed: calls are not JSON"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_is_read_in_every_common_form(form):
    assert find_difference([{**ROME}], FORMS[form]) is None
    assert scores(CALLS, answer(FORMS[form], tool_calls=[ROME])) == [1.0]


@pytest.mark.parametrize("name", WRONG)
def test_another_call_or_a_malformed_one_is_0_with_the_reason(name):
    text, reason = WRONG[name]
    [score] = run_scorer(CALLS, answer(text, tool_calls=[ROME]))
    assert score.score == 0.0 and score.detail.startswith(reason)


def test_no_call_expected_is_met_by_text_alone():
    texts = "It is warm.", "[a note]", '{"city": "Rome"}', json.dumps(ROME), json.dumps(ROME)[:-1]
    answers = [answer(text, tool_calls=[]) for text in texts]
    assert scores(CALLS, *answers) == [1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "expected", [ROME, [ROME], json.dumps(ROME), [AS_TEXT], [PARAMETERS], [{"function": ROME}]]
)
def test_expected_calls_are_read_in_the_forms_of_published_sets(expected):
    assert scores(CALLS, answer(FORMS["hermes"], tool_calls=expected)) == [1.0]


@pytest.mark.parametrize("columns", [{}, {"tool_calls": "get_weather()"}, {"tool_calls": [3]}])
def test_a_prompt_without_readable_calls_has_no_score(columns):
    [score] = run_scorer(CALLS, answer(FORMS["hermes"], **columns))
    assert score.score is None and score.detail.startswith("the column tool_calls holds no calls")


def test_a_schema_and_calls_exclude_each_other_and_the_column_is_required():
    assert CALLS.required_columns == ["tool_calls"]
    with pytest.raises(ValidationError, match="schema_file and calls"):
        JsonScorer.model_validate({**dict(CALLS), "schema_file": "x.json"})


def test_a_user_s_function_gets_tools_in_openai_s_shape():
    prompt = add_tools(pack_messages([ask("Rome"), calling(call("Rome")), result("21")]), [WEATHER])
    with_tools = Answer("s", "p", prompt, "Yes.", {"answer": "Yes."})
    arguments = build_arguments([with_tools])
    [messages] = arguments["prompts"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    assert arguments["tools"] == [[WEATHER]] and arguments["answer"] == ["Yes."]
    assert "tools" not in build_arguments([answer("Yes.")])


# ── for any calls ─────────────────────────────────────────────────────────────────────────────────

texts = st.text(st.characters(exclude_characters="\0<>`", exclude_categories=["Cs"]), max_size=6)
values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)
calls = st.lists(
    st.fixed_dictionaries(
        {"name": texts.filter(bool), "arguments": st.dictionaries(texts, values, max_size=3)}
    ),
    min_size=1,
    max_size=4,
)


def shuffled(value, chance: random.Random):
    """The same value with its keys in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, chance)) for key, item in value.items()]
        chance.shuffle(items)
        return dict(items)
    return [shuffled(item, chance) for item in value] if isinstance(value, list) else value


@given(calls, st.randoms(use_true_random=False))
def test_neither_the_order_of_calls_nor_that_of_keys_counts(made, chance):
    others = [shuffled(call, chance) for call in made]
    chance.shuffle(others)
    marked = "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in others)
    assert find_difference(made, marked) is None
    assert find_difference(made, json.dumps(others)) is None
    assert find_difference(made, "; ".join(map(json.dumps, others))) is None


@given(calls)
def test_a_call_more_or_less_or_one_other_argument_counts(made):
    text = json.dumps(made)
    assert find_difference(made[:-1], text) is not None
    assert find_difference([*made, made[0]], text) is not None
    other = {**made[0], "arguments": {**made[0]["arguments"], "one more": 1}}
    assert find_difference([other, *made[1:]], text) is not None


@given(st.text())
def test_no_text_breaks_it(text):
    with suppress(RowFault):
        parse_calls(text)
