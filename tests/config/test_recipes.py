"""What recipes bring of their own: a chat template, a scorer; and what their heads promise."""

import re
from importlib.util import find_spec
from pathlib import Path

import jinja2
import pytest

from pipeline import scorers
from pipeline.scorers import Answer
from tests.support.house import HOUSE, SMALL, composed, fingerprints

RECIPES = sorted((HOUSE / "recipes").glob("*.yaml"))
OF_THE_FIELD = [path for path in RECIPES if "# Licences: " in path.read_text()]
HEAD = ("Hardware: ", "Licences: ", "Source: ", "ours and money")


@pytest.mark.parametrize("path", OF_THE_FIELD, ids=lambda path: path.stem)
def test_a_head_says_what_a_reader_pays_and_may_use(path):
    head = " ".join(
        line.removeprefix("# ")
        for line in path.read_text().splitlines()
        if line.startswith("#") and "@package" not in line
    )
    assert [words for words in HEAD if words not in head] == []


def test_every_recipe_is_in_the_table_of_the_docs():
    page = (HOUSE / "docs" / "recipes.md").read_text()
    named = set(re.findall(r"^\| `(\w+)`", page, re.M))
    assert named == {path.stem for path in RECIPES}
    assert len(OF_THE_FIELD) >= 16


def test_zephyr_s_template_ends_each_turn_and_asks_for_the_next():
    source = (HOUSE / "recipes" / "templates" / "zephyr.jinja").read_text()
    template = jinja2.Environment().from_string(source)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    told = "<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n"
    assert template.render(messages=turns, eos_token="</s>") == told
    asked = template.render(messages=turns[:1], eos_token="</s>", add_generation_prompt=True)
    assert asked == told[: len(asked)] == "<|user|>\nHi</s>\n<|assistant|>\n"


def test_course_week_s_scorer_reads_the_severity_of_the_prompt_s_row():
    cfg = composed("recipes=course_week").evaluate.score.scorers["severity"]
    scorer = scorers.open_scorer(cfg, None, "evaluate.score.scorers.severity")
    texts = {
        "right": "It leaks keys.\nSeverity: HIGH, since all can read them.",
        "wrong": "Severity: low",
        "unsaid": "This is of high severity: it leaks keys.",
    }
    prompt = [{"role": "user", "content": "How bad is it?"}]
    known = {"severity": "high"}
    answers = [Answer(name, "p", prompt, text, known) for name, text in texts.items()]
    try:
        scores = {score.sample_id: score.score for score in scorer.score(answers)}
    finally:
        scorer.close()
    assert scores == {"right": 1.0, "wrong": 0.0, "unsaid": 0.0}


def test_course_week_makes_about_500_pairs_of_200_prompts():
    cfg = composed("recipes=course_week")
    settings = cfg.sample.settings.values()
    assert sorted(one.temperature for one in settings) == [0.7, 1.2]
    assert all(one.n > 1 for one in settings)
    assert 500 <= 200 * cfg.pair.pairs_per_prompt <= 700
    assert cfg.prompts.split.test == 30 and "judge" in cfg.evaluate.duels


def test_dpo_beside_simpo_samples_and_scores_the_same_answers():
    text = (HOUSE / "recipes" / "simpo_llama3_armorm.yaml").read_text()
    command = re.search(r"strop run (recipes=simpo.*?)\n# Hardware", text, re.S)[1]
    words = re.sub(r"[\\#']", "", command).split()
    simpo, dpo = fingerprints("recipes=simpo_llama3_armorm"), fingerprints(*words)
    shared = {name for name, key in simpo.items() if dpo.get(name) == key}
    assert {"sample@1", "score@1", "pair@1"} <= shared
    assert "train@1" not in shared
    train = composed(*words).train
    assert (train.trainer, train.beta, train.learning_rate) == ("dpo", 0.01, 3e-7)


@pytest.mark.parametrize("name", ["gsm8k_cot", "ifeval_loose"])
def test_a_benchmark_s_figure_is_one_that_lm_eval_makes(name):
    cfg = composed(*SMALL, f"benchmark={name}").benchmark[name]
    root = Path(str(find_spec("lm_eval").origin)).parent / "tasks"
    files = [*root.glob("gsm8k/*.yaml"), *root.glob("ifeval/*.yaml")]
    lines = [{line.strip(" -") for line in file.read_text().splitlines()} for file in files]
    [task] = [each for each in lines if f"task: {cfg.task}" in each]
    metric, _, group = cfg.metric.partition(",")
    assert f"metric: {metric}" in task
    assert group == "none" or f"name: {group}" in task
