"""Load a Model artifact as a torch module, and save a module as one.

A model is a base with at most one adapter. A saved adapter's folder names its base.
"""

import copy
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import progress
from pipeline.artifacts import ADAPTER_CONFIG, MODEL_FILE, Model, write_adapter_config, write_json
from pipeline.config import LoraAdapter, Quantization
from pipeline.errors import StageError, UserError, pluralize
from pipeline.models import quantization as quantized
from pipeline.models.strict_loading import load_strict

if TYPE_CHECKING:
    import polars as pl
    import torch

State = dict[str, Any]  # tensors by their name


def choose_device() -> "torch.device":
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(model: Model) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=model.remote_code)


def load(model: Model, dtype: str, quantization: Quantization | None = None) -> Any:
    """Load a model for forward passes, with its adapter unmerged.

    Its base is quantised as `quantization` says, or else as recorded.
    """
    quantization = quantization or quantized.read_quantization(model)
    with progress.measure_phase(progress.LOAD):
        module = open_model(model, dtype, quantization)
        # A quantised module is on the device already.
        return module if quantization else module.to(choose_device())


def open_model(model: Model, dtype: str, quantization: Quantization | None = None) -> Any:
    """As `load`, but without moving the module to the GPU."""
    if model.adapter:
        check_base(model)
    module = _load_base(model, dtype, quantization)
    if model.adapter:
        module = _attach_adapter(module, model, trainable=False)
    return module.eval().requires_grad_(False)


def load_merged(model: Model) -> Any:
    """Load one set of float32 weights to train. An adapter is merged in float32.

    An adapter of a quantised base was trained on the quantised values: it is merged into those.
    """
    if model.adapter:
        check_base(model)
    if quantization := quantized.read_quantization(model):
        dtype = model.record["quantization"]["dtype"]
        module = _load_base(model, dtype, quantization).dequantize().float()
    else:
        module = _load_base(model, "float32")
    if model.adapter:
        module = _attach_adapter(module, model, trainable=False).merge_and_unload(safe_merge=True)
    return module.requires_grad_(True)


def write_merged(folder: Path, model: Model, dtype: str = "float32") -> Model:
    """Write merged weights for an engine that cannot open this adapter. The caller removes them."""
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    load_merged(model).to(getattr(torch, dtype)).save_pretrained(folder / "weights")
    write_json(folder / MODEL_FILE, {"weights": "weights", "remote_code": model.remote_code})
    return Model(folder)


def load_with_adapter(model: Model, adapter: LoraAdapter, dtype: str) -> Any:
    """Load a model with an adapter to train: its own, or a new one that changes nothing yet."""
    if model.adapter:
        check_resumed_adapter(model, adapter)
        base = _load_base(model, dtype, adapter.quantization)
        return _attach_adapter(base, model, trainable=True)
    from peft import LoraConfig, get_peft_model

    base = _load_base(model, dtype, adapter.quantization)
    shape = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rank_stabilized,
        use_dora=adapter.dora,
        target_modules=adapter.targets,
    )
    return get_peft_model(base, shape)


def read_base_name(model: Model) -> str:
    """The name of its base in an adapter's model.json: `stage/fingerprint`."""
    return model.record["base"] if model.adapter else f"{model.path.parent.name}/{model.path.name}"


def is_bare_base(module: Any, init: Model, reference: Model) -> bool:
    """Whether a module made from `init` is the reference once its adapter is disabled."""
    same_base = reference.adapter is None and read_base_name(init) == read_base_name(reference)
    return same_base and hasattr(module, "peft_config")


def _load_base(model: Model, dtype: str, quantization: Quantization | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    options = quantized.build_load_arguments(quantization, dtype, choose_device())
    module = load_strict(AutoModelForCausalLM, model, dtype, **options)
    return quantized.disable_bfloat16_packing(module) if quantization else module


def _attach_adapter(module: Any, model: Model, trainable: bool) -> Any:
    from peft import PeftModel

    module = PeftModel.from_pretrained(module, model.adapter, is_trainable=trainable)
    # At each save PEFT asks the hub about a base that is not a folder, so name the folder.
    module.peft_config["default"].base_model_name_or_path = str(model.weights)
    return module


def check_base(model: Model) -> None:
    """Refuse an adapter on any other base than the one it was trained on."""
    assert model.adapter is not None
    recorded = model.record["peft"]["base_model_name_or_path"]
    if recorded != (base := read_base_name(model)):
        raise UserError(
            f"{model.adapter}: this adapter was made for the model {recorded},"
            f" and {model.path / 'model.json'} puts it on {base}.\n"
            "  An adapter works only on the weights it was trained on:"
            f" give the one made for {base}, or the model {recorded}."
        )


# Knob of train.adapter → its name in PEFT's config.
ADAPTER_KNOBS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rank_stabilized": "use_rslora",
    "dora": "use_dora",
}


