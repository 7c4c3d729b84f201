"""sft: a checkpoint (checked; merged if an adapter; dequantised if GGUF), or a model trained here.

`best_of_n` trains a round's policy on the best of its samples, whose prompts do not overlap
evaluation sets. Demonstrations that overlap an evaluation prompt or are too long are dropped:
`dropped.parquet`, `funnel.json`.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Decontamination, Model, Samples, Scores, note_cost
from pipeline.config import BestOfNConfig, Checkpoint, GgufCheckpoint, SftTraining
from pipeline.errors import UserError, pluralize
from pipeline.progress import print_warning
from pipeline.training.launch import expose_one_device

if TYPE_CHECKING:
    from pipeline.backends.chat import ModelTokenizer
    from pipeline.data.drop_log import DropLog

OTHER_DATA = "Raise sft.max_length, or give other demonstrations."
MORE_SAMPLES = (
    "Lower best_of_n.min_score, raise best_of_n.max_length, or draw more samples"
    " (sample.settings.draw.n)."
)


def run(
    cfg: Checkpoint | GgufCheckpoint | SftTraining | BestOfNConfig,
    out: Path,
    *,
    base: Model | None = None,
    decontamination: Decontamination | None = None,
    samples: list[Samples] | None = None,
    scores: list[Scores] | None = None,
) -> Model:
    from pipeline.models.checkpoint import import_checkpoint
    from pipeline.models.gguf import import_gguf

    if isinstance(cfg, Checkpoint | GgufCheckpoint):
        model = (
            import_gguf(cfg, out)
            if isinstance(cfg, GgufCheckpoint)
            else import_checkpoint(cfg, out)
        )
        _check_template(model, cfg)
        return model
    if isinstance(cfg, BestOfNConfig):
        assert base and samples and scores, "the plan gives best-of-n its round"
        return _train_best_of_n(cfg, out, base, samples, scores)
    if base is None or decontamination is None:
        raise UserError(
            "sft=train needs a base model and the n-grams of the evaluation prompts.\n"
            "  Give base=tiny or checkpoint."
        )
    return _train(cfg, out, base, decontamination)


def _check_template(model: Model, cfg: Checkpoint | GgufCheckpoint) -> None:
    """Refuses before any sampling what `pair` would refuse after it."""
    from pipeline.backends.chat import ModelTokenizer

    ModelTokenizer(model).check_template(cfg.template.kwargs)


def _train(cfg: SftTraining, out: Path, base: Model, decontamination: Decontamination) -> Model:
    expose_one_device()
    from pipeline.backends.chat import ModelTokenizer
    from pipeline.models import loading
    from pipeline.models.checkpoint import load_tokenizer, save_weights, to_torch_dtype

    tokenizer = load_tokenizer(base.tokenizer, cfg.template, str(base.path), base.remote_code)
    examples = _read_examples(cfg, out, ModelTokenizer(base, tokenizer), decontamination)
    model = loading.load_merged(base)
    _train_model(cfg, out, model, tokenizer, examples)
    return save_weights(model.to(to_torch_dtype(cfg.dtype)), tokenizer, out)


def _train_best_of_n(
    cfg: BestOfNConfig, out: Path, base: Model, samples: list[Samples], scores: list[Scores]
) -> Model:
    expose_one_device()
    from pipeline.backends.chat import ModelTokenizer
    from pipeline.data.best_samples import select_best
    from pipeline.models import loading

    best, log = select_best(cfg, samples, scores, ModelTokenizer(base).leading_bos)
    examples = best.select(prompt_ids="prompt_token_ids", completion_ids="token_ids").to_dicts()
    _publish_funnel(out, examples, log, MORE_SAMPLES)
    model = loading.load_merged(base)
    settings = loading.copy_settings(model)
    _train_model(cfg, out, model, loading.load_tokenizer(base), examples)
    return loading.save_full(model, settings, base, cfg.dtype, out)


def _train_model(
    cfg: SftTraining | BestOfNConfig,
    out: Path,
    model: Any,
    tokenizer: Any,
    examples: list[dict[str, list[int]]],
) -> None:
    """Trains the model in place."""
    from pipeline.models import loading
    from pipeline.training.monitoring import trackers
    from pipeline.training.trainers import sft

    weights = dict(model.named_parameters())
    start = dict(loading.compute_checksums(weights, cfg.dtype))
    trainer, ledger = sft.build_trainer(cfg, model, tokenizer, examples, out)
    trackers.train_with_trackers(trainer, ledger.find_newest())
    loading.check_finite(model)
    if all(start[name] == number for name, number in loading.compute_checksums(weights, cfg.dtype)):
        knob = "best_of_n" if isinstance(cfg, BestOfNConfig) else "sft"
        print_warning(
            f"{knob}: its weights are those that it started from, byte for byte:"
            " no step changed them."
            f" Give a higher {knob}.learning_rate, more {knob}.epochs or a smaller {knob}.batch."
        )
    tokens = sum(len(e["prompt_ids"]) + len(e["completion_ids"]) for e in examples)
    note_cost(out, tokens=round(cfg.epochs * tokens), rows=len(examples))


def _read_examples(
    cfg: SftTraining, out: Path, tokenizer: "ModelTokenizer", decontamination: Decontamination
) -> list[dict[str, list[int]]]:
    """The demonstrations to train on, in tokens. Every other row is recorded with its reason."""
    from pipeline.data.decontamination import OverlapCheck
    from pipeline.data.demonstrations import encode_demonstrations, read_demonstrations
    from pipeline.training.trainers.sft import encode

    lines = read_demonstrations(cfg.data)
    encode_messages = partial(encode, tokenizer, kwargs=cfg.template.kwargs)
    examples, log = encode_demonstrations(
        lines,
        encode_messages,
        OverlapCheck(decontamination, cfg.decontamination.ngram),
        cfg.max_length,
        cfg.data,
    )
    _publish_funnel(out, examples, log, OTHER_DATA)
    return examples


def _publish_funnel(out: Path, examples: list[Any], log: "DropLog", remedy: str) -> None:
    log.publish(out, len(examples))
    note_cost(out, dropped=log.rows_in - len(examples))
    if not examples:
        rows = pluralize(log.rows_in, "demonstration")
        raise log.explain_empty(f"sft: of {rows}", out, remedy)
