"""README.md of a trained model for the hub: its lineage, settings, command and metrics.

The content hash leaves it out, as no stage reads it: two commands may share a training, and the
card shows the first.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import (
    CARD_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    STEP_FILE,
    Artifact,
    Model,
    read_object,
    write_text,
)
from pipeline.config import FullAdapter, TrainConfig
from pipeline.training.monitoring import curves

METRIC_LABELS = {
    "loss": "loss of its batch",
    "reward": "reward of its batch, per answer",
    "eval_loss": "loss on dev pairs",
    "eval_rewards/accuracies": "dev pairs ranked correctly",
    "eval_rewards/margins": "margin on dev pairs",
    "eval_kl": "KL to the reference on generated answers, nats",
    "eval_chosen_logp_drop": "drop of the chosen answers' log-probability, nats per token",
    "eval_tokens": "tokens per generated answer",
    "eval_score": "score of generated answers",
}

ROOTS = "base", "sft"  # the stages that open a user's model
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def write(cfg: TrainConfig, out: Path, made_from: Mapping[str, Sequence[Artifact]]) -> None:
    """Name the lineage by fingerprints: each is a folder of the store with a manifest."""
    summary = json.loads((out / "training.json").read_text())
    step = _read_step(out)
    sources = [
        f"- {role}: {', '.join(map(format_name, each))}" for role, each in made_from.items() if each
    ]
    metrics = read_metrics(Model(out), summary["kept"])
    table = [f"| {label} | {value:.4g} |" for label, value in metrics.items()]
    symptoms = [
        f"- {one['symptom']}: {one['cause']}. {one['knob']}." for one in summary["symptoms"]
    ]
    published = f"Weights of step {summary['kept']} of {summary['planned']} planned."
    if summary["stopped"]:
        published += f" Stopped at step {summary['steps']}: {summary['stopped']}."
    parts = [
        f"# {', '.join(cfg.loss)} by {cfg.trainer}, {cfg.adapter.kind}",
        published,
        "## Made from\n\n" + "\n".join(sources) + _format_lineage(step),
        *_format_command(step),
        "## Metrics at that step\n\n| | |\n|---|---:|\n"
        + "\n".join(table)
        + "\n\nmetrics.jsonl has every step.",
        f"![Loss, pairs ranked correctly, margin, rewards, KL, length and score]({curves.FILE})",
        *(["## Warnings\n\n" + "\n".join(symptoms)] if symptoms else []),
        f"## Settings\n\n```json\n{_format_settings(cfg)}\n```",
    ]
    front_matter = f"---\n{_format_front_matter(cfg, step)}---"
    write_text(out / CARD_FILE, "\n\n".join([front_matter, *parts]) + "\n")


def read_metrics(model: Model, step: int) -> dict[str, float]:
    """What the log holds of one step, by its label."""
    known: dict[str, Any] = {}
    for row in model.read_metrics():
        known |= row if row["step"] == step else {}
    return {label: known[name] for name, label in METRIC_LABELS.items() if name in known}


def format_name(artifact: Artifact) -> str:
    return f"{artifact.path.parent.name}/{artifact.path.name}"


def _read_step(out: Path) -> dict[str, Any]:
    """The driver's record of this training; empty where the stage was called without a driver."""
    file = out / STEP_FILE
    return json.loads(file.read_text()) if file.exists() else {}


def _format_front_matter(cfg: TrainConfig, step: dict[str, Any]) -> str:
    """The hub's fields. What it cannot link to, such as a local model, is in the lineage only."""
    models, datasets = (sorted(set(_find_hub_names(step, key))) for key in ("model", "dataset"))
    fields = {
        "library_name": "transformers" if isinstance(cfg.adapter, FullAdapter) else "peft",
        "pipeline_tag": "text-generation",
        "license": _find_license(step),
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


def _find_license(step: dict[str, Any]) -> str | None:
    """The licence that a GGUF file names, if the model was made of one."""
    folders = [Path(one["path"]) for one in step.get("ancestors", []) if one["stage"] in ROOTS]
    records = [read_object(file) for folder in folders if (file := folder / MODEL_FILE).exists()]
    licenses = [record["gguf"]["license"] for record in records if "gguf" in record]
    return next(filter(None, licenses), None)


def _find_hub_names(step: dict[str, Any], key: str) -> Iterator[str]:
    """The hub repositories of every dataset, or of the models before training."""
    for ancestor in step.get("ancestors", []):
        if key == "dataset" or ancestor["stage"] in ROOTS:
            manifest = Path(ancestor["path"], MANIFEST_FILE)
            yield from _find_values(json.loads(manifest.read_text())["config"], key)


def _find_values(config: Any, key: str) -> Iterator[str]:
    for name, value in config.items() if isinstance(config, dict) else ():
        is_hub_name = isinstance(value, str) and HUB_NAME.fullmatch(value)
        if name == key and is_hub_name and not Path(value).exists():
            yield value
        yield from _find_values(value, key)


def _format_lineage(step: dict[str, Any]) -> str:
    ancestors = step.get("ancestors", [])
    names = dict.fromkeys(f"{one['stage']}/{one['fingerprint']}" for one in ancestors)
    return f"\n\nEvery ancestor, the oldest first: {', '.join(names)}." if names else ""


def _format_command(step: dict[str, Any]) -> list[str]:
    if "command" not in step:
        return []
    command = hide_local_paths(step["command"])
    note = ""
    if command != step["command"]:
        note = "\n\n`…/` replaces local folders; the files' content is part of the fingerprints."
    return [f"## The command that makes it\n\n```\n{command}\n```{note}"]


def _format_settings(cfg: TrainConfig) -> str:
    settings = _drop_runtime(cfg.model_dump(mode="json"))
    return hide_local_paths(json.dumps(settings, indent=1, ensure_ascii=False))


def _drop_runtime(value: Any) -> Any:
    """Without servers and workers, which are of this machine."""
    if isinstance(value, dict):
        return {name: _drop_runtime(item) for name, item in value.items() if name != "runtime"}
    return value


def hide_local_paths(text: str) -> str:
    """Shorten every absolute path that exists on this machine to its last part."""

    def shorten(found: "re.Match[str]") -> str:
        path = Path(found[0])
        return f"…/{path.name}" if path.name and path.exists() else found[0]

    return re.sub(r"(?<![\w.:/~-])/[^\s\"',\]})]+", shorten, text)
