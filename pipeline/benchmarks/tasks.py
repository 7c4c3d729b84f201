"""A benchmark's tasks as lm-eval builds them, with the rows that the config names: the hub's, its cache's, or files.

What cannot be asked here (no network and no copy, a package that is missing) is `Absent`: no fault of the config.
"""

import difflib
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pipeline.config import BenchmarkConfig
from pipeline.errors import UserError
from pipeline.scorers.ifeval import NO_PUNKT, block_download, has_punkt

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = "training_split", "validation_split", "test_split", "fewshot_split"
HUB = "https://huggingface.co"
NO_MATTER = {"trust_remote_code"}  # which `datasets` no longer takes
OF_HUB = re.compile(r"hf://datasets/(.+?)@([^/]+)/").match
PATIENCE = (
    10.0  # seconds for the hub's first word; its client would try for half a minute with each task
)


class Absent(Exception):
    """Why a benchmark cannot be asked on this machine now."""


def tasks_of(cfg: BenchmarkConfig, knob: str, cache: Path) -> tuple[Any, list[Any]]:
    """lm-eval's task or group with its rows read, and its single tasks. `cache` keeps local files in lm-eval's form."""
    if cfg.data is None and not hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when datasets is imported
    with block_download():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=cfg.tasks, include_defaults=cfg.tasks is None)
        check_known(cfg, knob, manager)
        asked = _loaded(cfg, knob, manager, changes(cfg, knob, manager, cache))
    tasks = asked.get_all_tasks() if cfg.task in manager.all_groups else [asked]
    check_revision(cfg, knob, manager, tasks)
    check_thinking(cfg, knob, tasks)
    if any("ifeval" in task.task_name for task in tasks) and not has_punkt():
        raise Absent(NO_PUNKT.format(asked=cfg.task))
    check_metric(cfg, knob, asked, tasks)
    return asked, tasks


def hub_answers() -> bool:
    """Whatever it answers: it is there."""
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"):
        return True  # the person has said that it is not to be asked, and its own client knows
    try:
        urllib.request.urlopen(
            urllib.request.Request(os.environ.get("HF_ENDPOINT", HUB), method="HEAD"),
            timeout=PATIENCE,
        )
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def check_known(cfg: BenchmarkConfig, knob: str, manager: Any) -> None:
    of = f"the folder {cfg.tasks}" if cfg.tasks else "lm-eval"
    if cfg.task in manager.all_tags:
        members = ", ".join(sorted(manager.task_index[cfg.task].tags)[:8])
        raise UserError(
            f"{knob}.task={cfg.task}: it is a label for several tasks of {of}, not one.\n  Give one of them: {members}"
        )
    if cfg.task not in manager.all_tasks:
        close = ", ".join(difflib.get_close_matches(cfg.task, manager.all_tasks, n=4))
        raise UserError(
            f"{knob}.task={cfg.task}: {of} has no such task.\n"
            f"  {f'Did you mean {close}?' if close else 'All its tasks: python -m lm_eval ls tasks'}"
        )


def changes(cfg: BenchmarkConfig, knob: str, manager: Any, cache: Path) -> dict[str, Any]:
    """What of the task's own file the config says otherwise."""
    changed: dict[str, Any] = {}
    if cfg.few_shot is not None:
        changed["num_fewshot"] = cfg.few_shot
    if isinstance(cfg.data, dict):
        changed |= _from_files(cfg, knob, cfg.data, manager, cache)
    elif cfg.data is not None:
        changed["dataset_path"] = str(Path(cfg.data).expanduser().absolute())
    elif cfg.revision is not None:
        changed["dataset_kwargs"] = {"revision": cfg.revision}
    return changed


def _from_files(
    cfg: BenchmarkConfig, knob: str, data: dict[str, Any], manager: Any, cache: Path
) -> dict[str, Any]:
    if cfg.task in manager.all_groups:
        raise UserError(
            f"benchmark {cfg.task}: it is a group, and its tasks have rows of their own.\n"
            f"  Give {knob}.data=FOLDER with a copy of the hub's dataset, or {knob}.task=NAME with one task of it."
        )
    readers = {READERS.get(Path(path).suffix, "") for path in data.values()}
    if len(readers) > 1 or not all(readers):
        raise UserError(f"{knob}.data: it takes files of one kind. Known: {', '.join(READERS)}")
    files = {split: str(Path(path).expanduser().absolute()) for split, path in data.items()}
    return {
        "dataset_path": readers.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(cache)},
        **_splits(cfg, knob, set(data), _own(cfg.task, manager)),
    }


def _own(task: str, manager: Any) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    file = manager.task_index[task].yaml_path
    return load_yaml(file, resolve_func=False, recursive=True) if file else {}


def _splits(
    cfg: BenchmarkConfig, knob: str, given: set[str], own: dict[str, Any]
) -> dict[str, None]:
    """The task's splits of which there is no file are none; those that it cannot do without are refused."""
    asked, shots, examples = _needed(cfg, own)
    if asked and asked not in given:
        raise UserError(
            f"benchmark {cfg.task}: its questions stand in the split {asked}.\n  Give {knob}.data={{{asked}: FILE}}"
        )
    if shots and not set(examples) & given:
        raise UserError(
            f"benchmark {cfg.task}: it shows {shots} solved examples from its split {examples[0]}, and data names no"
            f" such file.\n  Give {knob}.data.{examples[0]}=FILE as well, or {knob}.few_shot=0."
        )
    return {name: None for name in SPLITS if own.get(name) and own[name] not in given}


