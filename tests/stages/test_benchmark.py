"""The stage `benchmark`: lm-eval on a tiny model and local files, multiple choice and generated
answers."""

import json
import math
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from pipeline import store
from pipeline.artifacts import (
    UNAVAILABLE_FILE,
    Metrics,
    Model,
    write_json,
    write_table,
    write_text,
)
from pipeline.benchmarks import code_eval, lm_eval_model, tasks
from pipeline.config import BenchmarkConfig
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.report.analysis.benchmarks import list_unavailable
from pipeline.stages import benchmark
from pipeline.step import Identity
from tests.support.house import HOUSE, SMALL, Toys, composed, named
from tests.support.tiny import tiny_model

WORDS = ["river", "lantern", "garden", "market", "bridge", "harbour", "forest", "winter"]
COMMON = """
dataset_path: json
test_split: test
doc_to_text: "{{question}}"
num_fewshot: 0
metadata: {version: 1.0}
"""
CHOICE = """
task: choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
fewshot_split: train
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """
task: written
output_type: generate_until
doc_to_target: "{{answer}}"
process_results: !function marks.marks
generation_kwargs: {until: [], do_sample: false, max_gen_toks: 200}
metric_list:
  - {metric: odd, aggregation: mean, higher_is_better: false}
  - {metric: letters, aggregation: mean}
"""
MARKS = """
import random

def marks(doc, answers):
    return {"odd": len(answers[0]) % 2, "letters": random.random()}
