"""reward: a reward model, given or trained on preferences away from every evaluation prompt.

`held_out.json` tells how often it agrees with held-out labels, and how many of those answers it has
seen elsewhere. `dropped.parquet` lists what was left out.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Decontamination, Model, note_cost, write_json
from pipeline.config import RewardCheckpoint, RewardTraining
from pipeline.errors import UserError, pluralize
from pipeline.progress import print_note
from pipeline.training.launch import expose_one_device

if TYPE_CHECKING:
    from pipeline.scorers.reward_text import RewardEncoder

Row = dict[str, Any]


def run(
    cfg: RewardCheckpoint | RewardTraining,
    out: Path,
    *,
    start: Model | None = None,
    decontamination: Decontamination | None = None,
) -> Model:
    if isinstance(cfg, RewardCheckpoint):
        from pipeline.models.checkpoint import import_classifier

        return import_classifier(cfg, out)
    if start is None or decontamination is None:
        raise UserError(
            "reward=train needs a model to start from and the n-grams of the evaluation prompts.\n"
            "  Give reward.start=sft or base."
        )
    return _train(cfg, out, start, decontamination)


def _train(cfg: RewardTraining, out: Path, start: Model, decontamination: Decontamination) -> Model:
    expose_one_device()
    from pipeline.models import loading
    from pipeline.models.checkpoint import save_weights, to_torch_dtype
    from pipeline.scorers.reward_text import RewardEncoder
    from pipeline.training.monitoring import trackers
    from pipeline.training.trainers import reward

    tokenizer = loading.load_tokenizer(start)
    text = RewardEncoder(tokenizer, "chat", cfg.template_kwargs, limit=None)
    learned, held_out = split_held_out(cfg, _read_examples(cfg, out, text, decontamination))
    reward.set_pad_token(tokenizer, [*learned, *held_out])
    module = reward.load(start, cfg.seed)
    trainer, ledger = reward.build_trainer(cfg, module, tokenizer, learned, out)
    trackers.train_with_trackers(trainer, ledger.find_newest())
    loading.check_finite(module)

    module.to(to_torch_dtype(cfg.dtype))
    budget = 2 * cfg.max_length * cfg.runtime.micro_batch
    figures = reward.measure_accuracy(module, tokenizer.pad_token_id, held_out, budget)
    figures |= count_familiar(learned, held_out)
    print_note(describe_accuracy(figures))
    write_json(out / "held_out.json", figures)
    tokens = sum(len(ids) for e in learned for ids in (e["good_ids"], e["bad_ids"]) if ids)
    note_cost(out, tokens=round(cfg.epochs * tokens), rows=len(learned), **figures)
    return save_weights(module, tokenizer, out)


def _read_examples(
    cfg: RewardTraining, out: Path, text: "RewardEncoder", decontamination: Decontamination
) -> list[Row]:
    """The judged answers to learn from, in tokens. Every other row is recorded with its reason."""
    import polars as pl

    from pipeline.data.decontamination import OverlapCheck
    from pipeline.data.drop_log import BAD_ROW, DropLog
    from pipeline.data.reward_rows import read_reward_rows
    from pipeline.scorers.reward_text import UnreadableText

    lines = read_reward_rows(cfg.data, cfg.learn_from)
    check = OverlapCheck(decontamination, cfg.decontamination.ngram)
    examples, log = [], DropLog(len(lines.rows) + len(lines.bad), row=pl.Int64)
    for number, fault in lines.bad:
        log.drop(BAD_ROW, fault, row=number)
    for row in lines.rows:
        if any(check.overlaps(part) for part in _row_texts(row)):
            log.drop("overlap with evaluation", check.fault, row=row["row"])
            continue
        try:
            example = _encode_row(text, row)
        except UnreadableText as fault:
            log.drop("unreadable", str(fault), row=row["row"])
            continue
        longest = max(len(example[side] or []) for side in ("good_ids", "bad_ids"))
        if longest > cfg.max_length:
            detail = f"{longest} tokens, reward.max_length is {cfg.max_length}"
            log.drop("too long", detail, row=row["row"])
        else:
            examples.append(example)
    log.publish(out, len(examples), order="row")
    note_cost(out, dropped=log.rows_in - len(examples))
    if not examples:
        other = "unpaired" if cfg.learn_from == "pairs" else "pairs"
        raise log.explain_empty(
            f"reward: of {pluralize(log.rows_in, 'row')} of {cfg.learn_from}",
            out,
            f"Give other rows, or reward.learn_from={other}.",
        )
    return examples


def _encode_row(text: "RewardEncoder", row: Row) -> Row:
    from pipeline.data.prompts import build_prompt_row
    from pipeline.data.tool_turns import to_text

    example = {
        "prompt_id": build_prompt_row(row["prompt"], {})["prompt_id"],
        "flipped": row["flipped"],
        "answers": [to_text(row[side]) for side in ("good", "bad") if row[side] is not None],
    }
    for side in ("good", "bad"):
        answer = row[side]
        example[f"{side}_ids"] = None if answer is None else text.encode(row["prompt"], answer).ids
    return example


def _row_texts(row: Row) -> Iterator[str]:
    """All texts that would be learned from: the user's turns together, each turn, each answer."""
    from pipeline.data.prompts import join_user_turns
    from pipeline.data.tool_turns import to_text

    yield join_user_turns(row["prompt"])
    yield from (message["content"] for message in row["prompt"])
    yield from (to_text(row[side]) for side in ("good", "bad") if row[side] is not None)


