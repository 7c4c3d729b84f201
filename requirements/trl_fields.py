"""Writes config/trl_fields.json: what the installed TRL's config classes take, use and ignore.

Per config class: `fields`; `ignored`, those that no code reads or that the trainer switches off,
each with the reason; `read_by`, the losses that read a field which the rest of the loss does not.
All of it is found in the installed source.
"""

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "pipeline" / "config" / "trl_fields.json"
AROUND = {  # where a trainer's arguments are read, besides in the trainer itself
    "transformers": ["trainer*.py", "training_args.py", "optimization.py", "integrations/*.py"],
    "trl": ["trainer/base_trainer.py", "trainer/utils.py", "trainer/callbacks.py"],
}


def main() -> None:
    OUT.write_text(json.dumps(table(), indent=1, sort_keys=True) + "\n")
    print(f"{OUT.relative_to(OUT.parent.parent)} is written")


def table() -> dict[str, dict[str, Any]]:
    import trl

    names = ("DPO", "SFT", "KTO", "GRPO", "RLOO")
    trainers = {getattr(trl, f"{name}Config"): getattr(trl, f"{name}Trainer") for name in names}
    return {config.__name__: facts(config, trainer) for config, trainer in trainers.items()}


def facts(config: type, trainer: type) -> dict[str, Any]:
    fields = sorted(field.name for field in dataclasses.fields(config) if field.init)
    source = source_of(trainer.__module__)
    reasons = {
        **dict.fromkeys(set(fields) - arguments_read(config, trainer), "no code reads it"),
        **dict.fromkeys(switched_off(source), f"{trainer.__name__} warns and switches it off"),
        **dict.fromkeys(
            warned_of(source), f"{trainer.__name__} ignores it when it is given a loaded model"
        ),
    }
    if not any(name == "label_smoother" for _, name in attributes(source)):
        reasons["label_smoothing_factor"] = (
            f"it belongs to Trainer's own loss, which {trainer.__name__} replaces"
        )
    return {
        "fields": fields,
        "ignored": {name: reasons[name] for name in fields if name in reasons},
        "read_by": {name: losses for name, losses in read_by(source).items() if name in fields},
    }


def arguments_read(config: type, trainer: type) -> set[str]:
    """Names read as `args.NAME` in the trainer and around it, or as `self.NAME` in the config
    classes.
    """
    own = [source_of(base.__module__) for base in config.__mro__ if base is not object]
    read = {name for source in own for holder, name in attributes(source) if holder == "self"}
    for source in [source_of(trainer.__module__), *around()]:
        read |= {name for holder, name in attributes(source) if holder == "args"}
    return read


@cache
def around() -> list[ast.Module]:
    places = [
        (Path(inspect.getfile(import_module(package))).parent, globs)
        for package, globs in AROUND.items()
    ]
    return [
        ast.parse(file.read_text())
        for place, globs in places
        for glob in globs
        for file in place.glob(glob)
    ]


def source_of(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(import_module(module)))


def attributes(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """`(holder, name)` of what is read: `args.beta` and `self.args.beta` give `("args",
    "beta")`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            match node.value:
                case ast.Name(id=holder) | ast.Attribute(attr=holder):
                    yield holder, node.attr


def switched_off(source: ast.Module) -> Iterator[str]:
    """`if self.NAME: … self.NAME = False`"""
    for node in ast.walk(source):
        match node:
            case ast.If(test=ast.Attribute(value=ast.Name(id="self"), attr=name), body=body):
                for line in body:
                    match line:
                        case ast.Assign(
                            targets=[ast.Attribute(attr=target)], value=ast.Constant(value=False)
                        ):
                            if target == name:
                                yield name


def warned_of(source: ast.Module) -> Iterator[str]:
    """A warning says so: The `NAME` will be ignored."""
    for node in ast.walk(source):
        match node:
            case ast.Constant(value=str(text)):
                yield from re.findall(r"The `(\w+)` will be ignored", text)


def read_by(source: ast.Module) -> dict[str, list[str]]:
    """What only the branches `if loss_type == NAME` of the loss read, and which branches those
    are.
    """
    readers: dict[str, list[str]] = {}
    for function in ast.walk(source):
        if not isinstance(function, ast.FunctionDef):
            continue
        branches = {loss: body for node in ast.walk(function) for loss, body in branch(node)}
        within = [
            (loss, name)
            for loss, body in branches.items()
            for line in body
            for _, name in attributes(line)
        ]
        everywhere = [name for _, name in attributes(function)]
        for name in {name for _, name in within}:
            if everywhere.count(name) == sum(name == other for _, other in within):
                readers[name] = sorted({loss for loss, other in within if name == other})
    return readers


def branch(node: ast.AST) -> Iterator[tuple[str, list[ast.stmt]]]:
    match node:
        case ast.If(
            test=ast.Compare(
                left=ast.Name(id="loss_type"), comparators=[ast.Constant(value=str(loss))]
            )
        ):
            yield loss, node.body


if __name__ == "__main__":
    main()
