"""From the command line to a validated Config: Hydra composes, `validation` reports every fault."""

import glob
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import Config, renamed
from pipeline.config.inherit import inherit_blocks
from pipeline.config.replaced import find_replaced, list_parents
from pipeline.config.scale import choose_scale
from pipeline.config.validation import BlockT, Composition, iter_leaves, split_mount, validate
from pipeline.errors import UserError, suggest

CONF = Path(__file__).parent.parent / "conf"

FLAGS = "-m", "--multirun", "--config-dir", "-cd"
USAGE = "Usage: strop run [-m] [--config-dir FOLDER] [recipes=NAME] [group=choice …] [key=value …]"

# Hydra's own knobs for where a job works and writes.
HYDRA_FOLDERS = "hydra.run.", "hydra.sweep.", "hydra.output_subdir", "hydra.job.chdir"

MAX_SHOWN = 300  # characters shown of an unreadable argument

GRAMMAR_HINT = """\
  Write key=value. The key is a path such as train.beta; the value a number, a word, [a, b] or
  {a: 1}. Put any other text into double quotes within single ones: 'key="any text [at all"'."""

OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
# The value of a small table: ${choose:${train.adapter.kind},{full: fsdp2, lora: auto}}.
OmegaConf.register_new_resolver("choose", lambda key, table: table[key], replace=True)
# Paths relative to conf/, wherever the command is typed.
OmegaConf.register_new_resolver("conf", lambda file: str(CONF / file), replace=True)

# The scorer that makes the pairs, where none is named.
OmegaConf.register_new_resolver("first", lambda block: next(iter(block), None), replace=True)
# The store that is written, where several are read.
OmegaConf.register_new_resolver(
    "own", lambda store: next(iter(store), "") if OmegaConf.is_list(store) else store, replace=True
)


@dataclass(frozen=True)
class Arguments:
    """The command line. Value overrides are `++key=value`: pydantic, not Hydra, checks the keys."""

    flags: list[str]
    overrides: list[str]

    @classmethod
    def parse(cls, argv: list[str]) -> "Arguments":
        flags, overrides, rest = [], [], iter(argv)
        for word in rest:
            flag, _, value = word.partition("=")
            if flag in ("--config-dir", "-cd"):
                flags += ["--config-dir", _check_recipes_folder(value or next(rest, ""))]
            elif word in ("-m", "--multirun"):
                flags.append(word)
            elif word.startswith("-"):
                raise UserError(f"{word}: no such flag. {suggest(word, list(FLAGS))}\n  {USAGE}")
            else:
                overrides.append(_normalize_override(word))
        return cls(flags, choose_scale(overrides, CONF / "recipes" / "twins"))

    @property
    def multirun(self) -> bool:
        return any(flag in ("-m", "--multirun") for flag in self.flags)

    @property
    def searchpath(self) -> list[str]:
        """Where Hydra finds the user's recipes; it finds ours through the link conf/recipes."""
        folders = ",".join(quote(f"file://{folder}") for folder in self.user_folders)
        return [f"hydra.searchpath=[{folders}]"]

    @property
    def user_folders(self) -> list[str]:
        if "--config-dir" not in self.flags:
            return []
        folder = Path(self.flags[self.flags.index("--config-dir") + 1])
        for name in Config.model_fields:
            if (folder / name).is_dir() and not (CONF / name).is_dir():
                raise UserError(
                    f"--config-dir {folder}: Hydra would take its folder '{name}'"
                    " for a config group.\n"
                    "  Give a folder that contains recipes/ and no folder with the name of a knob."
                )
        return [str(folder)]


def _needs_quotes(value: str) -> bool:
    """Whether Hydra's grammar would reject a plain text: not quoted, no list, call or sweep."""
    special = re.match(r"""['"\[{$]|(choice|range|interval|shuffle|sort|tag|glob)\(""", value)
    return not special and "\\" not in value and bool(re.search(r"[=()\[\]{}#']", value))