def _needed(cfg: BenchmarkConfig, own: dict[str, Any]) -> tuple[str | None, int, list[str]]:
    """The split of its questions, how many solved examples it shows from a split, and those that can give them."""
    shots = own.get("num_fewshot") if cfg.few_shot is None else cfg.few_shot
    brought = (own.get("fewshot_config") or {}).get("samples")
    examples = [split for name in ("fewshot_split", "training_split") if (split := own.get(name))]
    return (
        own.get("test_split") or own.get("validation_split"),
        0 if brought else shots or 0,
        examples or ["train"],
    )


def _files_of(cfg: BenchmarkConfig, manager: Any) -> str:
    """What to give where there is no hub: a copy of its dataset, or a file for each split that is asked for."""
    if cfg.task in manager.all_groups:
        return "FOLDER, a copy of the hub's dataset"
    asked, shots, examples = _needed(cfg, _own(cfg.task, manager))
    splits = dict.fromkeys([asked or "test", *examples[: 1 if shots else 0]])
    return "{" + ", ".join(f"{split}: FILE" for split in splits) + "}"


def _loaded(cfg: BenchmarkConfig, knob: str, manager: Any, changed: dict[str, Any]) -> Any:
    """Through the manager's factory: its front door changes single tasks alone, and no group's."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    try:
        return manager._factory.build(
            manager.task_index[cfg.task], overrides=changed, registry=manager.task_index
        )
    except ImportError as error:
        raise Absent(
            f"benchmark {cfg.task}: lm-eval needs a package that is not installed ({error}).\n"
            f"  Install it, and run the same command again."
        ) from error
    except (OSError, DatasetsError, TemplateError, LookupError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if cfg.data is not None:
            raise UserError(
                f"{knob}.data: the rows of {cfg.task} cannot be read from {_named(cfg.data)}"
                f" ({type(error).__name__}: {said}).\n  Give rows in the columns of the hub's dataset."
            ) from error
        if not isinstance(error, OSError | DatasetsError):
            raise
        raise Absent(
            f"benchmark {cfg.task}: its rows are not on this machine, and the hub does not give them ({said}).\n"
            f"  Run the same command with a network, or give {knob}.data={_files_of(cfg, manager)}."
        ) from error


def _named(data: Any) -> str:
    return ", ".join(data.values()) if isinstance(data, dict) else data


def check_revision(cfg: BenchmarkConfig, knob: str, manager: Any, tasks: list[Any]) -> None:
    """It takes the place of whatever a task says of how its rows are read."""
    own = {
        task.task_name: _own(task.task_name, manager).get("dataset_kwargs") or {} for task in tasks
    }
    if cfg.revision is not None and (
        bent := [name for name, says in own.items() if says.keys() - NO_MATTER]
    ):
        raise UserError(
            f"{knob}.revision={cfg.revision}: {bent[0]} names single files of its dataset, and no revision of it.\n"
            f"  Leave {knob}.revision null."
        )


def rows_of(tasks: list[Any]) -> dict[str, str]:
    """The commits of the hub's datasets that were read, as `datasets` notes them beside the rows."""
    infos = [split.info for task in tasks for split in task.dataset.values()]
    found = {
        known[1]: known[2]
        for info in infos
        for url in info.download_checksums or ()
        if (known := OF_HUB(url))
    }
    return dict(sorted(found.items()))


def check_thinking(cfg: BenchmarkConfig, knob: str, tasks: list[Any]) -> None:
    """What a model that thinks first gives a choice right after the question says nothing of it."""
    chosen = [task.task_name for task in tasks if task.OUTPUT_TYPE != "generate_until"]
    if chosen and cfg.chat and cfg.template_kwargs.get("enable_thinking"):
        raise UserError(
            f"benchmark {cfg.task}: {chosen[0]} weighs given choices, and template_kwargs.enable_thinking has the model"
            f" think first.\n  Give {knob}.template_kwargs.enable_thinking=false, or a task that generates."
        )


def check_metric(cfg: BenchmarkConfig, knob: str, asked: Any, tasks: list[Any]) -> None:
    """Before anything is asked: whether the figure that the report shows will be there. A group names its own."""
    offered = {
        f"{metric},{each.name}"
        for task in tasks
        for metric in task.aggregation()
        for each in task._filters
    }
    if tasks != [asked]:
        aggregated = {each.metric for each in asked.aggregate_metric_list or []}
        offered = {name for name in offered if name.partition(",")[0] in aggregated}
    if cfg.metric not in offered:
        known = (
            f"Known: {', '.join(sorted(offered))}"
            if offered
            else "It has none over all its tasks: give one of them."
        )
        raise UserError(f"{knob}.metric={cfg.metric}: {cfg.task} has no such figure.\n  {known}")
