"""One published benchmark of one model, asked by lm-eval: its figures, and a row for each question.

A benchmark that is not on this machine publishes why (`absent.txt`), so that the rest of the report
is written.
"""

import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.artifacts import (
    ABSENT_FILE,
    Metrics,
    Model,
    knob_of,
    note_cost,
    write_json,
    write_table,
    write_text,
)
from pipeline.benchmarks.tasks import Absent, rows_of, tasks_of
from pipeline.config import BenchmarkConfig

NO_FIGURES = {"alias", "name", "sample_len", "sample_count"}
BOOTSTRAPS = 1000  # for the errors of those figures that are no plain mean
ROW = "task", "doc_id", "doc", "metric", "value"


def run(cfg: BenchmarkConfig, out: Path, *, model: Model) -> Metrics:
    os.environ.setdefault("TQDM_DISABLE", "1")
    knob = knob_of(out, "benchmark.NAME")
    try:
        asked, tasks = tasks_of(cfg, knob, out / "scratch" / "rows")
    except Absent as absent:
        write_text(out / ABSENT_FILE, f"{absent}\n")
        print("│", str(absent).replace("\n", "\n│ "), file=sys.stderr, flush=True)
        return Metrics(out)
    from pipeline.benchmarks.answers import Chunks, opened

    scratch = out / "scratch"
    answering = Chunks(cfg, knob, opened(cfg, knob, model, scratch), scratch / "answers")
    results = evaluated(cfg, asked, tasks, answering)
    write_items(out / "items.parquet", results["samples"])
    figures = [*figures_of(results, (cfg.task, cfg.metric))]
    chief = next(row for row in figures if (row["task"], row["metric"]) == (cfg.task, cfg.metric))
    told = {
        key: {task: results[key][task] for task in leaves(results, cfg.task)}
        for key in ("versions", "n-shot")
    }
    facts = {
        "lm_eval": version("lm-eval"),
        "rows": rows_of(tasks),
        "versions": told["versions"],
        "few_shot": told["n-shot"],
        "cut": answering.cut,
    }
    write_json(
        out / "metrics.json", {"task": cfg.task, "chief": chief, **facts, "figures": figures}
    )
    note_cost(out, requests=answering.asked)
    return Metrics(out)


def evaluated(cfg: BenchmarkConfig, asked: Any, tasks: list[Any], answering: Any) -> dict[str, Any]:
    from langdetect import DetectorFactory
    from lm_eval import simple_evaluate

    DetectorFactory.seed = 0
    for task in tasks:
        task.process_results = repeatable(task.process_results)
    results: dict[str, Any] = simple_evaluate(
        model=answering,
        tasks=[asked],
        limit=cfg.limit,
        gen_kwargs={"max_gen_toks": cfg.max_new_tokens} if cfg.max_new_tokens else None,
        apply_chat_template=cfg.chat,
        fewshot_as_multiturn=cfg.chat,
        bootstrap_iters=BOOTSTRAPS,
        random_seed=cfg.seed,
        numpy_random_seed=cfg.seed,
        torch_random_seed=cfg.seed,
        fewshot_random_seed=cfg.seed,
    )
    return results


def repeatable(process: Callable[..., Any]) -> Callable[..., Any]:
    """What a task draws while it marks an answer (IFEval does) it draws alike for every model."""

    def marked(doc: Any, answers: Any) -> Any:
        random.seed(0)
        return process(doc, answers)

    return marked


def figures_of(results: dict[str, Any], chief: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """Every task's and group's figures, as lm-eval names them; the chief one even where it is no
    number."""
    for task, found in sorted({**results["results"], **results.get("groups", {})}.items()):
        asked = sum(
            of["effective"]
            for name, of in results["n-samples"].items()
            if name in leaves(results, task)
        )
        for key in sorted(found):
            metric, _, cleaned = key.partition(",")
            value = number(found[key])
            if key in NO_FIGURES or metric.endswith("_stderr") or not cleaned:
                continue
            if value is None and (task, key) != chief:
                continue
            higher = results["higher_is_better"].get(task, {}).get(metric)
            error = number(found.get(f"{metric}_stderr,{cleaned}"))
            told = {"value": value, "stderr": error, "n": asked, "higher_is_better": higher}
            yield {"task": task, "metric": key, **told}


def leaves(results: dict[str, Any], task: str) -> set[str]:
    """The tasks that a group stands for, or the task itself."""
    members = results["group_subtasks"].get(task, [])
    return {leaf for member in members for leaf in leaves(results, member)} if members else {task}


def number(value: Any) -> float | None:
    """As lm-eval means it: what is a list, a word or no number has no place in a mean."""
    try:
        found = float(value) if not isinstance(value, str) else math.nan
    except TypeError:
        return None
    return found if math.isfinite(found) else None


def write_items(path: Path, samples: dict[str, list[dict[str, Any]]]) -> None:
    import polars as pl

    rows = [
        (
            task,
            each["doc_id"],
            each["doc_hash"][:16],
            f"{metric},{each['filter']}",
            number(each[metric]),
        )
        for task, answered in samples.items()
        for each in answered
        for metric in each["metrics"]
    ]
    kinds = pl.String, pl.Int64, pl.String, pl.String, pl.Float64
    table = pl.DataFrame(rows, schema=dict(zip(ROW, kinds, strict=True)), orient="row")
    write_table(path, table.sort("task", "doc_id", "metric"))