def quote(text: str) -> str:
    """Quote any text for Hydra's grammar; a `$` in it starts no interpolation."""
    text = re.sub(r"\\*\$\{", lambda found: "\\" * (2 * len(found[0]) - 3) + "${", text)
    return '"' + re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", text)) + '"'


def _check_recipes_folder(value: str) -> str:
    folder = Path(value).absolute()
    if not (folder / "recipes").is_dir():
        raise UserError(
            f"--config-dir {value}: it has no folder recipes/. Give the folder that contains yours."
        )
    return str(folder)


def _normalize_override(word: str) -> str:
    key, equals, value = word.partition("=")
    renamed.refuse_renamed_mount(key, value)
    if key.lstrip("+~").startswith(HYDRA_FOLDERS):
        raise UserError(
            f"{key}={value}: a run's folder is runs/RECIPE/TIME, and a sweep's points are in it.\n"
            "  Leave this out. To write elsewhere, give runs=FOLDER and store=FOLDER."
        )
    if not equals and word.startswith("~"):
        return word  # unmounts what a recipe or `+group@place` mounted
    if not equals:
        raise UserError(
            f"{word}: not an override. Write key=value, such as train.beta=0.05 (see docs/cli.md)."
        )
    if _needs_quotes(value):
        value = '"' + value.replace('"', '\\"') + '"'  # a path such as data/a=b(1).jsonl
    is_group = "@" in key or key.lstrip("+~") == "recipes" or (CONF / key.lstrip("+~")).is_dir()
    as_typed = is_group or key.startswith(("+", "~", "hydra.", "hydra/"))
    return f"{'' if as_typed else '++'}{key}={value}"


def compose(arguments: Arguments) -> tuple[list[Config], bool]:
    """Every point of the command line, all of them validated, and whether they form a sweep."""
    try:
        return _compose_points(arguments)
    except OmegaConfBaseException as error:  # one of Hydra's own keys, such as hydra.mode=???
        raise UserError(
            f"command line: {error.full_key or 'hydra'}: {str(error).splitlines()[0]}"
        ) from error


def _compose_points(arguments: Arguments) -> tuple[list[Config], bool]:
    overrides = _parse_overrides(arguments.overrides)
    swept = [o.input_line for o in overrides if o.is_sweep_override()]
    if swept and not arguments.multirun:
        raise UserError(_describe_unswept(arguments, swept[0]))
    shared = [o.input_line for o in overrides if o.input_line not in swept]
    first = _compose_overrides(arguments, shared)
    if not (arguments.multirun or first.hydra.mode == _multirun_mode()):
        return [validate_point(first, first.hydra)], False
    params = [f"{key}={value}" for key, value in (first.hydra.sweeper.get("params") or {}).items()]
    if not (swept or params):
        raise UserError(
            "strop sweep: no key has several values. Give at least one as key=value,value, such as"
            " train.beta=0.05,0.2"
        )
    points = _expand_sweep([*_parse_overrides(params), *overrides])
    composed = [_compose_overrides(arguments, point) for point in points]
    return [validate_point(point, point.hydra) for point in composed], True


def _describe_unswept(arguments: Arguments, swept: str) -> str:
    """What to type where a key has several values without `sweep`."""
    words = [word.removeprefix("++") for word in (*arguments.flags, *arguments.overrides)]
    key, _, values = swept.removeprefix("++").partition("=")
    text = shlex.quote(f"{key}='{values}'")
    return (
        f"command line: {key}={values}: several values of a key are a sweep.\n"
        f"  Type {shlex.join(['strop', 'sweep', *words])}\n"
        f"  A list is {key}=[{values}], and one text with a comma {text}"
    )


