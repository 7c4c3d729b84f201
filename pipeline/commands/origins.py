"""What a model is made of, and the licences of it, as far as the files here say.

It reads the configs in the manifests of a step's ancestors. What is not known is "unknown".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import MODEL_FILE, STEP_FILE, find_step, find_store, read_object, read_step
from pipeline.config import POOL
from pipeline.hashing import find_local_folder
from pipeline.store import read_valid_manifest

UNKNOWN = "unknown"
OWN_DATA = "Strop's own generator"
OWN_LICENCE = "apache-2.0"  # of Strop, and of the texts that it makes
START = "model at the start"
REVISER = "server that revised"
MEMBER = "model whose answers became pairs"
# A knob of a stage that names something from outside → what that is to the result.
ROLES = {
    ("base", "model"): START,
    ("sft", "model"): START,
    ("sft", "dataset"): "demonstrations",
    ("sft", "path"): "demonstrations",
    ("prompts", "dataset"): "prompts",
    ("prompts", "path"): "prompts",
    ("offline", "dataset"): "offline preferences",
    ("offline", "path"): "offline preferences",
    ("reward", "model"): "reward model",
    ("reward", "dataset"): "preferences of the reward model",
    ("reward", "path"): "preferences of the reward model",
    ("sample", "model"): "server that sampled",
    ("revise", "model"): REVISER,
    ("steps", "model"): "judge of steps",
    ("score", "model"): "scorer or judge",
    ("score", "path"): "annotators' labels",
    ("train", "dataset"): "demonstrations for rehearsal",
    ("train", "path"): "demonstrations for rehearsal",
}
OWN_KINDS = {"playground", "instructions"}  # data that Strop makes itself
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")


@dataclass(frozen=True)
class Origin:
    role: str
    name: str  # as the user typed it; the last part of an absolute path
    licence: str
    folder: Path | None = None  # of a model, where its files are on this machine
    is_hub_name: bool = False


def find_origins(step: Path) -> list[Origin]:
    """Of a step and all its ancestors, the oldest first, each once."""
    record = read_step(step) if (step / STEP_FILE).exists() else {}
    root = find_store(step)
    found: list[Origin] = []
    for one in record.get("ancestors", []):
        is_member = str(one.get("label", "")).startswith(f"{POOL} ")
        origins = _read_origins(find_step(root, f"{one['stage']}/{one['fingerprint']}"))
        found += [replace(each, role=MEMBER) if is_member else each for each in origins]
    return [*dict.fromkeys([*found, *_read_origins(step)])]


def _read_origins(folder: Path) -> Iterator[Origin]:
    manifest = read_valid_manifest(folder)
    for name, value, block in _walk_config(manifest["config"]) if manifest else ():
        stage = folder.parent.name
        if name == "path" and block.get("kind") == "gguf":
            yield Origin(START, _name_file(value), _read_gguf_licence(folder))
        elif name == "kind" and value in OWN_KINDS:
            role = ROLES.get((stage, "path"), stage)
            yield Origin(role, f"{OWN_DATA} ({value})", OWN_LICENCE)
        elif role := ROLES.get((stage, name), ""):
            yield _describe_source(role, name, value, block.get("revision"))


def _walk_config(config: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every knob with a text, and the block that it is in."""
    blocks = config.values() if isinstance(config, dict) else config
    for block in blocks if isinstance(config, dict | list) else ():
        yield from _walk_config(block)
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, str):
            yield name, value, config


def _read_gguf_licence(folder: Path) -> str:
    """What the file named; unknown where it named none, or the step was pruned."""
    file = folder / MODEL_FILE
    record = read_object(file, gguf=dict)["gguf"] if file.exists() else {}
    return record.get("license") or UNKNOWN


def _name_file(typed: str) -> str:
    """An absolute path would tell where the user keeps files; its last part does not."""
    path = Path(typed).expanduser()
    return path.name if path.is_absolute() else typed


def _describe_source(role: str, knob: str, value: str, revision: str | None) -> Origin:
    path = Path(value).expanduser()
    is_file = knob == "path" or path.exists() or value.startswith((".", "/", "~"))
    is_hub_name = not is_file and value.count("/") == 1
    name = _name_file(value) if is_file else value
    if knob != "model":
        return Origin(role, name, UNKNOWN, is_hub_name=is_hub_name)
    folder = find_local_folder(value, revision) if is_hub_name else path
    licence = read_licence(folder) if folder and folder.is_dir() else UNKNOWN
    return Origin(role, name, licence, folder, is_hub_name)


def read_licence(folder: Path) -> str:
    """What the head of a model's card says, or else the name of its licence file."""
    card = folder / "README.md"
    fields, _ = split_card(card.read_text(errors="replace")) if card.is_file() else ({}, "")
    if licence := fields.get("license"):
        return str(licence)
    files = list_licence_files(folder)
    return f"see {files[0].name}" if files else UNKNOWN


def list_licence_files(folder: Path) -> list[Path]:
    files = (file for pattern in LICENCE_FILES for file in folder.glob(pattern))
    return sorted(file for file in files if file.is_file())


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """The fields at the head of a card, and the text after them."""
    start, marker, rest = text.partition("---\n")
    head, end, body = rest.partition("\n---")
    if start.strip() or not marker or not end:
        return {}, text
    try:
        fields = yaml.safe_load(head)
    except yaml.YAMLError:
        fields = None
    return (fields, body.lstrip("\n")) if isinstance(fields, dict) else ({}, text)


def join_card(fields: Mapping[str, Any], body: str) -> str:
    head = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n{body.strip()}\n"


def format_origins(origins: list[Origin]) -> str:
    """As a section of a card."""
    rows = [f"| {one.role} | {one.name} | {one.licence} |" for one in origins]
    table = ["| | | licence |", "|---|---|---|", *rows] if rows else ["No source is recorded."]
    note = (
        "A licence that is unknown was not found in the files of the machine that made this."
        " Look it up before you pass this on: a model's licence may bind what is trained on its"
        " answers, and a data set's what is trained on it."
    )
    return "\n".join(["## Origins and licences", "", *table, "", note])
