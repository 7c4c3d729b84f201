"""train: one TRL trainer on the pairs' own token ids, from `init`, against the reference's values.

Online training has prompts instead of pairs, and samples and scores the answers to them itself.
Publishes a Model. Checkpoints are in `scratch/`: a killed run resumes from the newest complete one
and ends with the same bytes (on CPU).
"""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import (
    DROPPED_FILE,
    FUNNEL_FILE,
    STEP_FILE,
    Artifact,
    Decontamination,
    Logps,
    Model,
    Pairs,
    Prompts,
    note_cost,
    scan_tables,
    write_table,
)
from pipeline.config import OnlineTraining, RehearsalConfig, TrainConfig
from pipeline.errors import UserError, pluralize
from pipeline.report.analysis.ancestors import read_ancestors
from pipeline.training import launch, micro_batch, pair_columns
from pipeline.training.monitoring import curves, model_card

if TYPE_CHECKING:
    import polars as pl

    from pipeline.backends.chat import ModelTokenizer

SHOWN = 16  # pairs that are read to see whose tokens they are
COMPARED = 64  # answers whose log-probabilities are compared with the sampler's


def run(
    cfg: OnlineTraining | TrainConfig,
    out: Path,
    *,
    init: Model,
    pairs: list[Pairs] | None = None,
    reference: Model | None = None,
    logps: list[Logps] | None = None,
    dev: Prompts | None = None,
    decontamination: Decontamination | None = None,
    prompts: Prompts | None = None,
    reward: Model | None = None,
    knob: str = "train",
) -> Model:
    cfg = cfg.mounted_at(knob)
    if reference is None and cfg.reference_logps != "none":
        raise UserError(
            f"{knob}.reference_logps={cfg.reference_logps} needs a reference model,"
            " and the plan gives none."
        )
    count = launch.count_processes(cfg)
    world = count * cfg.runtime.machines
    if world == 1:
        launch.expose_one_device()
    if isinstance(cfg, OnlineTraining):
        assert prompts, "the plan gives online training its prompts"
        rows = prepare_prompts(cfg, out, init, prompts, dev, world)
    else:
        rows = _read_rows(cfg, out, init, pairs or [], logps or [], decontamination)
    fit = micro_batch.check_fit(cfg, init, rows, world, out)
    auto = cfg.runtime.micro_batch == "auto"
    cfg = micro_batch.with_micro_batch(cfg, fit.micro_batch)

    models = {"init": init, "reference": reference, "reward": reward}
    inputs = {**models, "dev": dev, "prompts": prompts}

    def start(cfg: TrainConfig) -> None:
        if world > 1:
            for part, table in rows.items():
                write_table(out / "scratch" / "pairs" / f"{part}.parquet", table)
            launch.train_in_ranks(cfg, count, out, inputs)
        else:
            launch.train_in_process(cfg, out, inputs, rows)

    micro_batch.train_within_memory(cfg, auto, out, start)
    _draw_curves(out)
    made_from: dict[str, Sequence[Artifact]] = {
        "start": [init],
        "reference": [reference] if reference else [],
        "pairs": pairs or [],
        "reference values": logps or [],
        "prompts": [prompts] if prompts else [],
        "reward model": [reward] if reward else [],
    }
    model_card.write(cfg, out, made_from)
    if cfg.runtime.keep_checkpoints:
        _keep_checkpoints(out)
    if world > 1:
        note_cost(out, processes=world, watched=cfg.runtime.eval_when_distributed)
    return Model(out)


def _draw_curves(out: Path) -> None:
    kept = json.loads((out / "training.json").read_text())["kept"]
    curves.draw(Model(out).read_metrics(), kept, out)


