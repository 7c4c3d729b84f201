"""What a message says to type works when typed: read from the source, checked against the config.

Every `key=value` in a text of pipeline/ is checked: the key has to be a knob (of the block that
mentions it, or of the whole config), and its value one that the knob takes. `group@place=choice` is
composed. Make's targets, modules and flags are checked too.
"""

import ast
import copy
import functools
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import ValidationError

from pipeline import config
from pipeline.config import Block, Config
from pipeline.config.base import name_own_knobs
from pipeline.errors import UserError
from tests.support.house import HOUSE, composed

# What is typed elsewhere than in a run: these have arguments of their own.
OWN_ARGUMENTS = (
    "pipeline/commands/",
    "pipeline/__main__.py",
    "pipeline/driver/store_users.py",
    "pipeline/data/label_shapes.py",
    "pipeline/driver/cluster/sbatch.py",  # a job's file
)
# Texts for models, not messages.
TEXTS = {
    "pipeline/data/instruction_phrases.py",
    "pipeline/data/instruction_tasks.py",
    "pipeline/data/instruction_topics.py",
    "pipeline/data/unseen_constraints.py",
}
# Whose words a block says as its own.
PLACES = {"pipeline/config/trl_args.py": "train", "pipeline/config/training.py": "train"}
OWN_KNOBS = "pipeline/config/guards.py", "pipeline/training/"
BLOCKS = {"GuardsConfig": "train.guards", "LoraAdapter": "train.adapter"}  # others are of `train`
MOUNTS = {"train.adapter": "adapter"}
# What messages of a training fill in: where its block is in most runs.
FILLED = {"cfg.knob": "train", "train.knob": "train", "cfg.mount": "train", "train.mount": "train"}
FILLED |= {"cfg.adapter_mount": "adapter", "train.adapter_mount": "adapter"}
FILLED |= {"adapter_knob": "train.adapter"}
USAGE = {
    "key",
    "group",
    "scale",
    "hydra.searchpath",
    "hydra.sweep.dir",
    "hydra.mode",
}  # words on the command line itself
OPEN = re.compile(r"^(ANOTHER|ADDRESS|FILE|FOLDER|HOST|N|NAME|ROWS|SCORE|VALUE|…|<.*|\{.*|\[<.*)$")
KEY = re.compile(
    r"(?<![\w.\-&?\"{])(?!(?<=\()\w+=)([+~]?(?:[a-z_]\w*|<[^<>]*>)(?:[.@](?:\w+|<[^<>]*>))*)=(\[[^\]\s]*\]|[^\s,;:)`'}]*)"
)
JUDGE = ["+scorer@score.scorers.NAME=rubric", "score.scorers.NAME.engine.model=m"]
GIVEN = ["prompts.path=p.jsonl", "sft.model=./m", "score=rules"]
MORE = [
    "evaluate.best_of=4",
    "evaluate.prompted={system: Be brief., few_shot: []}",
    "evaluate.retention={rules: 0.1}",
]
CHATS = [
    "prompts.evaluation.NAME=q.jsonl",
    "+chat@evaluate.chats.NAME=two_turns",
    "+score@evaluate.dev_score=rules",
]
RIVAL = [
    "+baseline@evaluate.baselines.NAME=served",
    "evaluate.baselines.NAME={model: m, runtime: {base_url: 'http://localhost:1/v1'}}",
]
REGEX = ["+scorer@train.guards.scorer=regex", "train.guards.scorer.pattern=x"]
DUEL = ["+duel@evaluate.duels.NAME=default", "evaluate.duels.NAME.engine.model=m"]
MODEL = ["score=reward", "reward=checkpoint", "reward.model=NAME", "pair.scorer=reward"]
ENDPOINT = "sample.backend={model: m, runtime: {base_url: 'http://localhost:1/v1'}}"
POOL = [
    "+member@sample.pool.NAME=checkpoint",
    "sample.pool.NAME.model=./m",
    "pair=by_source",
    "pair.strategy.chosen=NAME",
    "pair.strategy.rejected=policy",
]
BASES = [
    ["recipes=smoke"],
    GIVEN,
    [
        *GIVEN,
        *MORE,
        *CHATS,
        *RIVAL,
        *DUEL,
        *JUDGE,
        "gate=best",
        "benchmark=[gsm8k]",
        "tracker=wandb",
    ],
    [*GIVEN, "prompts.caps={column: c, max: 1}"],
    [*GIVEN, *POOL],
    [*GIVEN, "merge=with_sft", "cluster=slurm"],
    [*GIVEN, "cluster=ray"],
    [*GIVEN, "revise=default", "init=best_of_n", "best_of_n=default", "best_of_n.answers=revised"],
    [*GIVEN, "score=math", "steps=judged", "steps.judge.engine.model=m"],
    [*GIVEN, "pair=demonstration"],
    [
        "sft=gguf",
        "sft.path=FILE.gguf",
        "prompts=instructions",
        "benchmark=safety",
        "prompts.evaluation.safety=q.jsonl",
    ],
    [
        *GIVEN,
        "adapter=qlora",
        "+rehearsal@train.rehearsal=default",
        "init=best_of_n",
        "best_of_n=default",
    ],
    [
        *GIVEN,
        "offline=file",
        "offline.source.path=p.jsonl",
        "pair.mix.on_policy=0.5",
        "pair.mix.offline=0.5",
    ],
    [
        *GIVEN,
        "score=reward",
        "reward=train",
        "pair.scorer=reward",
        "backend@sample.backend=endpoint",
        ENDPOINT,
    ],
    [
        *GIVEN,
        *MODEL,
        "+scorer@score.scorers.NAME=reward_model",
        "backend@sample.backend=transformers",
    ],
    [*GIVEN[1:], *REGEX, "prompts=hub", "prompts.dataset=o/n"],
    [
        *GIVEN,
        *JUDGE[:1],
        "engine@score.scorers.NAME.engine=vllm",
        "score.scorers.NAME.engine.model=./m",
    ],
    [*GIVEN, "pair=margin_band", "train=simpo", "base=checkpoint", "base.model=./b"],
    [
        *GIVEN,
        "+scorer@evaluate.score.scorers.NAME=labels",
        "evaluate.score.scorers.NAME.path=l.jsonl",
    ],
    *(
        [*GIVEN, f"+scorer@score.scorers.NAME={kind}", *more]
        for kind, more in {
            "code": ["score.scorers.NAME.allow_code_execution=true"],
            "math": [],
            "regex": ["score.scorers.NAME.pattern=x"],
            "length": [],
            "json": [],
            "function": ["score.scorers.NAME.function=./f.py:f"],
            "labels": ["score.scorers.NAME.path=l.jsonl"],
            "ensemble": ["score.scorers.NAME.weights={rules: 1}"],
            "pairwise": ["score.scorers.NAME.engine.model=m"],
        }.items()
    ),
]


