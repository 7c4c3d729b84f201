"""From the command line to a validated Config: Hydra composes, `validation` judges, every mistake is said at once."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import Config
from pipeline.config.validation import Asked, Written, leaves, validated
from pipeline.errors import UserError, suggest

CONF = Path(__file__).parent.parent / "conf"
RECIPES = (
    CONF / "recipes"
)  # a link to recipes/, so that Hydra sees that folder of the house and no other

FLAGS = "-m", "--multirun", "--config-dir", "-cd"
USAGE = "Usage: strop run [-m] [--config-dir FOLDER] [recipes=NAME] [group=choice …] [key=value …]"

SHOWN = 300  # characters of a word that nobody can read

READABLE = """\
  Write key=value: the key as in train.beta; the value a number, a word, [a, b], {a: 1}, or in quotes within quotes
  whatever holds more than that: 'key="any text [at all"'."""

OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
OmegaConf.register_new_resolver(
    "conf", lambda file: str(CONF / file), replace=True
)  # wherever the command is typed


@dataclass(frozen=True)
class Arguments:
    """The command line, with every value override as `++key=value`, so that pydantic alone judges keys."""

    flags: list[str]
    overrides: list[str]

    @classmethod
    def parse(cls, argv: list[str]) -> "Arguments":
        flags, overrides, rest = [], [], iter(argv)
        for word in rest:
            flag, _, value = word.partition("=")
            if flag in ("--config-dir", "-cd"):
                flags += ["--config-dir", _folder(value or next(rest, ""))]
            elif word in ("-m", "--multirun"):
                flags.append(word)
            elif word.startswith("-"):
                raise UserError(f"{word}: no such flag. {suggest(word, list(FLAGS))}\n  {USAGE}")
            else:
                overrides.append(_override(word))
        return cls(flags, overrides)

    @property
    def multirun(self) -> bool:
        return any(flag in ("-m", "--multirun") for flag in self.flags)

    @property
    def searchpath(self) -> list[str]:
        """Where Hydra finds recipes beside our own, which conf/recipes links to."""
        return [
            f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in self.own_recipes)}]"
        ]

    @property
    def own_recipes(self) -> list[str]:
        if "--config-dir" not in self.flags:
            return []
        folder = Path(self.flags[self.flags.index("--config-dir") + 1])
        if taken := [
            name
            for name in Config.model_fields
            if (folder / name).is_dir() and not (CONF / name).is_dir()
        ]:
            raise UserError(
                f"--config-dir {folder}: Hydra would take its folder '{taken[0]}' for a config group.\n"
                f"  Give a folder that holds recipes/ and no folder named like a knob."
            )
        return [str(folder)]


def _is_odd(value: str) -> bool:
    """Whether Hydra's grammar would trip over a value that is plainly text: not quoted, no list, no call, no sweep."""
    meant = re.match(r"""['"\[{$]|(choice|range|interval|shuffle|sort|tag|glob)\(""", value)
    return not meant and "\\" not in value and bool(re.search(r"[=()\[\]{}#']", value))


def quoted(text: str) -> str:
    """A text as Hydra's grammar reads it back, whatever stands in it; a `$` begins no interpolation."""
    text = re.sub(r"\\*\$\{", lambda found: "\\" * (2 * len(found[0]) - 3) + "${", text)
    return '"' + re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", text)) + '"'


def _folder(value: str) -> str:
    folder = Path(value).absolute()
    if not (folder / "recipes").is_dir():
        raise UserError(
            f"--config-dir {value}: there is no folder recipes/ in it. Give the folder that holds yours."
        )
    return str(folder)


def _override(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals and word.startswith("~"):
        return word  # takes out what a recipe or `+group@place` mounted
    if not equals:
        raise UserError(
            f"{word}: not an override. Write key=value, such as train.beta=0.05 (see docs/cli.md)."
        )
    if _is_odd(value):
        value = '"' + value.replace('"', '\\"') + '"'  # a path such as data/a=b(1).jsonl
    group = "@" in key or key.lstrip("+~") == "recipes" or (CONF / key.lstrip("+~")).is_dir()
    plain = group or key.startswith(("+", "~", "hydra.", "hydra/"))
    return f"{'' if plain else '++'}{key}={value}"


def compose(arguments: Arguments) -> tuple[list[Config], bool]:
    """Every point of the command line, validated before the first runs, and whether they are a sweep."""
    try:
        return _compose_points(arguments)
    except OmegaConfBaseException as error:  # a knob of Hydra's own, such as hydra.mode=???
        raise UserError(
            f"command line: {error.full_key or 'hydra'}: {str(error).splitlines()[0]}"
        ) from error


def _compose_points(arguments: Arguments) -> tuple[list[Config], bool]:
    asked = _parsed(arguments.overrides)
    first = _compose(
        arguments,
        [o.input_line for o in asked if not (arguments.multirun and o.is_sweep_override())],
    )
    if not (arguments.multirun or first.hydra.mode == _multirun()):
        return [point(first, first.hydra)], False
    params = [f"{key}={value}" for key, value in (first.hydra.sweeper.get("params") or {}).items()]
    composed = [_compose(arguments, overrides) for overrides in _points([*_parsed(params), *asked])]
    return [point(one, one.hydra) for one in composed], True


def block(arguments: Arguments, shape: type[Asked]) -> Asked:
    """The blocks of the config that a shape asks for, by themselves: for side doors, whatever else has no value yet."""
    composed = _compose(
        arguments, [override.input_line for override in _parsed(arguments.overrides)]
    )
    raw = {
        name: OmegaConf.to_container(composed[name], resolve=True) for name in shape.model_fields
    }
    return validated(_written(raw, composed.hydra), shape)


def point(composed: DictConfig, hydra: Any) -> Config:
    """One composed point, validated; `recipe` is the name under which its run is filed, `command` what makes it."""
    _refuse_files_as_values(read_words(hydra), hydra.runtime.choices)
    choices = hydra.runtime.choices
    _refuse_recipes_outside(choices.get("recipes"))
    try:
        own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        raw: Any = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'conf'}: {str(error).splitlines()[0]}") from error
    if isinstance(raw.get("recipes"), dict):
        raise UserError(
            f"recipes/{choices['recipes']}.yaml: its first line has to be `# @package _global_`."
        )
    unresolved = OmegaConf.to_container(own, resolve=False)
    echoes = {
        place
        for place, value in leaves(unresolved)
        if isinstance(value, str) and value.startswith("${")
    }
    named = {**raw, "recipe": choices.get("recipes") or "run", "command": command_of(hydra)}
    return validated(_written(named, hydra), Config, echoes)


