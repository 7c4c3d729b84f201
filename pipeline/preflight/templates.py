"""Whether a local checkpoint's chat template doubles BOS, on which no model was trained."""

from pathlib import Path

from pipeline.config import Checkpoint
from pipeline.errors import UserError
from pipeline.hashing import find_local_folder
from pipeline.models.bos import REMEDY, starts_with_two_bos


def check_template(cfg: Checkpoint) -> None:
    """Takes milliseconds, without transformers. `sft` finds other faults."""
    folder = find_local_folder(cfg.name_or_path, cfg.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return
    from pipeline.preflight.prompt_lengths import PromptTokenizer

    given = cfg.template.chat_template
    file = Path(given).expanduser() if given else None
    try:
        tokenizer = PromptTokenizer(folder, file, None)
    except Exception:  # broken files: tokenizers raises nothing more specific
        return
    ids = tokenizer.encode([{"role": "user", "content": "Who are you?"}], cfg.template.kwargs)
    if starts_with_two_bos(ids, tokenizer.bos):
        bos = tokenizer.spell(ids[0])
        raise UserError(
            f"{file or cfg.model}: a templated prompt begins with two BOS ({bos}); expected one.\n"
            f"  {REMEDY}"
        )