def _read_rows(
    cfg: TrainConfig,
    out: Path,
    init: Model,
    pairs: list[Pairs],
    logps: list[Logps],
    decontamination: Decontamination | None,
) -> "dict[str, pl.DataFrame]":
    """The trainer's columns of the pairs and of the rehearsal, in the policy's own tokens."""
    import polars as pl

    from pipeline.backends.chat import ModelTokenizer
    from pipeline.models import loading

    rows = {part: prepare_pairs(cfg, pairs, part, logps) for part in ("train", "dev")}
    tokenizer = loading.load_tokenizer(init)
    _refuse_other_tokens(pairs, tokenizer)
    if cfg.rehearsal:
        chat = ModelTokenizer(init, tokenizer)
        rows["rehearsal"] = prepare_rehearsal(cfg, cfg.rehearsal, out, chat, decontamination)
    sampled = find_sampled_answers(out, init)
    if cfg.runtime.warn_sampler_gap is not None and sampled is not None:
        rows["sampled"] = sampled.filter(
            pl.col("prompt_ids").list.len() + pl.col("completion_ids").list.len() <= cfg.max_length
        )
    return rows


def find_sampled_answers(out: Path, init: Model) -> "pl.DataFrame | None":
    """Answers that `init` itself gave, with the sampler's log-probabilities of them.

    They are among the steps that the pairs descend from. None: another model gave the answers.
    """
    import polars as pl

    ids = pl.coalesce("asked_token_ids", "prompt_token_ids").alias("prompt_ids")
    for step in reversed(read_ancestors(out)):
        is_model = step.stage == "sample" and step.config["backend"]["kind"] != "scripted"
        files = sorted((step.path / "samples").glob("*.parquet")) if is_model else []
        if not files:
            continue
        known = (pl.col("policy") == init.path.name) & pl.col("logprob").is_not_null()
        rows = (
            scan_tables(files).filter(known & (pl.col("token_ids").list.len() > 0)).head(COMPARED)
        )
        table = rows.select(ids, pl.col("token_ids").alias("completion_ids"), "logprob").collect()
        if table.height:
            return table
    return None


def _keep_checkpoints(out: Path) -> None:
    """Copies them to the run's folder.

    With an optimizer's state and pickles of this machine they do not belong in a Model.
    """
    from pipeline.training.monitoring.trackers import training_name

    step = json.loads((out / STEP_FILE).read_text())
    kept = Path(step["story"]) / "checkpoints" / training_name(step)
    shutil.rmtree(kept, ignore_errors=True)  # of an attempt that was interrupted here
    shutil.copytree(out / "scratch" / "checkpoints", kept)


def prepare_pairs(
    cfg: TrainConfig, pairs: list[Pairs], part: str, logps: list[Logps]
) -> "pl.DataFrame":
    """The trainer's columns, joined by sample id.

    Refuses pairs that are too long or have no reference values; nothing is cut.
    """
    import polars as pl

    if cfg.trainer == "kto":
        return prepare_unpaired(cfg, pairs, part)
    tables = [one.read_train() if part == "train" else one.read_dev() for one in pairs]
    table = pl.concat(tables)
    if part == "train" and not table.height:
        funnel = pairs[0].path / FUNNEL_FILE
        raise UserError(
            f"train: there is not one pair to train on ({funnel} says where they went)."
        )
    chosen, rejected = (
        pl.col("chosen_token_ids").list.len(),
        pl.col("rejected_token_ids").list.len(),
    )
    length = pl.col("prompt_token_ids").list.len() + pl.max_horizontal(chosen, rejected)
    _refuse_too_long(cfg, table.select(length=length), f"{part} pairs")
    sides = [f"{side}_{what}" for side in ("chosen", "rejected") for what in ("id", "token_ids")]
    columns = pair_columns.select_columns(cfg, table, part)
    table = table.select("prompt_token_ids", *sides).with_columns(columns)
    if cfg.reference_logps == "precomputed":
        table = _join_reference(cfg, table, logps, part)
    values = [name for name in table.columns if name.startswith("ref_")]
    ids = [
        pl.col(f"{name}_token_ids").alias(f"{name}_ids")
        for name in ("prompt", "chosen", "rejected")
    ]
    return table.select(*ids, *values, *(column.name for column in columns))


