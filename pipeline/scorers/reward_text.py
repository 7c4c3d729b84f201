"""Prompt and answer in a reward model's own tokens: through its chat template, or as question and answer.

What is longer than the model can see loses its beginning, so that the answer's end stays.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.models.bos import adds_bos, contains_bos, starts_with_two_bos

Message = dict[str, str]


class Unreadable(Exception):
    """Why a text cannot be put to the reward model."""


@dataclass(frozen=True, slots=True)
class Row:
    ids: list[int]
    segments: list[int] | None = (
        None  # 0 for the question, 1 for the answer, where the model tells them apart
    )
    cut: int = 0  # tokens that it lost


class RewardText:
    def __init__(
        self,
        tokenizer: Any,
        shape: Literal["chat", "pair"],
        kwargs: dict[str, Any],
        limit: int | None,
        knob: str
        | None = None,  # of the scorer that asks; None: the stage that trains a reward model
    ):
        if shape == "chat" and not tokenizer.chat_template:
            remedy = "template.chat_template=FILE"
            if knob:
                remedy = f"{knob}.{remedy}, or {knob}.input=pair where it reads question and answer"
            raise UserError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template.\n  Give {remedy}."
            )
        self.tokenizer, self.kwargs, self.limit = tokenizer, kwargs, limit
        self.row = self._chat if shape == "chat" else self._pair
        self.bos: int | None = tokenizer.bos_token_id
        self.begins = adds_bos(tokenizer)

    def _chat(self, prompt: list[Message], answer: str) -> Row:
        ids = self._templated([*prompt, {"role": "assistant", "content": answer}])
        over = 0 if self.limit is None else max(0, len(ids) - self.limit)
        if not over:
            return Row(ids)
        first = ids[:1] if ids[0] == self.bos else []
        return Row([*first, *ids[over + len(first) :]], cut=over)

    def _templated(self, messages: list[Message]) -> list[int]:
        """As the template writes it; where it forgets the BOS that the model was trained with, the tokenizer's."""
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **self.kwargs)
        except (
            Exception
        ) as error:  # it is the checkpoint's own code, and may raise whatever it likes
            raise Unreadable(
                f"the reward model's chat template does not render it: {error}"
            ) from error
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.begins and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]  # type: ignore[list-item]
        if starts_with_two_bos(ids, self.bos):
            raise Unreadable(
                f"it begins with more than one BOS ({self.tokenizer.bos_token}) of the reward model"
            )
        if self.bos != self.tokenizer.eos_token_id and any(
            contains_bos(self.tokenizer, m["content"]) for m in messages
        ):
            raise Unreadable(
                f"a text in it spells out the reward model's BOS ({self.tokenizer.bos_token})"
            )
        return ids

    def _pair(self, prompt: list[Message], answer: str) -> Row:
        question = "\n\n".join(message["content"] for message in prompt)
        whole = self.tokenizer(question, answer)
        over = 0 if self.limit is None else max(0, len(whole["input_ids"]) - self.limit)
        if over:
            whole = self.tokenizer(*self._shortened(question, answer, over))
        return Row(whole["input_ids"], whole.get("token_type_ids"), over)

    def _shortened(self, question: str, answer: str, over: int) -> tuple[str, str]:
        """Without its first tokens: the question's, and the answer's when that is not enough."""
        kept = []
        for text in (question, answer):
            spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
                "offset_mapping"
            ]
            gone = min(over, len(spans))
            kept.append(text[spans[gone][0] :] if gone < len(spans) else "")
            over -= gone
        return kept[0], kept[1]
