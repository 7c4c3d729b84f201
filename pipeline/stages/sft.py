"""The stage `sft`: a checkpoint as it is (checked, merged when it is an adapter), or one trained on
demonstrations.

`refit` trains a round's policy on the best of its own samples; their prompts are already clear of
evaluation sets. Demonstrations that overlap an evaluation prompt, or are too long, are left out:
`dropped.parquet`, `funnel.json`.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts import Decontamination, Model, Samples, Scores, note_cost, write_json
from pipeline.config import BestOfNConfig, Checkpoint, SftTraining
from pipeline.errors import UserError, many
from pipeline.training.launch import expose_one_device

Row = dict[str, Any]
OTHERS = "Raise sft.max_length, or give other demonstrations."
BETTER = (
    "Lower refit.min_score, raise refit.max_length, or draw more samples (sample.settings.draw.n)."
)


def run(
    cfg: Checkpoint | SftTraining | BestOfNConfig,
    out: Path,
    *,
    base: Model | None = None,
    fence: Decontamination | None = None,
    samples: list[Samples] | None = None,
    scores: list[Scores] | None = None,
) -> Model:
    from pipeline.models.checkpoint import bring_in

    if isinstance(cfg, Checkpoint):
        model = bring_in(cfg, out)
        _check_template(model, cfg)
        return model
    if isinstance(cfg, BestOfNConfig):
        assert base and samples and scores, "the plan gives a refit its round"
        return _refit(cfg, out, base, samples, scores)
    if base is None or fence is None:
        raise UserError(
            "sft=train needs a base model and the fence of the evaluation prompts.\n  Give base=tiny or checkpoint."
        )
    return _train(cfg, out, base, fence)


def _check_template(model: Model, cfg: Checkpoint) -> None:
    """What `pair` would refuse after all is drawn, said before anything is."""
    from pipeline.backends.chat import Chat

    Chat(model).check_template(cfg.template.kwargs)


def _train(cfg: SftTraining, out: Path, base: Model, fence: Decontamination) -> Model:
    expose_one_device()
    from pipeline.models import loading
    from pipeline.models.checkpoint import load_tokenizer, save_weights, torch_dtype

    tokenizer = load_tokenizer(base.tokenizer, cfg.template, str(base.path), base.remote_code)
    examples = _examples(cfg, out, tokenizer, fence)
    model = loading.load_merged(base)
    _fit(cfg, out, model, tokenizer, examples)
    return save_weights(model.to(torch_dtype(cfg.dtype)), tokenizer, out)


def _refit(
    cfg: BestOfNConfig, out: Path, base: Model, samples: list[Samples], scores: list[Scores]
) -> Model:
    expose_one_device()
    from pipeline.backends.chat import Chat
    from pipeline.data.best_samples import select_best
    from pipeline.models import loading

    best, dropped = select_best(cfg, samples, scores, Chat(base).only_bos)
    examples = best.select(prompt_ids="prompt_token_ids", completion_ids="token_ids").to_dicts()
    _account(out, best.height + dropped.height, examples, dropped.to_dicts(), BETTER)
    model = loading.load_merged(base)
    settings = loading.settings_of(model)
    _fit(cfg, out, model, loading.load_tokenizer(base), examples)
    return loading.save_full(model, settings, base, cfg.dtype, out)


def _fit(
    cfg: SftTraining | BestOfNConfig,
    out: Path,
    model: Any,
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
) -> None:
    """Trains the model where it stands."""
    from pipeline.models import loading
    from pipeline.training.monitoring import trackers
    from pipeline.training.trainers import sft

    weights = dict(model.named_parameters())
    start = dict(loading.checksums(weights, cfg.dtype))
    trainer, ledger = sft.trainer_for(cfg, model, tokenizer, examples, out)
    trackers.train(trainer, ledger.newest_whole())
    loading.check_finite(model)
    if all(start[name] == number for name, number in loading.checksums(weights, cfg.dtype)):
        knob = "refit" if isinstance(cfg, BestOfNConfig) else "sft"
        print(
            f"! {knob}: its weights are those that it started from, byte for byte: no step changed them. "
            f"Give a higher {knob}.learning_rate, more {knob}.epochs or a smaller {knob}.batch.",
            file=sys.stderr,
        )
    tokens = sum(len(e["prompt_ids"]) + len(e["completion_ids"]) for e in examples)
    note_cost(out, tokens=round(cfg.epochs * tokens), rows=len(examples))


def _examples(
    cfg: SftTraining, out: Path, tokenizer: Any, fence: Decontamination
) -> list[dict[str, list[int]]]:
    """The demonstrations in tokens, without those that may not be trained on; every row is
    accounted for."""
    from pipeline.data.decontamination import OverlapCheck
    from pipeline.data.demonstrations import encode_demonstrations, read_demonstrations
    from pipeline.training.trainers.sft import encode

    lines = read_demonstrations(cfg.data)
    tokens = partial(encode, tokenizer, kwargs=cfg.template.kwargs)
    examples, dropped = encode_demonstrations(
        lines, tokens, OverlapCheck(fence, cfg.fence.ngram), cfg.max_length, cfg.data
    )
    _account(out, len(lines.rows) + len(lines.bad), examples, dropped)
    return examples


def _account(
    out: Path, rows: int, examples: list[Any], dropped: list[Row], remedy: str = OTHERS
) -> None:
    import polars as pl

    from pipeline.artifacts import write_table

    schema = {"row": pl.String, "reason": pl.String, "detail": pl.String}
    table = pl.DataFrame(dropped, schema=schema)
    reasons = dict(sorted(table["reason"].value_counts().rows()))
    write_table(out / "dropped.parquet", table)
    note_cost(out, dropped=table.height)
    write_json(out / "funnel.json", {"in": rows, "out": len(examples), "dropped": reasons})
    if not examples:
        raise UserError(
            f"sft: of {many(rows, 'demonstration')} none is left to train on ({reasons}).\n"
            f"  Each one's reason is in {out / 'dropped.parquet'}. {remedy}"
        )