def compose_block(arguments: Arguments, shape: type[BlockT]) -> BlockT:
    """Only the blocks that a shape has, even where the rest of the config still lacks values.

    A recipe may set any knob of the config. A key that is none was meant to be another.
    """
    overrides = _parse_overrides(arguments.overrides)
    composed = _compose_overrides(arguments, [override.input_line for override in overrides])
    _refuse_unknown_keys(composed)
    values = {name: composed[name] for name in shape.model_fields}
    raw = {
        name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for name, value in values.items()
    }
    return validate(_record_composition(raw, composed.hydra), shape)


def _refuse_unknown_keys(composed: DictConfig) -> None:
    choices = composed.hydra.runtime.choices
    keys = [str(key) for key in composed if key != "hydra" and not is_top_key(str(key))]
    where = f"command line or recipes/{choices.recipes}.yaml" if choices.recipes else "command line"
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(composed, keys), resolve=False)
    faults = []
    for key, value in values.items():
        if renamed.rename((key,)) != (key,):
            fault = renamed.describe_renamed((key,), iter_leaves(value, (key,)))
        else:
            fault = f"{key} is not a knob of the config. {suggest(key, [*Config.model_fields])}"
        faults.append(f"{where}: {fault}")
    if faults:
        raise UserError("\n".join(faults))


def is_top_key(key: str) -> bool:
    """Whether a word may start with `key=`: a knob or block of the config, a group, or `scale`."""
    return key in Config.model_fields or key == "scale" or (CONF / key).is_dir()


def validate_point(composed: DictConfig, hydra: Any) -> Config:
    """Validate one composed point, and add the recipe's name and the command that repeats it."""
    _refuse_files_as_values(read_overrides(hydra), hydra.runtime.choices)
    choices = hydra.runtime.choices
    _check_recipe_name(choices.get("recipes"))
    try:
        own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        _refuse_scalar_reference(own, choices.get("recipes"))
        raw: Any = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'conf'}: {str(error).splitlines()[0]}") from error
    if isinstance(raw.get("recipes"), dict):
        raise UserError(
            f"recipes/{choices['recipes']}.yaml: its first line has to be `# @package _global_`."
        )
    unresolved = OmegaConf.to_container(own, resolve=False)
    echoes = {
        path: tuple(value[2:-1].split(".")) if re.fullmatch(r"\$\{[\w.]+\}", value) else ()
        for path, value in iter_leaves(unresolved)
        if isinstance(value, str) and value.startswith("${")
    }
    named = {**raw, "recipe": choices.get("recipes") or "run", "command": build_command(hydra)}
    return validate(_record_composition(named, hydra), Config, echoes)


def _check_recipe_name(recipe: str | None) -> None:
    """A run's folder has its recipe's name, which must not lead out of runs/."""
    parts = (recipe or "run").split("/")
    if not {"", ".", ".."} & set(parts) and parts[0] != "latest":
        return
    raise UserError(
        f"recipes={recipe}: this names the run's folder in runs/, so it must not leave runs/"
        " nor be 'latest'.\n"
        "  Name a file in recipes/; for one in your own folder that contains recipes/, type"
        " --config-dir FOLDER recipes=NAME"
    )


def _refuse_scalar_reference(composed: DictConfig, recipe: str | None) -> None:
    """A recipe of before names the reference model where its block is now."""
    model = composed.get("reference")
    if model is not None and not isinstance(model, DictConfig):
        raise UserError(
            f"recipes/{recipe}.yaml: reference is reference.model now: write"
            f" reference: {{model: {model}}}."
        )


def _refuse_files_as_values(words: list[str], choices: dict[str, Any]) -> None:
    """`train.adapter=lora` and `cluster.kind=ray` would replace a file's knobs by a word."""
    for word in words:
        key, _, value = word.removeprefix("++").partition("=")
        for mounted, chosen in choices.items():
            group, place = split_mount(mounted)
            is_place = ".".join(place) == key != group
            # A file of the user's own may have another name than its kind.
            is_own = chosen is not None and not _is_ours(group, chosen)
            is_kind = ".".join([*place, "kind"]) == key and value != chosen and not is_own
            if (is_place or is_kind) and _is_ours(group, value):
                raise UserError(
                    f"{key}={value}: choose a file of conf/{group}/ by its mount."
                    f" Type {mounted}={value}"
                )