def check_resumed_adapter(
    model: Model, adapter: LoraAdapter, adapter_knob: str = "train.adapter"
) -> None:
    """Refuse to continue an adapter other than the config describes. It reads no weights."""
    check_base(model)
    assert model.adapter is not None
    shape = json.loads((model.adapter / ADAPTER_CONFIG).read_text())
    recorded = {knob: shape.get(name, False) for knob, name in ADAPTER_KNOBS.items()}
    recorded["quantization"] = quantized.read_quantization(model)
    for name, value in recorded.items():
        if value != (wanted := getattr(adapter, name)):
            raise UserError(
                f"{adapter_knob}.{name}={wanted}, but training continues the adapter in"
                f" {model.path}, whose {name} is {value}.\n"
                f"  Give {adapter_knob}.{name}={value}, or init=sft, which starts a new adapter."
            )


def check_vocabulary(module: Any, columns: "list[pl.Series]", where: str) -> None:
    known = module.get_input_embeddings().num_embeddings
    highest = max(
        (top for ids in columns if isinstance(top := ids.list.max().max(), int)), default=0
    )
    if highest >= known:
        raise UserError(
            f"{where}: token id {highest} is beyond the model's {known} embeddings:"
            " these tokens were made by another tokenizer.\n"
            "  Sample and pair with this model's own tokenizer,"
            " or give the model they were made for."
        )


def check_finite(module: Any, full_state: State | None = None) -> None:
    """`full_state`: the weights gathered in the process that publishes, if they are sharded."""
    import torch

    weights = module.named_parameters() if full_state is None else full_state.items()
    broken = [name for name, weight in weights if not torch.isfinite(weight).all()]
    if broken:
        raise StageError(
            f"training has left {pluralize(len(broken), 'weight')} not finite"
            f" ({broken[0]} is the first): nothing is published.\n"
            "  Lower the learning rate, or use dtype=float32."
        )


def compute_checksums(weights: State, dtype: str | None) -> Iterator[tuple[str, int]]:
    """A checksum of each tensor as it is published: rounded to `dtype`, or unchanged."""
    import torch

    for name, weight in weights.items():
        rounded = weight.detach().to(getattr(torch, dtype) if dtype else weight.dtype)
        yield name, zlib.crc32(rounded.cpu().contiguous().flatten().view(torch.uint8).numpy())


def copy_settings(module: Any) -> dict[str, Any]:
    """The configs that a trainer overwrites with its tokenizer's special tokens."""
    return {name: copy.deepcopy(getattr(module, name)) for name in ("config", "generation_config")}


def save_full(
    module: Any,
    settings: dict[str, Any],
    init: Model,
    dtype: str,
    out: Path,
    full_state: State | None = None,
) -> Model:
    import torch

    for name, value in settings.items():
        setattr(module, name, value)
    shutil.rmtree(out / "weights", ignore_errors=True)
    to = getattr(torch, dtype)
    full_state = full_state and {name: weight.to(to) for name, weight in full_state.items()}
    module.to(to).save_pretrained(out / "weights", state_dict=full_state)
    load_tokenizer(init).save_pretrained(out / "weights")
    write_json(out / MODEL_FILE, {"weights": "weights", "tokenizer": "weights"})
    return Model(out)


def save_adapter(
    module: Any,
    init: Model,
    adapter: LoraAdapter,
    dtype: str,
    out: Path,
    full_state: State | None = None,
) -> Model:
    """Write PEFT's folder, with the tokenizer, so that `from_pretrained` needs nothing else."""
    folder = out / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    module.save_pretrained(folder, selected_adapters=["default"], state_dict=full_state)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    base = read_base_name(init)
    config["base_model_name_or_path"], config["revision"] = base, init.revision
    if isinstance(config["target_modules"], list):
        # PEFT keeps a set, whose order differs from process to process.
        config["target_modules"].sort()
    load_tokenizer(init).save_pretrained(folder)
    record = {"base": base, "adapter": "adapter", "tokenizer": "adapter", "peft": config}
    if adapter.quantization:
        record["quantization"] = {**adapter.quantization.model_dump(), "dtype": dtype}
    write_json(out / MODEL_FILE, record)
    write_adapter_config(Model(out))
    return Model(out)


def save_merged(model: Model, dtype: str, folder: Path) -> None:
    """Write a copy for tools that take no adapter: merged in float32 and rounded once."""
    import torch

    merged = load_merged(model)
    merged.to(getattr(torch, dtype)).save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
