"""The stage `reward`: a reward model as it is, or one trained on what was preferred, away from
every evaluation prompt.

`held_out.json` tells how often it agrees with labels it never saw, and how many of those answers it
saw elsewhere; what was left out stands in `dropped.parquet`.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Decontamination, Model, note_cost, write_json, write_table
from pipeline.config import RewardCheckpoint, RewardTraining
from pipeline.errors import UserError, many
from pipeline.training.launch import expose_one_device

if TYPE_CHECKING:
    from pipeline.scorers.reward_text import RewardText

Row = dict[str, Any]


def run(
    cfg: RewardCheckpoint | RewardTraining,
    out: Path,
    *,
    start: Model | None = None,
    fence: Decontamination | None = None,
) -> Model:
    if isinstance(cfg, RewardCheckpoint):
        from pipeline.models.checkpoint import bring_in_classifier

        return bring_in_classifier(cfg, out)
    if start is None or fence is None:
        raise UserError(
            "reward=train needs a model to start from and the fence.\n  Give reward.start=sft or base."
        )
    return _train(cfg, out, start, fence)


def _train(cfg: RewardTraining, out: Path, start: Model, fence: Decontamination) -> Model:
    expose_one_device()
    from pipeline.models import loading
    from pipeline.models.checkpoint import save_weights, torch_dtype
    from pipeline.scorers.reward_text import RewardText
    from pipeline.training.monitoring import trackers
    from pipeline.training.trainers import reward

    tokenizer = loading.load_tokenizer(start)
    text = RewardText(tokenizer, "chat", cfg.template_kwargs, limit=None)
    learned, held_out = parts(cfg, _examples(cfg, out, text, fence))
    reward.set_pad_token(tokenizer, [*learned, *held_out])
    module = reward.load(start, cfg.seed)
    trainer, ledger = reward.trainer_for(cfg, module, tokenizer, learned, out)
    trackers.train(trainer, ledger.newest_whole())
    loading.check_finite(module)

    module.to(torch_dtype(cfg.dtype))
    budget = 2 * cfg.max_length * cfg.runtime.micro_batch
    figures = reward.accuracy(module, tokenizer.pad_token_id, held_out, budget) | familiar(
        learned, held_out
    )
    print("│", in_words(figures), file=sys.stderr, flush=True)
    write_json(out / "held_out.json", figures)
    tokens = sum(len(ids) for e in learned for ids in (e["good_ids"], e["bad_ids"]) if ids)
    note_cost(out, tokens=round(cfg.epochs * tokens), rows=len(learned), **figures)
    return save_weights(module, tokenizer, out)


def _examples(
    cfg: RewardTraining, out: Path, text: "RewardText", fence: Decontamination
) -> list[Row]:
    """The judged answers in tokens, without those that may not be learned from; every row is
    accounted for."""
    from pipeline.data.decontamination import OverlapCheck
    from pipeline.data.reward_rows import read_reward_rows
    from pipeline.scorers.reward_text import Unreadable

    lines = read_reward_rows(cfg.data, cfg.learn_from)
    check = OverlapCheck(fence, cfg.fence.ngram)
    dropped = [_dropped(number, "bad row", fault) for number, fault in lines.bad]
    examples = []
    for row in lines.rows:
        if any(check.overlaps(said) for said in _said(row)):
            dropped.append(_dropped(row["row"], "overlap with evaluation", check.fault))
            continue
        try:
            example = _encoded(text, row)
        except Unreadable as fault:
            dropped.append(_dropped(row["row"], "unreadable", str(fault)))
            continue
        longest = max(len(example[side] or []) for side in ("good_ids", "bad_ids"))
        if longest > cfg.max_length:
            detail = f"{longest} tokens, reward.max_length is {cfg.max_length}"
            dropped.append(_dropped(row["row"], "too long", detail))
        else:
            examples.append(example)
    _account(cfg, out, len(lines.rows) + len(lines.bad), examples, dropped)
    return examples


def _encoded(text: "RewardText", row: Row) -> Row:
    from pipeline.data.prompts import build_prompt_row

    ids = {
        f"{s}_ids": None if row[s] is None else text.row(row["prompt"], row[s]).ids
        for s in ("good", "bad")
    }
    answers = [row[side] for side in ("good", "bad") if row[side] is not None]
    known = {
        "prompt_id": build_prompt_row(row["prompt"], {})["prompt_id"],
        "flipped": row["flipped"],
        "answers": answers,
    }
    return {**known, **ids}


def _said(row: Row) -> Iterator[str]:
    """Everything that would be learned from: the user's words as a whole, each turn, each
    answer."""
    from pipeline.data.prompts import join_user_turns

    yield join_user_turns(row["prompt"])
    yield from (message["content"] for message in row["prompt"])
    yield from (row[side] for side in ("good", "bad") if row[side] is not None)


def _account(
    cfg: RewardTraining, out: Path, rows: int, examples: list[Row], dropped: list[Row]
) -> None:
    import polars as pl

    table = pl.DataFrame(
        dropped, schema={"row": pl.Int64, "reason": pl.String, "detail": pl.String}
    ).sort("row")
    reasons = dict(sorted(table["reason"].value_counts().rows()))
    write_table(out / "dropped.parquet", table)
    write_json(out / "funnel.json", {"in": rows, "out": len(examples), "dropped": reasons})
    note_cost(out, dropped=table.height)
    if not examples:
        other = "thumbs" if cfg.learn_from == "pairs" else "pairs"
        raise UserError(
            f"reward: of {many(rows, 'row')} of {cfg.learn_from} none is left to learn from ({reasons}).\n"
            f"  Each one's reason is in {out / 'dropped.parquet'}. Give other rows, or reward.learn_from={other}."
        )


def parts(cfg: RewardTraining, examples: list[Row]) -> tuple[list[Row], list[Row]]:
    """To learn from, and held out: by prompt, or by answers where one prompt has more rows than may
    be held out.

    A held-out row knows whether one of its answers is among those to learn from (`familiar`).
    """
    from pipeline.pairing.split import hold_out

    units = _units(cfg, examples)
    apart = hold_out(units, cfg.held_out, cfg.seed)
    learned = [example for example, unit in zip(examples, units, strict=True) if unit not in apart]
    if not apart or not learned:
        raise UserError(
            f"reward: of {many(len(examples), 'row')}, to hold out {len(apart)} of {many(len(set(units)), 'prompt')}"
            f" leaves {len(learned)} to learn from.\n"
            f"  Both need some: give more rows, or another reward.held_out.least or most_share."
        )
    seen = {answer for example in learned for answer in example["answers"]}
    held = [example for example, unit in zip(examples, units, strict=True) if unit in apart]
    return learned, [
        {**example, "familiar": not seen.isdisjoint(example["answers"])} for example in held
    ]


def _units(cfg: RewardTraining, examples: Sequence[Row]) -> list[str]:
    """What is held out as a whole. One neutral prompt for all rows is a usual shape: there each
    row's answers are."""
    from pipeline.hashing import digest_of

    rows = Counter(example["prompt_id"] for example in examples)
    most = cfg.held_out.most_share * len(examples)
    return [
        digest_of([example["prompt_id"], example["answers"]]) if rows[example["prompt_id"]] > most
        else example["prompt_id"]
        for example in examples
    ]  # fmt: skip


