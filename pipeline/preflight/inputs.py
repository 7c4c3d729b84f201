"""What only an artifact can tell: whether prompts and offline rows last, have the columns, and fit the context."""

from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

from pipeline.artifacts import MODEL_FILE, Model, Prompts, read_json
from pipeline.config import PairRound, SampleRequest, ScriptedBackend, SftTraining
from pipeline.errors import UserError, run_all
from pipeline.preflight.context_length import find_context
from pipeline.preflight.lineage import trace_lineage
from pipeline.preflight.prompts import list_prompt_checks
from pipeline.step import Part, Step


def check_prompts(made: Step, folder: Path, coming: Iterable[Step]) -> None:
    """Whether these prompts last for all rounds and tell what is asked of them, before anything is trained on them."""
    funnel = folder / "funnel.json"
    if made.stage != "prompts" or not funnel.exists():
        return
    rows = read_json(funnel)["out"]
    run_all(list_prompt_checks(made, rows, cache(partial(read_column_names, folder)), coming))


def read_column_names(folder: Path, part: str) -> set[str]:
    """The columns that some prompt of a part has beside its text."""
    return {name for columns in Prompts(folder / part).read_columns().values() for name in columns}


def check_offline(made: Step, folder: Path, coming: Iterable[Step]) -> None:
    """Whether offline rows last for all rounds, before anything is drawn to stand beside them."""
    funnel = folder / "funnel.json"
    if made.stage != "offline" or not funnel.exists():
        return
    rows = read_json(funnel)["pairs"]
    for step in coming:
        if isinstance(step.config, PairRound) and (short := step.config.short_of(rows)):
            raise UserError(short)


def check_lengths(made: Step, folder_of: Callable[[Step], Path], coming: Iterable[Step]) -> None:
    """Whether any prompt can fit, once the tokenizer of who will answer is there: before SFT is trained, where it is.

    Where some prompts fit, the others are dropped and counted by `sample`.
    """
    if made.stage not in ("base", "sft") or not (tokenizer := find_tokenizer(folder_of(made))):
        return
    from pipeline.preflight.prompt_lengths import PromptTokenizer
    from pipeline.sampling.prompt_selection import block, check_one_fits

    words, seen = cache(partial(PromptTokenizer, tokenizer)), set[str]()
    for step in coming:
        cfg = step.config
        if not isinstance(cfg, SampleRequest) or isinstance(cfg.backend, ScriptedBackend):
            continue
        if made not in trace_lineage(step.inputs["policy"]):
            continue
        asked: Part = step.inputs["prompts"]
        table, template, context = (
            folder_of(asked.step) / asked.part,
            find_later_template(made, step),
            find_context(step),
        )
        alike = f"{table} {template} {context} {cfg.model_dump_json(exclude={'seed', 'wave', 'purpose', 'runtime'})}"
        if alike not in seen and not cfg.ties_by and (table / "prompts.parquet").exists():
            check_one_fits(cfg, words(template, context), block(cfg, Prompts(table)))
        seen.add(alike)


def find_tokenizer(folder: Path) -> Path | None:
    if not (folder / MODEL_FILE).exists():
        return None
    place = Model(folder).tokenizer
    return place if (place / "tokenizer.json").exists() else None


def find_later_template(made: Step, draw: Step) -> Path | None:
    """The template that a model trained from `made` is to be given, if it is not the one that is there."""
    for model in trace_lineage(draw.inputs["policy"]):
        if model is made:
            return None
        if isinstance(model.config, SftTraining) and model.config.template.chat_template:
            return Path(model.config.template.chat_template).expanduser()
    return None
