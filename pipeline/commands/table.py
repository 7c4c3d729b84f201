"""The commands of `strop`, and the one parser of the words after them.

A word is a place (`runs/latest`), a knob (`out=FILE`) or a flag (`--prune`). `run`, `plan`, `pilot`
and `sweep` take overrides of the config instead, which `config.compose` parses.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import wraps
from pathlib import Path

from pipeline.errors import (
    FAILED,
    INTERRUPTED,
    USER_ERROR,
    StageError,
    UserError,
    WorkPending,
    suggest,
)

# What `strop --help` and the commands that take the config teach.
MAIN_CHOICES = {
    "sft.model=NAME": "your SFT model: a folder, or a name on the hub",
    "prompts.path=FILE": "what it is asked; or prompts=hub, prompts=instructions",
    "score=NAME": "who scores: reward, rubric, pairwise, ifeval, math, code, function …",
    "backend=NAME": "what samples: vllm, transformers",
    "train=NAME": "the objective: dpo, simpo, ipo, kto, orpo … (docs/objectives.md)",
    "adapter=NAME": "what is trained: full, lora, qlora",
    "train.beta=0.1": "how closely the model stays to its reference",
    "train.learning_rate=5e-6": "how far each step goes; it has a default for each adapter",
    "rounds=2": "with sample.per_round=2000, the new prompts of each round",
    "recipes=NAME": "a named experiment, which the choices above can change",
    "scale=twin": "with recipes=NAME: its small double, in minutes, without a GPU or a network",
}
MANY = 1000
Main = Callable[[list[str]], int]
HELP = {"-h", "--help"}
LATEST = "runs/latest"
PASS_ON = "--"  # what follows it is for another program
CHOICES = "[recipes=NAME] [group=choice …] [key=value …]"


@dataclass(frozen=True)
class Command:
    summary: str
    usage: str
    example: str
    module: str
    words: tuple[str, ...] = ()  # put before the words that the user types
    places: tuple[int, int] = (0, 0)  # how many words without `=` it takes: at least, at most
    knobs: Mapping[str, str | None] = field(default_factory=dict)  # with their defaults
    flags: tuple[str, ...] = ()
    takes_names: bool = False  # NAME=PLACE is a place
    takes_overrides: bool = False  # what follows the places is for the config


COMMANDS = {
    "run": Command(
        "Go from an SFT checkpoint to a report. Steps that the store has are not repeated.",
        f"[--config-dir FOLDER] {CHOICES} [until=STAGE[@ROUND]]",
        "strop run sft.model=./my-sft prompts.path=prompts.jsonl score=reward"
        " reward.model=./my-reward",
        "pipeline.commands.run",
    ),
    "new": Command(
        "Ask five questions about your model and write a recipe for it.",
        "[FOLDER/recipes/NAME.yaml]",
        "strop new my/recipes/mine.yaml",
        "pipeline.commands.new.__main__",
        places=(0, 1),
    ),
    "plan": Command(
        "Show what a run would do and what it would refuse. Writes nothing, needs no network.",
        f"[--config-dir FOLDER] {CHOICES}",
        "strop plan recipes=smoke train.beta=0.05",
        "pipeline.commands.run",
        ("dry_run=true",),
    ),
    "pilot": Command(
        "Run a round of at most 10, then of at most 50 prompts; estimate the whole run.",
        f"[--config-dir FOLDER] {CHOICES}",
        "strop pilot recipes=mine",
        "pipeline.commands.pilot.__main__",
    ),
    "sweep": Command(
        "Run each point of a grid. Shared steps are built once; a page compares the points.",
        f"[--config-dir FOLDER] {CHOICES} key=value,value …",
        "strop sweep recipes=smoke train.beta=0.05,0.2",
        "pipeline.commands.run",
        ("-m",),
    ),
    "trace": Command(
        "Follow one prompt: its candidates, their scores, and its pair or why it has none.",
        "PROMPT_ID [RUN]",
        "strop trace 3fa9c1d20b7e4f58 runs/latest",
        "pipeline.commands.trace",
        places=(1, 2),
    ),
    "compare": Command(
        "Compare finished runs or evaluated models on the prompts that they share.",
        "[NAME=]RUN[:MODEL] … [store=store] [out=runs/compare/TIME]"
        " [level=0.95] [resamples=9999] [seed=42]",
        "strop compare old=runs/mine/A new=runs/mine/B",
        "pipeline.commands.compare",
        places=(2, MANY),
        knobs={"store": "store", "out": None, "level": "0.95", "resamples": "9999", "seed": "42"},
        takes_names=True,
    ),
    "work": Command(
        "Help to build the steps of a run, from any machine that sees its store.",
        "RUN [step=STAGE[@FINGERPRINT]] [wait=60] [same_device=auto|true|false]",
        "strop work runs/latest step=sample",
        "pipeline.commands.work",
        places=(1, 1),
        knobs={"step": None, "wait": "60", "same_device": "auto"},
    ),
    "submit": Command(
        "Run as a Slurm job, which is queued again until it is done; other jobs help it.",
        "[machines=1] [gpus=N] [cpus=N] [memory=64G] [time=8:00:00] [partition=NAME]"
        f" [account=NAME] [constraint=NAME] [prolog=FILE] [--dry-run] {CHOICES}",
        "strop submit machines=4 gpus=1 cpus=16 time=8:00:00 recipes=mine",
        "pipeline.commands.submit",
        knobs={
            "machines": "1",
            **dict.fromkeys(
                ("gpus", "cpus", "memory", "time", "partition", "account", "constraint", "prolog")
            ),
        },
        flags=("--dry-run",),
        takes_overrides=True,
    ),
    "label": Command(
        "Write pairs of answers for annotators to judge, as a page that works offline.",
        "[RUN] [of=ROUND or of=ROUND-MEMBER or of=MODEL,MODEL] [pairs=100] [seed=0]",
        "strop label runs/latest of=test-sft,test-round-1",
        "pipeline.commands.label",
        places=(0, 1),
        knobs={"of": None, "pairs": "100", "seed": "0"},
    ),
    "calibrate": Command(
        "Compare scorers with annotators, and with the rule that the longer answer wins.",
        f"FILE [scorer=NAME,…] [out=calibration.json] {CHOICES}",
        "strop calibrate verdicts.jsonl scorer=judge recipes=mine",
        "pipeline.commands.calibrate",
        places=(1, 1),
        knobs={"scorer": None, "out": "calibration.json"},
        takes_overrides=True,
    ),
    "qualify": Command(
        "Measure how often a judge or reward model ranks right answers first, by subset.",
        f"FILE … [scorer=NAME,…] {CHOICES}",
        "strop qualify reward-bench-2.parquet scorer=judge recipes=mine",
        "pipeline.commands.qualify",
        places=(1, MANY),
        knobs={"scorer": None},
        takes_overrides=True,
    ),
    "convert": Command(
        "Write a training file of axolotl, alignment-handbook, LLaMA-Factory or TRL as a recipe.",
        "FILE [gpus=1] [method=dpo|kto|orpo|cpo] [out=RECIPE.yaml]",
        "strop convert dpo.yaml gpus=8 out=my/recipes/dpo.yaml",
        "pipeline.commands.convert.__main__",
        places=(1, 1),
        knobs={"gpus": "1", "method": None, "out": None},
    ),
    "edit": Command(
        "Write a round's pairs to pairs.jsonl, to correct and give back as pair.edits.ROUND=FILE.",
        "[RUN] [ROUND]",
        "strop edit runs/latest 1",
        "pipeline.commands.edit",
        places=(0, 2),
    ),
    "chat": Command(
        "Talk with a model, or with two and their answers next to each other.",
        "[A] [B] [temperature=T] [top_p=P] [min_p=P] [max_tokens=N] [seed=N] [system=TEXT]"
        " [template_kwargs=JSON] [dtype=auto]",
        "strop chat runs/latest:sft runs/latest temperature=0",
        "pipeline.commands.chat",
        places=(0, 2),
        knobs=dict.fromkeys(
            (
                "temperature",
                "top_p",
                "min_p",
                "max_tokens",
                "seed",
                "system",
                "template_kwargs",
                "dtype",
            )
        ),
    ),
    "serve": Command(
        "Start vLLM's OpenAI server on a model; an adapter is served next to its base.",
        "[MODEL] [port=8000] [host=127.0.0.1] [context=N] [dtype=auto] [-- OPTIONS OF VLLM]",
        "strop serve runs/latest port=8000 -- --gpu-memory-utilization 0.5",
        "pipeline.commands.serve",
        places=(0, 1),
        knobs={"port": "8000", "host": "127.0.0.1", "context": None, "dtype": "auto"},
    ),
    "export": Command(
        "Write a model's merged weights, adapter, tokenizer, card and licences to a new folder.",
        "MODEL FOLDER [license=ID] [--gguf]",
        "strop export runs/latest my-model",
        "pipeline.commands.export",
        places=(2, 2),
        knobs={"license": None},
        flags=("--gguf",),
    ),
    "publish": Command(
        "Push an exported model and its data set to the hub. Lists both and asks first.",
        "MODEL OWNER/NAME [data=OWNER/NAME-data] [license=ID] [--public] [--yes]",
        "strop publish runs/latest my-org/my-model",
        "pipeline.commands.publish",
        places=(2, 2),
        knobs={"data": None, "license": None},
        flags=("--public", "--yes"),
    ),
    "doctor": Command(
        "Say in at most ten lines what went wrong in a run, or what to try next.",
        "[RUN]",
        "strop doctor runs/latest",
        "pipeline.commands.doctor",
        places=(0, 1),
    ),
    "store": Command(
        "List the store and the runs that use it. --prune asks, then removes what no run needs.",
        "[store=store] [runs=runs] [--prune [--yes]] [forget=RUNS_FOLDER]",
        "strop store --prune",
        "pipeline.commands.store",
        knobs={"store": "store", "runs": "runs", "forget": None},
        flags=("--prune", "--yes"),
    ),
    "report": Command(
        "Write a run's report again with the present code. Loads no model.",
        "[RUN]",
        "strop report runs/latest",
        "pipeline.commands.report",
        places=(0, 1),
    ),
}

# Commands that had another name before.
RENAMED = {"merge": "export"}


@dataclass(frozen=True)
class Words:
    """What was typed after a command. A knob that was not typed has its default."""

    places: list[str]
    knobs: dict[str, str | None]
    flags: set[str]
    overrides: list[str]
    typed: set[str]  # the knobs that were typed

    def place(self, index: int) -> Path:
        return Path(self.places[index] if len(self.places) > index else LATEST)

    def knob(self, name: str) -> str:
        return self.knobs[name] or ""


def parse_words(name: str, words: Iterable[str]) -> Words:
    command = COMMANDS[name]
    found = Words([], dict(command.knobs), set(), [], set())
    for word in words:
        key, equals, value = word.partition("=")
        if key in command.knobs and equals:
            if not value:
                raise _refuse(name, f"{word}: expected a value, such as {key}={key}.")
            found.knobs[key] = value
            found.typed.add(key)
        elif word in command.flags:
            found.flags.add(word)
        elif command.takes_overrides and (equals or _follows_places(command, found, word)):
            _check_override(name, word, found.overrides)
            found.overrides.append(word)
        elif _is_place(command, word):
            found.places.append(word)
        else:
            known = [*(f"{knob}=" for knob in command.knobs), *command.flags]
            raise _refuse(name, f"{word}: not understood. {suggest(key, known)}".rstrip())
    fewest, most = command.places
    if len(found.places) < fewest or not all(found.places):
        needed = f"{fewest} or more of" if fewest > 1 else "a"
        raise _refuse(name, f"strop {name} needs {needed} {command.usage.split(' ')[0]}.")
    if len(found.places) > most:
        raise _refuse(name, f"{found.places[most]}: one word too many.")
    return found


def _follows_places(command: Command, found: Words, word: str) -> bool:
    """Whether a word without `=` is for the config: a flag of it, or the flag's value."""
    has_all = len(found.places) == command.places[1]
    is_flag = bool(found.places) and word.startswith("-")
    return has_all or is_flag or found.overrides[-1:] in (["--config-dir"], ["-cd"])


