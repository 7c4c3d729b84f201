"""What was run: the head of the report, from the configs of the steps that it descends from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import STEP_FILE
from pipeline.report.analysis.ancestors import Ancestor, read_ancestors

ADAPTERS = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA"}


def describe_setup(out: Path) -> dict[str, Any] | None:
    """Model, prompts, training and command; None where the stage was called without a plan."""
    setup = summarize_setup(read_ancestors(out))
    return setup and {**setup, "command": _read_command(out)}


def summarize_setup(steps: Sequence[Ancestor]) -> dict[str, Any] | None:
    """Model, prompts and training; None without the steps that bring them in."""
    first = {step.stage: step.config for step in reversed(steps)}
    if not {"prompts", "sft"} <= first.keys():
        return None
    return {
        "model": _describe_model(first),
        "prompts": str(
            first["prompts"].get("path")
            or first["prompts"].get("dataset")
            or first["prompts"]["kind"]
        ),
        **_describe_training([step for step in steps if step.stage == "train"]),
    }


def _describe_model(first: dict[str, dict[str, Any]]) -> str:
    sft = first["sft"]
    if checkpoint := sft.get("model") or sft.get("path"):
        return str(checkpoint)
    base = first["base"].get("model") or first["base"].get("path")
    return f"trained here from {base or 'a tiny model of random weights'}"


def _describe_training(steps: list[Ancestor]) -> dict[str, Any]:
    """Of the last round, but the objective of each: others differ in their rows alone."""
    # A replicate has the last round's config but for its seed, and a name for a label.
    rounds = {step.label: step.config for step in steps if isinstance(step.label, int)}
    if not rounds:
        return {"objective": None, "beta": None, "learning_rate": None, "rounds": 0}
    by_round = [rounds[number] for number in sorted(rounds)]
    config = by_round[-1]
    changed = ADAPTERS[config["adapter"]["kind"]]
    objectives = [f"{one['trainer']} ({' + '.join(one['loss'])})" for one in by_round]
    return {
        "objective": f"{', then '.join(dict.fromkeys(objectives))}, {changed}",
        "beta": config["beta"],
        "learning_rate": config["learning_rate"],
        "rounds": len(by_round),
    }


def _read_command(out: Path) -> str | None:
    command: str | None = json.loads((out / STEP_FILE).read_text()).get("command")
    return command and command.partition(" until=evaluate")[0]
