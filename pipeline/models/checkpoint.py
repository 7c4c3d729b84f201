"""Opens a checkpoint that a user names, after the checks that need no heavy work.

`import_checkpoint` writes a reference (`model.json`, `tokenizer/`). A PEFT adapter is merged into
`weights/`, a model of our own.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import MODEL_FILE, PLACE_FILE, Model, find_store, write_json
from pipeline.config import Checkpoint, Dtype, RewardCheckpoint, Template, Trust, Weights
from pipeline.errors import UserError, describe_place, run_all
from pipeline.hashing import ContentCache, resolve_commit
from pipeline.models import checkpoint_checks as checks
from pipeline.models.checkpoint_checks import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "adapter_config.json"
METADATA_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
WEIGHT_FILES = ["*.safetensors"]


def import_checkpoint(cfg: Checkpoint, out: Path) -> Model:
    folder, commit = _locate_files(cfg.model, cfg.revision, METADATA_FILES)
    if (folder / ADAPTER).is_file():
        return _import_adapter(cfg, folder, out)
    checks.check_no_custom_code(folder, cfg.model, cfg.trust)
    checks.check_causal(folder, cfg.model)
    tokenizer = load_tokenizer(folder, cfg.template, cfg.model, cfg.trust.remote_code)
    checks.check_vocabulary(tokenizer, folder, cfg.model)
    folder, commit = _locate_files(cfg.model, commit, _list_patterns(cfg.trust))
    checks.check_weights(folder, cfg.model, cfg.trust)
    checks.check_complete(folder, cfg.model, cfg.trust)
    return _write_reference(cfg, folder, commit, tokenizer, out)


def import_classifier(cfg: RewardCheckpoint, out: Path) -> Model:
    """A reward model as a reference. Its scorers decide how a text is presented to it."""
    folder, commit = locate_classifier(cfg.model, cfg.revision, cfg.trust)
    tokenizer = open_tokenizer(folder, None, cfg.model, cfg.trust.remote_code)
    return _write_reference(cfg, folder, commit, tokenizer, out)


def _write_reference(
    cfg: Checkpoint | RewardCheckpoint,
    folder: Path,
    commit: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    out: Path,
) -> Model:
    tokenizer.save_pretrained(out / "tokenizer")
    if commit:
        origin = {"weights": str(cfg.model), "revision": commit, "content": commit}
    else:
        origin = _record_local_folder(folder, out)
    record = {**origin, "tokenizer": "tokenizer", "remote_code": cfg.trust.remote_code}
    write_json(out / MODEL_FILE, record)
    return Model(out)


def locate_classifier(
    model: Weights, revision: str | None, trust: Trust
) -> tuple[Path, str | None]:
    """The folder and commit of a complete sequence classifier, its head included."""
    folder, commit = _locate_files(model, revision, METADATA_FILES)
    _refuse_adapter(folder, model)
    checks.check_no_custom_code(folder, model, trust)
    folder, commit = _locate_files(model, commit, _list_patterns(trust))
    checks.check_weights(folder, model, trust)
    checks.check_classification_head(folder, model, trust)
    return folder, commit


def check_files(cfg: Checkpoint | RewardCheckpoint) -> None:
    """Make those checks of `import_checkpoint` that need only the files of a local checkpoint."""
    folder = _find_local_folder(cfg.model)
    if isinstance(cfg, RewardCheckpoint):
        _refuse_adapter(folder, cfg.model)
    is_adapter = (folder / ADAPTER).is_file()
    file_checks = [partial(checks.check_weights, folder, cfg.model, cfg.trust)]
    if not is_adapter:
        file_checks.insert(0, partial(checks.check_no_custom_code, folder, cfg.model, cfg.trust))
    if isinstance(cfg, Checkpoint) and not is_adapter:
        file_checks.append(partial(checks.check_template_file, folder, cfg.template, cfg.model))
    run_all(file_checks)


def load_tokenizer(
    folder: Path, template: Template, name: str, remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """The tokenizer with the config's template, or else its own. The template has to work."""
    tokenizer = open_tokenizer(folder, template.chat_template, name, remote_code)
    checks.check_template(tokenizer, template, name)
    return tokenizer


def open_tokenizer(
    folder: Path, chat_template: str | None, name: str, remote_code: bool
) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)
    except Exception as error:  # the library runs the checkpoint's values, whatever they are
        raise UserError(
            f"{name}: it has no tokenizer that opens ({first_line(error)}).\n"
            "  Put tokenizer.json and tokenizer_config.json into the folder of config.json."
        ) from error
    if chat_template:
        tokenizer.chat_template = _read_template(chat_template)
    return tokenizer


