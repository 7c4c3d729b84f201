"""A user's own files, read before anything is paid for: a JSON schema, a function.

Nothing is run here.
"""

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, suggest


def load_schema(path: str, knob: str = "score.scorers.NAME") -> Any:
    import jsonschema

    try:
        schema = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{knob}.schema_file={path}: cannot be read as JSON ({error}). Give a JSON schema file."
        ) from error
    except jsonschema.SchemaError as error:
        raise UserError(
            f"{knob}.schema_file={path}: not a JSON schema: {error.message}."
            " Give a JSON schema file."
        ) from error
    return schema


def check_function(
    text: str, place: str, name: str, in_file: bool, knob: str = "score.scorers.NAME"
) -> None:
    """Check a function as far as its source shows.

    A package is not opened, since that may run anything.
    """
    typed = f"{knob}.function={text}"
    if not in_file:
        package = place.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{typed}: the package {package} is not installed here. Install it.")
        return
    try:
        body = ast.parse(Path(place).expanduser().read_text(encoding="utf-8"), place).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{typed}: {place} cannot be read as Python ({error}).") from error
    bound = dict(_list_bound_names(body))
    if name not in bound and "*" not in bound:
        known = [one for one, node in bound.items() if isinstance(node, ast.FunctionDef)]
        hint = suggest(name, known) if known else "It defines none."
        raise UserError(f"{typed}: {place} has no function {name}. {hint}")
    if isinstance(bound.get(name), ast.AsyncFunctionDef):
        raise UserError(
            f"{typed}: it is async, and functions are called one after the other. Give a plain one."
        )
    if isinstance(node := bound.get(name), ast.FunctionDef):
        _check_signature(typed, node)


def _check_signature(typed: str, function: ast.FunctionDef) -> None:
    """Refuse a function of single texts. A decorator may have changed what it takes.

    One that takes some of our arguments is called before anything is sampled, and says the rest.
    """
    arguments = function.args
    names = [one.arg for one in (*arguments.args, *arguments.kwonlyargs)]
    if function.decorator_list or arguments.kwarg or {"prompts", "completions"} & {*names}:
        return
    texts = 'prompt[-1]["content"], answer[-1]["content"]'
    takes_one = len(arguments.posonlyargs + arguments.args) == 1
    given = texts.partition(", ")[2] if takes_one else texts
    raise UserError(
        f"{typed}: {function.name}({ast.unparse(arguments)}) is called with prompts, completions"
        " and the prompts' columns by name, all lists, and does not take these.\n"
        "  Write one that does into its file, and name that one:\n"
        "    def score(prompts, completions, **columns):\n"
        f"        return [{function.name}({given})\n"
        "                for prompt, answer in zip(prompts, completions)]"
    )


def _list_bound_names(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Every name that a module's statements, branches included, may bind."""
    for node in (inner for statement in body for inner in _walk_outside_functions(statement)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node
            case ast.alias():
                yield (node.asname or node.name).partition(".")[0], node
            case ast.Name(ctx=ast.Store()):
                yield node.id, node


def _walk_outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _walk_outside_functions(child)
