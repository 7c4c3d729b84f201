"""Finds the model that a word names: a run's, one step's in the store, a checkpoint's or the hub's.

`RUN` is the model that the run chose, `RUN:MODEL` one of its models (base, sft, round-1, a
baseline). A model's folder in the store, a checkpoint's folder and a name on the hub are models.
"""

from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import yaml

from pipeline import hardware, store
from pipeline.artifacts import (
    MADE_BY,
    MODEL_FILE,
    STEP_FILE,
    Model,
    Report,
    build_tree,
    find_step,
    find_store,
    list_steps,
    open_artifact,
    read_folder,
    read_json,
    read_step,
    resolve_run,
    write_json,
)
from pipeline.commands.table import LATEST
from pipeline.config import ANSWER, Checkpoint, Template, Trust, Weights
from pipeline.errors import UserError, suggest
from pipeline.models import checkpoint

WHAT_TO_GIVE = (
    "Give a finished run (runs/latest), one of its models (runs/latest:sft), a checkpoint's folder,"
    " or a name on the hub."
)
CONFIG_FILE = "config.yaml"  # in a run: its resolved config


@dataclass(frozen=True)
class FoundModel:
    """`name` is its name among the others of its run, or the last part of its folder's name."""

    word: str
    name: str
    model: Model
    run: Path | None = None

    def read_config(self) -> dict[str, Any]:
        """The run's resolved config; empty for a model without a run."""
        file = self.run and self.run / CONFIG_FILE
        if not file or not file.is_file():
            return {}
        try:
            config = yaml.safe_load(file.read_text())
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(
                f"{file}: cannot be read as YAML.\n  Put back what the run wrote there."
            ) from error
        return config if isinstance(config, dict) else {}

    def read_template_kwargs(self) -> dict[str, Any]:
        return (self.read_config().get("template") or {}).get("kwargs") or {}

    def read_dtype(self) -> str:
        return str(self.read_config().get("dtype") or hardware.AUTO)

    def read_answer_settings(self) -> dict[str, Any]:
        """How the run sampled the answers of its evaluation; empty for a model without a run."""
        sample = (self.read_config().get("evaluate") or {}).get("sample") or {}
        if not sample:
            return {}
        return {**sample["settings"][ANSWER], "max_tokens": sample["limits"]["completion"]}


def silence_libraries() -> None:
    """Leave the terminal to the command: no hints of transformers and bitsandbytes on load."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes").setLevel(ERROR)


def find_model(word: str, scratch: Path) -> FoundModel:
    """Any model. What a checkpoint needs to be opened is written to `scratch`."""
    if found := find_built_model(word):
        return found
    place = read_folder(word)
    if word.partition(":")[0] == LATEST and not place.is_dir():
        raise UserError(
            f"{word}: there is no run here yet.\n"
            "  Type strop new to begin one, or name a model: its folder, or its name on the hub."
        )
    is_hub_name = word.count("/") == 1 and not Weights(word).is_local
    if not place.is_dir() and not is_hub_name:
        raise UserError(f"{word}: neither a run nor a model. {WHAT_TO_GIVE}")
    return FoundModel(word, place.resolve().name, _open_checkpoint(word, scratch))


def find_trained_model(word: str, command: str) -> FoundModel:
    """A run's model or one step's in the store: what Strop has made and knows the origin of."""
    if found := find_built_model(word):
        return found
    raise UserError(
        f"{word}: no run here, and no model of a store.\n"
        f"  Give strop {command} a finished run (runs/latest), one of its models"
        " (runs/latest:round-1), or a model's folder in the store."
    )


def find_built_model(word: str) -> FoundModel | None:
    """A run's model or one step's in the store; None where the word names neither."""
    place, _, name = word.rpartition(":") if ":" in word else (word, "", "")
    run = read_folder(place)
    if (run / "store").is_dir():
        return _find_in_run(resolve_run(run), name, word)
    folder = read_folder(word).resolve()
    is_step = MADE_BY.get(folder.parent.name) is Model and store.read_manifest(folder) is not None
    if is_step:
        return FoundModel(word, folder.name, open_model(folder, word))
    if name and run.exists():
        raise UserError(
            f"{word}: {place} is not a run, so that :{name} chooses nothing. {WHAT_TO_GIVE}"
        )
    return None


def open_model(folder: Path, word: str) -> Model:
    """The model of a step. Refuses one without its files or without its base."""
    manifest = store.read_manifest(folder)
    if manifest is None or store.is_pruned(manifest) or not (folder / MODEL_FILE).exists():
        raise UserError(
            f"{word}: {folder} has no weights here (pruned, or not a model).\n"
            "  Run the command of its run again, which makes them."
        )
    if fault := store.find_damage(folder, manifest):
        raise UserError(
            f"{word}: {folder} is {fault}.\n"
            "  Run the command of its run again with verify=true, which makes it again."
        )
    model = open_artifact(folder.parent.name, folder)
    assert isinstance(model, Model)
    if model.path != folder:  # a gate points to the model that it chose
        return open_model(model.path, word)
    if base := model.record.get("base"):
        _check_base(find_step(find_store(folder), base), base, word)
    elif isinstance(model.weights, Path) and not model.weights.exists():
        raise UserError(
            f"{word}: its checkpoint is gone from {model.weights}.\n"
            "  Put it back there, or run the command of its run again."
        )
    return model


def _check_base(folder: Path, base: str, word: str) -> None:
    if not folder.is_dir():
        raise UserError(
            f"{word}: its base {base} is not in its store ({folder}).\n"
            "  Give the model's folder in the store, or its run; where the base was pruned, run the"
            " command of its run again."
        )
    open_model(folder, word)


def list_run_models(run: Path) -> dict[str, Path]:
    """The folders of a run's models by name: those it built, then the other ones it evaluated."""
    models = {
        name: link.resolve()
        for link in list_steps(run, "*")
        if (name := _name_model(link.name.partition("-")[2]))
    }
    for name, folder in _list_evaluated(run).items():
        if folder not in models.values():
            models[name] = folder
    return models