def _refuse_recipes_outside(recipe: str | None) -> None:
    """A run is filed under its recipe's name, which therefore leads out of no folder."""
    parts = (recipe or "run").split("/")
    if not {"", ".", ".."} & set(parts) and parts[0] != "latest":
        return
    raise UserError(
        f"recipes={recipe}: runs are filed under this name in runs/, so it may not lead elsewhere nor be 'latest'.\n"
        "  Name a file in recipes/; for one in a folder of yours that holds recipes/: --config-dir FOLDER recipes=NAME"
    )


def _refuse_files_as_values(words: list[str], choices: dict[str, Any]) -> None:
    """`train.adapter=lora` would put a word where the knobs of a file belong."""
    for word in words:
        key, _, value = word.removeprefix("++").partition("=")
        for mounted in choices:
            group, _, place = mounted.partition("@")
            if place == key and (CONF / group / f"{value}.yaml").is_file():
                raise UserError(
                    f"{key}={value}: a file of conf/{group}/ is chosen where it is mounted. Type {mounted}={value}"
                )


def _written(raw: dict[str, Any], hydra: Any) -> Written:
    choices = {key: str(value) for key, value in hydra.runtime.choices.items() if value is not None}
    return Written(raw, choices, _parsed(read_words(hydra)))


PASSING = "store", "runs", "until", "dry_run", "verify", "tracker"  # change nothing of what is made


def read_words(hydra: Any) -> list[str]:
    """The overrides as they were typed: read as values of a config, `${nope}` among them would be looked up."""
    words: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return list(words)


def command_of(hydra: Any) -> str:
    """What is typed for this point alone, without what says where and how far it runs and who watches."""
    typed = [word.removeprefix("++") for word in read_words(hydra)]
    words = [word for word in typed if re.split(r"[.=]", word)[0] not in PASSING]
    own = [
        word
        for folder in hydra.searchpath
        for word in ("--config-dir", folder.removeprefix("file://"))
    ]
    alone = ["hydra.mode=RUN"] if hydra.mode == _multirun() else []
    return " ".join(["strop run", *map(shlex.quote, [*own, *words, *alone])])


def _multirun() -> Any:
    from hydra.types import RunMode

    return RunMode.MULTIRUN


def _compose(arguments: Arguments, overrides: list[str]) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="pipeline"):
            return hydra_compose(
                "config", [*arguments.searchpath, *overrides], return_hydra_config=True
            )
    except yaml.YAMLError as error:
        raise UserError(f"a file of conf/ or recipes/ is not YAML: {error}") from error
    except (
        Exception
    ) as error:  # for odd words it raises ValueError, TypeError and AssertionError as well
        raise UserError(_said_by_hydra(error, arguments.own_recipes)) from error


def _parsed(overrides: list[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, read, faults = OverridesParser.create(), [], []
    for word in overrides:
        try:
            read.append(parser.parse_override(word))
        except Exception as error:  # beside its own errors ValueError and RecursionError
            shown = word.removeprefix("++")[:SHOWN]
            faults.append(f"command line: {shown}: Hydra cannot read it ({str(error)[:SHOWN]}).")
    if faults:
        raise UserError("\n".join([*faults, READABLE]))
    return read


def _points(asked: list[Any]) -> Iterator[list[str]]:
    """The overrides of each point of a sweep, as Hydra's basic sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    for batch in BasicSweeper.split_arguments(asked, None):
        yield from batch


def _said_by_hydra(error: Exception, own_recipes: list[str] | None = None) -> str:
    """Hydra's composition errors in the house form."""
    text = str(error)
    if missing := re.search(r"Could not (?:find|load) '(\w+)/([^']+)'", text):
        group, name = missing.groups()
        folders = (
            [RECIPES, *(Path(p) / "recipes" for p in own_recipes or [])]
            if group == "recipes"
            else [CONF / group]
        )
        known = sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})
        return f"{group}={name}: there is no {group}/{name}.yaml. {suggest(name, known)}"
    hint = "\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
    return f"command line: {text.replace(hint, '') or 'Hydra cannot compose this'}\n{READABLE}"
