"""`strop convert FILE`: recognises the tool, converts what it can, and names all the rest."""

import shlex
import sys
from pathlib import Path
from typing import Any

from pipeline.artifacts import write_text
from pipeline.commands.convert import axolotl, llama_factory, trl
from pipeline.commands.convert.adapter import convert_adapter
from pipeline.commands.convert.objective import LOSS_ARGS, convert_objective
from pipeline.commands.convert.recipe import Recipe
from pipeline.commands.convert.rows import convert_held_out, convert_rows
from pipeline.commands.convert.source import Source, is_off, read_file, show
from pipeline.commands.convert.steps import (
    convert_lengths,
    convert_precision,
    convert_steps,
    convert_tracker,
)
from pipeline.commands.convert.tools import Tool
from pipeline.commands.table import parse_words, reports_errors
from pipeline.config.base import name_own_knobs
from pipeline.config.trl_args import IGNORED_ARGS, REMOVED_ARGS, SET_BY_STAGE, load_trl_fields
from pipeline.errors import DONE, UserError, format_move

# What the file says nothing of, and a run needs.
SCORER = "length"
TOOLS: dict[str, Tool] = {
    "axolotl": axolotl.TOOL,
    "llama_factory": llama_factory.TOOL,
    "trl": trl.TRL,
    "handbook": trl.HANDBOOK,
}


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("convert", arguments)
    file = words.place(0)
    gpus = _read_gpus(words.knob("gpus"))
    method = words.knob("method") or None
    if method not in (None, *trl.METHODS):
        raise UserError(f"method={method}: expected {', '.join(trl.METHODS)}.")
    recipe = convert_file(file, gpus, method).render()
    if not (out := words.knob("out")):
        print(recipe, end="")
        return DONE
    write_recipe(Path(out), recipe)
    print(out)
    print(f"Check it: {describe_plan(Path(out))}", file=sys.stderr)
    return DONE


def describe_plan(file: Path) -> str:
    """The command that plans a recipe, which Strop finds in a folder named recipes."""
    folder = file.absolute().parent
    if folder.name != "recipes":
        return "move it into a folder named recipes, and type strop plan --config-dir FOLDER …"
    words = ["strop", "plan", "--config-dir", str(file.parent.parent), f"recipes={file.stem}"]
    return shlex.join(words)


