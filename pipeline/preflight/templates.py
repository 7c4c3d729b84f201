"""Whether a local checkpoint's chat template doubles BOS, or leaves out the tools of prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Checkpoint, SampleRequest, ScriptedBackend, SftTraining
from pipeline.errors import UserError
from pipeline.hashing import find_local_folder
from pipeline.models.bos import REMEDY, starts_with_two_bos
from pipeline.preflight.lineage import trace_lineage
from pipeline.step import Step

if TYPE_CHECKING:
    from pipeline.preflight.prompt_lengths import PromptTokenizer

Messages = list[dict[str, str]]


def check_template(cfg: Checkpoint) -> None:
    """Takes milliseconds, without transformers. `sft` finds other faults."""
    tokenizer = _open_tokenizer(cfg, cfg.template.chat_template)
    if tokenizer is None:
        return
    ids = tokenizer.encode([{"role": "user", "content": "Who are you?"}], cfg.template.kwargs)
    if starts_with_two_bos(ids, tokenizer.bos):
        bos = tokenizer.spell(ids[0])
        raise UserError(
            f"{cfg.template.chat_template or cfg.model}: a templated prompt begins with two BOS"
            f" ({bos}); expected one.\n"
            f"  {REMEDY}"
        )


def find_template(sample: Step, cfg: SampleRequest) -> tuple[Checkpoint, str | None] | None:
    """The checkpoint whose tokenizer the sampled model has, and the template that it is given."""
    if isinstance(cfg.backend, ScriptedBackend):  # it reads no template
        return None
    given = None
    for model in trace_lineage(sample.inputs["policy"]):
        if isinstance(model.config, SftTraining | Checkpoint):
            given = given or model.config.template.chat_template
        if isinstance(model.config, Checkpoint):
            return model.config, given
    return None


def check_tools(
    checkpoint: Checkpoint,
    template: str | None,
    prompts: Sequence[Messages],
    kwargs: dict[str, Any],
) -> None:
    """Refuse prompts with tools that the chat template of the sampled model does not render.

    Of a model that is not here yet, `check_lengths` reads the template as soon as it is built.
    """
    if not prompts or (tokenizer := _open_tokenizer(checkpoint, template)) is None:
        return
    for messages in prompts:
        check_tool_prompt(tokenizer, messages, kwargs, str(template or checkpoint.model))


def check_tool_prompt(
    tokenizer: "PromptTokenizer", messages: Messages, kwargs: dict[str, Any], source: str
) -> None:
    if fault := tokenizer.find_tool_fault(messages, kwargs):
        raise UserError(
            f"{source}: its chat template does not render a prompt with tools: {fault}.\n"
            "  Give a template that takes them, such as the one of its instruct sibling, by"
            " template.chat_template=FILE,\n"
            "  or prompts without the column tools and without turns of the role tool."
        )


def _open_tokenizer(cfg: Checkpoint, template: str | None) -> "PromptTokenizer | None":
    """The tokenizer of a local checkpoint with the template that it is given, or its own."""
    folder = find_local_folder(cfg.name_or_path, cfg.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    from pipeline.preflight.prompt_lengths import PromptTokenizer

    try:
        return PromptTokenizer(folder, Path(template).expanduser() if template else None, None)
    except Exception:  # broken files: tokenizers raises nothing more specific
        return None