def _check_override(name: str, word: str, before: list[str]) -> None:
    """Refuse what only looks like a word for the config: an unknown flag, or a knob misspelt.

    Any other key that the config does not have is refused there, with the knobs that are like it.
    """
    from pipeline.config import Config
    from pipeline.config.compose import FLAGS, is_top_key

    command, (key, equals, _) = COMMANDS[name], word.partition("=")
    if word.startswith("-") and before[-1:] not in (["--config-dir"], ["-cd"]):
        if key not in FLAGS:
            known = [*command.flags, *FLAGS]
            raise _refuse(name, f"{word}: no such flag. {suggest(key, known)}")
        return
    knobs = [f"{knob}=" for knob in command.knobs]
    is_plain = bool(equals) and key.isidentifier()  # no path, mount or removal
    if is_plain and not is_top_key(key) and get_close_matches(f"{key}=", knobs):
        of_config = [f"{knob}=" for knob in Config.model_fields]
        known = [*knobs, *get_close_matches(f"{key}=", of_config)]
        raise _refuse(name, f"{word}: not understood. {suggest(f'{key}=', known)}")


def _is_place(command: Command, word: str) -> bool:
    key, equals, place = word.rpartition("=")
    if not equals:
        return not word.startswith("-") or Path(word).exists()
    if command.takes_names:
        return not get_close_matches(key, command.knobs) or Path(place).exists()
    return Path(word).exists()


