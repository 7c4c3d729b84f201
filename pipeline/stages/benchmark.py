"""One published benchmark of one model, run by lm-eval: its figures, and a row for each question.

If the benchmark is not on this machine, the reason is published (`absent.txt`), and the rest of the
report is still written.
"""

import math
import os
import random
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.artifacts import (
    UNAVAILABLE_FILE,
    Metrics,
    Model,
    note_cost,
    write_json,
    write_table,
    write_text,
)
from pipeline.benchmarks.tasks import BenchmarkUnavailable, list_dataset_commits, load_tasks
from pipeline.config import BenchmarkConfig
from pipeline.progress import print_note

NO_FIGURES = {"alias", "name", "sample_len", "sample_count"}
BOOTSTRAPS = 1000  # for the errors of figures that are not a plain mean
ROW = "task", "doc_id", "doc", "metric", "value"


def run(cfg: BenchmarkConfig, out: Path, *, model: Model, knob: str = "benchmark.NAME") -> Metrics:
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        task, tasks = load_tasks(cfg, knob, out / "scratch" / "rows")
    except BenchmarkUnavailable as absent:
        write_text(out / UNAVAILABLE_FILE, f"{absent}\n")
        print_note(str(absent))
        return Metrics(out)
    from pipeline.benchmarks.lm_eval_model import ChunkedModel, open_model

    scratch = out / "scratch"
    with open_model(cfg, knob, model, scratch) as opened:
        answering = ChunkedModel(cfg, knob, opened, scratch / "answers")
        results = evaluate_tasks(cfg, task, tasks, answering)
    write_items(out / "items.parquet", results["samples"])
    figures = [*collect_figures(results, (cfg.task, cfg.metric))]
    chief = next(row for row in figures if (row["task"], row["metric"]) == (cfg.task, cfg.metric))
    leaves = sorted(list_leaves(results, cfg.task))
    metrics = {
        "task": cfg.task,
        "chief": chief,
        "lm_eval": version("lm-eval"),
        "rows": list_dataset_commits(tasks),
        "versions": {task: results["versions"][task] for task in leaves},
        "few_shot": {task: results["n-shot"][task] for task in leaves},
        "cut": answering.cut_count,
        "figures": figures,
    }
    write_json(out / "metrics.json", metrics)
    note_cost(out, requests=answering.request_count)
    return Metrics(out)


def evaluate_tasks(
    cfg: BenchmarkConfig, task: Any, tasks: list[Any], answering: Any
) -> dict[str, Any]:
    from langdetect import DetectorFactory
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    DetectorFactory.seed = 0
    for one in tasks:
        one.process_results = make_repeatable(one.process_results)
    results: dict[str, Any] = simple_evaluate(
        model=answering,
        tasks=[task],
        # The task is built. A manager of all tasks would read their 14,000 files for it once more.
        task_manager=TaskManager(include_defaults=False),
        limit=cfg.limit,
        gen_kwargs={"max_gen_toks": cfg.max_new_tokens} if cfg.max_new_tokens else None,
        apply_chat_template=cfg.chat,
        confirm_run_unsafe_code=cfg.code is not None,
        fewshot_as_multiturn=cfg.chat,
        bootstrap_iters=BOOTSTRAPS,
        random_seed=cfg.seed,
        numpy_random_seed=cfg.seed,
        torch_random_seed=cfg.seed,
        fewshot_random_seed=cfg.seed,
    )
    return results


def make_repeatable(process: Callable[..., Any]) -> Callable[..., Any]:
    """The same random numbers for every model, for tasks that use some to score (IFEval does)."""

    def process_results(doc: Any, answers: Any) -> Any:
        random.seed(0)
        return process(doc, answers)

    return process_results


def collect_figures(results: dict[str, Any], chief: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """Every task's and group's figures, as lm-eval names them.

    The chief one is listed even if it is not a number.
    """
    for task, found in sorted({**results["results"], **results.get("groups", {})}.items()):
        leaves = list_leaves(results, task)
        counts = results["n-samples"].items()
        questions = sum(count["effective"] for name, count in counts if name in leaves)
        for key in sorted(found):
            metric, _, filter_name = key.partition(",")
            value = parse_number(found[key])
            if key in NO_FIGURES or metric.endswith("_stderr") or not filter_name:
                continue
            if value is None and (task, key) != chief:
                continue
            yield {
                "task": task,
                "metric": key,
                "value": value,
                "stderr": parse_number(found.get(f"{metric}_stderr,{filter_name}")),
                "n": questions,
                "higher_is_better": results["higher_is_better"].get(task, {}).get(metric),
            }


def list_leaves(results: dict[str, Any], task: str) -> set[str]:
    """The tasks of a group, or the task itself."""
    members = results["group_subtasks"].get(task, [])
    if not members:
        return {task}
    return set().union(*(list_leaves(results, member) for member in members))


def parse_number(value: Any) -> float | None:
    """As lm-eval does: a list, a word or NaN does not count in a mean."""
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except TypeError:
        return None
    return number if math.isfinite(number) else None


def write_items(path: Path, samples: dict[str, list[dict[str, Any]]]) -> None:
    import polars as pl

    rows: list[tuple[Any, ...]] = []
    for task, answered in samples.items():
        for each in answered:
            item = task, each["doc_id"], each["doc_hash"][:16]
            rows += [
                (*item, f"{metric},{each['filter']}", parse_number(each[metric]))
                for metric in each["metrics"]
            ]
    kinds = pl.String, pl.Int64, pl.String, pl.String, pl.Float64
    table = pl.DataFrame(rows, schema=dict(zip(ROW, kinds, strict=True)), orient="row")
    write_table(path, table.sort("task", "doc_id", "metric"))
