"""Benchmarks of code: the code in an answer, and lm-eval's metric `code_eval` in our sandbox.

HumanEval and MBPP load the metric from the hub when they are built, and it gives a model's code the
network and the user's files. Here each answer runs in a separate process under the limits of the
config, as in the scorer `code`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import comb
from typing import Any

from pipeline.config import BenchmarkConfig, CodeExecution
from pipeline.errors import UserError
from pipeline.scorers.code import extract_code, run_tests

METRIC = "code_eval"  # its name on the hub


@dataclass(frozen=True)
class SandboxedCodeEval:
    cfg: CodeExecution
    knob: str

    def compute(
        self, references: list[str], predictions: list[list[str]], k: list[int]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """pass@k: the mean chance that one of k answers to a question passes its test."""
        questions = [
            (len(answers), sum(self._passes(answer, test) for answer in answers))
            for answers, test in zip(predictions, references, strict=True)
        ]
        means = {
            f"pass@{size}": sum(estimate_pass(n, passed, size) for n, passed in questions)
            / len(questions)
            for size in k
            if all(n >= size for n, _ in questions)
        }
        return means, {}

    def _passes(self, code: str, test: str) -> bool:
        return bool(run_tests(self.cfg, code, [test], self.knob))


def estimate_pass(answers: int, passed: int, k: int) -> float:
    """Without bias, from more answers than k (Chen et al. 2021, equation 1)."""
    return 1 - comb(answers - passed, k) / comb(answers, k)


@contextmanager
def replace_code_eval(cfg: BenchmarkConfig, knob: str) -> Iterator[None]:
    """What a task gets that loads `code_eval`; without permission a refusal."""
    import evaluate

    load = evaluate.load

    def load_metric(name: str, *rest: Any, **options: Any) -> Any:
        if name != METRIC:
            return load(name, *rest, **options)
        return SandboxedCodeEval(require_permission(cfg, knob), f"{knob}.code")

    evaluate.load = load_metric
    try:
        yield
    finally:
        evaluate.load = load


def require_permission(cfg: BenchmarkConfig, knob: str) -> CodeExecution:
    if cfg.code is None:
        raise UserError(
            f"{knob}.task={cfg.task}: this task runs the model's code on this machine,"
            f" and {knob}.code does not say how.\n"
            f"  Give '{knob}.code={{allow_code_execution: true, network: false, limits:"
            " {seconds: 20, cpu_seconds: 10, memory_mb: 1024, file_mb: 16}}' where that can do no"
            " harm."
        )
    return cfg.code


# ── filters of lm-eval: the code of every answer to every question ───────────────────────────────


def extract_blocks(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    return [[extract_code(text) for text in answers] for answers in responses]


def complete_functions(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """After the question's own code: its imports and helpers, which an answer may leave out.

    The function's head and docstring are a whole function there, which the answer defines again.
    """
    return [
        [f"{doc['prompt']}\n{extract_code(text)}" for text in answers]
        for answers, doc in zip(responses, docs, strict=True)
    ]