def save_weights(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", out: Path
) -> Model:
    """Write a model of our own: safetensors, tokenizer, and the record that points to them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(out / "weights")
    tokenizer.save_pretrained(out / "weights")
    write_json(out / MODEL_FILE, {"weights": "weights", "tokenizer": "weights"})
    return Model(out)


def to_torch_dtype(name: Dtype) -> Any:
    import torch

    return getattr(torch, name)


def _read_template(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"template.chat_template={path}: there is no such file{describe_place(path)}.\n"
            "  Give the path of a Jinja template."
        )
    return file.read_text()


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def _locate_files(
    model: Weights, revision: str | None, patterns: list[str]
) -> tuple[Path, str | None]:
    """The local folder of a checkpoint, and its commit if it is fetched from the hub."""
    if not model.is_local:
        return _fetch_files(model, revision, patterns)
    return _find_local_folder(model), None


def _find_local_folder(model: Weights) -> Path:
    folder = Path(model).expanduser().absolute()
    if not (folder / "config.json").is_file() and not (folder / ADAPTER).is_file():
        fault = f"there is no such folder{describe_place(model)}"
        if folder.is_dir():
            fault = "is not a checkpoint: it has no config.json"
        raise UserError(
            f"{model}: {fault}.\n"
            "  Give the folder that holds config.json, or the name of a hub repository."
        )
    return folder


def _refuse_adapter(folder: Path, model: Weights) -> None:
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{model}: it is an adapter; a complete reward model was expected.\n"
            "  Merge it into its base (PeftModel.merge_and_unload), save that, and give its folder."
        )


def _fetch_files(name: str, revision: str | None, patterns: list[str]) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    commit = resolve_commit(name, revision)
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=patterns)), commit
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{name}: its files cannot be fetched from the hub ({first_line(error)}).\n"
            "  Check the network and HF_TOKEN, or give a local folder."
        ) from error


def _list_patterns(trust: Trust) -> list[str]:
    return METADATA_FILES + WEIGHT_FILES + (checks.PICKLED if trust.pickled_weights else [])


def _record_local_folder(folder: Path, out: Path) -> dict[str, Any]:
    """Record where it is and its hash, which the driver cached in the store when it hashed it."""
    content = ContentCache(find_store(out) / ".contents.json").hash_path(folder)
    write_json(out / PLACE_FILE, {"weights": str(folder)})
    return {"revision": None, "content": content}


# ── adapters ──────────────────────────────────────────────────────────────────────────────────────


def _import_adapter(cfg: Checkpoint, adapter: Path, out: Path) -> Model:
    """Merge it into its base in float32. Round once, when the result is saved."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = _find_base(cfg, adapter)
    checks.check_unquantised(base, cfg.model)
    has_tokenizer = (adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(
        adapter if has_tokenizer else base, cfg.template, cfg.model, cfg.trust.remote_code
    )
    # With modules_to_save it may have its own, larger embedding.
    saves_modules = bool(checks.read_json(adapter / ADAPTER).get("modules_to_save"))
    if not saves_modules:
        checks.check_vocabulary(tokenizer, base, cfg.model)
    module = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=cfg.trust.remote_code
    )
    if saves_modules and len(tokenizer) > module.get_input_embeddings().num_embeddings:
        module.resize_token_embeddings(len(tokenizer))
    try:
        module = PeftModel.from_pretrained(module, str(adapter))
    except Exception as error:  # PEFT runs the adapter's values, whatever they are
        if "size mismatch" not in str(error):
            raise UserError(
                f"{cfg.model}: this adapter does not open ({first_line(error)}).\n"
                f"  Correct {adapter / ADAPTER}, or download the adapter again."
            ) from error
        raise UserError(
            f"{cfg.model}: this adapter has other sizes than the layers of its base {base}.\n"
            f"  Name the model that it was trained on in {adapter / ADAPTER}"
            " (base_model_name_or_path)."
        ) from error
    merged = module.merge_and_unload(safe_merge=True)
    return save_weights(merged.to(to_torch_dtype(cfg.dtype)), tokenizer, out)


def _find_base(cfg: Checkpoint, adapter: Path) -> Path:
    """The folder of the adapter's base, after the checks of any checkpoint."""
    checks.check_weights(adapter, cfg.model, cfg.trust)
    record = checks.read_json(adapter / ADAPTER)
    name = Weights(record.get("base_model_name_or_path") or "")
    if not name:
        raise UserError(
            f"{cfg.model}: its {ADAPTER} names no base model.\n"
            "  Write base_model_name_or_path there."
        )
    try:
        base, _ = _locate_files(name, record.get("revision"), _list_patterns(cfg.trust))
    except UserError as fault:
        raise UserError(
            f"{cfg.model}: it is an adapter, and its base is missing: {fault}\n"
            f"  The base is named in {adapter / ADAPTER} (base_model_name_or_path)."
        ) from fault
    checks.check_no_custom_code(base, name, cfg.trust)
    checks.check_causal(base, name)
    checks.check_weights(base, name, cfg.trust)
    checks.check_complete(base, name, cfg.trust)
    return base
