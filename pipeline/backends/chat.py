"""A checkpoint's tokenizer with its chat template, its stop tokens and its context length."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from pipeline.artifacts import Model
from pipeline.backends import Completion, Message
from pipeline.data.tool_turns import Answer, to_text, to_turns, uses_tools
from pipeline.errors import UnrenderableTemplate, UserError
from pipeline.models.bos import REMEDY, starts_with_two_bos
from pipeline.models.chat_template import encode_rendered, render_template

DECODERS = "decode", "_decode"  # what a tokenizer's class may do otherwise
PROBE: list[Message] = [{"role": "user", "content": "Who are you?"}]


class ModelTokenizer:
    def __init__(self, model: Model, tokenizer: Any = None):
        """`tokenizer`: the model's, already loaded, perhaps with another chat template."""
        from transformers import AutoConfig, AutoTokenizer

        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(
            model.tokenizer, trust_remote_code=model.remote_code
        )
        config = AutoConfig.from_pretrained(
            model.weights, revision=model.revision, trust_remote_code=model.remote_code
        ).get_text_config()
        self.config = config
        self.source = str(model.path)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.stop_ids = sorted({self.tokenizer.eos_token_id, *_read_stop_ids(model, config)})
        self.bos: int | None = self.tokenizer.bos_token_id

    @property
    def vocabulary_size(self) -> int:
        """Every token id is below it: a model's embedding is often larger than its vocabulary."""
        return max(len(self.tokenizer), getattr(self.config, "vocab_size", 0))

    @property
    def pad(self) -> int:
        """Any id works, because padding is masked."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def leading_bos(self) -> int | None:
        """BOS if it only begins a text. None if it also ends one, or if there is none."""
        return None if self.bos in self.stop_ids else self.bos

    @property
    def writes_date(self) -> bool:
        """Whether the template writes the current date."""
        return "strftime_now" in str(self.tokenizer.chat_template)

    def encode(self, messages: list[Message], kwargs: dict[str, Any]) -> list[int]:
        ids = encode_rendered(self.tokenizer, self.render(messages, kwargs, generation=True))
        self._check_bos(ids)
        return ids

    def decode(self, completion: Completion) -> str:
        [text] = self.decode_all([completion])
        return text

    def decode_all(self, completions: list[Completion]) -> list[str]:
        # The stop token need not be one of the special tokens, so it is cut off here.
        rows = [
            one.token_ids[:-1] if one.finish_reason == "stop" else one.token_ids
            for one in completions
        ]
        if self._decodes_plainly:
            # By the library itself, which lets other threads run: transformers takes twice as long.
            texts: list[str] = self.tokenizer.backend_tokenizer.decode_batch(
                rows, skip_special_tokens=True
            )
            return texts
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return [self.tokenizer.decode(row, **how) for row in rows]

    @cached_property
    def _decodes_plainly(self) -> bool:
        """Whether transformers adds nothing to what the library decodes."""
        from transformers import PreTrainedTokenizerFast as Plain

        kind = type(self.tokenizer)
        own = any(getattr(kind, name) is not getattr(Plain, name, None) for name in DECODERS)
        return issubclass(kind, Plain) and not own

    def decode_raw(self, ids: list[int]) -> str:
        if self._decodes_plainly:
            text: str = self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
            return text
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def encode_text(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode_literal(self, text: str) -> list[int]:
        """The tokens of a text that arrived as text: a special token spelled in it stays text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    @property
    def eos(self) -> int:
        return self.tokenizer.eos_token_id

    def render(self, messages: list[Message], kwargs: dict[str, Any], generation: bool) -> str:
        """The template's text: a prompt up to the answer's start, or a whole conversation."""
        return render_template(
            self.tokenizer, messages, kwargs, partial(self._explain_template, messages), generation
        )

    def _explain_template(self, messages: list[Message], error: Exception) -> UserError:
        remedy = "Give the messages in the roles and the order it knows"
        if uses_tools(messages):
            remedy = "Give rows without tools and without the role tool"
        return UnrenderableTemplate(
            f"{self.source}: its chat template does not render {str(messages)[:200]}: {error}.\n"
            f"  {remedy}, or another template.chat_template=FILE."
        )

    def check_template(self, kwargs: dict[str, Any]) -> None:
        """Make the checks of `pair` with one plain question, before anything is sampled."""
        self.encode(PROBE, kwargs)
        self.check_prompt_prefix(PROBE, kwargs)

    def check_prompt_prefix(self, messages: list[Message], kwargs: dict[str, Any]) -> None:
        self._render_with_answer(messages, "I am.", kwargs)

    def encode_answer(
        self, messages: list[Message], answer: Answer, kwargs: dict[str, Any]
    ) -> list[int]:
        """An answer that was not sampled, as a sampler would give it: up to its stop token."""
        rendered = self._render_with_answer(messages, answer, kwargs)
        ids = encode_continuation(self.tokenizer, *rendered)
        ends = [at for at, token in enumerate(ids) if token in self.stop_ids]
        if not ends:
            raise UserError(
                f"{self.source}: its chat template does not close an answer with a stop token "
                f"({self.tokenizer.eos_token}): the model would never learn to stop.\n"
                "  Set eos_token in tokenizer_config.json to the token that ends a turn,"
                " or give template.chat_template=FILE."
            )
        # Stop tokens spelled in the answer itself do not end it.
        within = sum(token in self.stop_ids for token in self.encode_text(to_text(answer)))
        return ids[: ends[min(within, len(ends) - 1)] + 1]

    def write_answer(
        self, messages: list[Message], answer: Answer, kwargs: dict[str, Any]
    ) -> tuple[str, list[int]]:
        """An answer's text and tokens. Calls read as the chat template writes them."""
        ids = self.encode_answer(messages, answer, kwargs)
        if isinstance(answer, str):
            return answer, ids
        text: str = self.tokenizer.decode(
            ids[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text, ids

    def _render_with_answer(
        self, messages: list[Message], answer: Answer, kwargs: dict[str, Any]
    ) -> tuple[str, str]:
        """The rendered prompt, and the whole conversation, which has to begin with it."""
        prompt = self.render(messages, kwargs, generation=True)
        conversation = self.render([*messages, *to_turns(answer)], kwargs, generation=False)
        if not conversation.startswith(prompt):
            raise UserError(
                f"{self.source}: its chat template renders a prompt in one way alone"
                " and in another with its answer.\n"
                f"  {describe_difference(prompt, conversation[: len(prompt)])}\n"
                "  Give a template.chat_template=FILE (or template.kwargs) that keeps the prompt."
            )
        return prompt, conversation

    def spell_tokens(self, ids: list[int]) -> list[str]:
        """Each token as the vocabulary spells it."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(ids)]

    def _check_bos(self, ids: list[int]) -> None:
        if starts_with_two_bos(ids, self.bos):
            raise UserError(
                f"{self.source}: a templated prompt begins with two BOS"
                f" ({self.tokenizer.bos_token}): {self.spell_tokens(ids[:4])}; one was expected.\n"
                f"  {REMEDY}"
            )


def encode_continuation(tokenizer: Any, prompt: str, conversation: str) -> list[int]:
    """The tokens of what follows a prompt in its conversation, as tokenised within it.

    SentencePiece puts a space before the first word of a text, but not before the same word after
    a prompt.
    """
    before, ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, conversation)
    )
    if ids[: len(before)] == before:
        return list(ids[len(before) :])
    # Where the prompt's end and the answer's start form one token, the sampler still saw the
    # prompt's own tokens.
    return list(tokenizer(conversation[len(prompt) :], add_special_tokens=False)["input_ids"])


def describe_difference(expected: Sequence[str], found: Sequence[str], around: int = 20) -> str:
    """Where two texts or lists of tokens first differ, with the parts before and after."""
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    start, end = max(0, at - around), at + around
    return f"They part at {at}: {expected[start:end]!r} was expected, {found[start:end]!r} found."


def _read_stop_ids(model: Model, config: Any) -> list[int]:
    """The EOS ids of generation_config.json, or else of config.json. Some models have several."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model.weights, revision=model.revision).eos_token_id
    except OSError:
        eos = config.eos_token_id
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)