class Remedy(NamedTuple):
    place: str  # file:line
    block: str | None  # the class of the config that says it
    key: str
    value: str


# ── what the source says ──────────────────────────────────────────────────────────────────────────


def text_of(part: ast.expr) -> str:
    """A constant of an f-string as it is, what is filled in as <its source>."""
    if isinstance(part, ast.Constant):
        return part.value
    source = ast.unparse(part.value)
    if source.removeprefix("self.") in FILLED:
        return FILLED[source.removeprefix("self.")]
    return f"<{source.replace('=', ' is ').replace('<', '[').replace('>', ']')}>"


def texts(path: Path) -> Iterator[tuple[int, str | None, str]]:
    """Every text that is not a docstring: its line, its class, itself, with placeholders in <>."""

    def visit(node: ast.AST, block: str | None) -> Iterator[tuple[int, str | None, str]]:
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, block, "".join(map(text_of, node.values))
            inner = [value.value for value in node.values if isinstance(value, ast.FormattedValue)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, block, node.value
            inner = []
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner = []  # a docstring
        else:
            inner = [*ast.iter_child_nodes(node)]
        block = node.name if isinstance(node, ast.ClassDef) else block
        for child in inner:
            yield from visit(child, block)

    yield from visit(ast.parse(path.read_text()), None)


def spoken() -> Iterator[tuple[str, str | None, str]]:
    for path in sorted((HOUSE / "pipeline").rglob("*.py")):
        where = path.relative_to(HOUSE).as_posix()
        if where in TEXTS:
            continue
        for line, block, text in texts(path):
            if where in PLACES or where.startswith(OWN_KNOBS):
                knob = BLOCKS.get(block or "", "train")
                text = name_own_knobs(text, knob, MOUNTS.get(knob, knob))
            if " " in text and not re.search(r"</|/>|<meta|PRAGMA|--query|class=", text):
                yield f"{where}:{line}", block, text


def remedies() -> Iterator[Remedy]:
    for place, block, text in spoken():
        if place.startswith(OWN_ARGUMENTS):
            continue
        for key, value in KEY.findall(text):
            yield Remedy(place, block, key, value.rstrip(".").partition("|")[0])


REMEDIES = list(remedies())


def test_the_source_says_many_things_to_type():
    assert len(REMEDIES) > 250
    assert {"train.reference_logps", "+duel@evaluate.duels.NAME", "backend@sample.backend"} <= {
        one.key for one in REMEDIES
    }


# ── what can be typed ─────────────────────────────────────────────────────────────────────────────


@functools.cache
def bases() -> list[Config]:
    return [composed(*words) for words in BASES]


@functools.cache
def raws() -> list[dict[str, Any]]:
    return [cfg.model_dump(mode="json") for cfg in bases()]


def blocks(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Block]]:
    if isinstance(value, Block):
        yield place, value
    items = (
        iter(value)
        if isinstance(value, Block)
        else value.items()
        if isinstance(value, dict)
        else ()
    )
    for name, item in items:
        yield from blocks(item, (*place, str(name)))


