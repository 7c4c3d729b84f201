"""A checkpoint's own words: its tokenizer with its chat template, its stop tokens, the length of its context."""

from typing import Any

from pipeline.artifacts import Model
from pipeline.backends import Completion, Message
from pipeline.errors import Refusal


class Chat:
    def __init__(self, model: Model):
        from transformers import AutoConfig, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=model.remote_code)
        config = AutoConfig.from_pretrained(
            model.weights, revision=model.revision, trust_remote_code=model.remote_code
        ).get_text_config()
        self.where = str(model.path)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.stops = sorted({self.tokenizer.eos_token_id, *_generation_stops(model, config)})
        self._bos = self.tokenizer.bos_token_id
        # A tokenizer that puts BOS before plain text has a model that was trained with one.
        self._begins = self._bos is not None and self.tokenizer("a")["input_ids"][:1] == [self._bos]

    @property
    def pad(self) -> int:
        """Any id does: what is padded is masked."""
        return self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    def encode(self, messages: list[Message], kwargs: dict[str, Any]) -> list[int]:
        from jinja2 import TemplateError

        try:
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False, **kwargs
            )
        except TemplateError as error:
            raise Refusal(
                f"{self.where}: its chat template does not render the prompt {str(messages)[:200]}: {error}.\n"
                f"  Give the messages in the roles and the order it knows, or another template.chat_template=FILE."
            ) from error
        self._check_bos(ids)
        return ids

    def decode(self, completion: Completion) -> str:
        ended = completion.finish_reason == "stop"  # by a stop token, which need not be one of the special tokens
        ids = completion.token_ids[:-1] if ended else completion.token_ids
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _check_bos(self, ids: list[int]) -> None:
        doubled = self._bos is not None and ids[:2] == [self._bos, self._bos]
        missing = self._begins and ids[:1] != [self._bos]
        if doubled or missing:
            raise Refusal(
                f"{self.where}: a templated prompt begins with {'two' if doubled else 'no'} BOS "
                f"({self.tokenizer.bos_token}); exactly one was expected.\n"
                f"  {'Remove one from' if doubled else 'Put {{ bos_token }} at the start of'} the chat template, "
                f"and give it as template.chat_template=FILE."
            )


def _generation_stops(model: Model, config: Any) -> list[int]:
    """The EOS ids of generation_config.json, or of config.json where there is none; some models have several."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(model.weights, revision=model.revision).eos_token_id
    except OSError:
        eos = config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
