"""Rows that people bring: prompts of every shape that a file can have and a prompt cannot."""

import json

import pytest

from tests.faults.planted import Fault, World, hold

GOOD = [{"prompt": f"Tell me {number} things about the sea."} for number in range(30)]
ROWS = ["until=prompts", "sft.model=hub/model", f"sft.revision={'0' * 40}", "prompts.near=null"]
ROWS += ["prompts.split={dev: 5, test: 5}"]


def lines(*bad: str) -> str:
    return "\n".join([*map(json.dumps, GOOD), *bad]) + "\n"


def given(world: World, file: str, *words: str) -> None:
    world.words = [*ROWS, f"prompts.path={file}", *words]


def nested(world: World) -> None:
    deep = "[" * 600 + "]" * 600
    world.write("rows.jsonl", lines(f'{{"prompt": "Where?", "label": {deep}}}'))
    given(world, "rows.jsonl")


FAULTS = [
    Fault("a row nested 600 deep", nested, 2, says=("line 31",)),
]


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_rows(fault, tmp_path):
    hold(fault, tmp_path)
