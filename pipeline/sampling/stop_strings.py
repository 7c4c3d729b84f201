"""Finds positions of a text in its tokens: cuts before stop strings, counts reasoning tokens.

Texts are compared as `decode_raw` writes them, special tokens included. A cut completion keeps its
sampled tokens, one for one. Only where a stop string begins inside a token is that token's
beginning encoded anew.
"""

from bisect import bisect_left
from dataclasses import replace
from functools import lru_cache

from pipeline.backends import ChatTokenizer, Completion
from pipeline.config import Reasoning
from pipeline.errors import StageError

# A character of four bytes may take as many tokens, and decodes to something else until complete.
MAX_CHARACTER_TOKENS = 4
PROMPT_TAIL = 32  # last tokens of a prompt, where a template may open the reasoning itself


def cut_at_stop(
    tokenizer: ChatTokenizer, stops: list[str], completion: Completion
) -> tuple[Completion, str | None]:
    """Cut before the stop string that is complete first, end with EOS; return that string as well.

    Without a stop string the completion is returned unchanged.
    """
    ids = strip_end_token(completion)
    text = tokenizer.decode_raw(ids) if stops else ""
    matches = [(at + len(stop), at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not matches:
        return completion, None
    _, at, stop = min(matches)
    kept = [*find_prefix(tokenizer, ids, text[:at]), tokenizer.eos]
    return replace(completion, token_ids=kept, logprob=None, finish_reason="stop", text=None), stop


def find_prefix(tokenizer: ChatTokenizer, ids: list[int], prefix: str) -> list[int]:
    """The fewest tokens that decode to `prefix`, a prefix of the text of `ids`."""
    size = count_tokens_for(tokenizer, ids, len(prefix))
    for longer in range(size, min(size + MAX_CHARACTER_TOKENS, len(ids)) + 1):
        if tokenizer.decode_raw(ids[:longer]) == prefix:
            return ids[:longer]
    while not prefix.startswith(tokenizer.decode_raw(ids[:size])):
        size -= 1
    rest = prefix[len(tokenizer.decode_raw(ids[:size])) :]
    candidates = (
        [*ids[:size], *tokenizer.encode_text(rest)],
        # For tokenizers that put a space before the first word of a text.
        tokenizer.encode_text(prefix),
    )
    for candidate in candidates:
        if tokenizer.decode_raw(candidate) == prefix:
            return candidate
    raise StageError(
        f"sample: the tokenizer has no tokens that read as {prefix[-40:]!r},"
        " where a completion has to be cut before a stop string.\n"
        "  Give a stop string that begins where a word does, such as a line break."
    )


def count_tokens_for(tokenizer: ChatTokenizer, ids: list[int], characters: int) -> int:
    """The number of tokens needed to decode that many characters."""

    def count_characters(size: int) -> int:
        return len(tokenizer.decode_raw(ids[:size]))

    return bisect_left(range(len(ids)), characters, key=count_characters)


def count_reasoning_tokens(
    tokenizer: ChatTokenizer,
    delimiters: Reasoning | None,
    prompt_ids: list[int],
    completion: Completion,
) -> int:
    """The tokens up to the closing delimiter; all of them if reasoning was opened, never closed."""
    if delimiters is None:
        return 0
    text = tokenizer.decode_raw(strip_end_token(completion))
    if (at := text.find(delimiters.close)) >= 0:
        return count_tokens_for(tokenizer, completion.token_ids, at + len(delimiters.close))
    is_opened = delimiters.open in text or opens_reasoning(
        tokenizer, delimiters.open, tuple(prompt_ids[-PROMPT_TAIL:])
    )
    return len(completion.token_ids) if is_opened else 0


@lru_cache(maxsize=4096)
def opens_reasoning(tokenizer: ChatTokenizer, opening: str, prompt_end: tuple[int, ...]) -> bool:
    """Whether a prompt opens the reasoning at its end. Cached for the prompt's other samples."""
    return tokenizer.decode_raw([*prompt_end]).rstrip().endswith(opening)


def strip_end_token(completion: Completion) -> list[int]:
    """The tokens without the stop token."""
    return completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