def _read_gpus(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise UserError(
            f"gpus={text}: expected the number of GPUs of that training, such as gpus=8."
        )
    return int(text)


def write_recipe(file: Path, text: str) -> None:
    """Write a new file; one that differs was written by hand, or is of another training."""
    if file.exists() and file.read_bytes() != text.encode():
        raise UserError(
            f"out={file}: it exists and differs.\n"
            f"  Give another name, or move it away first: {format_move(file)}"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def convert_file(file: Path, gpus: int = 1, method: str | None = None) -> Recipe:
    return convert_keys(file, read_file(file), gpus, method)


def convert_keys(file: Path, keys: dict[str, Any], gpus: int, method: str | None) -> Recipe:
    tool = detect_tool(file, keys)
    source = Source(file, keys, tool.names, tool.defaults, gpus, method)
    recipe = Recipe()
    training = tool.read(source, recipe)
    objective = training.objective
    adapter = convert_adapter(
        source, recipe, is_lora=training.is_lora, bits=training.bits, origin=training.adapter_key
    )
    convert_objective(source, recipe, objective)
    convert_steps(source, recipe, adapter)
    convert_lengths(source, recipe)
    convert_precision(source, recipe)
    convert_model(source, recipe)
    convert_rows(source, recipe, training.rows)
    convert_held_out(source, recipe)
    convert_tracker(source, recipe, training.trackers)
    add_head(tool, source, recipe)
    account_for_rest(tool, source, recipe)
    return recipe


def detect_tool(file: Path, keys: dict[str, Any]) -> Tool:
    """The tool whose keys the file has."""
    found = {name: [key for key in tool.marks if key in keys] for name, tool in TOOLS.items()}
    if found["handbook"] or found["llama_factory"]:
        found["trl"] = []  # their files have TRL's keys too
    named = {name: marks for name, marks in found.items() if marks}
    if len(named) == 1:
        return TOOLS[next(iter(named))]
    if named:
        seen = "; ".join(f"{TOOLS[name].name}: {', '.join(named[name])}" for name in named)
        raise UserError(
            f"{file}: its keys are those of several tools ({seen}).\n"
            "  Give a file of one tool: leave out what is not of it."
        )
    known = "\n".join(f"  {tool.name}: {', '.join(tool.marks)}" for tool in TOOLS.values())
    raise UserError(
        f"{file}: this is not a training file of a tool that strop convert knows. It has none of"
        f" the keys\n{known}\n  Give a file of one of these tools."
    )


def convert_model(source: Source, recipe: Recipe) -> None:
    model = source.text("model")
    if model is None:
        raise source.refuse("model", "a folder, or a name on the hub")
    recipe.set("sft.model", model, source.key("model"))
    if (revision := source.text("revision")) not in (None, "main"):
        recipe.set("sft.revision", revision, source.key("revision"))
    if source.flag("remote_code"):
        recipe.set("sft.trust.remote_code", True, source.key("remote_code"))
    if rows := source.count("rows_of_round"):
        recipe.set("pair.mix.per_round", rows, source.key("rows_of_round"))


def account_for_rest(tool: Tool, source: Source, recipe: Recipe) -> None:
    """Every key that no part has read is named, by what is known of it."""
    named = {key for keys in tool.names.values() for key in keys}
    reported = {key for key, *_ in (*recipe.lost, *recipe.done)}
    for key, value in source.keys.items():
        if key in reported or (key in source.read_keys and recipe.mentions(key)):
            continue
        if is_off(value):
            recipe.unset.append(key)
        elif key in source.read_keys:
            recipe.note(key, show(value), "The default here, or of no effect.")
        else:
            _account_for_key(tool, recipe, key, show(value), named)


def _account_for_key(tool: Tool, recipe: Recipe, key: str, value: str, named: set[str]) -> None:
    fields = load_trl_fields()["DPOConfig"]["fields"] if tool.has_trl_keys else []
    set_by_stage = {**REMOVED_ARGS, **IGNORED_ARGS, **SET_BY_STAGE} if tool.has_trl_keys else {}
    if key in tool.lost:
        recipe.lose(key, value, tool.lost[key])
    elif key in tool.done:
        recipe.note(key, value, tool.done[key])
    elif key in named or any(key in names for names in LOSS_ARGS.values()):
        recipe.lose(key, value, "Nothing: the objective or the adapter of this file ignores it.")
    elif key in set_by_stage:
        recipe.note(
            key, value, f"{name_own_knobs(set_by_stage[key], 'train', 'train').capitalize()}."
        )
    elif key in fields:
        effect = f"A setting of transformers' trainer; to have it: train.args.{key}={value}"
        recipe.lose(key, value, effect)
    else:
        recipe.unknown.append((key, value, _suggest_key(tool, key)))


def _suggest_key(tool: Tool, key: str) -> str:
    from difflib import get_close_matches

    known = [*tool.lost, *tool.done, *(name for names in tool.names.values() for name in names)]
    close = get_close_matches(key, known, n=1, cutoff=0.8)
    return f"Did you mean {close[0]}?" if close else ""


def add_head(tool: Tool, source: Source, recipe: Recipe) -> None:
    recipe.head = [
        f"From {source.path.name}, a file for {tool.name}, by strop convert.",
        *recipe.head,
        "The report compares answers to held-out prompts, which the file knows nothing of."
        f" Choose what scores them: score={SCORER} only checks that answers have 20 to 300 words.",
    ]
    recipe.choose("score", SCORER)
