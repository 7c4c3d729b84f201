"""Training files of other tools in `convert/`, and the recipes that they become."""

from pathlib import Path

from pipeline.commands.convert.__main__ import convert_file

FOLDER = Path(__file__).with_name("convert")
INPUTS = sorted(file for file in FOLDER.iterdir() if file.suffix in (".yaml", ".json"))
# What the command line adds: the number of GPUs, and the trainer.
WORDS: dict[str, tuple[int, str | None]] = {
    "handbook_apo": (16, None),
    "handbook_dpo_full": (8, None),
    "handbook_dpo_qlora": (8, None),
    "trl_orpo": (32, "orpo"),
}


def render(file: Path) -> str:
    return convert_file(file, *WORDS.get(file.stem, (1, None))).render()
