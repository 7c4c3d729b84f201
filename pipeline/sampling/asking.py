"""The messages shown to the sampler: the prompt, with a setting's own system text and examples."""

from pipeline.backends import Message
from pipeline.config import SamplingSettings


def begin_answer(prompt: list[Message], prefix: str) -> list[Message]:
    """A prompt whose last message is the beginning of its answer."""
    return [*prompt, {"role": "assistant", "content": prefix}]


def build_messages(setting: SamplingSettings, prompt: list[Message]) -> list[Message]:
    """The setting's system text precedes the prompt's own, its examples the prompt's first turn."""
    own = [message for message in prompt[:1] if message["role"] == "system"]
    texts = [text for text in (setting.system, *(message["content"] for message in own)) if text]
    system = [{"role": "system", "content": "\n\n".join(texts)}] if texts else []
    examples = [{"role": turn.role, "content": turn.content} for turn in setting.few_shot]
    return [*system, *examples, *prompt[len(own) :]]
