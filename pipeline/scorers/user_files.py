"""Files that a user brings along, read before anything is paid for: a JSON schema, a function. Nothing is run here."""

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, suggest


def schema_of(path: str, knob: str = "score.scorers.NAME") -> Any:
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
            f"{knob}.schema_file={path}: no JSON schema: {error.message}. Give a JSON schema file."
        ) from error
    return schema


def check_function(
    text: str, place: str, name: str, in_file: bool, knob: str = "score.scorers.NAME"
) -> None:
    """As far as its source tells: a package is not opened, since that may run anything."""
    if not in_file:
        if importlib.util.find_spec(place.partition(".")[0]) is None:
            raise UserError(
                f"{knob}.function={text}: there is no package {place.partition('.')[0]} here. Install it."
            )
        return
    try:
        body = ast.parse(Path(place).expanduser().read_text(encoding="utf-8"), place).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{knob}.function={text}: {place} is no Python that can be read ({error})."
        ) from error
    makes = dict(_made(body))
    if name not in makes and "*" not in makes:
        known = [one for one, node in makes.items() if isinstance(node, ast.FunctionDef)]
        raise UserError(
            f"{knob}.function={text}: {place} has no function {name}. {suggest(name, known)}"
        )
    if isinstance(makes.get(name), ast.AsyncFunctionDef):
        raise UserError(
            f"{knob}.function={text}: it is async, and functions are called one after the other. Give a plain one."
        )


def _made(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Every name that a module's statements, branches included, may bind."""
    for node in (inner for statement in body for inner in _outside_functions(statement)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node
            case ast.alias():
                yield (node.asname or node.name).partition(".")[0], node
            case ast.Name(ctx=ast.Store()):
                yield node.id, node


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)
