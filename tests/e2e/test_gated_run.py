"""A whole run with all optional evaluation: the baselines and controls, a benchmark, the gate."""

import json
import subprocess

import pytest

from pipeline.artifacts import write_text
from tests.e2e.test_smoke import SMALL, command, environment

MODELS = ["base", "sft", "round-1", "round-2"]
TASK = """
task: order
dataset_path: json
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1500)
def test_a_whole_run_with_every_row_a_benchmark_and_the_gate_on_two_rounds(tmp_path):
    write_text(tmp_path / "tasks" / "order.yaml", TASK)
    rows = [
        {"question": f"Where is river {i}?", "choices": ["Here it is.", "is the it"], "answer": 0}
        for i in range(40)
    ]
    write_text(tmp_path / "order.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *(word for word in SMALL if word != "rounds=1"),
        *(
            "rounds=2",
            "gate=best",
            "evaluate.control=true",
            "evaluate.best_of=2",
            "prompts.rows=300",
        ),
        "evaluate.prompted={system: Do all that is asked., few_shot: []}",
        *(
            f"backend@{place}=transformers"
            for place in ("sample.backend", "evaluate.sample.backend")
        ),
        *(
            "+benchmark@benchmark.order=task",
            "benchmark.order={task: order, tasks: tasks, data: {test: order.jsonl}}",
        ),
        "evaluate.retention={order: 0.5}",
    ]
    finished = subprocess.run(
        command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((tmp_path / "runs" / "latest" / "report.json").read_text())
    assert [model["name"] for model in report["models"]] == [
        *MODELS,
        "control",
        "best-of-2",
        "prompted",
    ]
    assert [row["model"] for row in report["benchmarks"] if row["chief"]] == MODELS
    assert [row["n"] for row in report["benchmarks"]] == [40] * len(MODELS)
    assert report["gates"][-1]["chosen"] == report["evaluation"]["chosen"]
    assert [row["state"] for row in report["retention"]] == (
        [] if report["evaluation"]["chosen"] == "sft" else ["kept"]
    )
    again = subprocess.run(
        command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert again.returncode == 0 and "■" not in again.stdout
