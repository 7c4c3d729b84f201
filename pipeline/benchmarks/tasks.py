"""A benchmark's tasks as lm-eval builds them, with rows of the hub, its cache or the user's files.

`BenchmarkUnavailable` is not a fault of the config: without a network or a copy, or with a missing
package, a benchmark cannot be run on this machine.
"""

import difflib
import os
import random
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pipeline.benchmarks.code_eval import replace_code_eval, require_permission
from pipeline.config import BenchmarkConfig
from pipeline.errors import UserError
from pipeline.scorers.ifeval import NO_PUNKT, block_download, has_punkt

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = "training_split", "validation_split", "test_split", "fewshot_split"
HUB = "https://huggingface.co"
IGNORED_KWARGS = {"trust_remote_code"}  # `datasets` no longer accepts it
MATCH_HUB_URL = re.compile(r"hf://datasets/(.+?)@([^/]+)/").match
HUB_TIMEOUT = 10.0  # seconds; the hub's own client would try half a minute for each task


class BenchmarkUnavailable(Exception):
    """Why a benchmark cannot be run on this machine now."""


def load_tasks(cfg: BenchmarkConfig, knob: str, cache: Path) -> tuple[Any, list[Any]]:
    """lm-eval's task or group with its rows read, and its single tasks.

    `cache` is for local files in lm-eval's format.
    """
    if cfg.data is None and not is_hub_reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when datasets is imported
    with block_download():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=cfg.tasks, include_defaults=cfg.tasks is None)
        check_task_exists(cfg, knob, manager)
        overrides = build_overrides(cfg, knob, manager, cache)
        random.seed(cfg.seed)  # GPQA shuffles the choices of its questions as it is built
        with replace_code_eval(cfg, knob):
            target = _build_task(cfg, knob, manager, overrides)
    tasks = target.get_all_tasks() if cfg.task in manager.all_groups else [target]
    check_revision(cfg, knob, manager, tasks)
    check_thinking(cfg, knob, tasks)
    if any(getattr(task, "UNSAFE_CODE", False) for task in tasks):
        require_permission(cfg, knob)
    if any("ifeval" in task.task_name for task in tasks) and not has_punkt():
        raise BenchmarkUnavailable(NO_PUNKT.format(asked=cfg.task))
    check_metric(cfg, knob, target, tasks)
    return target, tasks


def is_hub_reachable() -> bool:
    """Any answer counts, an error as well."""
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"):
        return True  # the user wants no request, and the hub's own client respects that
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT", HUB), method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def check_task_exists(cfg: BenchmarkConfig, knob: str, manager: Any) -> None:
    source = f"the folder {cfg.tasks}" if cfg.tasks else "lm-eval"
    if cfg.task in manager.all_tags:
        members = ", ".join(sorted(manager.task_index[cfg.task].tags)[:8])
        raise UserError(
            f"{knob}.task={cfg.task}: it is a label for several tasks of {source}, not one.\n"
            f"  Give one of them: {members}"
        )
    if cfg.task not in manager.all_tasks:
        similar = ", ".join(difflib.get_close_matches(cfg.task, manager.all_tasks, n=4))
        hint = (
            f"Did you mean {similar}?" if similar else "All its tasks: python -m lm_eval ls tasks"
        )
        raise UserError(f"{knob}.task={cfg.task}: {source} has no such task.\n  {hint}")


def build_overrides(cfg: BenchmarkConfig, knob: str, manager: Any, cache: Path) -> dict[str, Any]:
    """The entries of the task's own file that the config replaces."""
    overrides: dict[str, Any] = {}
    if cfg.few_shot is not None:
        overrides["num_fewshot"] = cfg.few_shot
    if isinstance(cfg.data, dict):
        overrides |= _override_files(cfg, knob, cfg.data, manager, cache)
    elif cfg.data is not None:
        overrides["dataset_path"] = str(Path(cfg.data).expanduser().absolute())
    elif cfg.revision is not None:
        overrides["dataset_kwargs"] = {"revision": cfg.revision}
    return overrides


def _override_files(
    cfg: BenchmarkConfig, knob: str, data: dict[str, Any], manager: Any, cache: Path
) -> dict[str, Any]:
    if cfg.task in manager.all_groups:
        raise UserError(
            f"benchmark {cfg.task}: it is a group, and each of its tasks has its own rows.\n"
            f"  Give {knob}.data=FOLDER with a copy of the hub's dataset,"
            f" or {knob}.task=NAME with one task of it."
        )
    readers = {READERS.get(Path(path).suffix, "") for path in data.values()}
    if len(readers) > 1 or not all(readers):
        raise UserError(
            f"{knob}.data: files of one kind were expected. Known: {', '.join(READERS)}"
        )
    files = {split: str(Path(path).expanduser().absolute()) for split, path in data.items()}
    return {
        "dataset_path": readers.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(cache)},
        **_drop_missing_splits(cfg, knob, set(data), _read_task_file(cfg.task, manager)),
    }


def _read_task_file(task: str, manager: Any) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    file = manager.task_index[task].yaml_path
    return load_yaml(file, resolve_func=False, recursive=True) if file else {}


def _drop_missing_splits(
    cfg: BenchmarkConfig, knob: str, file_splits: set[str], task: dict[str, Any]
) -> dict[str, None]:
    """Overrides for the task's splits without a file: none. Refuse if it needs one of them."""
    questions, shots, examples = _find_needed_splits(cfg, task)
    if questions and questions not in file_splits:
        raise UserError(
            f"benchmark {cfg.task}: its questions are in the split {questions}.\n"
            f"  Give {knob}.data={{{questions}: FILE}}"
        )
    if shots and not set(examples) & file_splits:
        raise UserError(
            f"benchmark {cfg.task}: it shows {shots} solved examples from its split {examples[0]},"
            " and data names no such file.\n"
            f"  Give {knob}.data.{examples[0]}=FILE as well, or {knob}.few_shot=0."
        )
    return {name: None for name in SPLITS if task.get(name) and task[name] not in file_splits}


