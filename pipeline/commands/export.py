"""`strop export MODEL FOLDER`: a model as a folder that needs nothing else, for any other tool.

It has merged weights, the tokenizer with its chat template, a card, the licence files that came
with the model at the start, and the adapter where there is one. `--gguf` adds a file for llama.cpp.
"""

import errno
import fnmatch
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pipeline import store
from pipeline.artifacts import (
    ADAPTER_CONFIG,
    CARD_FILE,
    Model,
    find_step,
    find_store,
    read_folder,
    read_json,
    read_step,
    write_json,
    write_text,
)
from pipeline.commands.find_model import (
    FoundModel,
    find_report,
    find_trained_model,
    silence_libraries,
)
from pipeline.commands.origins import (
    START,
    UNKNOWN,
    Origin,
    find_origins,
    format_origins,
    join_card,
    list_licence_files,
    split_card,
)
from pipeline.commands.table import parse_words, reports_errors
from pipeline.config import list_stores
from pipeline.errors import DONE, StageError, UserError, unwind_on_signals
from pipeline.hashing import find_local_folder
from pipeline.models import loading

NOTICE_FILE = "NOTICE.md"
ADAPTER_FOLDER = "adapter"
GGUF_FILE = "model.gguf"
CONVERTER = "convert_hf_to_gguf.py"
LLAMA_CPP = "LLAMA_CPP"
SAFE, PICKLED = ["*.safetensors", "*.safetensors.index.json"], ["*.bin", "*.bin.index.json"]
SETTINGS = ["config.json", "generation_config.json", "*.py"]
TRAINING_FILES = ("curves.png", "metrics.jsonl")  # which a trained model's card refers to


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("export", arguments)
    unwind_on_signals()
    converter = find_converter() if "--gguf" in words.flags else None
    out = check_new(read_folder(words.places[1]))
    found = find_trained_model(words.places[0], "export")
    scratch = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        with lock_readable(found):
            write_model_folder(found, scratch, words.knobs["license"])
        if converter:
            convert_to_gguf(converter, scratch)
        rename_new(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(out)
    return DONE


def check_new(out: Path) -> Path:
    if os.path.lexists(out):
        raise _make_exists_error(out)
    if not out.parent.is_dir():
        raise UserError(
            f"{out}: the folder {out.parent} does not exist.\n"
            f"  Type mkdir -p {out.parent}, or give another folder."
        )
    return out


def rename_new(scratch: Path, out: Path) -> None:
    try:
        scratch.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _make_exists_error(out) from error
        raise


def _make_exists_error(out: Path) -> UserError:
    return UserError(
        f"{out}: this path exists.\n  Give a folder that does not exist yet, or remove that one."
    )


def lock_readable(found: FoundModel) -> AbstractContextManager[None]:
    """No prune while its files are read. Nothing is written to a store that is only read."""
    root = find_store(found.model.path)
    stores = list_stores(found.read_config().get("store", root))
    is_read_only = root.resolve() in [Path(other).resolve() for other in stores[1:]]
    if is_read_only or not os.access(root, os.W_OK):
        return nullcontext()
    on_wait = lambda: print(f"waiting: {root} is being pruned", file=sys.stderr)  # noqa: E731
    return store.lock_shared(root, on_wait)


def write_model_folder(found: FoundModel, folder: Path, licence: str | None) -> list[Origin]:
    """Write everything of a model into a new folder. Returns what the model is made of."""
    model, origins = found.model, find_origins(found.model.path)
    folder.mkdir()
    silence_libraries()
    if model.adapter:
        print("Merging the adapter into its base …", file=sys.stderr, flush=True)
        loading.check_base(model)
        loading.save_merged(model, find_dtype(model.path), folder)
        copy_adapter(model, folder / ADAPTER_FOLDER)
    else:
        copy_weights(model, found.word, folder)
        loading.load_tokenizer(model).save_pretrained(folder)
    for file in (model.path / name for name in TRAINING_FILES):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    copy_licences(origins, folder)
    write_text(folder / NOTICE_FILE, format_origins(origins) + "\n")
    write_text(folder / CARD_FILE, build_card(found, origins, licence))
    open_to_readers(folder)
    return origins


def find_dtype(step: Path) -> str:
    """What an adapter was trained in; a sum of adapters has the first one's."""
    manifest = store.read_manifest(step)
    if manifest and (dtype := manifest["config"].get("dtype")):
        return str(dtype)
    trained = read_step(step)["inputs"]["model"]
    return find_dtype(find_step(find_store(step), f"{trained['stage']}/{trained['fingerprint']}"))


def open_to_readers(folder: Path) -> None:
    """Weights are saved through temporary files, which their owner alone may read."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)


def copy_weights(model: Model, word: str, folder: Path) -> None:
    source = find_local_folder(model.weights, model.revision)
    names = [file.name for file in source.iterdir()] if source else []
    patterns = SAFE if fnmatch.filter(names, SAFE[0]) else PICKLED
    if source is None or not fnmatch.filter(names, patterns[0]):
        raise UserError(
            f"{word}: its weights ({model.weights}) are not on this machine.\n"
            "  Type the command of its run again, which fetches them from the hub."
        )
    for name in _match_any(names, [*patterns, *SETTINGS]):
        shutil.copyfile(source / name, folder / name)


def _match_any(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatch(name, one) for one in patterns)]


def copy_adapter(model: Model, folder: Path) -> None:
    """PEFT's folder. Its base is named as others can find it: on the hub, or by fingerprint."""
    assert model.adapter is not None
    shutil.copytree(model.adapter, folder, copy_function=shutil.copyfile)
    weights = model.weights
    base = loading.read_base_name(model) if isinstance(weights, Path) else weights
    config = {**read_json(folder / ADAPTER_CONFIG), "base_model_name_or_path": base}
    write_json(folder / ADAPTER_CONFIG, config)


def copy_licences(origins: list[Origin], folder: Path) -> None:
    """The licence files of the models at the start; of two with one name the later one."""
    starts = [one.folder for one in origins if one.role == START and one.folder]
    for start in starts:
        for file in list_licence_files(start):
            shutil.copyfile(file, folder / file.name)


# ── the card ──────────────────────────────────────────────────────────────────────────────────────


def build_card(found: FoundModel, origins: list[Origin], licence: str | None) -> str:
    """The card of its training, or a short one, with its evaluation, its origins and a licence."""
    file = found.model.path / CARD_FILE
    fields, body = split_card(file.read_text()) if file.is_file() else ({}, f"# {found.name}")
    licence = licence or choose_licence(origins)
    fields = {**fields, "library_name": "transformers", "license": licence}
    fields.setdefault("pipeline_tag", "text-generation")
    sections = [body.strip(), *_describe_evaluation(found), *_describe_adapter(found.model)]
    return join_card(fields, "\n\n".join([*sections, format_origins(origins)]))


def choose_licence(origins: list[Origin]) -> str:
    """That of the model at the start, where it is known by a name."""
    licences = {one.licence for one in origins if one.role == START}
    [licence] = licences if len(licences) == 1 else [UNKNOWN]
    return UNKNOWN if licence.startswith("see ") else licence


def _describe_evaluation(found: FoundModel) -> list[str]:
    report = find_report(found.run) if found.run else None
    if report is None:
        return []
    content = read_json(report / "report.json")
    if content["evaluation"]["chosen"] != found.name:
        return []
    return [f"## Evaluation\n\n{content['verdict']['why']}"]


def _describe_adapter(model: Model) -> list[str]:
    if model.adapter is None:
        return []
    return [
        f"## Adapter\n\nThe weights are merged. `{ADAPTER_FOLDER}/` has the adapter alone; it works"
        f" only on the base that its {ADAPTER_CONFIG} names."
    ]


# ── GGUF ──────────────────────────────────────────────────────────────────────────────────────────


def find_converter() -> Path:
    """llama.cpp's converter: on the PATH, or in the folder that LLAMA_CPP names."""
    folder = os.environ.get(LLAMA_CPP)
    places = [Path(folder).expanduser()] if folder else []
    places += [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place]
    files = [*places[:1], *(place / CONVERTER for place in places)]
    found = next((file for file in files if file.name == CONVERTER and file.is_file()), None)
    if found is None:
        raise UserError(
            f"--gguf: llama.cpp's {CONVERTER} is neither on the PATH nor in ${LLAMA_CPP}.\n"
            "  Clone https://github.com/ggml-org/llama.cpp and give its folder:"
            f" {LLAMA_CPP}=./llama.cpp strop export …"
        )
    return found.resolve()


def convert_to_gguf(converter: Path, folder: Path) -> None:
    command = [sys.executable, str(converter), str(folder), "--outtype", "auto"]
    done = subprocess.run(
        [*command, "--outfile", str(folder / GGUF_FILE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0 or not (folder / GGUF_FILE).is_file():
        last = "\n".join(done.stdout.strip().splitlines()[-3:]) or "it printed nothing"
        raise StageError(
            f"--gguf: {converter} ended with code {done.returncode}: {last}\n"
            "  Nothing was written. Update llama.cpp and the packages it asks for, or export"
            " without --gguf."
        )
