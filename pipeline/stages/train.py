"""train: one TRL trainer on the pairs' own token ids, from `init`, against the reference's values; publishes a Model.

Checkpoints lie in `scratch/`: a killed run goes on from the newest whole one and ends with the same bytes (on CPU).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import Logps, Model, Pairs, Prompts, note_cost
from pipeline.config import FullAdapter, TrainConfig
from pipeline.errors import Refusal
from pipeline.training.launch import expose_one_device

if TYPE_CHECKING:
    import polars as pl


def run(
    cfg: TrainConfig,
    out: Path,
    *,
    init: Model,
    pairs: list[Pairs],
    reference: Model | None = None,
    logps: list[Logps] | None = None,
    dev: Prompts | None = None,
) -> Model:
    if reference is None:
        raise Refusal(f"train.trainer={cfg.trainer} needs a reference model: give train.logps=ready or live.")
    rows = {part: ready(cfg, pairs, part, logps or []) for part in ("train", "dev")}
    expose_one_device()

    from pipeline.training import dpo, models
    from pipeline.training import reference as checks

    first = rows["train"].head(checks.PAIRS).to_dict(as_series=False)
    starts_from_reference = reference.path == init.path
    if cfg.logps == "ready" and not starts_from_reference:
        checks.check_elsewhere(cfg, reference, first)

    policy = dpo.load_policy(cfg, init)
    columns = [rows[part][name] for part in rows for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    models.check_vocabulary(policy, columns, "train")
    settings = models.settings_of(policy)
    trainer, ledger = dpo.trainer_for(cfg, policy, init, reference, rows, out)
    if starts_from_reference:
        checks.check_start(cfg, trainer, first)

    checkpoint = ledger.newest_whole()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    models.check_finite(policy)
    note_cost(out, tokens=round(cfg.epochs * _tokens(rows["train"])), pairs=rows["train"].height)
    if isinstance(cfg.adapter, FullAdapter):
        return models.save_full(policy, settings, init, cfg.dtype, out)
    return models.save_adapter(policy, init, out)


def ready(cfg: TrainConfig, pairs: list[Pairs], part: str, logps: list[Logps]) -> "pl.DataFrame":
    """The trainer's columns, joined by sample id; a pair too long or without reference values is refused, never cut."""
    import polars as pl

    table = pl.concat([getattr(one, part)() for one in pairs])
    if part == "train" and not table.height:
        raise Refusal(
            f"train: there is not one pair to train on ({pairs[0].path / 'funnel.json'} says where they went)."
        )
    _refuse_too_long(cfg, table, part)
    sides = [f"{side}_{what}" for side in ("chosen", "rejected") for what in ("id", "token_ids")]
    table = table.select("prompt_token_ids", *sides)
    if cfg.logps == "ready":
        table = _with_reference(table, logps, part)
    values = [name for name in table.columns if name.startswith("ref_")]
    ids = [pl.col(f"{name}_token_ids").alias(f"{name}_ids") for name in ("prompt", "chosen", "rejected")]
    return table.select(*ids, *values)


def _refuse_too_long(cfg: TrainConfig, table: "pl.DataFrame", part: str) -> None:
    import polars as pl

    answer = pl.max_horizontal(pl.col("chosen_token_ids").list.len(), pl.col("rejected_token_ids").list.len())
    lengths = table.select(length=pl.col("prompt_token_ids").list.len() + answer)["length"].to_list()
    if over := sum(length > cfg.max_length for length in lengths):
        raise Refusal(
            f"train: {over} of {table.height} {part} pairs are longer than train.max_length={cfg.max_length} tokens "
            f"(the longest has {max(lengths)}): they would be cut.\n  Raise train.max_length, or lower limits."
        )


def _with_reference(table: "pl.DataFrame", logps: list[Logps], part: str) -> "pl.DataFrame":
    import polars as pl

    if not logps:
        raise Refusal(
            "train.logps=ready needs the reference's log-probabilities, and the plan gives none. Use logps=live."
        )
    known = pl.concat([one.read().select("sample_id", "logp") for one in logps]).unique("sample_id")
    for side in ("chosen", "rejected"):
        named = known.rename({"sample_id": f"{side}_id", "logp": f"ref_{side}_logps"})
        table = table.join(named, on=f"{side}_id", how="left", maintain_order="left", validate="m:1")
    missing = table.filter(pl.any_horizontal(pl.col("^ref_.*$").is_null()))
    if missing.height:
        raise Refusal(
            f"train: {missing.height} of {table.height} {part} pairs have no reference log-probability "
            f"(chosen {missing['chosen_id'][0]}, rejected {missing['rejected_id'][0]} is one).\n"
            f"  refer has to run on the same pairs: {', '.join(str(one.path) for one in logps)} does not hold them."
        )
    return table


def _tokens(table: "pl.DataFrame") -> int:
    """What one epoch reads: each pair's prompt twice."""
    lengths = [int(table[name].list.len().sum()) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    return 2 * lengths[0] + lengths[1] + lengths[2]