def prepare_prompts(
    cfg: OnlineTraining,
    out: Path,
    init: Model,
    prompts: Prompts,
    dev: Prompts | None,
    world: int,
) -> "dict[str, pl.DataFrame]":
    """The prompts of the round's block with the ids of their template, in whole batches.

    Every other prompt of the block is recorded with the reason why it is not answered.
    """
    import polars as pl

    from pipeline.backends.chat import ModelTokenizer
    from pipeline.models import loading
    from pipeline.sampling.prompt_selection import select_prompts, split_by_length

    tokenizer = ModelTokenizer(init, loading.load_tokenizer(init))
    block = select_prompts(cfg.request, prompts, [])
    fitting, dropped = split_by_length(cfg.request, lambda: tokenizer, block)
    used = fitting.head(cfg.count_prompts(fitting.height))
    each = pluralize(cfg.prompts_at_once, "prompt")
    if not used.height:
        raise UserError(
            f"train: {pluralize(cfg.generation_batch, 'answer')} are sampled at once,"
            f" {cfg.setting.n} to each of {each}, and there are {fitting.height} prompts.\n"
            f"  Give {cfg.knob}.batch={max(fitting.height, 1) * cfg.setting.n} or fewer, or more"
            " prompts (sample.per_round)."
        )
    left = fitting.slice(used.height).select(
        "prompt_id", reason=pl.lit("batch_incomplete"), detail=pl.lit(f"batches are of {each}")
    )
    write_table(out / DROPPED_FILE, pl.concat([dropped, left]))
    note_cost(out, prompts=used.height, dropped=dropped.height + left.height)
    measures = cfg.guards.prompts and (world == 1 or cfg.runtime.eval_when_distributed)
    shown = dev.read().head(cfg.guards.prompts if measures else 0) if dev else block.clear()

    def encode(rows: "pl.DataFrame") -> "pl.DataFrame":
        ids = [tokenizer.encode(prompt, cfg.request.template_kwargs) for prompt in rows["prompt"]]
        column = pl.Series("prompt_ids", ids, dtype=pl.List(pl.Int64))
        return rows.select("prompt_id", "prompt").with_columns(column)

    return {"train": encode(used), "dev": encode(shown)}


def prepare_unpaired(cfg: TrainConfig, pairs: list[Pairs], part: str) -> "pl.DataFrame":
    """Single answers with their label, for KTO. The dev part has the prompts of the dev pairs."""
    import polars as pl

    from pipeline.training.trainers.kto import order_for_training

    held_out = pl.concat([one.read_dev() for one in pairs])["prompt_id"].unique()
    table = pl.concat([one.read_unpaired() for one in pairs]).unique(["sample_id", "label"])
    if table["label"].n_unique() < 2:
        up = int(table["label"].sum())
        raise UserError(
            f"{cfg.knob}.trainer=kto learns from good and from bad answers, and"
            f" {pairs[0].path / 'unpaired.parquet'} has {up} good and {table.height - up} bad.\n"
            "  Give pair.unpaired_threshold=SCORE, which labels every scored answer,"
            f" or offline rows with labels; or {cfg.mount}=dpo on pairs."
        )
    table = table.filter(pl.col("prompt_id").is_in(held_out.implode()) == (part == "dev"))
    length = pl.col("prompt_token_ids").list.len() + pl.col("token_ids").list.len()
    _refuse_too_long(cfg, table.select(length=length), f"{part} answers")
    ids = (
        pl.col("prompt_token_ids").alias("prompt_ids"),
        pl.col("token_ids").alias("completion_ids"),
    )
    return order_for_training(table.select("sample_id", *ids, "label"), cfg.loss_group, cfg.seed)


