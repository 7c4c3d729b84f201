"""README.md of a trained model: what it was made from, how, what was seen, and what looked wrong."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Model, write_text
from pipeline.config import TrainConfig

FIGURES = {
    "loss": "loss of the last step",
    "eval_loss": "loss on dev pairs",
    "eval_rewards/accuracies": "dev pairs told apart",
    "eval_rewards/margins": "margin on dev pairs",
    "eval_kl": "KL to the reference on own answers, nats",
    "eval_chosen_fall": "nats per token that chosen answers lost",
    "eval_tokens": "tokens of own answers",
    "eval_score": "score of own answers",
}


def write(cfg: TrainConfig, out: Path, made_from: Mapping[str, Sequence[Artifact]]) -> None:
    """Lineage by fingerprint: each name is a folder of the store, whose manifest says where it comes from."""
    account = json.loads((out / "training.json").read_text())
    lines = [f"- {role}: {', '.join(map(name_of, each))}" for role, each in made_from.items() if each]
    seen = [f"| {words} | {value:.4g} |" for words, value in figures(Model(out), account["kept"]).items()]
    warned = [f"- {one['symptom']}: {one['cause']}. {one['knob']}." for one in account["symptoms"]]
    settings = cfg.model_dump(mode="json", exclude={"runtime"})
    parts = [
        f"# {', '.join(cfg.loss)} by {cfg.trainer}, {cfg.adapter.kind}",
        f"Weights of step {account['kept']} of {account['planned']} planned."
        + (f" Stopped at step {account['steps']}: {account['stopped']}." if account["stopped"] else ""),
        "## Made from\n\n" + "\n".join(lines),
        "## Seen at that step\n\n| | |\n|---|---:|\n" + "\n".join(seen) + "\n\nEvery step is in metrics.jsonl.",
        *(["## What looks wrong\n\n" + "\n".join(warned)] if warned else []),
        f"## Settings\n\n```json\n{json.dumps(settings, indent=1, ensure_ascii=False)}\n```",
    ]
    write_text(out / "README.md", "\n\n".join(parts) + "\n")


def figures(model: Model, step: int) -> dict[str, float]:
    """What the log holds of one step, in words."""
    known: dict[str, Any] = {}
    for row in model.metrics():
        known |= row if row["step"] == step else {}
    return {words: known[name] for name, words in FIGURES.items() if name in known}


def name_of(artifact: Artifact) -> str:
    return f"{artifact.path.parent.name}/{artifact.path.name}"