def _name_model(link: str) -> str | None:
    """A link's name after its number: `train-2` is round-2, `merge-merge-30` is merge-30.

    None for any other step.
    """
    stage, _, label = link.partition("-")
    if stage == "train":
        # A replicate's label is the model's name already.
        return label if label.startswith("round-") else f"round-{label}"
    if stage == "merge":
        return label
    return link if link in ("base", "sft") else None


def _list_evaluated(run: Path) -> dict[str, Path]:
    if not (report := find_report(run)):
        return {}
    evals = build_tree(read_step(report)["inputs"]).get("evals", {})
    sources = {name: parts["model"] for name, parts in evals.items() if "model" in parts}
    root = find_store(report)
    return {
        name: find_step(root, f"{one['stage']}/{one['fingerprint']}")
        for name, one in sources.items()
    }


def find_report(run: Path) -> Path | None:
    reports = list_steps(run, "[0-9]*-evaluate-*")
    return reports[-1].resolve() if reports and (reports[-1] / STEP_FILE).exists() else None


def _find_in_run(run: Path, name: str, word: str) -> FoundModel:
    models = list_run_models(run)
    if not models:
        raise UserError(f"{word}: this run has no model yet.\n  Type its command again to resume.")
    name = name or _read_chosen(run, [*models], word)
    if name not in models:
        raise UserError(f"{word}: this run has no such model. {suggest(name, [*models])}")
    return FoundModel(word, name, open_model(models[name], word), run)


def _read_chosen(run: Path, names: list[str], word: str) -> str:
    report = find_report(run)
    if report is None:
        raise UserError(
            f"{word}: this run has no report, so it has not chosen a model.\n"
            f"  Name one: {', '.join(f'{word}:{name}' for name in names)}; or finish the run."
        )
    return str(Report(report).read()["evaluation"]["chosen"])


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────


def _open_checkpoint(word: str, scratch: Path) -> Model:
    """A checkpoint as a model. An adapter is merged into its base, as `sft` does it."""
    cfg = Checkpoint(
        kind="checkpoint",
        model=Weights(word),
        revision=None,
        trust=Trust(remote_code=False, pickled_weights=False),
        template=Template(chat_template=None, kwargs={}),
        dtype=hardware.AUTO,
    )
    folder = read_folder(word)
    _check_no_custom_code(folder, word)
    if not (folder / "config.json").is_file() or (folder / checkpoint.ADAPTER).is_file():
        return checkpoint.import_checkpoint(cfg, scratch)
    checkpoint.check_files(cfg)
    checkpoint.load_tokenizer(folder, cfg.template, word)
    place = str(folder.resolve())
    write_json(scratch / MODEL_FILE, {"weights": place, "tokenizer": place})
    return Model(scratch)


def _check_no_custom_code(folder: Path, word: str) -> None:
    config = folder / "config.json"
    if config.is_file() and "auto_map" in read_json(config):
        raise UserError(
            f"{word}: it brings its own Python code (auto_map in config.json), which this command"
            " does not run.\n"
            "  Read that code and, if you trust it, open the model through a run with"
            " sft.trust.remote_code=true: RUN:sft."
        )
