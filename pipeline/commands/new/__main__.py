"""Asks the five questions until each has an answer, then writes the recipe; nothing is built."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import write_text
from pipeline.commands.new import questions
from pipeline.commands.new.recipe import RecipeDraft, write_recipe
from pipeline.commands.table import parse_words, reports_errors
from pipeline.config.compose import Arguments, compose
from pipeline.errors import (
    DONE,
    UserError,
    exit_on_signals,
    format_move,
    unwind_on_signals,
)

RECIPE = Path("my/recipes/mine.yaml")


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("new", arguments)
    file = Path(words.places[0]) if words.places else RECIPE
    check_place(file)
    exit_on_signals("Nothing was written.")
    recipe = ask_questions(sys.stdin)
    unwind_on_signals()
    write_text(file, write_recipe(recipe, file))
    choice = ["--config-dir", str(file.parent.parent), f"recipes={file.stem}"]
    try:
        compose(Arguments.parse([*choice, "dry_run=true"]))
    except (UserError, SystemExit):
        file.unlink()
        raise
    print(f"\n{file}:\n\n{file.read_text()}")
    typed = shlex.join(choice)
    print(f"Next: strop plan {typed}\nHow long it takes: strop pilot {typed}")
    print(f"Then: strop run {typed}")
    return DONE


def check_place(file: Path) -> None:
    """A recipe is found by its name in a folder recipes/, and replaces no other."""
    if file.parent.name != "recipes" or file.suffix != ".yaml":
        raise UserError(
            f"{file}: a recipe is a .yaml file in a folder recipes/.\n"
            f"  Type strop new {RECIPE.parent}/NAME.yaml"
        )
    if file.exists():
        raise UserError(
            f"{file}: it exists. Nothing was written.\n"
            f"  Give another name, or move it away first: {format_move(file)}"
        )


def ask_questions(answers: Iterator[str]) -> RecipeDraft:
    recipe = RecipeDraft()
    for number, question in enumerate(questions.QUESTIONS, 1):
        print(f"\n{number}/{len(questions.QUESTIONS)} {question.text(recipe)}")
        while not take_answer(question, read_line(answers), recipe):
            pass
    return recipe


def take_answer(question: questions.Question, line: str, recipe: RecipeDraft) -> bool:
    """Whether the answer could be used; if not, it is asked for again."""
    try:
        print(f"  {question.read(line, recipe)}")
    except UserError as error:
        print(f"  {error}")
        return False
    return True


def read_line(answers: Iterator[str]) -> str:
    print("> ", end="", flush=True)
    line = next(answers, None)
    if line is None:
        raise UserError(
            "strop new: the answers ended before the last question. Nothing was written.\n"
            "  Type strop new and answer all five; an empty line takes what is offered."
        )
    return line.strip()
