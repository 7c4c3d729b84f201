"""Blocks that are chosen once: score= for evaluations too, backend= for all that samples."""

import pytest

from pipeline.config.compose import Arguments, compose
from pipeline.config.validation import SCORES
from pipeline.errors import UserError
from tests.support.house import HOUSE, composed

GIVEN = ["prompts.path=p.jsonl", "sft.model=./m"]
JUDGE = "score.scorers.pairwise.engine.model=judge"


def read_fault(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(Arguments.parse([*GIVEN, *words]))
    return str(caught.value)


def test_one_word_scores_training_and_evaluation_and_makes_the_pairs():
    cfg = composed(*GIVEN, "score=math", "score.scorers.math.column=solution")
    assert cfg.evaluate.score == cfg.score
    assert cfg.evaluate.score.scorers["math"].column == "solution"
    assert (cfg.pair.scorer, cfg.evaluate.scorer) == ("math", "math")


def test_of_several_scorers_the_first_makes_the_pairs():
    cfg = composed(*GIVEN, "score=[math,json]")
    assert list(cfg.evaluate.score.scorers) == ["math", "json"]
    assert (cfg.pair.scorer, cfg.evaluate.scorer) == ("math", "math")


def test_a_reward_model_is_loaded_or_trained_by_one_more_word():
    loaded = composed(*GIVEN, "score=reward", "reward.model=./rm")
    assert (loaded.reward.kind, loaded.pair.scorer) == ("checkpoint", "reward")
    assert composed(*GIVEN, "score=reward", "reward=train").reward.kind == "train"


def test_a_judge_that_compares_scores_evaluations_by_a_rubric():
    cfg = composed(*GIVEN, "score=pairwise", JUDGE)
    assert list(cfg.evaluate.score.scorers) == ["rubric"]
    assert cfg.evaluate.score.scorers["rubric"].engine.model == "judge"
    assert (cfg.pair.scorer, cfg.evaluate.scorer) == ("pairwise", "rubric")


def test_evaluation_adds_changes_and_leaves_out_scorers():
    cfg = composed(
        *GIVEN,
        "score=[math,length]",
        "+scorer@evaluate.score.scorers.gold=json",
        "evaluate.score.scorers.math.seconds=9",
        "evaluate.score.scorers.length=null",
    )
    assert list(cfg.evaluate.score.scorers) == ["math", "gold"]
    assert cfg.evaluate.score.scorers["math"].seconds == 9
    assert cfg.score.scorers["math"].seconds == 5


def test_an_ensemble_goes_with_its_member():
    words = ["+scorer@score.scorers.both=ensemble", "score.scorers.both.weights={pairwise: 1}"]
    cfg = composed(*GIVEN, "score=pairwise", JUDGE, *words)
    assert list(cfg.evaluate.score.scorers) == ["rubric"]


def test_a_scorer_of_another_kind_takes_no_knobs_over():
    cfg = composed(
        *GIVEN,
        "score=own",
        "+scorer@score.scorers.a=length",
        "+scorer@evaluate.score.scorers.a=json",
    )
    assert cfg.evaluate.score.scorers["a"].kind == "json"


def test_a_file_chosen_for_evaluations_inherits_nothing():
    cfg = composed(*GIVEN, "score=math", "score@evaluate.score=length", "evaluate.scorer=length")
    assert list(cfg.evaluate.score.scorers) == ["length"]


def test_one_backend_samples_everything_unless_one_is_mounted():
    cfg = composed(*GIVEN, "score=math", "backend=transformers", "backend.runtime.batch=7")
    for block in (cfg.sample.backend, cfg.evaluate.sample.backend):
        assert (block.kind, block.runtime.batch) == ("transformers", 7)
    mixed = composed(*GIVEN, "score=math", "backend@evaluate.sample.backend=transformers")
    assert (mixed.sample.backend.kind, mixed.evaluate.sample.backend.kind) == (
        "vllm",
        "transformers",
    )
    lower = composed(*GIVEN, "score=math", "sample.backend.runtime.memory=0.4")
    assert lower.sample.backend.runtime.memory == 0.4
    assert lower.evaluate.sample.backend.runtime.memory == 0.9


def test_adapter_chooses_what_is_trained_and_its_rate():
    cfg = composed(*GIVEN, "score=math", "adapter=lora", "train.adapter.rank=8")
    assert (cfg.train.adapter.kind, cfg.train.adapter.rank) == ("lora", 8)
    assert cfg.train.learning_rate == 5e-6
    text = read_fault("score=math", "train.adapter=lora")
    assert text.endswith("Type adapter=lora")
    assert "Type adapter=lora" in read_fault("score=math", "adapter@train.adapter=lora")


def test_every_scorer_that_one_word_chooses_is_offered():
    files = {file.stem for file in (HOUSE / "conf" / "score").glob("*.yaml")}
    assert {*SCORES.split(", "), "language"} == files - {"own", "rules"}


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["score=math", "score.scorers.math.seconds=x"], "score.scorers.math.seconds='x': "),
        (["score=math", "score.scorers.math.colum=x"], "score.scorers.math.colum is not a knob"),
        (["score=regex"], "score.scorers.regex.pattern has no value yet"),
        (["score=math", "backend.runtime.memory=2"], "backend.runtime.memory=2: "),
        (["score=pairwise"], "score.scorers.pairwise.engine.model has no value yet"),
        (
            ["score=math", "score.scorers.function.function=./f.py:f"],
            "score.scorers.function has knobs, and no scorer of this name is chosen",
        ),
        (
            ["score=math", "sample.pool.stronk.share=0.5"],
            "sample.pool.stronk has knobs, and no model of this name is chosen. Leave them out, or"
            " give +member@sample.pool.stronk=FILE",
        ),
        ([], "score.scorers is empty. Choose who scores: score=reward, rubric, "),
    ],
)
def test_a_fault_in_what_is_inherited_is_told_once_by_the_knob_that_was_typed(words, fault):
    text = read_fault(*words)
    assert fault in text
    assert len([line for line in text.splitlines() if not line.startswith("  ")]) == 1