def prepare_rehearsal(
    cfg: TrainConfig,
    rehearsal: RehearsalConfig,
    out: Path,
    tokenizer: "ModelTokenizer",
    decontamination: Decontamination | None,
) -> "pl.DataFrame":
    """The demonstrations to rehearse, in the policy's tokens.

    Every row is used or recorded with its reason.
    """
    import polars as pl

    from pipeline.data.decontamination import OverlapCheck
    from pipeline.data.demonstrations import encode_demonstrations, read_demonstrations
    from pipeline.training.trainers.sft import encode

    assert decontamination, "the plan gives a training with rehearsal the evaluation n-grams"
    knob = f"{cfg.knob}.rehearsal"
    lines = read_demonstrations(rehearsal.data, f"{knob}.data")
    encode_messages = partial(encode, tokenizer, kwargs=rehearsal.template_kwargs)
    check = OverlapCheck(decontamination, rehearsal.decontamination.ngram)
    examples, log = encode_demonstrations(
        lines, encode_messages, check, cfg.max_length, rehearsal.data, f"{knob}.data", "train"
    )
    log.publish(out / "rehearsal", len(examples))
    if not examples:
        raise log.explain_empty(
            f"{knob}: of {pluralize(log.rows_in, 'demonstration')}",
            out / "rehearsal",
            f"Raise {cfg.knob}.max_length, or give others as {knob}.data;"
            f" {knob}=null trains without.",
        )
    return pl.DataFrame(examples)


def _refuse_too_long(cfg: TrainConfig, lengths: "pl.DataFrame", what: str) -> None:
    over = lengths.filter(lengths["length"] > cfg.max_length)["length"].to_list()
    if over:
        raise UserError(
            f"train: {len(over)} of {lengths.height} {what} cannot fit into"
            f" {cfg.knob}.max_length={cfg.max_length} tokens (the longest has {max(over)}):"
            " they would be cut.\n"
            f"  Raise {cfg.knob}.max_length, or lower limits."
        )


def _refuse_other_tokens(pairs: list[Pairs], tokenizer: Any) -> None:
    """Refuses pairs of another model: ids that the policy's tokenizer reads as other texts."""
    for one in pairs:
        rows = one.read_train().head(SHOWN).select("chosen", "chosen_token_ids").rows()
        read = [
            (turns[-1]["content"], tokenizer.decode(ids, skip_special_tokens=True))
            for turns, ids in rows
        ]
        if read and not any(text.strip() == found.strip() for text, found in read):
            text, found = read[0]
            raise UserError(
                f"{one.path}: its token ids are not of the policy's tokenizer:"
                f" the answer {text[:40]!r} reads {found[:40]!r} there.\n"
                "  Sample and pair with the model that is trained, or train theirs."
            )


def _join_reference(
    cfg: TrainConfig, table: "pl.DataFrame", logps: list[Logps], part: str
) -> "pl.DataFrame":
    import polars as pl

    if not logps:
        raise UserError(
            f"{cfg.knob}.reference_logps=precomputed needs the reference's log-probabilities, and"
            f" the plan gives none. Use {cfg.knob}.reference_logps=online."
        )
    known = pl.concat([one.read().select("sample_id", "logp") for one in logps]).unique("sample_id")
    for side in ("chosen", "rejected"):
        named = known.rename({"sample_id": f"{side}_id", "logp": f"ref_{side}_logps"})
        table = table.join(
            named, on=f"{side}_id", how="left", maintain_order="left", validate="m:1"
        )
    missing = table.filter(pl.any_horizontal(pl.col("^ref_.*$").is_null()))
    if missing.height:
        paths = ", ".join(str(one.path) for one in logps)
        raise UserError(
            f"train: no reference log-probability for {missing.height} of {table.height}"
            f" {part} pairs (chosen {missing['chosen_id'][0]},"
            f" rejected {missing['rejected_id'][0]} is one).\n"
            f"  refer has to run on the same pairs: {paths} does not hold them."
        )
    return table