@functools.cache
def places_of(block: str) -> set[tuple[str, ...]]:
    """Where one of the configs has a block of this class or of one that inherits it."""
    kind = getattr(config, block, None)
    if not (isinstance(kind, type) and issubclass(kind, Block)):
        return set()
    return {place for cfg in bases() for place, one in blocks(cfg) if isinstance(one, kind)}


def patterns(one: Remedy) -> Iterator[tuple[str, ...]]:
    """Its key as a place, in full and within the block that says it; `*` for what is filled in."""
    key = one.key.lstrip("+~").rpartition("@")[2]
    words = tuple(
        "*" if re.match(r"<|NAME$", word) else word for word in re.findall(r"<[^<>]*>|\w+", key)
    )
    yield words
    file = one.place.partition(":")[0]
    if file in PLACES:
        yield PLACES[file], *words
    for place in places_of(one.block) if one.block else ():
        yield *place, *words


def paths(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield place
    if value == {} or place == ("train", "args"):
        yield *place, "*"  # names of the user's own
    for name, item in value.items() if isinstance(value, dict) else ():
        yield from paths(item, (*place, name))


@functools.cache
def known() -> list[set[tuple[str, ...]]]:
    return [set(paths(raw)) for raw in raws()]


def matches(pattern: tuple[str, ...], place: tuple[str, ...]) -> bool:
    if pattern[0] == "*":  # the knob of a block that may be mounted at several places
        return (
            len(pattern) > 1
            and len(place) >= len(pattern)
            and matches(pattern[1:], place[1 - len(pattern) :])
        )
    if len(pattern) != len(place):
        return False
    return all(
        word in ("*", name) or name == "*" for word, name in zip(pattern, place, strict=True)
    )


def found(one: Remedy) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """The configs and places where its key is a knob."""
    asked = list(patterns(one))
    for raw, places in zip(raws(), known(), strict=True):
        yield from (
            (raw, place) for place in places for pattern in asked if matches(pattern, place)
        )


def takes(raw: dict[str, Any], place: tuple[str, ...], value: str) -> bool:
    """Whether the knob takes the value, whatever the rest of that config says to it."""
    from pipeline.config.validation import locate_error

    changed = copy.deepcopy(raw)
    block = changed
    for name in place[:-1]:
        block = block[name]
    if place[-1] == "*":
        return True
    block[place[-1]] = yaml.safe_load(value)
    try:
        Config.model_validate(changed)
    except ValidationError as error:
        at = [locate_error(fault["loc"], changed).path for fault in error.errors()]
        return not any(fault[: len(place)] == place for fault in at)
    return True


def file_of(group: str, choice: str) -> bool:
    return bool(OPEN.match(choice)) or (HOUSE / "conf" / group / f"{choice}.yaml").is_file()


def works(one: Remedy) -> bool:
    if re.fullmatch(r"<[^<>]*>", one.key) or one.key in USAGE:
        return True  # a knob as a whole is filled in: who calls knows it
    key = one.key.lstrip("+~")
    group, mounted, place = key.partition("@")
    if mounted:
        return file_of(group, one.value) and (
            one.key[0] == "+" or place[-1] == ">" or any(found(one))
        )
    if (HOUSE / "conf" / key).is_dir() and "." not in key and file_of(key, one.value):
        return True
    if key == "recipes":
        return True
    if OPEN.match(one.value) or re.search(r"<|[A-Z]{2}", one.value) or not one.value:
        return any(found(one))
    choice = (
        any(len(at) > 1 and file_of(at[-1], one.value) for _, at in found(one))
        if one.block
        else False
    )
    return choice or any(takes(raw, at, one.value) for raw, at in found(one))


@pytest.mark.long
def test_every_knob_that_a_message_names_is_one_and_takes_the_value():
    wrong = [f"{one.place}: {one.key}={one.value}" for one in REMEDIES if not works(one)]
    assert wrong == []


# ── without a value, and what is not an override ──────────────────────────────────────────────────

ROOTS = "|".join(sorted(set(Config.model_fields) - {"recipe", "command"}))
DOTTED = re.compile(
    rf"(?<![\w./@<\[-])((?:{ROOTS})(?:\.(?:[a-z_]\w*|NAME|<[^<>]*>))+)(?![\w(/*=@-]|\.\w)"
)
FILES = re.compile(r"\.(parquet|jsonl?|py|yaml|html|md|png|css|js|sqlite|csv)$")


@pytest.mark.long
def test_every_knob_that_a_message_names_without_a_value_is_one():
    named = [
        (place, key)
        for place, _, text in spoken()
        for key in DOTTED.findall(text)
        if not FILES.search(key)
    ]
    assert len(named) > 50
    wrong = [
        f"{place}: {key}" for place, key in named if not any(found(Remedy(place, None, key, "")))
    ]
    assert wrong == []


def test_every_target_of_make_that_a_message_names_is_there():
    makefile = (HOUSE / "Makefile").read_text()
    stages = re.search(r"^STAGES *:?= *(.*)$", makefile, re.M)[1].split()
    targets = {*re.findall(r"^([a-z_-]+):", makefile, re.M), *stages}
    named = {
        (place, word)
        for place, _, text in spoken()
        for word in re.findall(r"\bmake ([a-z_-]+)\b", text)
    }
    sentences = {"one", "it", "pairs", "no", "the", "a", "them", "up", "looks"}  # to make something
    assert "install" in {word for _, word in named}, "the rest of what is typed is `strop …`"
    assert {word for _, word in named} - targets <= sentences


def test_every_command_and_module_that_a_message_names_is_there():
    from pipeline.__main__ import COMMANDS

    named = {word for _, _, text in spoken() for word in re.findall(r"\bstrop ([a-z]+)\b", text)}
    assert {"run", "calibrate", "compare", "trace"} <= named <= set(COMMANDS)
    for command in COMMANDS.values():
        assert callable(importlib.import_module(command.module).main)
    for module in {
        word for _, _, text in spoken() for word in re.findall(r"-m (pipeline(?:\.\w+)+)", text)
    }:
        assert importlib.util.find_spec(module), module


# ── typed for good ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize(
    "key", sorted({one.key for one in REMEDIES if one.key[0] == "+" and "<key>" not in one.key})
)
def test_what_a_message_mounts_can_be_mounted(key):
    values = {one.value for one in REMEDIES if one.key == key}
    group, _, place = key[1:].partition("@")
    at = re.sub(r"<[^<>]*>|NAME", "mine", place)
    for value in values:
        choice = (
            {"scorer": "length", "score": "rules", "member": "checkpoint"}.get(group, value)
            if OPEN.match(value)
            else value
        )
        more = {
            "reward_model": ["reward=train"],
            "regex": [f"{at}.pattern=x"],
            "labels": [f"{at}.path=l.jsonl"],
            "checkpoint": [f"{at}.model=./m"],
            "served": [f"{at}={{model: m, runtime: {{base_url: 'http://localhost:1/v1'}}}}"],
        }
        more |= {"default": [f"{at}.engine.model=m"] if group == "duel" else []}
        composed(*GIVEN, f"+{group}@{at}={choice}", *more.get(choice, []))


