"""Prompt and answer as a reward model's token ids: by its chat template, or as a text pair.

A text longer than the model's context loses its beginning, so that the answer's end stays.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.data.tool_turns import Answer, to_text, to_turns
from pipeline.errors import UserError
from pipeline.models.bos import adds_bos, contains_bos, starts_with_two_bos
from pipeline.models.chat_template import encode_rendered, render_template

Message = dict[str, str]


class UnreadableText(Exception):
    """Why the reward model cannot read a text."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    ids: list[int]
    # 0 for the question, 1 for the answer, where the model distinguishes them
    segments: list[int] | None = None
    tokens_cut: int = 0


class RewardEncoder:
    """`knob` is that of the scorer; None: a stage that trains a reward model encodes with it."""

    def __init__(
        self,
        tokenizer: Any,
        shape: Literal["chat", "pair"],
        kwargs: dict[str, Any],
        limit: int | None,
        knob: str | None = None,
    ):
        if shape == "chat" and not tokenizer.chat_template:
            remedy = "template.chat_template=FILE"
            if knob:
                remedy = f"{knob}.{remedy}, or {knob}.input=pair where it reads question and answer"
            raise UserError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template.\n  Give {remedy}."
            )
        self.tokenizer, self.kwargs, self.limit = tokenizer, kwargs, limit
        self.encode = self._encode_chat if shape == "chat" else self._encode_pair
        self.bos: int | None = tokenizer.bos_token_id
        self.adds_bos = adds_bos(tokenizer)

    def _encode_chat(self, prompt: list[Message], answer: Answer) -> EncodedRow:
        ids = self._render([*prompt, *to_turns(answer)])
        excess = self._count_excess(ids)
        if not excess:
            return EncodedRow(ids)
        first = ids[:1] if ids[0] == self.bos else []
        return EncodedRow([*first, *ids[excess + len(first) :]], tokens_cut=excess)

    def _count_excess(self, ids: list[int]) -> int:
        return 0 if self.limit is None else max(0, len(ids) - self.limit)

    def _render(self, messages: list[Message]) -> list[int]:
        """The template's tokens.

        If it omits the BOS that the model was trained with, the tokenizer adds it.
        """
        text = render_template(self.tokenizer, messages, self.kwargs, _explain_template, False)
        ids = encode_rendered(self.tokenizer, text)
        if self.adds_bos and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]  # type: ignore[list-item]
        bos_token = self.tokenizer.bos_token
        if starts_with_two_bos(ids, self.bos):
            raise UnreadableText(
                f"it begins with more than one BOS ({bos_token}) of the reward model"
            )
        if self.bos != self.tokenizer.eos_token_id and any(
            contains_bos(self.tokenizer, message["content"]) for message in messages
        ):
            raise UnreadableText(f"a text in it spells out the reward model's BOS ({bos_token})")
        return ids

    def _encode_pair(self, prompt: list[Message], answer: Answer) -> EncodedRow:
        answer = to_text(answer)
        question = "\n\n".join(message["content"] for message in prompt)
        encoded = self.tokenizer(question, answer)
        excess = self._count_excess(encoded["input_ids"])
        if excess:
            encoded = self.tokenizer(*self._shorten(question, answer, excess))
        return EncodedRow(encoded["input_ids"], encoded.get("token_type_ids"), excess)

    def _shorten(self, question: str, answer: str, excess: int) -> tuple[str, str]:
        """Without the first tokens: the question's, and the answer's when those are not enough."""
        shortened = []
        for text in (question, answer):
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = encoded["offset_mapping"]
            cut = min(excess, len(spans))
            shortened.append(text[spans[cut][0] :] if cut < len(spans) else "")
            excess -= cut
        return shortened[0], shortened[1]


def _explain_template(error: Exception) -> UnreadableText:
    return UnreadableText(f"the reward model's chat template does not render it: {error}")
