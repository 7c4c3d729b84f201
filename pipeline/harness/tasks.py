"""A benchmark's tasks as lm-eval builds them, with the rows that the config names: the hub's, its cache's, or files.

What cannot be asked here (no network and no copy, a package that is missing) is `Absent`: no fault of the config.
"""

import difflib
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pipeline.config import BenchmarkConfig
from pipeline.errors import Refusal
from pipeline.scorers.ifeval import NO_PUNKT, has_punkt, no_download

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = "training_split", "validation_split", "test_split", "fewshot_split"
HUB = "https://huggingface.co"
PATIENCE = 10.0  # seconds for the hub's first word; its client would try for half a minute with each task


class Absent(Exception):
    """Why a benchmark cannot be asked on this machine now."""


def tasks_of(cfg: BenchmarkConfig, cache: Path) -> tuple[Any, list[Any]]:
    """lm-eval's task or group with its rows read, and its single tasks. `cache` keeps local files in lm-eval's form."""
    if cfg.data is None and not hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when datasets is imported
    with no_download():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=cfg.tasks, include_defaults=cfg.tasks is None)
        check_known(cfg, manager)
        asked = _loaded(cfg, manager, changes(cfg, manager, cache))
    tasks = asked.get_all_tasks() if cfg.task in manager.all_groups else [asked]
    if any("ifeval" in task.task_name for task in tasks) and not has_punkt():
        raise Absent(NO_PUNKT.format(asked=cfg.task))
    check_metric(cfg, asked, tasks)
    return asked, tasks


def hub_answers() -> bool:
    """Whatever it answers: it is there."""
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"):
        return True  # the person has said that it is not to be asked, and its own client knows
    try:
        urllib.request.urlopen(
            urllib.request.Request(os.environ.get("HF_ENDPOINT", HUB), method="HEAD"), timeout=PATIENCE
        )
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def check_known(cfg: BenchmarkConfig, manager: Any) -> None:
    of = f"the folder {cfg.tasks}" if cfg.tasks else "lm-eval"
    if cfg.task in manager.all_tags:
        members = ", ".join(sorted(manager.task_index[cfg.task].tags)[:8])
        raise Refusal(
            f"benchmark: {cfg.task} is a label for several tasks of {of}, not one.\n"
            f"  Give one of them as task: {members}"
        )
    if cfg.task not in manager.all_tasks:
        close = ", ".join(difflib.get_close_matches(cfg.task, manager.all_tasks, n=4))
        raise Refusal(
            f"benchmark: {of} has no task {cfg.task}.\n"
            f"  {f'Did you mean {close}?' if close else 'All its tasks: python -m lm_eval ls tasks'}"
        )


def changes(cfg: BenchmarkConfig, manager: Any, cache: Path) -> dict[str, Any]:
    """What of the task's own file the config says otherwise."""
    changed: dict[str, Any] = {}
    if cfg.few_shot is not None:
        changed["num_fewshot"] = cfg.few_shot
    if isinstance(cfg.data, dict):
        changed |= _from_files(cfg, cfg.data, manager, cache)
    elif cfg.data is not None:
        changed["dataset_path"] = str(Path(cfg.data).expanduser().absolute())
    return changed


def _from_files(cfg: BenchmarkConfig, data: dict[str, Any], manager: Any, cache: Path) -> dict[str, Any]:
    if cfg.task in manager.all_groups:
        raise Refusal(
            f"benchmark {cfg.task}: it is a group, and its tasks have rows of their own.\n"
            "  Give data=FOLDER with a copy of the hub's dataset, or one task of it."
        )
    readers = {READERS.get(Path(path).suffix, "") for path in data.values()}
    if len(readers) > 1 or not all(readers):
        raise Refusal(f"benchmark {cfg.task}: data takes files of one kind. Known: {', '.join(READERS)}")
    files = {split: str(Path(path).expanduser().absolute()) for split, path in data.items()}
    return {
        "dataset_path": readers.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(cache)},
        **_splits(cfg, set(data), _own(cfg, manager)),
    }


def _own(cfg: BenchmarkConfig, manager: Any) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    file = manager.task_index[cfg.task].yaml_path
    return load_yaml(file, resolve_func=False, recursive=True) if file else {}


def _splits(cfg: BenchmarkConfig, given: set[str], own: dict[str, Any]) -> dict[str, None]:
    """The task's splits of which there is no file are none; those that it cannot do without are refused."""
    asked = own.get("test_split") or own.get("validation_split")
    if asked and asked not in given:
        raise Refusal(f"benchmark {cfg.task}: its questions stand in the split {asked}.\n  Give data={{{asked}: FILE}}")
    shots = own.get("num_fewshot") if cfg.few_shot is None else cfg.few_shot
    samples = (own.get("fewshot_config") or {}).get("samples")
    examples = {own.get(name) for name in ("fewshot_split", "training_split")} - {None}
    if shots and not samples and not examples & given:
        split = own.get("fewshot_split") or own.get("training_split") or "train"
        raise Refusal(
            f"benchmark {cfg.task}: it shows {shots} solved examples from its split {split}, and data names no such"
            f" file.\n  Give data.{split}=FILE as well, or few_shot=0."
        )
    return {name: None for name in SPLITS if own.get(name) and own[name] not in given}


def _loaded(cfg: BenchmarkConfig, manager: Any, changed: dict[str, Any]) -> Any:
    """Through the manager's factory: its front door changes single tasks alone, and no group's."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    try:
        return manager._factory.build(manager.task_index[cfg.task], overrides=changed, registry=manager.task_index)
    except ImportError as error:
        raise Absent(
            f"benchmark {cfg.task}: lm-eval needs a package that is not installed ({error}).\n"
            f"  Install it, and run the same command again."
        ) from error
    except (OSError, DatasetsError, TemplateError, LookupError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if cfg.data is not None:
            raise Refusal(
                f"benchmark {cfg.task}: its rows cannot be read from {_named(cfg.data)}"
                f" ({type(error).__name__}: {said}).\n  Give rows in the columns of the hub's dataset."
            ) from error
        if not isinstance(error, OSError | DatasetsError):
            raise
        raise Absent(
            f"benchmark {cfg.task}: its rows are not on this machine, and the hub does not give them ({said}).\n"
            f"  Run the same command with a network, or give files: data={{test: FILE}}."
        ) from error


def _named(data: Any) -> str:
    return ", ".join(data.values()) if isinstance(data, dict) else data


def check_metric(cfg: BenchmarkConfig, asked: Any, tasks: list[Any]) -> None:
    """Before anything is asked: whether the figure that the report shows will be there. A group names its own."""
    offered = {f"{metric},{each.name}" for task in tasks for metric in task.aggregation() for each in task._filters}
    if tasks != [asked]:
        aggregated = {each.metric for each in asked.aggregate_metric_list or []}
        offered = {name for name in offered if name.partition(",")[0] in aggregated}
    if cfg.metric not in offered:
        known = (
            f"Known: {', '.join(sorted(offered))}" if offered else "It has none over all its tasks: give one of them."
        )
        raise Refusal(f"benchmark {cfg.task}: metric={cfg.metric} is none of its figures.\n  {known}")