def _find_needed_splits(
    cfg: BenchmarkConfig, task: dict[str, Any]
) -> tuple[str | None, int, list[str]]:
    """The questions' split, the number of solved examples from a split, and the examples' splits.

    No examples come from a split if the task's file itself holds them.
    """
    questions = task.get("test_split") or task.get("validation_split")
    shots = task.get("num_fewshot") if cfg.few_shot is None else cfg.few_shot
    if (task.get("fewshot_config") or {}).get("samples"):
        shots = 0
    examples = [split for name in ("fewshot_split", "training_split") if (split := task.get(name))]
    return questions, shots or 0, examples or ["train"]


def _describe_needed_files(cfg: BenchmarkConfig, manager: Any) -> str:
    """What to give without the hub: a copy of its dataset, or a file for each needed split."""
    if cfg.task in manager.all_groups:
        return "FOLDER, a copy of the hub's dataset"
    questions, shots, examples = _find_needed_splits(cfg, _read_task_file(cfg.task, manager))
    splits = dict.fromkeys([questions or "test", *examples[: 1 if shots else 0]])
    return "{" + ", ".join(f"{split}: FILE" for split in splits) + "}"


def _build_task(cfg: BenchmarkConfig, knob: str, manager: Any, overrides: dict[str, Any]) -> Any:
    """Use the manager's private factory: its public method cannot override groups."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    try:
        return manager._factory.build(
            manager.task_index[cfg.task], overrides=overrides, registry=manager.task_index
        )
    except ImportError as error:
        raise BenchmarkUnavailable(
            f"benchmark {cfg.task}: lm-eval needs a package that is not installed ({error}).\n"
            "  Install it, and run the same command again."
        ) from error
    except (OSError, DatasetsError, TemplateError, LookupError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if cfg.data is not None:
            raise UserError(
                f"{knob}.data: the rows of {cfg.task} cannot be read"
                f" from {_describe_data(cfg.data)} ({type(error).__name__}: {reason}).\n"
                "  Give rows in the columns of the hub's dataset."
            ) from error
        if not isinstance(error, OSError | DatasetsError):
            raise
        raise BenchmarkUnavailable(
            f"benchmark {cfg.task}: its rows are not on this machine,"
            f" and the hub does not give them ({reason}).\n"
            "  Run the same command with a network,"
            f" or give {knob}.data={_describe_needed_files(cfg, manager)}."
        ) from error


def _describe_data(data: Any) -> str:
    return ", ".join(data.values()) if isinstance(data, dict) else data


def check_revision(cfg: BenchmarkConfig, knob: str, manager: Any, tasks: list[Any]) -> None:
    """Refuse a revision where the override would lose a task's own `dataset_kwargs`."""
    if cfg.revision is None:
        return
    for name in (task.task_name for task in tasks):
        kwargs = _read_task_file(name, manager).get("dataset_kwargs") or {}
        if kwargs.keys() - IGNORED_KWARGS:
            raise UserError(
                f"{knob}.revision={cfg.revision}: {name} names single files of its dataset,"
                " not a revision.\n"
                f"  Leave {knob}.revision null."
            )


def list_dataset_commits(tasks: list[Any]) -> dict[str, str]:
    """The commits of the hub's datasets that were read, from the download records of `datasets`."""
    infos = [split.info for task in tasks for split in task.dataset.values()]
    urls = [url for info in infos for url in info.download_checksums or ()]
    commits = {match[1]: match[2] for url in urls if (match := MATCH_HUB_URL(url))}
    return dict(sorted(commits.items()))


def check_thinking(cfg: BenchmarkConfig, knob: str, tasks: list[Any]) -> None:
    """Refuse given choices for a model that thinks first.

    Their probabilities right after the question mean nothing for such a model.
    """
    chosen = [task.task_name for task in tasks if task.OUTPUT_TYPE != "generate_until"]
    if chosen and cfg.chat and cfg.template_kwargs.get("enable_thinking"):
        raise UserError(
            f"benchmark {cfg.task}: {chosen[0]} weighs given choices,"
            " and template_kwargs.enable_thinking has the model think first.\n"
            f"  Give {knob}.template_kwargs.enable_thinking=false, or a task that generates."
        )


def check_metric(cfg: BenchmarkConfig, knob: str, target: Any, tasks: list[Any]) -> None:
    """Check before any request that the report's figure will exist. A group names its own."""
    metrics = {
        f"{metric},{each.name}"
        for task in tasks
        for metric in _list_figures(task)
        for each in task._filters
    }
    if tasks != [target]:
        aggregated = {each.metric for each in target.aggregate_metric_list or []}
        metrics = {name for name in metrics if name.partition(",")[0] in aggregated}
    if cfg.metric not in metrics:
        hint = "It has none over all its tasks: give one of them."
        if metrics:
            hint = f"Known: {', '.join(sorted(metrics))}"
        raise UserError(f"{knob}.metric={cfg.metric}: {cfg.task} has no such figure.\n  {hint}")


def _list_figures(task: Any) -> list[str]:
    """A metric gives a figure of its name, except pass_at_k: one for each k."""
    counts = task._metric_fn_kwargs.get("pass_at_k", {}).get("k", [])
    others = [metric for metric in task.aggregation() if metric != "pass_at_k"]
    return [*others, *(f"pass@{count}" for count in counts)]
