"""What the pairs themselves say, for losses that read it, and the weight of each pair."""

from typing import TYPE_CHECKING

from pipeline.config import TrainConfig
from pipeline.errors import UserError

if TYPE_CHECKING:
    import polars as pl

REMEDIES = {  # `{weight.column}` is a knob of the training
    "p_chosen": "Give pair.score_scale, or a scorer of pairs; rows of a file may have p_chosen.",
    "margin": "Give pairs whose two answers both have a score.",
    "weight": "Give pair.weight=margin, confidence or rows, or {weight.column}=null.",
}


def select_columns(cfg: TrainConfig, table: "pl.DataFrame", part: str) -> "list[pl.Series]":
    """The columns of these pairs that the trainer gets besides their tokens.

    Weights are for training alone; their mean is 1.
    """
    asked = f"{cfg.knob}.loss=[{','.join(cfg.loss)}]"
    columns = [_read_column(cfg, table, name, part, asked) for name in cfg.pair_columns]
    if cfg.weight.column and part == "train":
        columns.append(_compute_weights(cfg, table))
    return columns


def _compute_weights(cfg: TrainConfig, table: "pl.DataFrame") -> "pl.Series":
    knob = f"{cfg.knob}.weight.column"
    asked = f"{knob}={cfg.weight.column}"
    values = _read_column(cfg, table, str(cfg.weight.column), "train", asked)
    if negative := int((values < 0).sum()):
        raise UserError(
            f"{asked}: {negative} of {len(values)} train pairs have a value below 0"
            f" (the lowest is {min(values):g}): they would be learned the wrong way round.\n"
            "  Leave these pairs out (pair.filters.min_margin), or give pair.weight=confidence"
            f" {knob}=weight."
        )
    powers = values**cfg.weight.scale
    if not (mean := powers.mean()):
        raise UserError(
            f"{asked}: all {len(values)} train pairs weigh 0, so there is nothing to learn.\n"
            f"  Give another column, or {knob}=null."
        )
    return (powers / mean).alias("weight")


def _read_column(
    cfg: TrainConfig, table: "pl.DataFrame", name: str, part: str, asked: str
) -> "pl.Series":
    """A column of numbers. Refuses pairs that have none."""
    import polars as pl

    known = name in table.columns
    values = table[name] if known else pl.Series(name, [None] * table.height, dtype=pl.Float64)
    missing = table.filter(~values.is_finite().fill_null(False))
    if missing.height:
        raise UserError(
            f"{asked}: {missing.height} of {table.height} {part} pairs have no {name}"
            f" (chosen {missing['chosen_id'][0]}, rejected {missing['rejected_id'][0]} is one).\n"
            f"  {cfg.name_knobs(REMEDIES[name])}"
        )
    return values