def _refuse(name: str, fault: str) -> UserError:
    return UserError(f"{fault}\n  {describe_usage(name)}")


def describe_usage(name: str) -> str:
    return f"Usage: strop {name} {COMMANDS[name].usage}"


def reports_errors(main: Main) -> Main:
    """Prints what is for the user, without a traceback, and returns its exit code."""

    @wraps(main)
    def run(words: list[str]) -> int:
        try:
            return main(words)
        except (UserError, StageError, WorkPending) as error:
            print(error, file=sys.stderr)
            codes = {UserError: USER_ERROR, StageError: FAILED, WorkPending: INTERRUPTED}
            return next(code for kind, code in codes.items() if isinstance(error, kind))

    return run


def describe_commands() -> str:
    lines = [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "strop COMMAND …",
            "",
            *lines,
            "",
            describe_choices("strop run [key=value …]. The choices that matter:"),
            "",
            "strop COMMAND --help shows its arguments and an example.",
        ]
    )


def describe_command(name: str, command: Command) -> str:
    text = f"strop {name} {command.usage}\n\n  {command.summary}\n\n  {command.example}"
    if CHOICES not in command.usage:
        return text
    return (
        f"{text}\n\n{describe_choices('The choices that matter, of all in docs/configuration.md:')}"
    )


def describe_choices(title: str) -> str:
    lines = [f"  {words:<26}{meaning}" for words, meaning in MAIN_CHOICES.items()]
    return "\n".join([title, "", *lines])
