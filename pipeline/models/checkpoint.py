"""Opens a checkpoint that a user names, after the checks that can be made before any heavy work.

`bring_in` leaves a reference (`model.json`, `tokenizer/`); a PEFT adapter becomes merged `weights/`, a model of ours.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import MODEL_FILE, PLACE_FILE, Model, write_json
from pipeline.config import Checkpoint, Dtype, RewardCheckpoint, Template, Trust, Weights
from pipeline.errors import UserError, run_all
from pipeline.hashing import ContentCache, resolve_commit
from pipeline.models import checkpoint_checks as checks
from pipeline.models.checkpoint_checks import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "adapter_config.json"
SMALL = ["*.json", "*.jinja", "*.txt", "*.model"]
LARGE = ["*.safetensors"]


def bring_in(cfg: Checkpoint, out: Path) -> Model:
    folder, commit = _folder(cfg.model, cfg.revision, SMALL)
    if (folder / ADAPTER).is_file():
        return _merge(cfg, folder, out)
    checks.no_own_code(folder, cfg.model, cfg.trust)
    checks.causal(folder, cfg.model)
    tokenizer = load_tokenizer(folder, cfg.template, cfg.model, cfg.trust.remote_code)
    checks.vocabulary(tokenizer, folder, cfg.model)
    folder, commit = _folder(cfg.model, commit, _with_weights(cfg))
    checks.weights(folder, cfg.model, cfg.trust)
    checks.complete(folder, cfg.model, cfg.trust)
    tokenizer.save_pretrained(out / "tokenizer")
    origin = (
        {"weights": str(cfg.model), "revision": commit, "content": commit}
        if commit
        else _local(folder, out)
    )
    write_json(
        out / MODEL_FILE, {**origin, "tokenizer": "tokenizer", "remote_code": cfg.trust.remote_code}
    )
    return Model(out)


def bring_in_classifier(cfg: RewardCheckpoint, out: Path) -> Model:
    """A reward model as a reference: how its scorers put a text to it is theirs to say."""
    folder, commit = classifier(cfg.model, cfg.revision, cfg.trust)
    opened_tokenizer(folder, None, cfg.model, cfg.trust.remote_code).save_pretrained(
        out / "tokenizer"
    )
    origin = (
        {"weights": str(cfg.model), "revision": commit, "content": commit}
        if commit
        else _local(folder, out)
    )
    write_json(
        out / MODEL_FILE, {**origin, "tokenizer": "tokenizer", "remote_code": cfg.trust.remote_code}
    )
    return Model(out)


def classifier(model: Weights, revision: str | None, trust: Trust) -> tuple[Path, str | None]:
    """The folder of a sequence classifier that is whole, its head included; and its commit."""
    folder, commit = _folder(model, revision, SMALL)
    _refuse_adapter(folder, model)
    checks.no_own_code(folder, model, trust)
    folder, commit = _folder(
        model, commit, SMALL + LARGE + (checks.PICKLED if trust.pickled_weights else [])
    )
    checks.weights(folder, model, trust)
    checks.classification_head(folder, model, trust)
    return folder, commit


def check_files(cfg: Checkpoint | RewardCheckpoint) -> None:
    """Of a local checkpoint, what its files alone tell: part of what is refused when it is brought in."""
    folder = _local_folder(cfg.model)
    if isinstance(cfg, RewardCheckpoint):
        _refuse_adapter(folder, cfg.model)
    is_adapter = (folder / ADAPTER).is_file()
    faults = [partial(checks.no_own_code, folder, cfg.model, cfg.trust)] if not is_adapter else []
    faults.append(partial(checks.weights, folder, cfg.model, cfg.trust))
    if isinstance(cfg, Checkpoint) and not is_adapter:
        faults.append(partial(checks.template_file, folder, cfg.template, cfg.model))
    run_all(faults)


def load_tokenizer(
    place: Path, template: Template, name: str, remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """The tokenizer with the template that the config gives, or its own; one of them has to work."""
    tokenizer = opened_tokenizer(place, template.chat_template, name, remote_code)
    checks.template(tokenizer, template, name)
    return tokenizer


def opened_tokenizer(
    place: Path, chat_template: str | None, name: str, remote_code: bool
) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: it has no tokenizer that opens ({first_line(error)}).\n"
            f"  Put tokenizer.json and tokenizer_config.json beside config.json."
        ) from error
    if chat_template:
        tokenizer.chat_template = _template_file(chat_template)
    return tokenizer


def save_weights(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", out: Path
) -> Model:
    """A model of our own: safetensors with its tokenizer beside, and the record that points to them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(out / "weights")
    tokenizer.save_pretrained(out / "weights")
    write_json(out / MODEL_FILE, {"weights": "weights", "tokenizer": "weights"})
    return Model(out)