def _is_ours(group: str, choice: str) -> bool:
    try:
        return (CONF / group / f"{choice}.yaml").is_file()
    except OSError:  # a value that is longer than a name may be
        return False


def _record_composition(raw: dict[str, Any], hydra: Any) -> Composition:
    choices = {key: str(value) for key, value in hydra.runtime.choices.items() if value is not None}
    copies = inherit_blocks(raw, choices)
    return Composition(raw, choices, _parse_overrides(read_overrides(hydra)), copies)


# Knobs that do not change what is made.
NOT_IN_COMMAND = "store", "runs", "until", "dry_run", "verify", "tracker", "cluster"


def read_overrides(hydra: Any) -> list[str]:
    """The overrides as they were typed, with interpolations such as `${nope}` left unresolved."""
    words: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return list(words)


def build_command(hydra: Any) -> str:
    """The command that makes this point alone, without knobs that do not change what is made."""
    typed = [word.removeprefix("++") for word in read_overrides(hydra)]
    words = [word for word in typed if re.split(r"[.=]", word)[0] not in NOT_IN_COMMAND]
    folders = [folder.removeprefix("file://") for folder in hydra.searchpath]
    flags = [word for folder in folders for word in ("--config-dir", folder)]
    mode = ["hydra.mode=RUN"] if hydra.mode == _multirun_mode() else []
    return " ".join(["strop run", *map(shlex.quote, [*flags, *words, *mode])])


def _multirun_mode() -> Any:
    from hydra.types import RunMode

    return RunMode.MULTIRUN


def _compose_overrides(arguments: Arguments, overrides: list[str]) -> DictConfig:
    from hydra import initialize_config_dir

    try:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="pipeline"):
            composed = _run_hydra(arguments, overrides)
            _leave_out_replaced(composed, arguments)
            _complete_rounds(composed)
            return composed
    except yaml.YAMLError as error:
        raise UserError(_describe_yaml_error(error)) from error
    except Exception as error:  # Hydra also raises ValueError, TypeError and AssertionError
        raise UserError(_describe_hydra_error(error, arguments.user_folders)) from error


def _run_hydra(arguments: Arguments, overrides: list[str]) -> DictConfig:
    from hydra import compose as hydra_compose

    words = [*arguments.searchpath, *overrides]
    return hydra_compose("config", words, return_hydra_config=True)


def _complete_rounds(composed: DictConfig) -> None:
    """Trainings of single rounds have the adapter of `train`, but for the knobs that they give.

    A round's number is a text where a file is chosen for it or a knob is typed, and a number in
    YAML. What is typed is above both.
    """
    rounds = composed.get("train_in_round", {})
    every = read_overrides(composed.hydra)
    words = [word for word in every if word.startswith("++train_in_round.")]
    left_out = [word for word in every if word.startswith("~train_in_round.")]
    typed = {override.key_or_group: override.value() for override in _parse_overrides(words)}
    with flag_override(composed, ["struct", "readonly"], False):
        for number in [key for key in rounds if not isinstance(key, str)]:
            own = rounds.pop(number)
            rounds[str(number)] = OmegaConf.merge(rounds.get(str(number), {}), own)
        for key, value in typed.items():
            OmegaConf.update(composed, key, value, merge=True)
        for override in _parse_overrides(left_out):
            _remove(composed, tuple(override.key_or_group.split(".")))
        for block in rounds.values():
            own = block.get("adapter", {}) if isinstance(block, DictConfig) else None
            kind = composed.train.adapter.kind
            if isinstance(own, dict | DictConfig) and own.get("kind", kind) == kind:
                block["adapter"] = OmegaConf.merge(composed.train.adapter, own)


