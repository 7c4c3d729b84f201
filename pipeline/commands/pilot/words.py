"""The estimate as a person reads it."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.commands.pilot.seen import ONCE


def format_lines(told: Mapping[str, Any]) -> Iterator[str]:
    heads = "steps", "prompts", "fixed s", "s per 1000", "whole run s", "at most s"
    yield f"{'stage':<10}{'of':<13}" + "".join(f"{head:>13}" for head in heads)
    for row in told["stages"]:
        grows = row["kind"] != ONCE
        counts = f"{row['kind']:<13}{row['steps']:>13}{row['prompts'] if grows else '':>13}"
        each = f"{1000 * row['each']:.1f}" if grows else ""
        yield f"{row['stage']:<10}{counts}{row['fixed']:>13.1f}{each:>13}{row['seconds']:>13.1f}{row['at_most']:>13.1f}"
    yield f"between steps {told['between_steps']:.1f} s"
    yield f"time          {told['hours']:.2f} h, at most {told['hours_at_most']:.2f}, with the machine as busy as now"
    yield f"disk          {told['disk_bytes'] / 1e6:,.1f} MB in the store; checkpoints come on top while it trains"
    paid = {"judges and servers": told["money"], "the GPUs of this machine": told["gpu_money"]}
    owed = [f"{money:.2f} for {what}" for what, money in paid.items() if money is not None]
    yield f"money         {' · '.join(owed) or 'nobody is paid'}"
    if tied := told["ties"]:
        among = f"{tied['all_easy']} all easy, {tied['all_hard']} all hard, of {tied['of']}"
        yield f"ties          {tied['prompts'] / tied['of']:.0%} of prompts ({among}): they make no pair"
    if seen := told["detectable"]:
        yield (
            f"detectable    a difference of {seen['least']:.3f} to {seen['most']:.3f} in {seen['scorer']}"
            f" with {seen['prompts']} exam prompts"
        )
