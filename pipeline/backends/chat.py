"""A checkpoint's own words: its tokenizer with its chat template, its stop tokens, the length of its context."""

from collections.abc import Sequence
from typing import Any

from pipeline.artifacts import Model
from pipeline.backends import Completion, Message
from pipeline.errors import UnrenderableTemplate, UserError
from pipeline.models.bos import REMEDY, is_doubled

PROBE: list[Message] = [{"role": "user", "content": "Who are you?"}]


class Chat:
    def __init__(self, model: Model):
        from transformers import AutoConfig, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(
            model.tokenizer, trust_remote_code=model.remote_code
        )
        config = AutoConfig.from_pretrained(
            model.weights, revision=model.revision, trust_remote_code=model.remote_code
        ).get_text_config()
        self.config = config
        self.where = str(model.path)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.stops = sorted({self.tokenizer.eos_token_id, *_generation_stops(model, config)})
        self.bos: int | None = self.tokenizer.bos_token_id

    @property
    def size(self) -> int:
        """Ids below it can be a token: a model's matrix is often larger than its tokenizer's words."""
        return max(len(self.tokenizer), getattr(self.config, "vocab_size", 0))

    @property
    def pad(self) -> int:
        """Any id does: what is padded is masked."""
        return (
            self.tokenizer.eos_token_id
            if self.tokenizer.pad_token_id is None
            else self.tokenizer.pad_token_id
        )

    @property
    def only_bos(self) -> int | None:
        """BOS where it does nothing but begin a text; None where it also ends one, or where there is none."""
        return None if self.bos in self.stops else self.bos

    @property
    def dated(self) -> bool:
        """Whether its template writes the day on which it is rendered."""
        return "strftime_now" in str(self.tokenizer.chat_template)

    def encode(self, messages: list[Message], kwargs: dict[str, Any]) -> list[int]:
        ids: list[int] = self._templated(
            messages, add_generation_prompt=True, return_dict=False, **kwargs
        )
        self._check_bos(ids)
        return ids

    def decode(self, completion: Completion) -> str:
        ended = (
            completion.finish_reason == "stop"
        )  # by a stop token, which need not be one of the special tokens
        ids = completion.token_ids[:-1] if ended else completion.token_ids
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def read(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def pieces(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def spelled(self, text: str) -> list[int]:
        """The tokens of text that came without any: a special token that is spelled out there is text as well."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    @property
    def end(self) -> int:
        return self.tokenizer.eos_token_id

    def render(self, messages: list[Message], kwargs: dict[str, Any], generation: bool) -> str:
        """What the template writes: a prompt up to where the answer begins, or a whole conversation."""
        return self._templated(messages, tokenize=False, add_generation_prompt=generation, **kwargs)

    def _templated(self, messages: list[Message], **how: Any) -> Any:
        return templated(self.tokenizer, self.where, messages, **how)

    def check_template(self, kwargs: dict[str, Any]) -> None:
        """What `pair` holds its rows to, asked of one plain question before anything is drawn."""
        self.encode(PROBE, kwargs)
        self.check_kept(PROBE, kwargs)

    def check_kept(self, messages: list[Message], kwargs: dict[str, Any]) -> None:
        self._with_answer(messages, "I am.", kwargs)

    def answer(self, messages: list[Message], text: str, kwargs: dict[str, Any]) -> list[int]:
        """An answer that was not sampled, in the tokens a sampler should have drawn, up to the one that ends it."""
        ids = continuation(self.tokenizer, *self._with_answer(messages, text, kwargs))
        ends = [at for at, token in enumerate(ids) if token in self.stops]
        if not ends:
            raise UserError(
                f"{self.where}: its chat template does not close an answer with a stop token "
                f"({self.tokenizer.eos_token}): the model would never learn to stop.\n"
                f"  Set eos_token in tokenizer_config.json to what ends a turn, or give template.chat_template=FILE."
            )
        spelled = sum(token in self.stops for token in self.pieces(text))
        return ids[: ends[min(spelled, len(ends) - 1)] + 1]

    def _with_answer(
        self, messages: list[Message], text: str, kwargs: dict[str, Any]
    ) -> tuple[str, str]:
        """The prompt as it is rendered alone, and the whole conversation, which has to begin with it."""
        shown = self.render(messages, kwargs, generation=True)
        whole = self.render(
            [*messages, {"role": "assistant", "content": text}], kwargs, generation=False
        )
        if not whole.startswith(shown):
            raise UserError(
                f"{self.where}: its chat template writes a prompt in one way alone and in another with its answer.\n"
                f"  {differing(shown, whole[: len(shown)])}\n"
                f"  Give a template.chat_template=FILE (or template.kwargs) that keeps the prompt."
            )
        return shown, whole

    def spell(self, ids: list[int]) -> list[str]:
        """Each token as it is written in the vocabulary."""
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(ids)]

    def _check_bos(self, ids: list[int]) -> None:
        if is_doubled(ids, self.bos):
            raise UserError(
                f"{self.where}: a templated prompt begins with two BOS ({self.tokenizer.bos_token}): "
                f"{self.spell(ids[:4])}; one was expected.\n  {REMEDY}"
            )


def templated(tokenizer: Any, where: str, messages: list[Message], **how: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(messages, **how)
    except Exception as error:  # it is the checkpoint's own code, and may raise whatever it likes
        raise UnrenderableTemplate(
            f"{where}: its chat template does not render {str(messages)[:200]}: {error}.\n"
            f"  Give the messages in the roles and the order it knows, or another template.chat_template=FILE."
        ) from error


def continuation(tokenizer: Any, shown: str, whole: str) -> list[int]:
    """The tokens of what a conversation has after its prompt, as they are within it.

    SentencePiece marks the first word of a text, and not the same word after a prompt.
    """
    before, ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (shown, whole)
    )
    if ids[: len(before)] == before:
        return list(ids[len(before) :])
    # Where the prompt's end and the answer's start make one token, the prompt's own tokens are what was drawn from.
    return list(tokenizer(whole[len(shown) :], add_special_tokens=False)["input_ids"])


def differing(one: Sequence[str], other: Sequence[str], around: int = 20) -> str:
    """Where two texts or lists of tokens part, with what stands before and after."""
    at = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    start, end = max(0, at - around), at + around
    return f"They part at {at}: {one[start:end]!r} was expected, {other[start:end]!r} is there."


def _generation_stops(model: Model, config: Any) -> list[int]:
    """The EOS ids of generation_config.json, or of config.json where there is none; some models have several."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model.weights, revision=model.revision).eos_token_id
    except OSError:
        eos = config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
