"""Rows of JSONL, JSON, parquet or CSV, a folder of these, a dataset folder, or the hub.

Rows come one at a time: the place (`line 7`), the fault or None, and the columns. A file that
cannot be opened is refused. The caller knows which columns it needs, and checks whether they can be
kept (`jsonl.find_unwritable`).
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import FileRows, HubRows
from pipeline.data.jsonl import MAX_LINE, read_lines
from pipeline.errors import UserError, make_printable, pluralize

Row = dict[str, Any]
ReadRow = tuple[str, str | None, Row]
BATCH = 4096
ARROW = "dataset_info.json"  # what datasets.save_to_disk leaves in a folder


class RowFault(Exception):
    """Why a row cannot be used."""


def read_rows(source: FileRows | HubRows, knob: str) -> Iterator[ReadRow]:
    if isinstance(source, HubRows):
        return _number_rows(_read_hub(source, knob))
    place = Path(source.path).expanduser()
    return (
        _number_rows(_read_dataset_folder(place)) if is_dataset_folder(place) else read_files(place)
    )


def is_dataset_folder(place: Path) -> bool:
    """Whether only the library `datasets` can open it."""
    return (place / ARROW).is_file() or (place / "dataset_dict.json").is_file()


def list_files(place: Path) -> list[Path]:
    return sorted(p for p in place.rglob("*") if p.suffix in READERS) if place.is_dir() else [place]


def read_files(place: Path) -> Iterator[ReadRow]:
    files = list_files(place)
    if not files or files[0].suffix not in READERS:
        endings = ", ".join(READERS)
        raise UserError(
            f"{place}: no rows to read. Give a file, or a folder of files, that ends in {endings}."
        )
    for file in files:
        if file.exists() and not file.is_file():
            raise UserError(f"{file}: not a regular file. Save its rows to a file and give that.")
        name = f"{file.relative_to(place)} " if len(files) > 1 else ""
        for where, fault, row in READERS[file.suffix](file):
            yield f"{name}{where}", fault, row


def _number_rows(rows: Iterable[Row]) -> Iterator[ReadRow]:
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", None, row


def _name_unreadable(place: object, rows: Iterable[Row]) -> Iterator[Row]:
    """Names the row that a library cannot turn into values, such as a date after the year 9999."""
    from polars.exceptions import PanicException

    number = 0
    try:
        for row in rows:
            number += 1
            yield row
    except (Exception, PanicException) as error:
        cause = make_printable(str(error) or type(error).__name__)
        raise UserError(
            f"{place}: what follows row {number} cannot be read ({cause}).\n"
            "  Write the file without the column in question, or as JSONL."
        ) from error


def _read_jsonl(file: Path) -> Iterator[ReadRow]:
    for number, fault, row in read_lines(file):
        yield f"line {number}", fault, row


def _read_json(file: Path) -> Iterator[ReadRow]:
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
    return _number_rows(rows)


def _read_parquet(file: Path) -> Iterator[ReadRow]:
    import polars as pl

    try:
        table = pl.read_parquet(file, glob=False)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(
            f"{file}: cannot be read as parquet ({make_printable(str(error))})."
        ) from error
    rows = (row for part in table.iter_slices(BATCH) for row in part.to_dicts())
    return _number_rows(_name_unreadable(file, rows))


def _read_csv(file: Path) -> Iterator[ReadRow]:
    """Every cell is text, numbers too; a quoted cell may hold line ends."""
    csv.field_size_limit(MAX_LINE)
    try:
        with file.open(encoding="utf-8", newline="") as text:
            lines = csv.reader(text, strict=True)
            header = _check_header(file, next(lines, []))
            for cells in lines:
                fault = None
                if len(cells) != len(header):
                    fault = (
                        f"{pluralize(len(cells), 'cell')} under {pluralize(len(header), 'column')}"
                    )
                row = dict(zip(header, cells, strict=False))
                if cells:
                    yield f"line {lines.line_num}", fault, row
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as CSV ({error})."
            " Expected UTF-8, commas, a first line of names."
        ) from error


def _check_header(file: Path, names: list[str]) -> list[str]:
    if names and names[0].startswith("\ufeff"):
        raise UserError(f"{file}: starts with a byte order mark; save it as UTF-8 without one.")
    if len(set(names)) < len(names) or not all(names):
        raise UserError(
            f"{file}: its first line has to name each column once;"
            f" it says {', '.join(names) or 'nothing'}."
        )
    return names


READERS: Mapping[str, Callable[[Path], Iterator[ReadRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def _read_dataset_folder(folder: Path) -> Iterator[Row]:
    from datasets import Dataset, load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # its files may be valid JSON with any content
        cause = make_printable(" ".join(str(error).splitlines()[:1]) or type(error).__name__)
        raise UserError(
            f"{folder}: cannot be read as a dataset folder ({cause}).\n"
            "  Save it again with save_to_disk, or give its rows as JSONL or parquet."
        ) from error
    if not data:
        raise UserError(f"{folder}: this dataset folder has no rows. Give one with rows.")
    if not isinstance(data, Dataset):
        example = folder / next(iter(data))
        raise UserError(
            f"{folder}: it holds {', '.join(data)}. Give one of them, such as {example}."
        )
    return _name_unreadable(folder, data)


def _read_hub(source: HubRows, knob: str) -> Iterator[Row]:
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    from datasets import load_dataset

    try:
        data = load_dataset(
            source.dataset, source.subset, split=source.split, revision=source.revision
        )
    except Exception as error:  # a repository's files may be anything
        cause = make_printable(" ".join(str(error).splitlines()[:1]) or type(error).__name__)
        raise UserError(
            f"{knob}: the hub's dataset {source.dataset} cannot be read ({cause}).\n"
            "  Check its name, subset and split, and the network;"
            " or download it and give the folder's path."
        ) from error
    return _name_unreadable(source.dataset, data)
