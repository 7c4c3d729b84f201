"""strop new: what is typed on a terminal becomes a recipe that composes and plans."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import hardware
from pipeline.commands.new import __main__ as new
from pipeline.commands.new import questions
from pipeline.commands.new.recipe import MAX_LINES, write_recipe
from pipeline.commands.pilot.__main__ import FEW, MANY
from pipeline.config.compose import Arguments, compose
from pipeline.data.prompts import read_prompts
from pipeline.errors import describe_place
from pipeline.plan import plan
from pipeline.resources.model_shape import GIB
from tests.support.house import HOUSE

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 1024,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(300)]
    Path("asked.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("few.jsonl").write_text('{"prompt": "Who?"}\n')
    Path("my_scorer.py").write_text("def score(completions, **columns): ...\n")
    Path("xstest.csv").write_text("prompt,label\nHow?,safe\nKill?,unsafe\n")
    for name, template in (("model", "{{ messages }}"), ("bare", None)):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(LLAMA))
        settings = {"chat_template": template} if template else {}
        Path(name, "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def type_on_a_terminal(*lines: str, place: str = "") -> tuple[int, str]:
    """Exit code, and all that the terminal shows."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pipeline", "new", *([place] if place else [])]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as child:
        os.close(theirs)
        os.write(ours, "".join(f"{line}\n" for line in lines).encode() + b"\x04")
        shown = b"".join(iter(lambda: read_some(ours), b""))
    os.close(ours)
    return child.returncode, shown.decode().replace("\r\n", "\n")


def test_ctrl_c_says_that_nothing_was_written(here):
    command = [sys.executable, "-m", "pipeline", "new"]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=environment, text=True) as child:
        shown = child.stdout.read(2)  # the first question is asked
        child.send_signal(signal.SIGINT)
        said = child.stderr.read()
    assert shown.strip() and said == "Interrupted (SIGINT). Nothing was written.\n"
    assert child.returncode == 75 and not Path("my").exists()


