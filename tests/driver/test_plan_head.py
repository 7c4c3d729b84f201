"""The head of a plan: the settings that matter, in two lines."""

from pipeline.driver.plan_head import describe_head
from pipeline.plan import plan
from tests.support.house import SMALL, composed

GIVEN = ["prompts.path=asked.jsonl", "sft.model=./my-sft", "score=math"]


def read_head(*words: str) -> list[str]:
    cfg = composed(*words)
    return [*describe_head(cfg, plan(cfg).ancestors())]


def test_it_names_what_is_asked_who_scores_and_how_it_is_trained():
    words = ["backend=transformers", "adapter=lora", "train.beta=0.05", "rounds=2"]
    assert read_head(*GIVEN, *words, "sample.per_round=10", "prompts.split.test=held.jsonl") == [
        "model ./my-sft · prompts asked.jsonl (dev 300, test held.jsonl) · scorer math"
        " · backend transformers",
        "dpo (sigmoid), LoRA · β 0.05 · learning rate 5e-06 · 2 rounds",
    ]


def test_a_plan_that_stops_before_the_training_has_one_line():
    cfg = composed(*SMALL)
    steps = plan(cfg).ancestors()
    before = steps[: [step.stage for step in steps].index("train")]
    [line] = describe_head(cfg, before)
    assert line.startswith("model hub/model · prompts playground (dev ")
    assert [*describe_head(cfg, [step for step in steps if step.stage == "prompts"])] == []


def test_it_counts_seeds_and_takes_no_replicate_for_a_round():
    assert read_head(*SMALL, "seeds=3")[1].endswith(" · 1 round · 3 seeds")
