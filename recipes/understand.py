"""Two faulty scorers and two files of offline pairs, for the experiments of docs/understand.

`python recipes/understand.py FOLDER` writes close.jsonl and foreign.jsonl there.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.config.reward import PlaygroundPreferences
from pipeline.data.synthetic import generate_preferences
from pipeline.scorers.rules import check_playground

Turns = list[dict[str, str]]
OFFLINE = PlaygroundPreferences(
    kind="playground", rows=240, constraints=3, obeyed=0.5, flipped=0.0, seed=7
)


def flip_a_fifth(
    prompts: Sequence[Turns], completions: Sequence[Turns], constraints: Sequence, **columns: object
) -> list[float]:
    """The playground's rule, turned round on a fifth of the prompts."""
    return _score_prompt(prompts, completions, constraints, 0.2)


def flip_two_fifths(
    prompts: Sequence[Turns], completions: Sequence[Turns], constraints: Sequence, **columns: object
) -> list[float]:
    """The playground's rule, turned round on these and on another fifth of the prompts."""
    return _score_prompt(prompts, completions, constraints, 0.4)


def _score_prompt(
    prompts: Sequence[Turns], completions: Sequence[Turns], constraints: Sequence, share: float
) -> list[float]:
    """A prompt is wrong by the hash of its text, so that each run has the same wrong ones."""
    digest = hashlib.sha256(prompts[0][-1]["content"].encode()).hexdigest()
    is_wrong = int(digest[:8], 16) / 16**8 < share
    scores = [
        check_playground(answer[-1]["content"], {"constraints": wanted})[""]
        for answer, wanted in zip(completions, constraints, strict=True)
    ]
    return [1 - score if is_wrong else score for score in scores]


def list_sentences(text: str) -> str:
    """The same sentences as another author writes them: a list, which the playground never has."""
    return "\n".join(f"- {sentence}" for sentence in text.replace(". ", ".\n").splitlines())


def write_offline(folder: Path) -> None:
    """The same pairs twice: in the words of the demonstrations, and as lists."""
    rows = [*generate_preferences(OFFLINE)]
    folder.mkdir(parents=True, exist_ok=True)
    rewrites: dict[str, Callable[[str], str]] = {"close": str, "foreign": list_sentences}
    for name, rewrite in rewrites.items():
        pairs = [
            {
                "prompt": row["prompt"],
                "chosen": rewrite(row["chosen"]),
                "rejected": rewrite(row["rejected"]),
            }
            for row in rows
        ]
        text = "".join(f"{json.dumps(pair)}\n" for pair in pairs)
        (folder / f"{name}.jsonl").write_text(text)


if __name__ == "__main__":
    write_offline(Path(sys.argv[1]))