def split_held_out(cfg: RewardTraining, examples: list[Row]) -> tuple[list[Row], list[Row]]:
    """To learn from, and held out.

    By prompt; or by answers where one prompt has more rows than may be held out. `familiar`:
    whether an answer of a held-out row is among those to learn from.
    """
    from pipeline.pairing.split import hold_out

    units = _held_out_units(cfg, examples)
    chosen = hold_out(units, cfg.held_out, cfg.seed)
    learned = [example for example, unit in zip(examples, units, strict=True) if unit not in chosen]
    if not chosen or not learned:
        prompts = pluralize(len(set(units)), "prompt")
        raise UserError(
            f"reward: of {pluralize(len(examples), 'row')}, to hold out {len(chosen)} of {prompts}"
            f" leaves {len(learned)} to learn from.\n"
            "  Both need some: give more rows, or another reward.held_out.min or max_share."
        )
    seen = {answer for example in learned for answer in example["answers"]}
    held_out = []
    for example, unit in zip(examples, units, strict=True):
        if unit in chosen:
            familiar = not seen.isdisjoint(example["answers"])
            held_out.append({**example, "familiar": familiar})
    return learned, held_out


def _held_out_units(cfg: RewardTraining, examples: Sequence[Row]) -> list[str]:
    """What is held out as a whole: prompts, or answers where one neutral prompt has most rows."""
    from pipeline.hashing import hash_json

    rows = Counter(example["prompt_id"] for example in examples)
    limit = cfg.held_out.max_share * len(examples)
    units = []
    for example in examples:
        prompt_id = example["prompt_id"]
        is_shared = rows[prompt_id] > limit
        units.append(hash_json([prompt_id, example["answers"]]) if is_shared else prompt_id)
    return units


def count_familiar(learned: Sequence[Row], held_out: Sequence[Row]) -> dict[str, float]:
    """Held-out prompts, and answers under other prompts, that were learned from too."""
    prompts = {example["prompt_id"] for example in learned}
    seen = {answer for example in learned for answer in example["answers"]}
    answers = {answer for example in held_out for answer in example["answers"]}
    return {
        "of_learned_prompts": sum(example["prompt_id"] in prompts for example in held_out),
        "answers": len(answers),
        "learned_answers": len(answers & seen),
    }


def describe_accuracy(figures: dict[str, float]) -> str:
    rows = pluralize(int(figures["held_out"]), "held-out row")
    text = f"agrees with {figures['accuracy']:.3f} of {rows}"
    if shared := figures["of_learned_prompts"]:
        text += (
            f", {shared:g} of them under prompts that it learned from (one prompt has most rows)"
        )
    if not figures["learned_answers"]:
        return f"{text}; none of their answers was learned from"
    answers = pluralize(int(figures["answers"]), "answer")
    text += f"; {figures['learned_answers']:g} of their {answers} were learned from too"
    if "accuracy_new" not in figures:
        return f"{text}, and no row is free of them: the accuracy is one on familiar answers"
    new, accuracy = figures["held_out_new"], figures["accuracy_new"]
    return f"{text}: of the {new:g} rows without such answers, {accuracy:.3f}"
