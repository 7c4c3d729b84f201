"""`scale=twin`: a recipe's small double, which is a recipe of the same name in recipes/twins/."""

from pathlib import Path

from pipeline.errors import UserError, suggest


def choose_scale(overrides: list[str], twins: Path) -> list[str]:
    """`recipes=NAME scale=twin` means `recipes=twins/NAME`; `scale=full` is the default."""
    scales = [word.lstrip("+").partition("=")[2] for word in overrides if _is_scale(word)]
    rest = [word for word in overrides if not _is_scale(word)]
    known = sorted(file.stem for file in twins.glob("*.yaml"))
    match scales:
        case [] | ["full"]:
            return rest
        case ["twin"]:
            if not any(word.startswith("recipes=") for word in rest):
                raise UserError(
                    "scale=twin: a twin is the small double of a recipe, and none is named.\n"
                    f"  Give recipes=NAME too. {suggest('', known)}"
                )
            return [_name_twin(word, known) for word in rest]
        case _:
            raise UserError(f"scale={','.join(scales)}: expected twin or full, once.")


def _is_scale(word: str) -> bool:
    return word.lstrip("+").startswith("scale=")


def _name_twin(word: str, known: list[str]) -> str:
    key, _, recipe = word.partition("=")
    if key != "recipes":
        return word
    if recipe not in known:
        raise UserError(f"scale=twin: recipes={recipe} has no twin. {suggest(recipe, known)}")
    return f"recipes=twins/{recipe}"
