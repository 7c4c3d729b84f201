"""Tools as messages of two texts: read in every published form, and given back in OpenAI's."""

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.duplicates import find_duplicates
from pipeline.data.prompts import build_prompt_row, convert_row
from pipeline.data.readers import RowFault
from pipeline.data.tool_turns import (
    add_tools,
    pack_messages,
    read_tools,
    split_answer,
    to_answer,
    unpack_messages,
)
from tests.support.tools import WEATHER, answering, ask, call, calling, result

TALK = [ask("Rome"), calling(call("Rome")), result("21")]


def test_messages_without_tools_are_returned_as_they_are():
    plain = [{"role": "user", "content": "hello", "name": "Ann"}]
    assert pack_messages(plain) is plain and add_tools(plain, None) is plain
    assert add_tools(plain, []) is plain and unpack_messages(plain) == (plain, [])


def test_calls_results_and_schemas_are_messages_of_two_texts():
    packed = add_tools(pack_messages(TALK), [WEATHER])
    assert [message["role"] for message in packed] == ["tools", "user", "tool_calls", "tool"]
    assert all(message.keys() == {"role", "content"} for message in packed)
    assert json.loads(packed[0]["content"]) == [WEATHER]
    assert json.loads(packed[2]["content"]) == [
        {"name": "get_weather", "arguments": {"city": "Rome"}}
    ]
    assert pack_messages(packed) == packed, "a published table can be read again"


def test_a_system_message_stays_first():
    system = {"role": "system", "content": "Be brief."}
    packed = add_tools([system, ask("Rome")], [WEATHER])
    assert [message["role"] for message in packed] == ["system", "tools", "user"]


def test_given_back_they_have_openai_s_shape():
    packed = add_tools(pack_messages([*TALK, answering("Yes."), ask("Oslo")]), [WEATHER])
    messages, tools = unpack_messages(packed)
    assert tools == [WEATHER]
    assert messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call00001",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Rome"}},
            }
        ],
    }
    names = {"name": "get_weather", "tool_call_id": "call00001"}
    assert messages[2] == {"role": "tool", "content": "21", **names}
    assert messages[3:] == [answering("Yes."), ask("Oslo")]
    served, _ = unpack_messages(packed, encode=json.dumps)
    assert served[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'


def test_text_and_calls_of_one_turn_stay_one_turn():
    packed = pack_messages([ask("Rome"), calling(call("Rome"), text="I look.")])
    assert [message["role"] for message in packed] == ["user", "assistant", "tool_calls"]
    messages, _ = unpack_messages(packed)
    assert len(messages) == 2
    assert messages[1]["content"] == "I look." and messages[1]["tool_calls"]
    prompt, answer = split_answer(packed)
    assert prompt == packed[:1] and answer == packed[1:] == to_answer(answer)


def test_results_are_in_the_order_of_their_calls():
    calls = calling(call("Rome", "x"), call("Oslo", "y"))
    one = pack_messages([ask("Rome"), calls, result("21", "x"), result("3", "y")])
    assert one == pack_messages([ask("Rome"), calls, result("3", "y"), result("21", "x")])
    assert [message["content"] for message in one[-2:]] == ["21", "3"]


def test_llama_factory_s_speakers_are_read():
    function = {"name": "get_weather", "arguments": {"city": "Rome"}}
    turns = [
        {"from": "human", "value": "Is it warm in Rome?"},
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "observation", "value": "21"},
        {"from": "gpt", "value": "Yes."},
    ]
    tools = json.dumps([WEATHER["function"]])
    row = convert_row("sharegpt", {"conversations": turns, "tools": tools})
    assert row["prompt"] == add_tools(pack_messages(TALK), [WEATHER])
    assert json.loads(row["columns"]) == {"answer": "Yes."}


@pytest.mark.parametrize(
    "value",
    [
        [WEATHER],
        WEATHER,
        json.dumps([WEATHER]),
        [json.dumps(WEATHER)],
        [WEATHER["function"]],
        [{**WEATHER, "strict": None}],
    ],
)
def test_schemas_are_read_in_every_published_form(value):
    assert read_tools(value) == [WEATHER]


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([ask("Rome"), result("21")], "answers no call"),
        ([ask("Rome"), calling({"id": "a"}), result("21", "a")], "is not {name: text, arguments"),
        ([ask("Rome"), calling({"name": "f", "arguments": "{"})], "of f are not a JSON object"),
        ([ask("Rome"), calling({"name": "f", "arguments": [1]})], "of f are not a JSON object"),
        ([ask("Rome"), calling({"name": "f", "arguments": '{"a": NaN}'})], "not a JSON object"),
        (
            [ask("Rome"), calling(call("Rome", "x"), call("Oslo", "y")), result("21", "x")],
            "a tool call has no result",
        ),
        ([ask("Rome"), {"role": "tool_calls", "content": "[]"}], "a turn of tool calls has none"),
        ([ask("Rome"), {"role": "tool_calls", "content": "f()"}], "tool calls are not JSON"),
        ([ask("Rome"), {"role": "owl", "content": "x"}, result("1")], "answers no call"),
        ([{"role": "owl", "content": "x"}], "a message is not {role: system|user|assistant|tool"),
        ([calling(call("Rome")), 3], "a message is not"),
    ],
)
def test_what_no_template_could_render_is_named(messages, fault):
    with pytest.raises(RowFault, match=None) as error:
        pack_messages(messages)
    assert fault in str(error.value)


