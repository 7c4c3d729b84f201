"""A Model artifact as a torch module: a base and at most one adapter; and back, as the folder that names its base."""

import copy
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import ADAPTER_CONFIG, MODEL_FILE, Model, write_adapter_config, write_json
from pipeline.config import LoraAdapter, Quantization
from pipeline.errors import StageError, UserError, pluralize
from pipeline.models import quantization as quantized
from pipeline.models.strict_loading import whole

if TYPE_CHECKING:
    import polars as pl
    import torch

State = dict[str, Any]  # tensors by their name


def device() -> "torch.device":
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(model: Model) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=model.remote_code)


def load(model: Model, dtype: str, quantization: Quantization | None = None) -> Any:
    """The model as it is, for forward passes: adapter beside its base, which is quantised as asked or as recorded."""
    quantization = quantization or quantized.quantization_of(model)
    module = opened(model, dtype, quantization)
    return module if quantization else module.to(device())  # what is quantised lies on its device


def opened(model: Model, dtype: str, quantization: Quantization | None = None) -> Any:
    """The same where it was read."""
    if model.adapter:
        check_base(model)
    module = _base(model, dtype, quantization)
    if model.adapter:
        module = _adapted(module, model, trainable=False)
    return module.eval().requires_grad_(False)


def load_merged(model: Model) -> Any:
    """One set of float32 weights to train: an adapter is merged at full precision, never into rounded weights.

    An adapter of a quantised base was trained beside what those few bits say: it is merged with that, in float32.
    """
    if model.adapter:
        check_base(model)
    if quantization := quantized.quantization_of(model):
        module = (
            _base(model, model.record["quantization"]["dtype"], quantization).dequantize().float()
        )
    else:
        module = _base(model, "float32")
    if model.adapter:
        module = _adapted(module, model, trainable=False).merge_and_unload(safe_merge=True)
    return module.requires_grad_(True)


def merged_in(folder: Path, model: Model, dtype: str = "float32") -> Model:
    """Whole weights for an engine that cannot open this adapter as it is; who asked for them removes the folder."""
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    load_merged(model).to(getattr(torch, dtype)).save_pretrained(folder / "weights")
    write_json(folder / MODEL_FILE, {"weights": "weights", "remote_code": model.remote_code})
    return Model(folder)


def load_adapted(model: Model, adapter: LoraAdapter, dtype: str) -> Any:
    """The model with an adapter to train: its own when it has one, a new one that changes nothing yet when not."""
    if model.adapter:
        check_continued(model, adapter)
        return _adapted(_base(model, dtype, adapter.quantization), model, trainable=True)
    from peft import LoraConfig, get_peft_model

    module = _base(model, dtype, adapter.quantization)
    shape = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rank_stabilized,
        use_dora=adapter.dora,
        target_modules=adapter.targets,
    )
    return get_peft_model(module, shape)


def base_name(model: Model) -> str:
    """How an adapter's model.json names what it stands on: `stage/fingerprint`."""
    return model.record["base"] if model.adapter else f"{model.path.parent.name}/{model.path.name}"


def is_bare_base(module: Any, init: Model, reference: Model) -> bool:
    """Whether the module, made from `init`, gives the reference's answers once its adapter is disabled."""
    bare = reference.adapter is None and base_name(init) == base_name(reference)
    return bare and hasattr(module, "peft_config")


