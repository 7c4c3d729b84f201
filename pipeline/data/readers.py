"""Rows as they lie: JSONL, JSON, parquet, CSV, a folder of these, a dataset folder, or the hub; one row at a time.

Each comes as its place (`line 7`), its fault or None, and its columns. A file that cannot be opened is refused. Whether
what a row holds can be kept is for its reader to say (see `jsonl.unwritable`), who knows which columns are needed.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import FileRows, HubRows
from pipeline.data.jsonl import LONGEST, each_line
from pipeline.errors import UserError, make_printable, pluralize

Row = dict[str, Any]
Found = tuple[str, str | None, Row]
BATCH = 4096
ARROW = "dataset_info.json"  # what datasets.save_to_disk leaves in a folder


class Fault(Exception):
    """Why a row cannot be used."""


def each_row(source: FileRows | HubRows, knob: str) -> Iterator[Found]:
    if isinstance(source, HubRows):
        return _counted(_from_hub(source, knob))
    place = Path(source.path).expanduser()
    return _counted(_from_disk(place)) if is_dataset_folder(place) else _from_files(place)


def is_dataset_folder(place: Path) -> bool:
    """Whether the library `datasets` has to open it."""
    return (place / ARROW).is_file() or (place / "dataset_dict.json").is_file()


def files_in(place: Path) -> list[Path]:
    return sorted(p for p in place.rglob("*") if p.suffix in READERS) if place.is_dir() else [place]


def _from_files(place: Path) -> Iterator[Found]:
    files = files_in(place)
    if not files or files[0].suffix not in READERS:
        raise UserError(
            f"{place}: no rows to read. Give a file, or a folder of files, that ends in {', '.join(READERS)}."
        )
    for file in files:
        name = f"{file.relative_to(place)} " if len(files) > 1 else ""
        for where, fault, row in READERS[file.suffix](file):
            yield f"{name}{where}", fault, row


def _counted(rows: Iterable[Row]) -> Iterator[Found]:
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", None, row


def _readable(place: object, rows: Iterable[Row]) -> Iterator[Row]:
    """What a library cannot turn into values, such as a date beyond the year 9999, is named by its row."""
    from polars.exceptions import PanicException

    number = 0
    try:
        for row in rows:
            number += 1
            yield row
    except (Exception, PanicException) as error:
        raise UserError(
            f"{place}: what follows row {number} cannot be read ({make_printable(str(error) or type(error).__name__)}).\n"
            "  Write the file without the column in question, or as JSONL."
        ) from error


def _jsonl(file: Path) -> Iterator[Found]:
    for number, fault, row in each_line(file):
        yield f"line {number}", fault, row


def _json(file: Path) -> Iterator[Found]:
    try:
        rows = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: cannot be read as JSON ({error}). Expected a list of objects."
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f"{file}: expected a JSON list of objects; one object a line belongs in a .jsonl file."
        )
    return _counted(rows)


def _parquet(file: Path) -> Iterator[Found]:
    import polars as pl

    try:
        table = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(
            f"{file}: cannot be read as parquet ({make_printable(str(error))})."
        ) from error
    return _counted(
        _readable(file, (row for part in table.iter_slices(BATCH) for row in part.to_dicts()))
    )


def _csv(file: Path) -> Iterator[Found]:
    """Every cell is text, also what looks like a number; a quoted cell may hold line ends."""
    csv.field_size_limit(LONGEST)
    try:
        with file.open(encoding="utf-8", newline="") as text:
            lines = csv.reader(text, strict=True)
            header = _header(file, next(lines, []))
            for cells in lines:
                wide = pluralize(len(cells), "cell")
                uneven = (
                    None
                    if len(cells) == len(header)
                    else f"{wide} under {pluralize(len(header), 'column')}"
                )
                row = dict(zip(header, cells, strict=False))
                if cells:
                    yield f"line {lines.line_num}", uneven, row
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as CSV ({error}). Expected UTF-8, commas, a first line of names."
        ) from error


def _header(file: Path, names: list[str]) -> list[str]:
    if names and names[0].startswith("\ufeff"):
        raise UserError(f"{file}: starts with a byte order mark; save it as UTF-8 without one.")
    if len(set(names)) < len(names) or not all(names):
        raise UserError(
            f"{file}: its first line has to name each column once; it says {', '.join(names) or 'nothing'}."
        )
    return names


READERS: Mapping[str, Callable[[Path], Iterator[Found]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}


def _from_disk(folder: Path) -> Iterator[Row]:
    from datasets import Dataset, load_from_disk

    try:
        data = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: cannot be read as a dataset folder ({str(error).splitlines()[0]})."
        ) from error
    if not isinstance(data, Dataset):
        raise UserError(
            f"{folder}: it holds {', '.join(data)}. Give one of them, such as {folder / next(iter(data))}."
        )
    return _readable(folder, data)


def _from_hub(source: HubRows, knob: str) -> Iterator[Row]:
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    from datasets import load_dataset

    try:
        data = load_dataset(
            source.dataset, source.subset, split=source.split, revision=source.revision
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{knob}: the hub's dataset {source.dataset} cannot be read ({str(error).splitlines()[0]}).\n"
            "  Check its name, subset and split, and the network; or download it and give the folder's path."
        ) from error
    return _readable(source.dataset, data)