@pytest.mark.parametrize("value", ["search, add", [3], [{"name": ""}], {"description": "x"}])
def test_a_column_tools_that_holds_something_else_is_named(value):
    with pytest.raises(RowFault, match="'tools' is not a list of JSON schemas"):
        read_tools(value)


def test_tools_are_a_part_of_a_prompt_s_id_and_prompts_without_them_keep_theirs():
    plain = convert_row("prompt", {"prompt": "Is it warm in Rome?"})
    assert plain["prompt_id"] == build_prompt_row([ask("Rome")], {})["prompt_id"]
    assert plain["prompt_id"] == "4e89232aea9c6bc0"
    with_tools = convert_row("prompt", {"prompt": "Is it warm in Rome?", "tools": [WEATHER]})
    assert with_tools["prompt_id"] != plain["prompt_id"]
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "other"}}
    again = convert_row("prompt", {"prompt": "Is it warm in Rome?", "tools": [other]})
    assert again["prompt_id"] != with_tools["prompt_id"]
    without = convert_row("prompt", {"prompt": "Is it warm in Rome?", "tools": None})
    assert without["prompt_id"] == plain["prompt_id"]


def test_the_calls_that_end_a_conversation_are_a_column():
    messages = [*TALK, answering("Yes."), ask("Oslo"), calling(call("Oslo"), text="I look.")]
    row = convert_row("messages", {"messages": messages, "tools": [WEATHER]})
    assert row["prompt"][-1] == ask("Oslo") and row["asked"] == [
        ask("Rome")["content"],
        ask("Oslo")["content"],
    ]
    expected = [{"name": "get_weather", "arguments": {"city": "Oslo"}}]
    assert json.loads(row["columns"]) == {"answer": "I look.", "tool_calls": expected}


def test_shared_tools_make_no_near_duplicates_and_other_tools_no_duplicates():
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "other"}}
    asked = [("Is it warm in Rome?", WEATHER), ("How far is it to the sea?", WEATHER)]
    asked += [("Is it warm in Rome?", other), ("is it warm in rome", WEATHER)]
    rows = [convert_row("prompt", {"prompt": text, "tools": [tool]}) for text, tool in asked]
    table = pl.DataFrame([{name: row[name] for name in ("prompt_id", "prompt")} for row in rows])
    found = find_duplicates(table, 0.5)
    assert found["at"].to_list() == [3] and found["reason"].to_list() == ["duplicate"]


def test_a_prompt_may_end_with_a_result():
    row = convert_row("messages", {"messages": [*TALK, answering("Yes.")]})
    assert row["prompt"][-1] == {"role": "tool", "content": "21"}
    with pytest.raises(RowFault, match="no message is the user's"):
        convert_row("prompt", {"prompt": [calling(call("Rome")), result("21")]})


# ── for any conversation ──────────────────────────────────────────────────────────────────────────

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
named_calls = st.fixed_dictionaries(
    {"name": texts.filter(bool), "arguments": st.dictionaries(texts, values, max_size=3)}
)


@st.composite
def conversations(draw):
    messages = [{"role": "user", "content": draw(texts)}]
    for _ in range(draw(st.integers(0, 3))):
        calls = draw(st.lists(named_calls, min_size=1, max_size=3))
        named = [
            {"id": str(at), "type": "function", "function": each} for at, each in enumerate(calls)
        ]
        results = draw(st.permutations([result(draw(texts), str(at)) for at in range(len(calls))]))
        text = draw(st.none() | texts.filter(bool))
        messages += [calling(*named, text=text), *results, answering(draw(texts))]
        messages += [{"role": "user", "content": draw(texts)}]
    return messages


@given(conversations())
def test_nothing_is_lost_between_openai_s_shape_and_ours(messages):
    packed = pack_messages(messages)
    assert pack_messages(packed) == packed
    unpacked, _ = unpack_messages(packed)
    assert pack_messages(unpacked) == packed
    assert [turn["role"] for turn in unpacked] == [turn["role"] for turn in messages]

    def list_calls(turns):
        turns = [turn for turn in turns if turn.get("tool_calls")]
        return [[each["function"] for each in turn["tool_calls"]] for turn in turns]

    assert list_calls(unpacked) == list_calls(messages)