RELATIVE = [
    (["train.learning_rate=9e-3"], "train.runtime.typical_learning_rate=0.009"),
    (["train.batch=10", "train.runtime.micro_batch=4"], "train.runtime.micro_batch=2"),
    (["adapter=qlora", "train.runtime.launch=zero3"], "adapter=lora"),
    (["train.args.simpo_gamma=1"], "train.loss=[simpo]"),
    (
        ["train.guards.stop_on=score", "train.guards.prompts=0", *REGEX],
        "train.guards.prompts=64",
    ),
    (
        ["evaluate.best_of=4", "evaluate.sample.settings.answer.temperature=0"],
        "evaluate.best_of=null",
    ),
    (
        [*RIVAL[:0], *CHATS[:2], "evaluate.sample.settings.answer.n=2"],
        "evaluate.chats.NAME.turns=1",
    ),
    (["+scorer@score.scorers.NAME=code"], "score.scorers.NAME.allow_code_execution=true"),
    (
        [
            "sample.resample_ties=[4]",
            "sample.settings.draw={n: 1, temperature: 0}",
            "pair=demonstration",
        ],
        "sample.resample_ties=[]",
    ),
]


@pytest.mark.parametrize(("words", "remedy"), RELATIVE, ids=lambda part: str(part)[:60])
def test_a_block_names_its_knobs_as_they_are_typed(words, remedy):
    with pytest.raises(UserError) as refusal:
        composed(*GIVEN, *words)
    said = str(refusal.value)
    assert re.search(rf"(?<![\w.]){re.escape(remedy)}", said), said
    if "HOST" not in remedy and "simpo" not in remedy:
        kept = [
            word for word in words if word.partition("=")[0].lstrip("+") != remedy.partition("=")[0]
        ]
        composed(*GIVEN, *kept, remedy)