def familiar(learned: Sequence[Row], held: Sequence[Row]) -> dict[str, float]:
    """How much of what is held out was learned from elsewhere: prompts, and answers under
    another prompt."""
    prompts, seen = (
        {e["prompt_id"] for e in learned},
        {answer for e in learned for answer in e["answers"]},
    )
    answers = {answer for example in held for answer in example["answers"]}
    return {
        "of_learned_prompts": sum(example["prompt_id"] in prompts for example in held),
        "answers": len(answers),
        "learned_answers": len(answers & seen),
    }


def in_words(figures: dict[str, float]) -> str:
    told = (
        f"agrees with {figures['accuracy']:.3f} of {many(int(figures['held_out']), 'held-out row')}"
    )
    if shared := figures["of_learned_prompts"]:
        told += (
            f", {shared:g} of them under prompts that it learned from (one prompt has most rows)"
        )
    if not figures["learned_answers"]:
        return f"{told}; none of their answers was learned from"
    told += f"; {figures['learned_answers']:g} of their {many(int(figures['answers']), 'answer')} were learned from too"
    if "accuracy_new" not in figures:
        return f"{told}, and no row is free of them: the accuracy is one on familiar answers"
    return f"{told}: of the {figures['held_out_new']:g} rows without such answers, {figures['accuracy_new']:.3f}"


def _dropped(row: int, reason: str, detail: str) -> Row:
    return {"row": row, "reason": reason, "detail": detail}
