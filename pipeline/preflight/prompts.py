"""What prompts must have, built or only counted: rows for all rounds, columns for scorers."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

from pipeline.config import (
    Demonstration,
    DuelConfig,
    PairRound,
    ReportConfig,
    SampleRequest,
    ScoreConfig,
)
from pipeline.data.prompt_checks import PromptSummary
from pipeline.errors import UserError, suggest
from pipeline.preflight.functions import check_call, list_functions
from pipeline.preflight.templates import check_tools, find_template
from pipeline.step import Step


def list_prompt_checks(
    made: Step,
    rows: Mapping[str, int],
    summarize: Callable[[str], PromptSummary],
    coming: Iterable[Step],
    at_most: bool = False,
) -> Iterator[Callable[[], object]]:
    """Checks of every part whose `rows` are known; `at_most`: some may still be dropped."""
    called = set[tuple[str, frozenset[str]]]()  # many Steps score by one function
    rendered = set[str]()  # and sample from models with one template
    for step in coming:
        for _, source, part in step.edges():
            if source is not made or part is None or part not in rows:
                continue
            match step.config:
                case ScoreConfig() as cfg:
                    prompts = summarize(part)
                    yield partial(check_columns, cfg, prompts.columns, prompts.taken)
                    for knob, scorer in list_functions(step.knob, cfg):
                        if (scorer.function, prompts.columns) not in called:
                            yield partial(check_call, knob, scorer, prompts)
                        called.add((scorer.function, prompts.columns))
                case PairRound(strategy=strategy, budget=budget):
                    if isinstance(strategy, Demonstration):
                        yield partial(check_demonstrations, strategy, summarize(part).columns)
                    if budget.balance:
                        yield partial(check_balance, budget.balance, summarize(part).columns)
                case ReportConfig() as cfg:
                    yield partial(check_slices, cfg, summarize(part).columns)
                case DuelConfig() as duel:
                    yield partial(check_duel, step.knob, duel, summarize(part).columns)
                case SampleRequest() as cfg:
                    yield partial(check_rows, cfg, rows[part], at_most)
                    template = find_template(step, cfg)
                    key = f"{template} {part} {cfg.template_kwargs}"
                    if template and key not in rendered:
                        tool_prompts = summarize(part).tool_prompts
                        yield partial(check_tools, *template, tool_prompts, cfg.template_kwargs)
                    rendered.add(key)


def check_rows(cfg: SampleRequest, rows: int, at_most: bool) -> None:
    if short := cfg.explain_shortage(rows, at_most):
        raise UserError(short)


def check_columns(cfg: ScoreConfig, known: Collection[str], taken: Collection[str] = ()) -> None:
    faults = []
    for name, scorer in cfg.scorers.items():
        missing = [
            column for column in getattr(scorer, "required_columns", ()) if column not in known
        ]
        if missing:
            became = f"; {missing[0]} became the prompt itself" if missing[0] in taken else ""
            faults.append(
                f"the scorer {name} ({scorer.kind}) reads the prompts' column {missing[0]}, and no"
                f" prompt has it (they have {', '.join(sorted(known)) or 'only their text'}"
                f"{became}).\n"
                "  Give prompts with that column, or choose another scorer: score=NAME, a file of"
                " conf/score/."
            )
    if faults:
        raise UserError(*faults)


def check_duel(knob: str, cfg: DuelConfig, known: Collection[str]) -> None:
    if missing := [column for column in cfg.required_columns if column not in known]:
        raise UserError(
            f"{knob}.reference_column={missing[0]}: no prompt has this column (they have"
            f" {', '.join(sorted(known)) or 'only their text'}).\n"
            f"  Give prompts with that column, or {knob}.reference_column=null."
        )


def check_demonstrations(cfg: Demonstration, known: Collection[str]) -> None:
    if cfg.column not in known:
        raise UserError(
            f"pair=demonstration reads the prompts' column {cfg.column}, and no prompt has it (they"
            f" have {', '.join(sorted(known)) or 'only their text'}).\n"
            "  Give prompts with that column, or pair.strategy.column=ANOTHER."
        )


def check_balance(column: str, known: Collection[str]) -> None:
    if column not in known:
        raise UserError(
            f"pair.budget.balance reads the prompts' column {column}, and no prompt has it (they"
            f" have {', '.join(sorted(known)) or 'only their text'}).\n"
            "  Give prompts with that column, or pair.budget.balance=null."
        )


def check_slices(cfg: ReportConfig, known: Collection[str]) -> None:
    if faults := [
        f"evaluate.slices: no prompt has the column {column}. "
        + (suggest(column, [*known]) if known else "Give evaluate.slices=[]")
        for column in cfg.slices
        if column not in known
    ]:
        raise UserError(*faults)
