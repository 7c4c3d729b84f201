"""What the sampler is shown: the prompt, or the prompt with a setting's own system text and examples before it."""

from pipeline.backends import Message
from pipeline.config import SamplingSettings


def shown(setting: SamplingSettings, prompt: list[Message]) -> list[Message]:
    """The setting's system text stands above the prompt's own, its examples before the prompt's first turn."""
    own = [message for message in prompt[:1] if message["role"] == "system"]
    told = [text for text in (setting.system, *(message["content"] for message in own)) if text]
    system = [{"role": "system", "content": "\n\n".join(told)}] if told else []
    examples = [{"role": turn.role, "content": turn.content} for turn in setting.few_shot]
    return [*system, *examples, *prompt[len(own) :]]
