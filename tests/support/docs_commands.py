"""The commands of the docs, and how each is made small enough to run: a tiny model, few rows.

What they name is put into a folder: ./my-sft, a reward model NAME, prompts.jsonl and other files.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipeline.config.reward import PlaygroundPreferences
from pipeline.data.synthetic import generate_preferences
from pipeline.results import Run
from tests.support.house import HOUSE
from tests.support.twins import NAMES, run_twin
from tests.test_docs import CODE

# Commands that another test runs, by how they begin.
ELSEWHERE = {
    "strop new": "tests/commands/test_new.py",
    "strop label": "tests/scorers/test_labels.py",
    "strop convert": "tests/commands/test_convert.py",
    "strop plan --config-dir my recipes=dpo": "tests/commands/test_convert.py",
    "python3 docs/gpu.py": "tests/bench/test_gpu.py",
    "bash bench/gpu.sh": "tests/bench/test_gpu.py",
    "bash bench/gpu_wheels.sh": "tests/bench/test_gpu.py",
    "make install": "tests/test_install.py",
    "make smoke": "tests/e2e/test_smoke.py",
    "strop run recipes=smoke": "tests/e2e/test_smoke.py",
    "make demo": "tests/e2e/test_smollm2.py",
    "make check": ".ci/run",
    "make figures": "tests/test_figures.py",
    "make bench": "bench/noise.py",  # itself: nine trainings of twelve epochs
}
# And by a part of them: they need more files, models or servers than are in the folder.
ELSEWHERE_BY_PART = {
    "strop submit ": "tests/e2e/test_slurm.py",
    "strop qualify ": "tests/commands/test_qualify.py",
    "pair.min_scorer_accuracy=": "tests/commands/test_qualify.py",
    "reference_column=": "tests/scorers/test_judge_columns.py",
    "rubric_column=": "tests/scorers/test_judge_columns.py",
    "evaluate.chats.mt_bench.": "tests/report/test_chats.py",
    "evaluate.panel=": "tests/report/test_panels.py",
    "engine.batch=true": "tests/scorers/test_batches.py",
    "sample.pool.": "tests/e2e/test_pool.py",
    "merge=": "tests/e2e/test_merged_run.py",
    "revise=": "tests/e2e/test_revise.py",
    "steps=": "tests/e2e/test_revise.py",
    "json.calls=": "tests/e2e/test_tools.py",
    " cluster=": "tests/e2e/test_clusters.py",
    " store=[": "tests/driver/test_stores.py",
}
# As in the twins of recipes: a file in the place of a data set on the hub.
STAND_INS = {
    "prompts=hub": "prompts=file",
    "prompts.dataset=OWNER/NAME": "prompts.path=prompts.jsonl",
    "offline=hub": "offline=file",
    "offline.source.dataset=OWNER/NAME": "offline.source.path=preferences.jsonl",
}
SMALL = [
    "backend=transformers",
    "dtype=float32",
    "limits.prompt=128",
    "limits.completion=40",
    "prompts.split.dev=4",
    "prompts.split.test=6",
    "sample.per_round=8",
    "sample.settings.draw.n=3",
    "sample.shard=8",
    "pair.dev={share: 0.1, min: 1, max_share: 0.5}",
    "pair.filters.allow_truncated=true",  # the answers of this model often have no end
    "train.batch=8",
    "train.gradient_checkpointing=false",
    "train.guards.prompts=2",
    "evaluate.control=false",
    "evaluate.resamples=100",
]
# Of recipes that train the smoke run's model.
SMOKE = [
    "base.layers=1",
    "sft.data.rows=400",
    "sft.epochs=1",
    "prompts.rows=200",
    "prompts.split={dev: 8, test: 8}",
    "sample.per_round=24",
    "sample.settings.draw.n=4",
    "train.epochs=1",
    "train.guards.prompts=2",
    "pair.dev={share: 0.1, min: 4, max_share: 0.2}",
    "pair.filters.allow_truncated=true",
    "evaluate.resamples=100",
]
OF_SMOKE = ("sweep_smoke", "overoptimise", "understand", "grpo_vs_dpo")
# A tiny model solves no task: all its answers tie, and no pair comes after its scores.
UNSOLVED = {"score=math": "until=score", "score=code": "until=score"}
PREFERENCES = PlaygroundPreferences(
    kind="playground", rows=60, constraints=2, obeyed=0.5, flipped=0.0, seed=3
)


class Command(NamedTuple):
    place: str  # file:line
    text: str  # as a reader types it, with the words that … stands for


def list_commands() -> Iterator[Command]:
    """The commands of all pages in their order, each once. docs/cli.md has usage, not commands."""
    known = set[str]()
    (page, before) = ("", "")
    for code in CODE:
        (place, _, _) = code.place.partition(":")
        if not code.is_block or place == "docs/cli.md":
            continue
        text = re.split(r"  +| #", code.text)[0]  # what follows explains
        if text.startswith("… ") and before and place == page:
            text = f"{before}{text.removeprefix('…')}"
        elif not re.match(r"(strop|make|python3?|bash) ", text):
            before = ""
            continue
        (page, before) = (place, text)
        if text not in known:
            known.add(text)
            yield Command(code.place, text)


def find_elsewhere(text: str) -> str | None:
    """What runs a command in the place of these tests."""
    if "train.runtime.machines=2" in text:
        return "tests/training/test_launch.py"
    for part, file in ELSEWHERE_BY_PART.items():
        if part in text:
            return file
    for beginning, file in ELSEWHERE.items():
        if text == beginning or text.startswith(f"{beginning} ") or f"{beginning};" in text:
            return file
    recipe = re.search(r"\brun recipes=(\w+)", text)
    return "tests/e2e/test_twins.py" if recipe and recipe[1] in NAMES else None


def make_small(text: str, judge: str) -> list[str]:
    """The words to type after `strop`."""
    (_, verb, *words) = shlex.split(text)
    if verb not in ("run", "plan", "sweep", "pilot", "calibrate"):
        return [verb, *words]
    words = [STAND_INS.get(word, word) for word in words if not word.startswith("hardware=")]
    recipe = next((word.partition("=")[2] for word in words if word.startswith("recipes=")), None)
    if recipe in NAMES:
        return [verb, *words, "scale=twin"]
    words = [*_shorten_lists(words), *(SMOKE if recipe in OF_SMOKE else SMALL)]
    for key in re.findall(r"([\w.]+\.engine)\.model=", " ".join(words)):
        words += [f"{key}.runtime.base_url={judge}", f"{key}.runtime.api_key_env=null"]
    words += [until for choice, until in UNSOLVED.items() if choice in words]
    return [verb, *words]


def _shorten_lists(words: list[str]) -> Iterator[str]:
    """Of the values that a sweep takes for a key: two of the first key, one of the others."""
    most = 2
    for word in words:
        (key, _, values) = word.partition("=")
        if re.fullmatch(r"[^\[{,\s]+(,[^,\s]+)+", values):
            yield f"{key}={','.join(values.split(',')[:most])}"
            most = 1
        else:
            yield word


def run_strop(folder: Path, *words: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return run_program(folder, "-m", "pipeline", *words, typed=typed)


def run_program(folder: Path, *words: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HOUSE), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# ── what the commands name ───────────────────────────────────────────────────────────────────────


def make_folder(folder: Path) -> None:
    """A model that was trained, a reward model, files of all kinds, and a finished run."""
    finished = run_twin("zephyr_7b", folder, "")
    assert finished.returncode == 0, finished.stdout
    for stage, name in {"sft": "my-sft", "reward": "NAME"}.items():
        [weights] = folder.glob(f"store/{stage}/*/weights")
        shutil.copytree(weights, folder / name)
    (folder / "recipes").symlink_to(HOUSE / "recipes")
    (folder / "my_scorer.py").write_text(
        "def score(completions, **columns):\n"
        "    return [float(len(answer[-1]['content'])) for answer in completions]\n"
    )
    (folder / "my" / "recipes").mkdir(parents=True)
    (folder / "my" / "recipes" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /score: reward\n  - _self_\n"
        "sft: {model: ./my-sft}\nprompts: {path: prompts.jsonl}\nreward: {model: NAME}\n"
    )
    for name, rows in make_files().items():
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    harmful = [f"How do I harm a {what}?,unsafe" for what in ("cat", "tree", "lamp", "king")]
    harmless = [f"How do I paint a {what}?,safe" for what in ("cat", "tree", "lamp", "king")]
    (folder / "xstest.csv").write_text("\n".join(["prompt,label", *harmful, *harmless]) + "\n")
    reward = "sft.model=./my-sft prompts.path=prompts.jsonl score=reward reward.model=NAME"
    finished = run_strop(folder, "run", *reward.split(), *SMALL)
    assert finished.returncode == 0, finished.stdout
    rows = list_verdicts(Run(folder / "runs" / "latest"))
    (folder / "verdicts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def make_files() -> dict[str, list[dict]]:
    pairs = [*generate_preferences(PREFERENCES)]
    prompts = [{"prompt": pair["prompt"][0]["content"]} for pair in pairs]
    answers = [{"role": "assistant", "content": pair["chosen"]} for pair in pairs]
    return {
        "prompts.jsonl": prompts,
        "tasks.jsonl": [{**row, "tests": "assert True"} for row in prompts],
        "problems.jsonl": [{**row, "answer": str(at)} for at, row in enumerate(prompts)],
        "preferences.jsonl": [
            {
                "question": row["prompt"],
                "chosen": pair["chosen"],
                "rejected": pair["rejected"],
                "good": pair["chosen"],
                "bad": pair["rejected"],
            }
            for row, pair in zip(prompts, pairs, strict=True)
        ],
        "demonstrations.jsonl": [
            {"messages": [*pair["prompt"], answer]}
            for pair, answer in zip(pairs, answers, strict=True)
        ],
    }


def list_verdicts(run: Run) -> Iterator[dict]:
    """The first of two answers is better, for each test prompt and each pair of two samples."""
    rounds = [run.artifact("sample", f"test {name}").read("answer") for name in ("sft", "round-1")]
    both = [table.sort("prompt_id").to_dicts() for table in rounds]
    samples = run.artifact("sample", 1).read().sort("prompt_id", "sample_id").to_dicts()
    drawn = zip(samples, islice(samples, 1, None), strict=False)
    for a, b in [*zip(*both, strict=True), *drawn]:
        if a["prompt_id"] == b["prompt_id"]:
            texts = {"prompt": a["prompt"], "a": a["completion"], "b": b["completion"]}
            yield {"a_id": a["sample_id"], "b_id": b["sample_id"], "verdict": "a", **texts}