def _base(model: Model, dtype: str, quantization: Quantization | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    module = whole(
        AutoModelForCausalLM, model, dtype, **quantized.loading(quantization, dtype, device())
    )
    return quantized.in_one_arithmetic(module) if quantization else module


def _adapted(module: Any, model: Model, trainable: bool) -> Any:
    from peft import PeftModel

    module = PeftModel.from_pretrained(module, model.adapter, is_trainable=trainable)
    # PEFT asks the hub about a base that is not a folder each time it saves; here it is one.
    module.peft_config["default"].base_model_name_or_path = str(model.weights)
    return module


def check_base(model: Model) -> None:
    """An adapter stands on the weights that it was trained on."""
    assert model.adapter is not None
    recorded = model.record["peft"]["base_model_name_or_path"]
    if recorded != base_name(model):
        raise UserError(
            f"{model.adapter}: this adapter was made for the model {recorded}, and {model.path / 'model.json'} puts it "
            f"on {base_name(model)}.\n  An adapter is only right on the weights it was trained on: give the one made "
            f"for {base_name(model)}, or the model {recorded}."
        )


CONTINUED = {
    "rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rank_stabilized": "use_rslora", "dora": "use_dora",
}  # fmt: skip


def check_continued(model: Model, adapter: LoraAdapter) -> None:
    """Before any weight is read: the adapter that training goes on with is the one that the config describes."""
    check_base(model)
    assert model.adapter is not None
    shape = json.loads((model.adapter / ADAPTER_CONFIG).read_text())
    found = {knob: shape.get(name, False) for knob, name in CONTINUED.items()}
    found["quantization"] = quantized.quantization_of(model)
    for knob, value in found.items():
        if value != (wanted := getattr(adapter, knob)):
            raise UserError(
                f"train.adapter.{knob}={wanted}, but training continues the adapter in {model.path}, whose {knob} is "
                f"{value}.\n  Give train.adapter.{knob}={value}, or init=sft, which starts a new adapter."
            )


def check_vocabulary(module: Any, columns: "list[pl.Series]", where: str) -> None:
    known = module.get_input_embeddings().num_embeddings
    highest = max(
        (top for ids in columns if isinstance(top := ids.list.max().max(), int)), default=0
    )
    if highest >= known:
        raise UserError(
            f"{where}: token id {highest} is beyond the model's {known} embeddings: these tokens were made by another "
            f"tokenizer.\n  Sample and pair with this model's own tokenizer, or give the model they were made for."
        )


def check_finite(module: Any, whole: State | None = None) -> None:
    """`whole` holds the weights where the module has but a part of them; so it does wherever one is published."""
    import torch

    weights = module.named_parameters() if whole is None else whole.items()
    broken = [name for name, weight in weights if not torch.isfinite(weight).all()]
    if broken:
        raise StageError(
            f"training has left {pluralize(len(broken), 'weight')} not finite ({broken[0]} is the first): nothing is"
            f" published.\n  Lower the learning rate, or use dtype=float32."
        )


def checksums(weights: State, dtype: str | None) -> Iterator[tuple[str, int]]:
    """A number for the bytes of each tensor as it is published: rounded to `dtype`, or as it is."""
    import torch

    for name, weight in weights.items():
        rounded = weight.detach().to(getattr(torch, dtype) if dtype else weight.dtype)
        yield name, zlib.crc32(rounded.cpu().contiguous().flatten().view(torch.uint8).numpy())


def settings_of(module: Any) -> dict[str, Any]:
    """What a trainer overwrites with its tokenizer's marks, to be published as it was."""
    return {name: copy.deepcopy(getattr(module, name)) for name in ("config", "generation_config")}


def save_full(
    module: Any,
    settings: dict[str, Any],
    init: Model,
    dtype: str,
    out: Path,
    whole: State | None = None,
) -> Model:
    import torch

    for name, value in settings.items():
        setattr(module, name, value)
    shutil.rmtree(out / "weights", ignore_errors=True)
    whole = whole and {name: weight.to(getattr(torch, dtype)) for name, weight in whole.items()}
    module.to(getattr(torch, dtype)).save_pretrained(out / "weights", state_dict=whole)
    load_tokenizer(init).save_pretrained(out / "weights")
    write_json(out / MODEL_FILE, {"weights": "weights", "tokenizer": "weights"})
    return Model(out)


def save_adapter(
    module: Any,
    init: Model,
    adapter: LoraAdapter,
    dtype: str,
    out: Path,
    whole: State | None = None,
) -> Model:
    """PEFT's folder with the tokenizer beside it, so that `from_pretrained` opens it with nothing else."""
    folder = out / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    module.save_pretrained(folder, selected_adapters=["default"], state_dict=whole)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    config["base_model_name_or_path"], config["revision"] = base_name(init), init.revision
    if isinstance(config["target_modules"], list):
        config[
            "target_modules"
        ].sort()  # PEFT keeps a set, whose order differs from process to process
    load_tokenizer(init).save_pretrained(folder)
    record = {"base": base_name(init), "adapter": "adapter", "tokenizer": "adapter", "peft": config}
    bits = (
        {"quantization": {**adapter.quantization.model_dump(), "dtype": dtype}}
        if adapter.quantization
        else {}
    )
    write_json(out / MODEL_FILE, {**record, **bits})
    write_adapter_config(Model(out))
    return Model(out)


def save_merged(model: Model, dtype: str, folder: Path) -> None:
    """A copy of the whole model for tools that take no adapter: merged in float32 and rounded once."""
    import torch

    merged = load_merged(model)
    merged.to(getattr(torch, dtype)).save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
