"""The head of a plan: what would be run, by the settings that the report's head names."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, Member
from pipeline.errors import pluralize
from pipeline.preflight.rows import describe_prompt_column
from pipeline.report.analysis.ancestors import Ancestor
from pipeline.report.analysis.setup import summarize_setup
from pipeline.step import Step


def describe_head(cfg: Config, steps: Sequence[Step]) -> Iterator[str]:
    """One line of what is asked and who scores it, one of the training; none for a part of both."""
    setup = summarize_setup([_describe_step(step) for step in steps])
    if setup is None:
        return
    split = ", ".join(f"{name} {_describe_set(rows)}" for name, rows in cfg.prompts.split)
    column = describe_prompt_column(cfg.prompts)
    words = [
        f"model {setup['model']}",
        f"prompts {setup['prompts']}{f', {column}' if column else ''} ({split})",
        f"scorer {cfg.pair.scorer}" if cfg.scores_samples else "pairs without scores",
        f"backend {cfg.sample.backend.kind}",
        *(f"{name} {_describe_member(member)}" for name, member in cfg.sample.pool.items()),
    ]
    yield " · ".join(words)
    if setup["rounds"]:
        rate = f"learning rate {setup['learning_rate']:g}"
        rounds = pluralize(setup["rounds"], "round")
        words = [setup["objective"], f"β {setup['beta']:g}", rate, rounds]
        yield " · ".join([*words, *([f"{cfg.seeds} seeds"] if cfg.seeds > 1 else [])])


def _describe_step(step: Step) -> Ancestor:
    return Ancestor(step.stage, step.label, Path(), {"config": step.config.model_dump(mode="json")})


def _describe_member(member: Member) -> str:
    """A model of the pool, and how much of the prompts it answers."""
    share = "" if member.share == 1 else f" ({member.share:.0%} of the prompts)"
    return f"{member.model}{share}"


def _describe_set(rows: Any) -> str:
    """A number of the prompts, or the file or data set that is the split."""
    source = getattr(rows, "source", None)
    return str(getattr(source, "path", None) or getattr(source, "dataset", rows))
