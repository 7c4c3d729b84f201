"""What only artifacts show: whether rows suffice, have the columns, and fit the context."""

import json
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path

from pipeline.artifacts import FUNNEL_FILE, MODEL_FILE, Model, Prompts, read_object
from pipeline.config import PairRound, SampleRequest, ScriptedBackend, SftTraining
from pipeline.data.prompt_checks import PromptSummary, select_tool_prompts
from pipeline.errors import UserError, run_all
from pipeline.preflight.context_length import find_context
from pipeline.preflight.lineage import trace_lineage
from pipeline.preflight.prompts import list_prompt_checks
from pipeline.preflight.templates import check_tool_prompt
from pipeline.step import Part, Step


def check_prompts(made: Step, folder: Path, coming: Iterable[Step]) -> None:
    """Whether these prompts suffice for all rounds and have the columns that are read."""
    funnel = folder / FUNNEL_FILE
    if made.stage != "prompts" or not funnel.exists():
        return
    rows = read_object(funnel, out=dict)["out"]
    run_all(list_prompt_checks(made, rows, cache(partial(summarize_part, folder)), coming))


def summarize_part(folder: Path, part: str) -> PromptSummary:
    table = Prompts(folder / part).read()
    columns = [json.loads(text) for text in table["columns"]]
    names = frozenset(name for each in columns for name in each)
    first = {"prompt": table["prompt"][0].to_list(), "columns": columns[0]}
    return PromptSummary(table.height, names, first, select_tool_prompts(table["prompt"].to_list()))


def check_offline(made: Step, folder: Path, coming: Iterable[Step]) -> None:
    """Whether offline rows suffice for all rounds, before anything is sampled to mix with them."""
    funnel = folder / FUNNEL_FILE
    if made.stage != "offline" or not funnel.exists():
        return
    rows = read_object(funnel, pairs=int)["pairs"]
    for step in coming:
        if isinstance(step.config, PairRound) and (short := step.config.explain_shortage(rows)):
            raise UserError(short)


def check_lengths(made: Step, folder_of: Callable[[Step], Path], coming: Iterable[Step]) -> None:
    """Refuse if no prompt fits, or one with tools does not render, once the tokenizer is built.

    If only some do not fit, `sample` drops and counts them.
    """
    if made.stage not in ("base", "sft") or not (tokenizer := find_tokenizer(folder_of(made))):
        return
    from pipeline.preflight.prompt_lengths import PromptTokenizer
    from pipeline.sampling.prompt_selection import check_one_fits, select_block

    open_tokenizer, checked = cache(partial(PromptTokenizer, tokenizer)), set[str]()
    for step in coming:
        cfg = step.config
        if not isinstance(cfg, SampleRequest) or isinstance(cfg.backend, ScriptedBackend):
            continue
        if not isinstance(step.inputs.get("prompts"), Part):  # answers to come are in its prompts
            continue
        if made not in trace_lineage(step.inputs["policy"]):
            continue
        part = step.inputs["prompts"]
        table = folder_of(part.step) / part.part
        template, context = find_later_template(made, step), find_context(step)
        identity = cfg.model_dump_json(exclude={"seed", "wave", "purpose", "runtime"})
        key = f"{table} {template} {context} {identity}"
        if key not in checked and not cfg.ties_by and (table / "prompts.parquet").exists():
            encoder, rows = open_tokenizer(template, context), select_block(cfg, Prompts(table))
            for messages in select_tool_prompts(rows["prompt"].to_list()):
                check_tool_prompt(
                    encoder, messages, cfg.template_kwargs, str(template or tokenizer)
                )
            check_one_fits(cfg, encoder, rows)
        checked.add(key)


def find_tokenizer(folder: Path) -> Path | None:
    if not (folder / MODEL_FILE).exists():
        return None
    tokenizer = Model(folder).tokenizer
    return tokenizer if (tokenizer / "tokenizer.json").exists() else None


def find_later_template(made: Step, sample: Step) -> Path | None:
    """The template that a training after `made` sets for the sampled model, if any."""
    for model in trace_lineage(sample.inputs["policy"]):
        if model is made:
            return None
        if isinstance(model.config, SftTraining) and model.config.template.chat_template:
            return Path(model.config.template.chat_template).expanduser()
    return None