def _leave_out_replaced(composed: DictConfig, arguments: Arguments) -> None:
    """Remove a recipe's values for files that it, or the command line, has replaced."""
    chosen = composed.hydra.runtime.choices
    if not chosen.get("recipes"):
        return
    words = read_overrides(composed.hydra)
    values = [word for word in words if word.startswith("++")]
    typed = {override.key_or_group for override in _parse_overrides(values)}
    roots = [folder / "recipes" for folder in (CONF, *map(Path, arguments.user_folders))]
    lineage = list_parents(chosen.recipes, roots)
    if len(words) > len(values) + 1:  # another file than the recipe's may be typed
        lineage.append(chosen.recipes)
    for name in lineage:
        before = _run_hydra(arguments, [f"recipes={name}"]).hydra.runtime.choices
        for path in find_replaced(CONF, before, chosen):
            if not _is_typed(".".join(path), typed):
                _remove(composed, path)


def _is_typed(key: str, typed: set[str]) -> bool:
    return any(key == word or key.startswith(f"{word}.") for word in typed)


def _remove(composed: DictConfig, path: tuple[str, ...]) -> None:
    parent: Any = OmegaConf.select(composed, ".".join(path[:-1])) if path[1:] else composed
    is_knob = isinstance(parent, DictConfig) and path[-1] in parent
    if is_knob and not isinstance(parent._get_node(path[-1]), DictConfig):
        with flag_override(parent, ["struct", "readonly"], False):
            del parent[path[-1]]


def _describe_yaml_error(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f"a file of conf/ or recipes/ is not YAML: {error}"
    place = f"{mark.name}, line {mark.line + 1}"
    return f"{place}: this file is not YAML ({problem}). Correct this line or one before it."


def _parse_overrides(overrides: list[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, parsed, faults = OverridesParser.create(), [], []
    for word in overrides:
        try:
            parsed.append(parser.parse_override(word))
        except Exception as error:  # Hydra also raises ValueError and RecursionError
            shown = word.removeprefix("++")[:MAX_SHOWN]
            faults.append(
                f"command line: {shown}: Hydra cannot read it ({str(error)[:MAX_SHOWN]})."
            )
    if faults:
        raise UserError("\n".join([*faults, GRAMMAR_HINT]))
    return parsed


def _expand_sweep(overrides: list[Any]) -> Iterator[list[str]]:
    """The overrides of each point of a sweep, as Hydra's basic sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    for batch in BasicSweeper.split_arguments(overrides, None):
        yield from batch


def _describe_hydra_error(error: Exception, user_folders: list[str] | None = None) -> str:
    """Hydra's composition errors in the form of our own."""
    text = str(error)
    if missing := re.search(r"Could not (?:find|load) '(\w+)/([^']+)'", text):
        group, name = missing.groups()
        folders = [CONF / group]
        if group == "recipes":
            folders += [Path(folder) / "recipes" for folder in user_folders or []]
        known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
        elsewhere = sorted(Path().glob(f"*/{group}/{glob.escape(name)}.yaml"))
        if group == "recipes" and elsewhere:
            return f"{group}={name}: it is {elsewhere[0]}. Add --config-dir {elsewhere[0].parts[0]}"
        return f"{group}={name}: {group}/{name}.yaml does not exist. {suggest(name, known)}"
    if unpackaged := re.search(r"In '(recipes/[^']+)': Could not override '[^']*@recipes\.", text):
        return f"{unpackaged[1]}.yaml: its first line has to be `# @package _global_`."
    if note := renamed.rename_words(text):
        return f"command line or recipe: {note} ({text.splitlines()[0]})."
    hint = "\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
    return f"command line: {text.replace(hint, '') or 'Hydra cannot compose this'}\n{GRAMMAR_HINT}"
