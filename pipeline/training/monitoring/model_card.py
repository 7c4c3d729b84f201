"""README.md of a trained model, as the hub reads it: what it was made from, how, by which command, and what was seen.

It lies outside content, as no stage reads it: two commands may share a training, and the card has that of the first.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import CARD_FILE, MANIFEST_FILE, STEP_FILE, Artifact, Model, write_text
from pipeline.config import FullAdapter, TrainConfig
from pipeline.training.monitoring import curves

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

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def write(cfg: TrainConfig, out: Path, made_from: Mapping[str, Sequence[Artifact]]) -> None:
    """Lineage by fingerprint: each name is a folder of the store, whose manifest says where it comes from."""
    account = json.loads((out / "training.json").read_text())
    step = _step(out)
    lines = [
        f"- {role}: {', '.join(map(name_of, each))}" for role, each in made_from.items() if each
    ]
    seen = [
        f"| {words} | {value:.4g} |"
        for words, value in figures(Model(out), account["kept"]).items()
    ]
    warned = [f"- {one['symptom']}: {one['cause']}. {one['knob']}." for one in account["symptoms"]]
    parts = [
        f"# {', '.join(cfg.loss)} by {cfg.trainer}, {cfg.adapter.kind}",
        f"Weights of step {account['kept']} of {account['planned']} planned."
        + (
            f" Stopped at step {account['steps']}: {account['stopped']}."
            if account["stopped"]
            else ""
        ),
        "## Made from\n\n" + "\n".join(lines) + _lineage(step),
        *_command(step),
        "## Seen at that step\n\n| | |\n|---|---:|\n"
        + "\n".join(seen)
        + "\n\nEvery step is in metrics.jsonl.",
        f"![Loss, pairs told apart, margin, rewards, and what own answers show]({curves.FILE})",
        *(["## What looks wrong\n\n" + "\n".join(warned)] if warned else []),
        f"## Settings\n\n```json\n{_settings(cfg)}\n```",
    ]
    write_text(out / CARD_FILE, f"---\n{_front(cfg, step)}---\n\n" + "\n\n".join(parts) + "\n")


def figures(model: Model, step: int) -> dict[str, float]:
    """What the log holds of one step, in words."""
    known: dict[str, Any] = {}
    for row in model.read_metrics():
        known |= row if row["step"] == step else {}
    return {words: known[name] for name, words in FIGURES.items() if name in known}


def name_of(artifact: Artifact) -> str:
    return f"{artifact.path.parent.name}/{artifact.path.name}"


def _step(out: Path) -> dict[str, Any]:
    """What the driver said of this training; nothing where the stage was called without it."""
    file = out / STEP_FILE
    return json.loads(file.read_text()) if file.exists() else {}


def _front(cfg: TrainConfig, step: dict[str, Any]) -> str:
    """The hub's own fields; what it cannot link to, such as a model that lies here, is left to the lineage."""
    models, datasets = (sorted(set(_named(step, key))) for key in ("model", "dataset"))
    fields = {
        "library_name": "transformers" if isinstance(cfg.adapter, FullAdapter) else "peft",
        "pipeline_tag": "text-generation",
        "base_model": models,
        "datasets": datasets,
        "tags": [
            "trl",
            cfg.trainer,
            *(name for name in cfg.loss if name != cfg.trainer),
            "preference-optimization",
        ],
    }
    return yaml.safe_dump({name: value for name, value in fields.items() if value}, sort_keys=False)


def _named(step: dict[str, Any], key: str) -> Iterator[str]:
    """The hub repositories that its ancestors name: of the models before training, and of every dataset."""
    for ancestor in step.get("ancestors", []):
        if key == "dataset" or ancestor["stage"] in ("base", "sft"):
            manifest = Path(ancestor["path"], MANIFEST_FILE)
            yield from _values(json.loads(manifest.read_text())["config"], key)


def _values(config: Any, key: str) -> Iterator[str]:
    for name, value in config.items() if isinstance(config, dict) else ():
        if (
            name == key
            and isinstance(value, str)
            and HUB_NAME.fullmatch(value)
            and not Path(value).exists()
        ):
            yield value
        yield from _values(value, key)


def _lineage(step: dict[str, Any]) -> str:
    names = dict.fromkeys(
        f"{one['stage']}/{one['fingerprint']}" for one in step.get("ancestors", [])
    )
    return "\n\nEvery ancestor, the first made first: " + ", ".join(names) + "." if names else ""


def _command(step: dict[str, Any]) -> list[str]:
    if "command" not in step:
        return []
    words = placeless(step["command"])
    note = (
        "\n\n`…/` stands for where it lay; its content is part of the fingerprints."
        if words != step["command"]
        else ""
    )
    return [f"## The command that makes it\n\n```\n{words}\n```{note}"]


def _settings(cfg: TrainConfig) -> str:
    return placeless(
        json.dumps(cfg.model_dump(mode="json", exclude={"runtime"}), indent=1, ensure_ascii=False)
    )


def placeless(text: str) -> str:
    """Without the places of this machine: of an absolute path that is there, the last part stays."""

    def last(found: "re.Match[str]") -> str:
        path = Path(found[0])
        return f"…/{path.name}" if path.name and path.exists() else found[0]

    return re.sub(r"(?<![\w.:/~-])/[^\s\"',\]})]+", last, text)
