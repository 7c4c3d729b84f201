"""Rows that a person brings, read as the stage that takes them reads them: files of this machine that are not large.

What is on the hub, in a dataset folder or larger is left to its own stage: a plan is shown in seconds.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

from pipeline.config import (
    FilePrompts,
    FileRows,
    GivenPreferences,
    HubPrompts,
    HubRows,
    JsonlDemonstrations,
    OfflineConfig,
    PairRound,
    PlaygroundPrompts,
    PromptRows,
    PromptsConfig,
    Questions,
    RehearsalConfig,
    RewardTraining,
    SftTraining,
    TrainConfig,
)
from pipeline.data.prompt_checks import PromptSummary, check_caps, check_split
from pipeline.data.readers import is_dataset_folder, list_files
from pipeline.errors import UserError, refusals
from pipeline.preflight.prompts import checks_of_prompts
from pipeline.step import Step

LARGEST = 16 << 20  # bytes of one set: about a second of reading, and tens of thousands of rows
MADE = 20_000  # prompts of the playground that are made to see whether there are so many: as long
COMPRESSED = 4  # how much larger the texts of a parquet file are than the file


def checks_of_rows(step: Step, coming: Sequence[Step]) -> Iterator[Callable[[], object]]:
    match step.config:
        case PlaygroundPrompts() | FilePrompts() | HubPrompts() as cfg:
            yield partial(check_given_prompts, step, cfg, coming)
        case Questions(rows=rows) if _is_read_here(rows.source):
            yield partial(_summary_of, rows, "prompts.evaluation", "fail")
        case SftTraining(data=JsonlDemonstrations() as data) if _is_small(data.path):
            yield partial(_read_demonstrations, data, f"{step.knob}.data")
        case TrainConfig(rehearsal=RehearsalConfig(data=JsonlDemonstrations() as data)) if (
            _is_small(data.path)
        ):
            yield partial(_read_demonstrations, data, f"{step.knob}.rehearsal.data")
        case OfflineConfig(source=source) as cfg if _is_read_here(source):
            yield partial(_read_preferences, cfg, "offline")
        case RewardTraining(data=GivenPreferences() as data) if _is_read_here(data.source):
            yield partial(_read_preferences, data, "reward.data")
        case PairRound(edits=str(path)) if _is_small(path):
            yield partial(_read_edits, path)


def unread(coming: Sequence[Step]) -> Iterator[str]:
    """A line for each set of rows that a Step will read and the door does not: what is wrong there is said later."""
    for knob, path in dict.fromkeys(place for step in coming for place in _places(step)):
        place = Path(path).expanduser()
        if place.exists() and not _is_small(path):
            why = (
                "a dataset folder"
                if is_dataset_folder(place)
                else f"{_size(place) / (1 << 20):,.0f} MiB"
            )
            yield f"  {knob}={path}: not read here ({why}); its own step refuses broken rows and missing columns"


def _places(step: Step) -> Iterator[tuple[str, str]]:
    match step.config:
        case FilePrompts() | HubPrompts() as cfg:
            for knob, asked in _sets(cfg).items():
                if isinstance(asked.source, FileRows):
                    yield f"{knob}.path" if knob == "prompts" else knob, asked.source.path
        case SftTraining(data=JsonlDemonstrations(path=path)):
            yield f"{step.knob}.data.path", path
        case TrainConfig(rehearsal=RehearsalConfig(data=JsonlDemonstrations(path=path))):
            yield f"{step.knob}.rehearsal.data.path", path
        case OfflineConfig(source=FileRows(path=path)):
            yield "offline.source.path", path
        case RewardTraining(data=GivenPreferences(source=FileRows(path=path))):
            yield "reward.data.source.path", path


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────────────────────


def check_given_prompts(step: Step, cfg: PromptsConfig, coming: Sequence[Step]) -> None:
    """The rows of every set, whether they last for the splits and rounds, and whether they have the columns asked."""
    known: dict[str, PromptSummary] = {}

    def look(knob: str, asked: PromptRows, on_bad_row: str) -> None:
        known[knob] = _summary_of(asked, knob, on_bad_row)

    if isinstance(cfg, PlaygroundPrompts):
        faults = refusals([lambda: known.update(prompts=_of_playground(cfg))])
    else:
        sets = {knob: asked for knob, asked in _sets(cfg).items() if _is_read_here(asked.source)}
        on_bad_row = {"prompts": cfg.on_bad_row}
        faults = refusals(
            partial(look, knob, asked, on_bad_row.get(knob, "fail")) for knob, asked in sets.items()
        )
    faults += refusals(_counted(step, cfg, known, coming))
    if faults:
        raise UserError(*faults)


def _sets(cfg: FilePrompts | HubPrompts) -> dict[str, PromptRows]:
    """The source and every set beside it, by their knobs."""
    evaluation = {f"prompts.evaluation.{name}": asked for name, asked in cfg.evaluation.items()}
    held = {
        f"prompts.split.{name}": asked for name, asked in cfg.split if not isinstance(asked, int)
    }
    return {"prompts": cfg.given, **evaluation, **held}


def _counted(
    step: Step, cfg: PromptsConfig, known: dict[str, PromptSummary], coming: Sequence[Step]
) -> Iterator[Callable[[], object]]:
    """Repeats and overlaps are found by the stage alone, so that there are at most so many training prompts."""
    rows, columns = {}, {}
    source = known.get("prompts")
    for name, held in cfg.split:
        own = source if isinstance(held, int) else known.get(f"prompts.split.{name}")
        if own:
            rows[name], columns[name] = held if isinstance(held, int) else own.rows, own.columns
    if source:
        yield partial(check_split, cfg.split, source.rows)
        yield partial(check_caps, cfg.caps, source.columns)
        held_out = sum(held for _, held in cfg.split if isinstance(held, int))
        if source.rows > held_out:  # else the splits are said to be too large
            rows["train"], columns["train"] = source.rows - held_out, source.columns
    yield from checks_of_prompts(step, rows, columns.__getitem__, coming, at_most=True)


def _of_playground(cfg: PlaygroundPrompts) -> PromptSummary:
    from pipeline.data import synthetic

    first = list(synthetic.generate_prompts(min(cfg.rows, MADE), cfg.constraints, cfg.seed))
    return PromptSummary(cfg.rows, frozenset(first[0]["columns"]))


def _summary_of(asked: PromptRows, knob: str, on_bad_row: str) -> PromptSummary:
    assert isinstance(asked.source, FileRows)
    return _summary(asked.model_dump_json(), knob, on_bad_row, _stamp(asked.source.path))


@lru_cache(maxsize=64)  # the points of a sweep have the same prompts
def _summary(asked: str, knob: str, on_bad_row: str, stamp: object) -> PromptSummary:
    from pipeline.data.prompts import summarize_prompts

    return summarize_prompts(PromptRows.model_validate_json(asked), knob, on_bad_row)


# ── other rows ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_demonstrations(data: JsonlDemonstrations, knob: str) -> None:
    from pipeline.data.demonstrations import read_demonstrations

    read_demonstrations(data, knob)


def _read_preferences(cfg: OfflineConfig | GivenPreferences, knob: str) -> None:
    from pipeline.data.preferences import read_preferences

    read_preferences(cfg, knob)


def _read_edits(path: str) -> None:
    from pipeline.data.jsonl import find_unwritable, read_jsonl
    from pipeline.pairing import edits

    lines = read_jsonl(
        Path(path),
        lambda row: edits.find_fault(row) or find_unwritable(edits.keep_typed(row)),
        "skip",
        "pair.edits",
    )
    edits.check_lines(path, lines.bad)


# ── what is read here ─────────────────────────────────────────────────────────────────────────────────────────────


def _is_read_here(source: FileRows | HubRows) -> bool:
    return isinstance(source, FileRows) and _is_small(source.path)


def _is_small(path: str) -> bool:
    """Also not of a file that is not there: that is said by its own words."""
    place = Path(path).expanduser()
    return os.access(place, os.R_OK) and not is_dataset_folder(place) and _size(place) <= LARGEST


def _size(place: Path) -> int:
    return sum(
        file.stat().st_size * (COMPRESSED if file.suffix == ".parquet" else 1)
        for file in list_files(place)
    )


def _stamp(path: str) -> tuple[tuple[str, int, int], ...]:
    files = list_files(Path(path).expanduser())
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
