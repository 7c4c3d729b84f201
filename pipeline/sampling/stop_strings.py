"""Places of a text found in its tokens: a completion is cut before a stop string, and thinking is counted apart.

Texts are compared as `Text.read` writes them, special tokens included. What is left of a cut completion is what was
drawn, token for token; only where a stop string begins inside a token is that token's beginning written anew.
"""

from bisect import bisect_left
from dataclasses import replace
from functools import lru_cache

from pipeline.backends import Completion, Text
from pipeline.config import Reasoning
from pipeline.errors import StageError

SPLIT = 4  # a character of four bytes may lie in as many tokens, and reads as something else until it is whole
TAIL = 32  # tokens that end a prompt, among which a template opens the thinking itself


def cut(text: Text, stops: list[str], completion: Completion) -> tuple[Completion, str | None]:
    """The completion up to the stop string that is complete first, ended with EOS, and that string; or as it is."""
    ids = inside(completion)
    words = text.read(ids) if stops else ""
    found = [(at + len(stop), at, stop) for stop in stops if (at := words.find(stop)) >= 0]
    if not found:
        return completion, None
    _, at, stop = min(found)
    kept = [*up_to(text, ids, words[:at]), text.end]
    return replace(completion, token_ids=kept, logprob=None, finish_reason="stop", text=None), stop


def up_to(text: Text, ids: list[int], kept: str) -> list[int]:
    """The fewest tokens that read as `kept`, a beginning of what `ids` read as."""
    first = reaching(text, ids, len(kept))
    for size in range(first, min(first + SPLIT, len(ids)) + 1):
        if text.read(ids[:size]) == kept:
            return ids[:size]
    while not kept.startswith(text.read(ids[:first])):
        first -= 1
    anew = [*ids[:first], *text.pieces(kept[len(text.read(ids[:first])) :])]
    for found in (
        anew,
        text.pieces(kept),
    ):  # the second for tokenizers that write a piece with a space before it
        if text.read(found) == kept:
            return found
    raise StageError(
        f"sample: the tokenizer has no tokens that read as {kept[-40:]!r}, where a completion has to be cut before a"
        " stop string.\n  Give a stop string that begins where a word does, such as a line break."
    )


def reaching(text: Text, ids: list[int], characters: int) -> int:
    """How many tokens it takes to read so many characters."""
    return bisect_left(range(len(ids)), characters, key=lambda size: len(text.read(ids[:size])))


def thinking(text: Text, marks: Reasoning | None, asked: list[int], completion: Completion) -> int:
    """The tokens up to the mark that closes the thinking; all of them where it was opened and never closed."""
    if marks is None:
        return 0
    words = text.read(inside(completion))
    if (at := words.find(marks.close)) >= 0:
        return reaching(text, completion.token_ids, at + len(marks.close))
    opened = marks.open in words or opens(text, marks.open, tuple(asked[-TAIL:]))
    return len(completion.token_ids) if opened else 0


@lru_cache(maxsize=4096)
def opens(text: Text, mark: str, asked: tuple[int, ...]) -> bool:
    """Whether a prompt that ends so has opened the thinking: asked of each of its samples, and read once."""
    return text.read([*asked]).rstrip().endswith(mark)


def inside(completion: Completion) -> list[int]:
    """Without the token that ended it."""
    return completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
