"""What only an artifact can tell: whether prompts and offline rows last, have the columns, and fit the context."""

from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

from pipeline.artifacts import MODEL_FILE, Model, Prompts, read_json
from pipeline.config import PairRound, SampleRequest, ScriptedBackend, SftTraining
from pipeline.errors import UserError, together
from pipeline.preflight.context_length import known_context
from pipeline.preflight.lineage import line_of
from pipeline.preflight.prompts import checks_of_prompts
from pipeline.step import Part, Step


def check_prompts(made: Step, folder: Path, coming: Iterable[Step]) -> None:
    """Whether these prompts last for all rounds and tell what is asked of them, before anything is trained on them."""
    funnel = folder / "funnel.json"
    if made.stage != "prompts" or not funnel.exists():
        return
    rows = read_json(funnel)["out"]
    together(checks_of_prompts(made, rows, cache(partial(told_in, folder)), coming))


def told_in(folder: Path, part: str) -> set[str]:
    """The columns that some prompt of a part has beside its text."""
    return {name for columns in Prompts(folder / part).columns().values() for name in columns}


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
    if made.stage not in ("base", "sft") or not (tokenizer := tokenizer_in(folder_of(made))):
        return
    from pipeline.preflight.prompt_lengths import Words
    from pipeline.sampling.prompt_selection import check_one_fits, select_block

    words, seen = cache(partial(Words, tokenizer)), set[str]()
    for step in coming:
        cfg = step.config
        if not isinstance(cfg, SampleRequest) or isinstance(cfg.backend, ScriptedBackend):
            continue
        if made not in line_of(step.inputs["policy"]):
            continue
        asked: Part = step.inputs["prompts"]
        table, template, context = (
            folder_of(asked.step) / asked.part,
            template_after(made, step),
            known_context(step),
        )
        alike = f"{table} {template} {context} {cfg.model_dump_json(exclude={'seed', 'wave', 'purpose', 'runtime'})}"
        if alike not in seen and not cfg.ties_by and (table / "prompts.parquet").exists():
            check_one_fits(cfg, words(template, context), select_block(cfg, Prompts(table)))
        seen.add(alike)


def tokenizer_in(folder: Path) -> Path | None:
    if not (folder / MODEL_FILE).exists():
        return None
    place = Model(folder).tokenizer
    return place if (place / "tokenizer.json").exists() else None


def template_after(made: Step, draw: Step) -> Path | None:
    """The template that a model trained from `made` is to be given, if it is not the one that is there."""
    for model in line_of(draw.inputs["policy"]):
        if model is made:
            return None
        if isinstance(model.config, SftTraining) and model.config.template.chat_template:
            return Path(model.config.template.chat_template).expanduser()
    return None
