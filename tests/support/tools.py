"""Conversations with tools, and a chat template that takes them as Qwen's does."""

from typing import Any

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# Schemas before the turns; calls between marks; a result as the user's turn, between marks.
TOOL_CHAT = (
    "{{ bos_token }}{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "<|end|>{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}<|user|><tool_response>{{ m.content }}</tool_response><|end|>"
    "{% else %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def ask(city: str) -> dict[str, Any]:
    return {"role": "user", "content": f"Is it warm in {city}?"}


def call(city: str, name: str = "a1") -> dict[str, Any]:
    """A call as OpenAI writes it: arguments are a JSON text."""
    function = {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'}
    return {"id": name, "type": "function", "function": function}


def calling(*calls: dict[str, Any], text: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "tool_calls": list(calls)}


def result(text: str, name: str = "a1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": text}


def answering(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def write_call(city: str) -> str:
    """A call as the template writes it."""
    return f'<tool_call>{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}</tool_call>'
