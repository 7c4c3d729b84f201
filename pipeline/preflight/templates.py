"""Whether the chat template of a checkpoint that is here doubles BOS: no model was trained on that."""

from pathlib import Path

from pipeline.config import Checkpoint
from pipeline.errors import UserError
from pipeline.hashing import here
from pipeline.models.bos import starts_with_two_bos, suggest_bos_fix


def check_template(cfg: Checkpoint) -> None:
    """In milliseconds, without transformers. Any other fault, and any other checkpoint, is left to `sft`."""
    folder = here(cfg.place, cfg.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return
    from pipeline.preflight.prompt_lengths import Words

    given = cfg.template.chat_template
    file = Path(given).expanduser() if given else None
    try:
        words = Words(folder, file, None)
    except Exception:  # broken files: tokenizers raises nothing more specific
        return
    ids = words.encode([{"role": "user", "content": "Who are you?"}], cfg.template.kwargs)
    if starts_with_two_bos(ids, words.bos):
        raise UserError(
            f"{file or cfg.model}: a templated prompt begins with two BOS ({words.spell(ids[0])}); one was expected.\n"
            f"  {suggest_bos_fix('two BOS')}"
        )