"""
GROUP = """
group: both
task: [choice, other]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
AWAY = """
task: away
dataset_path: nobody/has-this-dataset
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "a", context=256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made, draw = tmp_path_factory.mktemp("tasks"), random.Random(0)
    files = {
        "choice": COMMON + CHOICE,
        "other": COMMON + CHOICE.replace("task: choice", "task: other"),
        "both": GROUP,
    }
    for name, task in {**files, "written": COMMON + WRITTEN, "away": AWAY}.items():
        write_text(made / f"{name}.yaml", task)
    write_text(made / "marks.py", MARKS)
    for split, rows in (("test", 24), ("train", 4)):
        asked = [
            {"question": f"Where is the {draw.choice(WORDS)}, {i}?", "answer": 0}
            for i in range(rows)
        ]
        lines = [json.dumps({**row, "choices": draw.sample(WORDS, 3)}) for row in asked]
        write_text(made / f"{split}.jsonl", "\n".join(lines))
    return made


def config(folder: Path, named_task: str, **more) -> BenchmarkConfig:
    chosen = composed(
        *SMALL,
        "+benchmark@benchmark.mine=task",
        f"benchmark.mine.task={named_task}",
        "dtype=float32",
    )
    metric = "odd,none" if named_task == "written" else "acc,none"
    told = {
        "tasks": str(folder),
        "data": {"test": str(folder / "test.jsonl")},
        "metric": metric,
        "seed": 1,
        **more,
    }
    return BenchmarkConfig.model_validate({**chosen.benchmark["mine"].model_dump(), **told})


def bytes_of(out: Path) -> dict[str, bytes]:
    return {entry["path"]: (out / entry["path"]).read_bytes() for entry in store.list_files(out)}


@pytest.mark.model
@pytest.mark.parametrize(("task", "more"), [("choice", {}), ("written", {"max_new_tokens": 24})])
def test_figures_are_the_means_of_a_row_for_each_question_and_repeat_exactly(
    tmp_path, sft, folder, task, more
):
    cfg = config(folder, task, **more)
    found = benchmark.run(cfg, tmp_path / "one", model=sft)
    read, items = found.read(), found.read_items()
    chief = items.filter(pl.col("metric") == cfg.metric)
    assert (
        read["chief"]["value"] == pytest.approx(chief["value"].mean())
        and 0 < read["chief"]["value"] < 1
    )
    assert (read["chief"]["n"], chief["doc_id"].to_list()) == (24, list(range(24)))
    assert (read["cut"], read["versions"]) == (0, {task: 1.0}) and chief["doc"].n_unique() == 24
    assert read["chief"]["higher_is_better"] is (task == "choice")
    benchmark.run(cfg, tmp_path / "two", model=sft)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.model
def test_a_group_s_figure_is_over_the_questions_of_all_its_tasks(tmp_path, sft, folder):
    found = benchmark.run(config(folder, "both", data=str(folder), limit=9), tmp_path, model=sft)
    read, items = found.read(), found.read_items()
    assert (read["chief"]["task"], read["chief"]["n"], items["task"].unique().sort().to_list()) == (
        "both", 18, ["choice", "other"]
    )  # fmt: skip
    assert read["chief"]["value"] == pytest.approx(items["value"].mean())
    assert {row["task"] for row in read["figures"]} == {"both", "choice", "other"}


@pytest.mark.slow
@pytest.mark.model
def test_a_killed_run_goes_on_after_its_last_chunk_with_the_same_bytes(
    tmp_path, sft, folder, monkeypatch
):

    cfg, asked = config(folder, "choice"), []
    monkeypatch.setattr(lm_eval_model, "CHUNK", 20)
    benchmark.run(cfg, tmp_path / "whole", model=sft)
    finite = lm_eval_model.ChunkedModel._check_finite

    def dying(self, given):
        asked.append(len(given))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return finite(self, given)

    monkeypatch.setattr(lm_eval_model.ChunkedModel, "_check_finite", dying)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(cfg, tmp_path / "killed", model=sft)
    benchmark.run(cfg, tmp_path / "killed", model=sft)
    assert asked == [20, 20, 20, 20, 12], (
        "72 choices: two chunks were kept, the third was asked again"
    )
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.model
def test_the_model_s_own_chat_template_frames_examples_and_question(
    tmp_path, sft, folder, monkeypatch
):

    seen, ask = [], lm_eval_model.ChunkedModel._run_chunks
    monkeypatch.setattr(
        lm_eval_model.ChunkedModel,
        "_run_chunks",
        lambda self, *w: [seen.append((self.model, w[1]))] and ask(self, *w),
    )
    data = {split: str(folder / f"{split}.jsonl") for split in ("test", "train")}
    benchmark.run(
        config(folder, "choice", data=data, few_shot=2, limit=3), tmp_path / "chat", model=sft
    )
    benchmark.run(config(folder, "choice", chat=False, limit=3), tmp_path / "plain", model=sft)
    [model, shown], [_, plain] = seen
    prompt = shown[0].args[0]
    assert prompt.startswith("<s><|user|>Where is the") and prompt.endswith("?<|end|><|assistant|>")
    assert prompt.count("<|user|>") == prompt.count("<|assistant|>") == 3
    assert model.tok_encode(prompt).count(model.tokenizer.bos_token_id) == 1
    assert len(shown) == len(plain) == 9 and "<|" not in plain[0].args[0]


@pytest.mark.slow
@pytest.mark.model
def test_what_does_not_fit_into_the_context_is_counted_or_refused(tmp_path, folder):
    short = tiny_model(tmp_path / "sft" / "short", context=48)
    found = benchmark.run(
        config(folder, "written", max_new_tokens=32), tmp_path / "cut", model=short
    )
    assert found.read()["cut"] == 24
    with pytest.raises(UserError, match="up to 200 tokens, and the model has a context of 48"):
        benchmark.run(config(folder, "written"), tmp_path / "long", model=short)


@pytest.mark.model
@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        (
            "choice",
            {"task": "choise"},
            r"task=choise: the folder .* has no such task\.\n  Did you mean choice",
        ),
        (
            "choice",
            {"metric": "f1,none"},
            r"metric=f1,none: choice has no such figure\.\n  Known: acc,none",
        ),
        (
            "choice",
            {"few_shot": 2},
            r"2 solved examples from its split train.*\n?.*benchmark\.NAME\.data\.train=FILE",
        ),
        ("both", {}, r"it is a group, .*\n.*benchmark\.NAME\.data=FOLDER"),
        (
            "choice",
            {"data": {"dev": "test.jsonl"}},
            r"split test\.\n.*benchmark\.NAME\.data=\{test: FILE\}",
        ),
        ("choice", {"data": {"test": "test.parket"}}, r"files of one kind"),
        ("written", {"data": {"test": "marks.py"}}, r"files of one kind"),
        (
            "choice",
            {"template_kwargs": {"enable_thinking": True}},
            r"weighs given choices.*has the model think first",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_model_is_opened(
    tmp_path, folder, task, more, said
):
    if isinstance(more.get("data"), dict):
        more = {"data": {split: str(folder / name) for split, name in more["data"].items()}}
    with pytest.raises(UserError, match=said):
        benchmark.run(
            config(folder, task, **more), tmp_path / "out", model=Model(tmp_path / "none")
        )


@pytest.mark.model
def test_rows_of_another_shape_are_refused_with_the_file_s_name(tmp_path, folder):
    write_text(tmp_path / "odd.jsonl", '{"frage": "Wo?"}\n')
    with pytest.raises(UserError, match=r"the rows of choice cannot be read from .*odd\.jsonl"):
        benchmark.run(
            config(folder, "choice", data={"test": str(tmp_path / "odd.jsonl")}),
            tmp_path,
            model=Model(tmp_path),
        )


@pytest.mark.slow
@pytest.mark.model
def test_a_benchmark_that_is_not_on_this_machine_publishes_why(tmp_path, folder):
    write_json(tmp_path / "cfg.json", config(folder, "away", data=None).model_dump(mode="json"))
    code = (
        "import sys; from pathlib import Path; from pipeline.config import BenchmarkConfig as"
        " Config\n"
        "from pipeline.artifacts import Model; from pipeline.stages import benchmark; root ="
        " Path(sys.argv[1])\n"
        "cfg = Config.model_validate_json((root / 'cfg.json').read_text())\n"
        "benchmark.run(cfg, root / 'out', model=Model(root), knob='benchmark.mine')"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=HOUSE, env=offline)
    told = Metrics(tmp_path / "out").unavailable_reason
    assert told and told.startswith(
        "benchmark away: its rows are not on this machine, and the hub does not give them ("
    )
    assert told.endswith(
        "Run the same command with a network, or give benchmark.mine.data={test: FILE}."
    )
    assert [entry["path"] for entry in store.list_files(tmp_path / "out")] == [UNAVAILABLE_FILE]


def test_a_step_s_knob_is_where_its_block_stands_and_no_part_of_its_identity():
    steps = named(plan(composed(*SMALL, "benchmark=[gsm8k,arc]", "evaluate.control=true")))
    assert steps["benchmark@test sft gsm8k"].knob == "benchmark.gsm8k"
    assert (steps["score@test control"].knob, steps["score@1"].knob) == ("score", "score")
    own = ["+scorer@evaluate.score.scorers.more=length"]
    others = named(plan(composed(*SMALL, *own, "evaluate.control=true")))
    assert others["score@test control"].knob == "evaluate.score"
    astray = plan(composed(*SMALL, "benchmark=arc", "benchmark.arc.data=/nowhere"))
    with pytest.raises(UserError, match=r"^benchmark\.arc\.data=/nowhere: no such file"):
        Identity(lambda path: Path(path).read_text()).fingerprint(astray)


@pytest.mark.model
def test_rows_of_the_hub_are_asked_in_the_revision_that_is_given_and_recorded():
    from datasets import DatasetInfo

    commit, read = "a" * 40, f"hf://datasets/cais/mmlu@{'b' * 40}/x/test.parquet"
    [cfg] = composed(
        *SMALL, "benchmark=mmlu", f"benchmark.mmlu.revision={commit}"
    ).benchmark.values()
    assert tasks.build_overrides(cfg, "benchmark.mmlu", None, Path()) == {
        "dataset_kwargs": {"revision": commit}
    }
    task = SimpleNamespace(
        dataset={"test": SimpleNamespace(info=DatasetInfo(download_checksums={read: {}}))}
    )
    assert tasks.list_dataset_commits([task, task]) == {"cais/mmlu": "b" * 40}
    with pytest.raises(
        UserError, match="data is local, and revision is a commit of the hub's dataset"
    ):
        composed(*SMALL, "benchmark=mmlu", "benchmark.mmlu={revision: main, data: x}")


def test_a_figure_that_is_no_number_is_published_as_none_and_named_in_the_report():
    found = {"acc,none": math.nan, "acc_stderr,none": "N/A", "alias": "quiz"}
    counts = {"n-samples": {"quiz": {"effective": 3}}, "higher_is_better": {}, "group_subtasks": {}}
    [chief] = benchmark.collect_figures(
        {"results": {"quiz": found}, **counts}, ("quiz", "acc,none")
    )
    assert (chief["value"], chief["stderr"], chief["n"]) == (None, None, 3)
    rows = [{"benchmark": "quiz", "model": "base", "chief": True, "absent": None, **chief}]
    assert list_unavailable(rows)[0]["what"].startswith("benchmark quiz: acc,none has no value")


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gsm8k", "{test: FILE, train: FILE}"),
        ("arc", "{test: FILE}"),
        ("truthfulqa", "{validation: FILE}"),
    ],
)
def test_the_advice_names_the_splits_that_the_task_asks_for(name, wanted):
    from lm_eval.tasks import TaskManager

    [cfg] = composed(*SMALL, f"benchmark={name}").benchmark.values()
    manager = TaskManager(include_path=str(OWN_TASKS / SHAPES[name][0]), include_defaults=False)
    assert tasks._describe_needed_files(cfg, manager) == wanted


def test_what_was_absent_is_looked_for_again_and_leaves_nothing_behind(tmp_path):
    work, final = tmp_path / "x.partial", tmp_path / "x"
    for said in ("No network.", "Still none."):
        write_text(work / UNAVAILABLE_FILE, said)
        made = {"stage": "benchmark", "fingerprint": "x", "config": {}, "cost": {}, "seconds": 1.0}
        store.seal(work, {**made, "inputs": {}, "files": store.list_files(work)})
        store.publish(work, final)
        assert (
            store.find_fault(final, store.read_manifest(final), {})
            == "is tried again: it was unavailable"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.slow
def test_an_absent_benchmark_alone_is_asked_again_until_it_is_there(tmp_path):
    toys, words = Toys(tmp_path), [*SMALL, "benchmark=gsm8k"]
    again = ["benchmark test sft gsm8k", "benchmark test round-1 gsm8k"]
    assert "evaluate report" in toys.built(toys.run(*words, absent="yes"))
    assert toys.built(toys.run(*words, absent="yes")) == again, "the same reason changes no report"
    assert toys.built(toys.run(*words)) == [*again, "evaluate report"]
    assert toys.built(toys.run(*words)) == []


def test_each_model_has_a_step_for_each_benchmark_on_test_alone():
    words = ["recipes=smoke", "benchmark=[gsm8k,ifeval]", "gate=best"]
    last = plan(composed(*words))
    labels = {str(step.label) for step in last.ancestors() if step.stage == "benchmark"}
    models = ("base", "sft", "round-1", "round-2")
    assert labels == {f"test {model} {name}" for model in models for name in ("gsm8k", "ifeval")}
    evals = named(last)["evaluate@report"].inputs["evals"]
    assert {name for name, evaluation in evals.items() if "metrics" in evaluation} == set(models)
    dev = plan(composed(*words, "evaluate.split=dev"))
    assert not [step for step in dev.ancestors() if step.stage == "benchmark"]


def test_what_may_not_be_lost_has_to_be_measured():
    with pytest.raises(
        UserError,
        match=r"evaluate\.retention\.gsm8: no benchmark and no scorer.*Did you mean gsm8k",
    ):
        composed(*SMALL, "benchmark=gsm8k", "evaluate.retention={gsm8: 0.02}")
    with pytest.raises(UserError, match=r"evaluate\.retention\.gsm8k: .* Give evaluate.split=test"):
        composed(
            *SMALL, "benchmark=gsm8k", "evaluate.retention={gsm8k: 0.02}", "evaluate.split=dev"
        )
    composed(*SMALL, "benchmark=gsm8k", "evaluate.retention={gsm8k: 0.02, rules: 0}")


# ── the published tasks, in the shape of the hub's rows ───────────────────────────────────────────


OWN_TASKS = (
    Path(str(find_spec("lm_eval").origin)).parent / "tasks"
)  # one folder of them is indexed in no time


def choice(draw, at):
    return {
        "question": f"Where is the {draw.choice(WORDS)}, {at}?",
        "choices": draw.sample(WORDS, 4),
    }


def arc(draw, at):
    asked = choice(draw, at)
    return {
        **asked,
        "choices": {"text": asked["choices"], "label": [*"ABCD"]},
        "answerKey": draw.choice("ABCD"),
    }


def mc(draw, at):
    asked = choice(draw, at)
    told = {"choices": asked["choices"], "labels": [1, 0, 0, 0]}
    return {
        "question": asked["question"],
        "mc1_targets": told,
        "mc2_targets": {**told, "labels": [1, 1, 0, 0]},
    }


def sum_of(draw, at):
    few, more = draw.randrange(2, 9), draw.randrange(2, 9)
    asked = f"Ann has {few} {draw.choice(WORDS)}s, then {more} more. How many, {at}?"
    return {
        "question": asked,
        "answer": f"{few}+{more}=<<{few}+{more}={few + more}>>{few + more}.\n#### {few + more}",
    }


def written_choice(draw, at):
    wrong = draw.sample(WORDS, 3)
    given = {f"Incorrect Answer {n}": word for n, word in enumerate(wrong, start=1)}
    return {
        "Question": f"What is {at} near the {draw.choice(WORDS)}?",
        "Correct Answer": f"the mill of {at}",
        **given,
    }


def problem(draw, at):
    return {"problem": f"What is {at} + {at}?", "answer": str(2 * at), "solution": "Add them."}


def function(draw, at):
    return {
        "task_id": f"HumanEval/{at}",
        "prompt": f'from typing import List\n\ndef add_{at}(a):\n    """Add {at} to a."""\n',
        "canonical_solution": f"    return a + {at}\n",
        "test": f"def check(candidate):\n    assert candidate(2) == {2 + at}\n",
        "entry_point": f"add_{at}",
    }


def task_of_code(draw, at):
    return {
        "task_id": 11 + at,
        "text": f"Write a function that adds {at}.",
        "code": f"def add(a):\n    return a + {at}",
        "test_list": [f"assert add({n}) == {n + at}" for n in range(3)],
    }


SHAPES = {
    "arc": ("arc", arc, {"test": 12, "train": 2}),
    "truthfulqa": ("truthfulqa", mc, {"validation": 12}),
    "gsm8k": ("gsm8k", sum_of, {"test": 8, "train": 5}),
    "gpqa": ("gpqa/zeroshot", written_choice, {"train": 12}),
    "math_500": (None, problem, {"test": 8}),
    "aime": ("aime", problem, {"test": 8}),
    "humaneval": (None, function, {"test": 8}),
    "mbpp": (None, task_of_code, {"test": 8}),
}
# A right and a wrong answer as a chat model writes them, to question `at`.
ANSWERS = {
    "math_500": ("So $x = {at}$ and twice that is $\\boxed{{{twice}}}$.", "It is $\\boxed{{1}}$."),
    "aime": ("Twice ${at}$ is $\\boxed{{{twice}}}$.", "It is $\\boxed{{1}}$."),
    "humaneval": (
        "Here:\n```python\ndef add_{at}(a: List[int]):\n    return a + {at}\n```\nIt adds.",
        "```python\ndef add_{at}(a):\n    return a - 1\n```",
    ),
    "mbpp": ("```\ndef add(a):\n    return a + {at}\n```", "import os; os._exit(0)"),
}
ALLOWED = {
    name: f"benchmark.{name}.code.allow_code_execution=true" for name in ("humaneval", "mbpp")
}


def published(folder, name, *more):
    """The benchmark as its file in conf/ has it, with rows of ours."""
    own, row, splits = SHAPES[name]
    draw, data = random.Random(0), {}
    for split, rows in splits.items():
        data[split] = str(folder / f"{split}.jsonl")
        write_text(
            Path(data[split]), "".join(json.dumps(row(draw, at)) + "\n" for at in range(rows))
        )
    given = ", ".join(f"{split}: {file}" for split, file in data.items())
    words = [f"benchmark={name}", f"benchmark.{name}.data={{{given}}}"]
    words += [f"benchmark.{name}.tasks={OWN_TASKS / own}"] if own else []
    words += [ALLOWED[name]] if name in ALLOWED else []
    return composed(*SMALL, "dtype=float32", *words, *more).benchmark[name]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "b", context=2048)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("name", SHAPES)
def test_each_published_task_reads_rows_of_the_hub_s_shape(tmp_path, roomy, name):
    generates = name == "gsm8k" or name in ANSWERS
    short = [f"benchmark.{name}.max_new_tokens=16"] if generates else []
    cfg = published(tmp_path, name, *short)
    found = benchmark.run(cfg, tmp_path / "out", model=roomy)
    read, items = found.read(), found.read_items().filter(pl.col("metric") == cfg.metric)
    assert (read["chief"]["n"], items.height, read["cut"]) == (
        max(SHAPES[name][2].values()),
        read["chief"]["n"],
        0,
    )
    assert read["chief"]["value"] == pytest.approx(items["value"].mean())
    assert generates or 0 < read["chief"]["value"] < 1  # sixteen tokens by chance are no sum
    assert read["few_shot"] == {cfg.task: 5 if name == "gsm8k" else 0}


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_chat_model_writes_is_marked_right_or_wrong(tmp_path, roomy, name):
    """The answers are where a killed run would have left them."""
    cfg = published(tmp_path, name, f"benchmark.{name}.max_new_tokens=16")
    texts = [ANSWERS[name][at % 2].format(at=at, twice=2 * at) for at in range(8)]
    write_json(tmp_path / "out/scratch/answers/generate_until-00000000.json", texts)
    items = benchmark.run(cfg, tmp_path / "out", model=roomy).read_items()
    assert items.filter(metric=cfg.metric).sort("doc_id")["value"].to_list() == [1.0, 0.0] * 4


@pytest.mark.slow
@pytest.mark.model
def test_gpqa_shows_the_choices_in_one_order_to_every_model(tmp_path, roomy):
    cfg = published(tmp_path, "gpqa")
    for name in ("one", "two"):
        random.seed(name)  # whatever ran before in this process
        benchmark.run(cfg, tmp_path / name, model=roomy)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


@pytest.mark.model
def test_a_model_s_code_runs_with_permission_alone(tmp_path):
    with pytest.raises(
        UserError, match=r"benchmark\.mbpp\.code.* Give .*allow_code_execution=true"
    ):
        composed(*SMALL, "benchmark=mbpp")
    unlimited = published(tmp_path, "mbpp", "benchmark.mbpp.code=null")
    with pytest.raises(UserError, match=r"benchmark\.mbpp\.code does not say how\.") as error:
        benchmark.run(unlimited, tmp_path / "out", model=Model(tmp_path), knob="benchmark.mbpp")
    typed = str(error.value).split("'")[2]  # after the model's
    assert composed(*SMALL, "benchmark=mbpp", typed).benchmark["mbpp"].code.network is False


def test_a_chance_of_passing_counts_every_answer():
    cfg = composed(*SMALL, "benchmark=mbpp", ALLOWED["mbpp"]).benchmark["mbpp"].code
    metric = code_eval.SandboxedCodeEval(cfg, "benchmark.mbpp.code")
    answers = [["x = 1", "x = 2", "raise SystemExit"], ["x = 1", "x = 1", "import os; os._exit(0)"]]
    means, _ = metric.compute(["assert x == 1"] * 2, answers, k=[1, 2, 9])
    assert means == {"pass@1": pytest.approx(1 / 2), "pass@2": pytest.approx((2 / 3 + 1) / 2)}


@pytest.mark.slow
@pytest.mark.model
def test_mmlu_reads_a_folder_as_the_hub_has_it_and_weighs_all_its_questions(tmp_path, roomy):
    subjects = sorted(
        file.stem.removeprefix("mmlu_") for file in (OWN_TASKS / "mmlu/default").glob("mmlu_*.yaml")
    )
    draw, card = random.Random(0), "---\nconfigs:\n"
    for subject in subjects:
        card += f"- config_name: {subject}\n  data_files:\n"
        for split, rows in (("test", 1 + subject.startswith("a")), ("dev", 2)):
            asked = [
                {**choice(draw, at), "subject": subject, "answer": draw.randrange(4)}
                for at in range(rows)
            ]
            write_table(
                tmp_path / "hub" / subject / f"{split}-00000-of-00001.parquet", pl.DataFrame(asked)
            )
            card += f"  - split: {split}\n    path: {subject}/{split}-*\n"
    write_text(tmp_path / "hub" / "README.md", card + "---\n")
    words = [
        f"benchmark.mmlu.tasks={OWN_TASKS / 'mmlu/default'}",
        f"benchmark.mmlu.data={tmp_path / 'hub'}",
    ]
    cfg = composed(
        *SMALL, "dtype=float32", "benchmark=mmlu", *words, "benchmark.mmlu.few_shot=2"
    ).benchmark["mmlu"]
    found = benchmark.run(cfg, tmp_path / "out", model=roomy)
    read, items = found.read(), found.read_items()
    assert (len(subjects), items["task"].n_unique(), read["chief"]["n"]) == (57, 57, 60)
    assert (
        read["chief"]["value"] == pytest.approx(items["value"].mean())
        and 0.1 < read["chief"]["value"] < 0.5
    )
    assert {*read["few_shot"].values()} == {2}


@pytest.mark.slow
@pytest.mark.model
def test_mmlu_pro_reads_a_folder_as_the_hub_has_it(tmp_path, roomy):
    subjects = sorted(
        file.stem.removeprefix("mmlu_pro_").replace("_", " ")
        for file in (OWN_TASKS / "mmlu_pro").glob("mmlu_pro_*.yaml")
    )
    draw = random.Random(0)
    for split, rows in (("test", 2), ("validation", 1)):
        asked = [
            {
                "question": choice(draw, at)["question"],
                "options": draw.sample(WORDS, 4),
                "answer": draw.choice("ABCD"),
                "cot_content": "A: Let's think step by step. It is there. The answer is (A).",
                "category": subject,
            }
            for subject in subjects
            for at in range(rows)
        ]
        file = tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        write_table(file, pl.DataFrame(asked))
    words = ["benchmark=mmlu_pro", f"benchmark.mmlu_pro.tasks={OWN_TASKS / 'mmlu_pro'}"]
    words += [f"benchmark.mmlu_pro.data={tmp_path / 'hub'}", "benchmark.mmlu_pro.few_shot=1"]
    words += ["benchmark.mmlu_pro.limit=1", "benchmark.mmlu_pro.max_new_tokens=16"]
    cfg = composed(*SMALL, "dtype=float32", *words).benchmark["mmlu_pro"]
    texts = ["So the answer is (A)." if at % 2 else "I do not know." for at in range(14)]
    write_json(tmp_path / "out/scratch/answers/generate_until-00000000.json", texts)
    found = benchmark.run(cfg, tmp_path / "out", model=roomy)
    read, items = found.read(), found.read_items().filter(metric=cfg.metric)
    assert (len(subjects), items["task"].n_unique(), read["chief"]["n"]) == (14, 14, 14)
    assert read["chief"]["value"] == pytest.approx(items["value"].mean())
    assert items["value"].is_in([0.0, 1.0]).all()


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_vllm_gives_the_choices_the_shares_that_transformers_gives_them(tmp_path):
    """lm-eval asks for the version of a package `vllm`, which a build for CPUs is not called."""
    model = tiny_model(tmp_path / "store" / "sft" / "c", context=1024, hidden=128)
    write_text(
        tmp_path / "name" / "vllm-0.32.0+cpu.dist-info" / "METADATA",
        "Name: vllm\nVersion: 0.32.0+cpu\n",
    )
    code = (
        "import sys; from pathlib import Path; from pipeline.config import BenchmarkConfig as"
        " Config\n"
        "from pipeline.artifacts import Model; from pipeline.stages import benchmark; root ="
        " Path(sys.argv[1])\n"
        "if __name__ == '__main__':\n"
        "    cfg = Config.model_validate_json((root / 'cfg.json').read_text())\n"
        "    benchmark.run(cfg, root / 'out', model=Model(Path(sys.argv[2])))"
    )
    shares = {}
    for engine in ("transformers", "vllm"):
        cfg = published(
            tmp_path / engine, "truthfulqa", f"backend@benchmark.truthfulqa.backend={engine}"
        )
        write_json(tmp_path / engine / "cfg.json", cfg.model_dump(mode="json"))
        write_text(tmp_path / "one.py", code)
        words = [sys.executable, str(tmp_path / "one.py"), str(tmp_path / engine), str(model.path)]
        paths = os.pathsep.join([str(HOUSE), str(tmp_path / "name")])
        subprocess.run(words, check=True, cwd=HOUSE, env={**os.environ, "PYTHONPATH": paths})
        shares[engine] = Metrics(tmp_path / engine / "out").read_items()["value"].to_list()
    assert shares["vllm"] == pytest.approx(shares["transformers"], abs=1e-3)
