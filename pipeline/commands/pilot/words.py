"""The estimate as text."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.commands.pilot.seen import ONCE


def format_lines(results: Mapping[str, Any]) -> Iterator[str]:
    heads = "steps", "prompts", "fixed s", "s per 1000", "whole run s", "at most s"
    yield f"{'stage':<10}{'of':<13}" + "".join(f"{head:>13}" for head in heads)
    for row in results["stages"]:
        grows = row["kind"] != ONCE
        counts = f"{row['kind']:<13}{row['steps']:>13}{row['prompts'] if grows else '':>13}"
        each = f"{1000 * row['each']:.1f}" if grows else ""
        seconds = f"{row['fixed']:>13.1f}{each:>13}{row['seconds']:>13.1f}{row['at_most']:>13.1f}"
        yield f"{row['stage']:<10}{counts}{seconds}"
    yield f"between steps {results['between_steps']:.1f} s"
    hours = f"{results['hours']:.2f} h, at most {results['hours_at_most']:.2f}"
    yield f"time          {hours}, with the machine as busy as when each step ran"
    disk = f"{results['disk_bytes'] / 1e6:,.1f} MB in the store"
    yield f"disk          {disk}, and checkpoints on top during training"
    prices = {
        "judges and servers": results["money"],
        "the GPUs of this machine": results["gpu_money"],
    }
    costs = [f"{money:.2f} for {what}" for what, money in prices.items() if money is not None]
    yield f"money         {' · '.join(costs) or 'none'}"
    if ties := results["ties"]:
        share = f"{ties['prompts'] / ties['of']:.0%} of prompts"
        among = f"{ties['all_easy']} all easy, {ties['all_hard']} all hard, of {ties['of']}"
        yield f"ties          {share} ({among}): they make no pair, unless pair.ties=both"
    if gap := results["detectable"]:
        yield (
            f"detectable    a difference of {gap['least']:.3f} to {gap['most']:.3f} in"
            f" {gap['scorer']} with {gap['prompts']} evaluation prompts"
        )