def torch_dtype(name: Dtype) -> Any:
    import torch

    return getattr(torch, name)


def _template_file(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"template.chat_template={path}: there is no such file.\n  Give the path of a Jinja template."
        )
    return file.read_text()


# ── where it lies ─────────────────────────────────────────────────────────────────────────────────────────────────


def _folder(model: Weights, revision: str | None, wanted: list[str]) -> tuple[Path, str | None]:
    """The local folder of a checkpoint, with the wanted files of a hub repository fetched, and its commit."""
    if not model.is_local:
        return _fetched(model, revision, wanted)
    return _local_folder(model), None


def _local_folder(model: Weights) -> Path:
    folder = Path(model).expanduser().absolute()
    if not (folder / "config.json").is_file() and not (folder / ADAPTER).is_file():
        fault = (
            "is no checkpoint: it has no config.json"
            if folder.is_dir()
            else "there is no such folder"
        )
        raise UserError(
            f"{model}: {fault}.\n  Give the folder that holds config.json, or the name of a hub repository."
        )
    return folder


def _refuse_adapter(folder: Path, model: Weights) -> None:
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{model}: it is an adapter; a reward model is opened whole.\n"
            f"  Merge it into its base (PeftModel.merge_and_unload), save that, and give its folder."
        )


def _fetched(name: str, revision: str | None, wanted: list[str]) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    commit = resolve_commit(name, revision)
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=wanted)), commit
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{name}: its files cannot be fetched from the hub ({first_line(error)}).\n"
            f"  Check the network and HF_TOKEN, or give a local folder."
        ) from error


def _with_weights(cfg: Checkpoint) -> list[str]:
    return SMALL + LARGE + (checks.PICKLED if cfg.trust.pickled_weights else [])


def _local(folder: Path, out: Path) -> dict[str, Any]:
    """The driver hashed this folder for the fingerprint; its cache in the store spares reading it again."""
    content = ContentCache(out.parent.parent / ".contents.json").hash_path(folder)
    write_json(out / PLACE_FILE, {"weights": str(folder)})
    return {"revision": None, "content": content}


# ── an adapter ────────────────────────────────────────────────────────────────────────────────────────────────────


def _merge(cfg: Checkpoint, adapter: Path, out: Path) -> Model:
    """Merged with its base in float32 and rounded once, when it is saved."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = _base_of(cfg, adapter)
    checks.unquantised(base, cfg.model)
    own = (adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(
        adapter if own else base, cfg.template, cfg.model, cfg.trust.remote_code
    )
    widened = bool(
        checks.read_json(adapter / ADAPTER).get("modules_to_save")
    )  # it may carry an embedding of its own
    if not widened:
        checks.vocabulary(tokenizer, base, cfg.model)
    opened = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=cfg.trust.remote_code
    )
    if widened and len(tokenizer) > opened.get_input_embeddings().num_embeddings:
        opened.resize_token_embeddings(len(tokenizer))
    try:
        adapted = PeftModel.from_pretrained(opened, str(adapter))
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise UserError(
            f"{cfg.model}: this adapter has other sizes than the layers of its base {base}.\n"
            f"  Name the model that it was trained on in {adapter / ADAPTER} (base_model_name_or_path)."
        ) from error
    merged = adapted.merge_and_unload(safe_merge=True)
    return save_weights(merged.to(torch_dtype(cfg.dtype)), tokenizer, out)


def _base_of(cfg: Checkpoint, adapter: Path) -> Path:
    """Where the adapter's base lies, after the checks of any checkpoint."""
    checks.weights(adapter, cfg.model, cfg.trust)
    record = checks.read_json(adapter / ADAPTER)
    name = Weights(record.get("base_model_name_or_path") or "")
    if not name:
        raise UserError(
            f"{cfg.model}: its {ADAPTER} names no base model.\n  Write base_model_name_or_path there."
        )
    try:
        base, _ = _folder(name, record.get("revision"), _with_weights(cfg))
    except UserError as refusal:
        raise UserError(
            f"{cfg.model}: it is an adapter, and its base is missing: {refusal}\n"
            f"  The base is named in {adapter / ADAPTER} (base_model_name_or_path)."
        ) from refusal
    checks.no_own_code(base, name, cfg.trust)
    checks.causal(base, name)
    checks.weights(base, name, cfg.trust)
    checks.complete(base, name, cfg.trust)
    return base