def read_some(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux ends a terminal whose other side is closed
        return b""


def read_recipe(name: str = "mine") -> dict:
    text = Path("my", "recipes", f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= MAX_LINES
    return yaml.safe_load(text)


def test_five_answers_become_a_recipe_that_plans(here):
    code, shown = type_on_a_terminal("./model", "asked.jsonl", "math", "1x24g", "gsm8k")
    assert code == 0
    assert "8,030M parameters, context 1024" in shown
    assert "300 prompts; columns besides: answer. 37 are held out" in shown
    recipe = read_recipe()
    assert {"override /hardware": "1x24g"} in recipe["defaults"]
    assert recipe["prompts"]["split"] == {"dev": 37, "test": 100}
    [cfg], _ = compose(Arguments.parse(["--config-dir", "my", "recipes=mine"]))
    assert (cfg.pair.scorer, cfg.train.adapter.kind) == ("math", "qlora")
    assert (cfg.limits.prompt, cfg.evaluate.retention) == (512, {"gsm8k": 0.02})
    assert plan(cfg).stage == "evaluate"
    assert "strop plan --config-dir my recipes=mine" in shown


def test_an_empty_line_takes_what_is_offered(here):
    code, shown = type_on_a_terminal("owner/model-1.5B", "", "", "", "")
    assert code == 0 and "Enter: ifeval" in shown
    [cfg], _ = compose(Arguments.parse(["--config-dir", "my", "recipes=mine"]))
    assert (cfg.prompts.kind, cfg.pair.scorer) == ("instructions", "ifeval")


def write_rows(file: str, *names: str, count: int = 300) -> None:
    rows = [{name: f"{name} {n}: what is it?" for name in names} for n in range(count)]
    Path(file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_file_without_a_known_column_is_asked_for_its_own(here):
    write_rows("odd.jsonl", "nr", "task")
    answers = ["odd.jsonl", "", "tusk", "task"]
    code, shown = type_on_a_terminal("./model", *answers, "regex x", "", "")
    assert code == 0, shown
    assert shown.count("odd.jsonl: which of its columns is the prompt? nr, task") == 1
    assert "it has no column (nothing)" in shown
    assert "it has no column tusk, and there is no such file. Did you mean task?" in shown
    assert "300 prompts from the column task; columns besides: nr. 37 are held out" in shown
    [cfg], _ = compose(Arguments.parse(["--config-dir", "my", "recipes=mine"]))
    assert (cfg.prompts.shape, cfg.prompts.columns) == ("columns", {"prompt": "task"})
    [first, *_] = read_prompts(cfg.prompts.prompt_rows, "prompts").rows["prompt"].to_list()
    assert first == [{"role": "user", "content": "task 0: what is it?"}]


def test_a_column_with_the_name_of_a_file_can_be_chosen(here):
    write_rows("odd.jsonl", "nr", "task")
    Path("task").mkdir()
    code, shown = type_on_a_terminal("./model", "odd.jsonl", "task", "regex x", "", "")
    assert code == 0 and "300 prompts from the column task" in shown


def test_a_length_is_taken_with_its_bounds(here):
    code, shown = type_on_a_terminal("./model", "asked.jsonl", "length 20-100", "", "")
    assert code == 0, shown
    [cfg], _ = compose(Arguments.parse(["--config-dir", "my", "recipes=mine"]))
    scorer = cfg.score.scorers["length"]
    assert (scorer.unit, scorer.min, scorer.max) == ("words", 20, 100)


def test_while_a_column_is_asked_for_another_file_or_data_set_can_be_given(here):
    write_rows("odd.jsonl", "nr", "task")
    for answer in ("asked.jsonl", "owner/prompts"):
        Path("my/recipes/mine.yaml").unlink(missing_ok=True)
        code, shown = type_on_a_terminal("./model", "odd.jsonl", answer, "regex x", "", "")
        assert code == 0 and "which of its columns" in shown
        [cfg], _ = compose(Arguments.parse(["--config-dir", "my", "recipes=mine"]))
        assert answer in (getattr(cfg.prompts, "path", ""), getattr(cfg.prompts, "dataset", ""))
        assert cfg.prompts.shape == "auto"


def test_a_column_of_another_name_that_is_taken_is_named(here):
    write_rows("asks.jsonl", "question", "topic")
    code, shown = type_on_a_terminal("./model", "asks.jsonl", "regex x", "", "")
    assert code == 0 and "300 prompts from the column question; columns besides: topic." in shown


def compose_answers(*answers: str):
    """The config of a recipe, asked for within this process."""
    file = Path("my/recipes/mine.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(write_recipe(new.ask_questions(iter(answers)), file))
    read_recipe()
    [cfg], _ = compose(Arguments.parse(["--config-dir", "my", "recipes=mine"]))
    return cfg


@pytest.fixture
def no_gpu(here, monkeypatch):
    monkeypatch.setattr(hardware, "list_gpus", list)


@pytest.mark.parametrize("prompts", ["asked.jsonl", "", "owner/prompts"])
def test_without_a_gpu_few_and_short_answers_are_sampled(no_gpu, capsys, prompts):
    scorer = "" if not prompts else "regex x"
    cfg = compose_answers("owner/model-135M", prompts, scorer, "", "")
    draw, test = cfg.sample.settings["draw"], cfg.prompts.split.test
    asked = cfg.sample.per_round or 300 - cfg.prompts.split.dev - test
    evaluated = test * (2 + 2 + 1)  # an answer and a KL sample of both models; and the control
    tokens = (asked * draw.n + evaluated) * cfg.limits.completion
    assert tokens <= 170_000, "as docs/start.md and the comment in questions.py say"
    piloted = (FEW + MANY) * draw.n + min(MANY, test) * (2 + 2 + 1)
    assert piloted * cfg.limits.completion <= 63_000, "as docs/start.md says"
    assert (cfg.dtype, cfg.train.batch, cfg.train.adapter.kind) == ("float32", 16, "lora")
    assert not cfg.train.explain_few_steps(asked // cfg.train.batch)
    shown = capsys.readouterr().out
    assert f"So {asked} prompts get 4 answers of at most 128 tokens, and {test} prompts" in shown
    assert (cfg.sample.per_round is None) == (prompts == "asked.jsonl")


def test_a_gpu_samples_as_much_as_by_default(no_gpu):
    cfg = compose_answers("owner/model-135M", "", "", "1x24g", "")
    assert (cfg.limits.completion, cfg.sample.per_round, cfg.train.batch) == (1024, None, 64)
    assert cfg.train.adapter.kind == "full" and cfg.prompts.split.test == 300


@pytest.mark.parametrize(
    ("model", "hardware_class", "rate"),
    [
        ("owner/model-135M", "", 1e-4),
        ("owner/model-135M", "1x24g", 1e-5),
        ("owner/model-1.5B", "", 5e-6),
        ("owner/model-1B", "1x24g", 5e-7),
        ("owner/model", "", 5e-6),
    ],
)
def test_a_small_model_gets_a_higher_rate_that_counts_as_typical(
    no_gpu, model, hardware_class, rate
):
    train = compose_answers(model, "", "", hardware_class, "").train
    assert (train.learning_rate, train.runtime.typical_learning_rate) == (rate, rate)


def test_where_vllm_is_not_installed_transformers_samples(no_gpu, monkeypatch):
    monkeypatch.setattr(questions, "find_spec", lambda name: None)
    assert compose_answers("owner/model", "", "", "", "").sample.backend.kind == "transformers"
    assert compose_answers("owner/model", "", "", "1x24g", "").sample.backend.kind == "vllm"


def test_a_short_context_stays_within_it_without_a_gpu(no_gpu):
    config = {**LLAMA, "max_position_embeddings": 200}
    Path("model/config.json").write_text(json.dumps(config))
    limits = compose_answers("./model", "", "", "", "").limits
    assert (limits.prompt, limits.completion) == (100, 100)


def test_a_file_whose_name_is_near_is_named(here):
    code, shown = type_on_a_terminal("./model", "askd.jsonl", "asked.jsonl", "regex x", "", "")
    assert code == 0
    assert f"(looked for {here}/askd.jsonl; there is asked.jsonl)" in shown
    Path("dangling.jsonl").symlink_to("nowhere")
    assert describe_place("dangling.jsonl") == f" (looked for {here}/dangling.jsonl)"
    assert describe_place(f"/{'x' * 300}") == ""


NONSENSE = [
    ["", "no such", "./typo", "./bare", "./model"],
    ["nowhere.jsonl", "few.jsonl", "asked.jsonl"],
    ["", "mathematics", "code", "math answers", "reward", "json 5", "length 50", "regex [",
     "function my_scorer.py", "./my_scorer.py:mark", "./my_scorer.py:score"],
    ["3x900g", "8x80g"],
    ["gsm9k", "safety", "safety=none.csv", "humaneval", "safety=xstest.csv gsm8k"],
]  # fmt: skip


def test_nonsense_is_answered_and_asked_again(here):
    lines = [line for lines in NONSENSE for line in lines if line or lines is NONSENSE[0]]
    code, shown = type_on_a_terminal(*lines)
    assert code == 0 and "Traceback" not in shown
    for words in (
        "nothing: no such folder. Give",
        f"nowhere.jsonl: no such file (looked for {here}/nowhere.jsonl)",
        "bare: it has no chat template",
        "few.jsonl: it has 1 prompts. Give 60 or more",
        "mathematics: no scorer. ",
        "code reads the column tests, which the prompts lack",
        "math reads the column answers, which the prompts lack. Did you mean answer?",
        f"./typo: no such folder (looked for {here}/typo)",
        "reward needs a reward model",
        "json takes nothing here",
        "50: expected the fewest and the most words, as length 20-100",
        "[: not a regular expression",
        "my_scorer.py: expected FILE:NAME of a function",
        "has no function mark. ",
        "3x900g: no class of machines",
        "gsm9k: no benchmark. Did you mean gsm8k?",
        f"safety=none.csv: no such file (looked for {here}/none.csv)",
        "humaneval runs the model's code",
    ):
        assert words in shown, words
    [cfg], _ = compose(Arguments.parse(["--config-dir", "my", "recipes=mine"]))
    assert cfg.score.scorers["function"].function == "./my_scorer.py:score"
    assert set(cfg.evaluate.retention) == {"safety", "gsm8k"}
    assert cfg.train.adapter.kind == "full"  # eight GPUs of 80 GB hold 8B


def test_an_end_of_input_writes_nothing(here):
    code, shown = type_on_a_terminal("./model", "asked.jsonl")
    assert code == 2 and "the answers ended before the last question" in shown
    assert not Path("my").exists()


def test_a_recipe_is_never_replaced_and_stands_where_it_is_found(here, capsys):
    Path("my/recipes").mkdir(parents=True)
    Path("my/recipes/mine.yaml").write_text("kept")
    assert new.main([]) == 2 and "it exists. Nothing was written" in capsys.readouterr().err
    assert new.main(["elsewhere/mine.yaml"]) == 2
    assert "Type strop new my/recipes/NAME.yaml" in capsys.readouterr().err
    assert Path("my/recipes/mine.yaml").read_text() == "kept"


@pytest.mark.parametrize(
    ("parameters", "gpus", "largest", "adapter"),
    [
        (135e6, 0, 16 * GIB, "lora"),
        (1e9, 24 * GIB, 24 * GIB, "full"),
        (7e9, 24 * GIB, 24 * GIB, "lora"),
        (14e9, 24 * GIB, 24 * GIB, "qlora"),
        (8e9, 80 * GIB, 80 * GIB, "lora"),
        (None, 80 * GIB, 80 * GIB, "lora"),
    ],
)
def test_what_is_trained_follows_the_size_and_the_memory(parameters, gpus, largest, adapter):
    assert questions._choose_adapter(parameters, gpus, largest) == adapter


def test_every_scorer_and_benchmark_that_is_offered_is_a_file():
    assert all((HOUSE / "conf" / "score" / f"{name}.yaml").is_file() for name in questions.SCORERS)
    for name in ("math", "code"):
        scorer = yaml.safe_load((HOUSE / "conf" / "scorer" / f"{name}.yaml").read_text())
        assert scorer["column"] == questions.COLUMNS[name]
    assert {"ifeval", "mmlu_pro", "unseen_constraints"} <= set(questions.list_benchmarks())
    assert not re.search("humaneval|mbpp|none|task", " ".join(questions.list_benchmarks()))
