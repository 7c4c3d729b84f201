"""How long a plan takes, by what the store has measured of the same model, backend and device."""

import json
import re

import pytest

from pipeline import hardware, store
from pipeline.artifacts import write_json
from pipeline.driver.outline import prepare_plan
from pipeline.plan import plan
from pipeline.preflight import durations
from pipeline.preflight.durations import Durations, TimeLeft
from pipeline.preflight.training_fits import TrainingFits
from tests.resources.test_training_fit import LLAMA_1B, shape
from tests.support.house import composed, describe_memory

PARAMETERS = shape(LLAMA_1B).parameters
DRAWN = {
    "tokens_per_second": 100.0,
    "mean_tokens": 50.0,
    "engine_start_seconds": 20.0,
    "parameters": PARAMETERS,
}


@pytest.fixture
def planned(card, tmp_path):
    card()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA_1B))
    given = [
        "prompts=playground",
        f"sft.model={model}",
        "sample.per_round=100",
        "evaluate.sample.per_round=30",
        "rounds=2",
    ]
    cfg = composed(
        *given, f"store={tmp_path / 'store'}", "sample.settings.draw.n=8", "dry_run=true"
    )
    return prepare_plan(cfg, [plan(cfg)])


def build(
    planned, step, cost: dict, seconds: float = 60.0, device: str | None = None, created: str = "1"
) -> None:
    inputs = {
        name: {"fingerprint": planned.fingerprint(source), "content": ""}
        for name, source, _ in step.edges()
    }
    made = {
        "config": step.config.model_dump(mode="json"),
        "inputs": inputs,
        "cost": cost,
        "seconds": seconds,
    }
    made |= {"stage": step.stage, "fingerprint": planned.fingerprint(step), "files": []}
    made |= {"created": created, "provenance": {"device": device or hardware.describe_device()}}
    write_json(planned.folder(step) / "manifest.json", made)


def steps_of(planned):
    return {f"{step.stage}@{step.label}": step for step in planned.steps}


def lines(planned) -> list[str]:
    to_do = [step for step in planned.steps if store.read_manifest(planned.folder(step)) is None]
    return list(durations_of(planned).describe(to_do))


def durations_of(planned) -> Durations:
    return Durations(planned, TrainingFits(planned))


def test_before_anything_is_measured_the_plan_says_when_it_will_be_known(planned):
    answers, line = lines(planned)
    # 100 prompts × 8 in each of two rounds; an answer and a KL sample to each of 30 prompts of
    # three models, and an answer of the control.
    assert answers == (
        "  answers sample of evaluations 210 (4 steps) · sample 1,600 (2 steps):"
        f" at most {(210 + 1600) * 1024:,} tokens together"
    )
    for kind in (
        "sample (2 steps)",
        "sample of evaluations (",
        "reference (2 steps)",
        "reference of evaluations (",
        "train (2 steps)",
    ):
        assert kind in line
    assert "first sampled shard" in line and "strop pilot" in line and "together" not in line


def test_online_training_counts_as_sampling_and_answers_of_a_file_do_not(card):
    card()
    words = ["recipes=grpo_vs_dpo", "train_in_round.2.epochs=0.5", "dry_run=true"]
    published = ["+baseline@evaluate.baselines.gpt=answers", "evaluate.baselines.gpt.file=a.jsonl"]
    shown = []
    for more in ([], published):
        cfg = composed(*words, *more)
        steps = prepare_plan(cfg, [plan(cfg)]).steps if not more else plan(cfg).ancestors()
        planned = prepare_plan(composed(*words), [plan(composed(*words))])
        shown.append(next(Durations(planned, TrainingFits(planned)).describe(steps)))
    assert "train 1,600 (1 step)" in shown[0] and "sample 3,200 (" in shown[0]
    assert shown[0] == shown[1]


def test_prompts_of_a_file_are_counted_before_they_are_built(card, tmp_path):
    card()
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(f'{{"prompt": "What is {n} + {n}?"}}\n' for n in range(60)))
    words = [f"prompts.path={asked}", "prompts.split.dev=10", "prompts.split.test=20"]
    words += ["sft.model=hub/model", f"sft.revision={'0' * 40}", "score=regex"]
    words += ["score.scorers.regex.pattern=x", f"store={tmp_path / 'store'}"]
    cfg = composed(*words, "limits.completion=100", "dry_run=true")
    planned = prepare_plan(cfg, [plan(cfg)])
    answers, _ = lines(planned)
    assert "sample 240 (30 prompts × 8)" in answers and "sample of evaluations 100 " in answers
    assert f"at most {340 * 100:,} tokens together" in answers
    assert any("at most 1 step of 64 · 30 rows" in line for line in describe_memory(planned))
    asked.write_text("no JSON\n")
    answers, _ = lines(prepare_plan(cfg, [plan(cfg)]))
    assert answers.endswith("tokens together, and 1 step that cannot be counted yet")


def test_a_measured_draw_tells_the_others_and_the_exams(planned):
    steps = steps_of(planned)
    build(planned, steps["sample@1"], DRAWN)
    found = durations_of(planned)
    # 100 prompts × 8 answers of 50 tokens at 100 tokens a second, after an engine's start.
    assert found.estimate(steps["sample@2"]).seconds == 20 + 100 * 8 * 50 / 100
    evaluation = steps["sample@test round-1"]
    each = sum(setting.n for setting in evaluation.config.settings.values())
    assert found.estimate(evaluation).seconds == 20 + 30 * each * 50 / 100
    assert found.estimate(steps["score@2"]) is None
    told, unknown = lines(planned)
    for kind in ("sample", "sample of evaluations"):
        assert re.search(rf"\b{kind} \d+\.\d min \(\d+ steps?\)", told)
    assert (
        "together, scaled from what was measured here" in told
        and "sample" not in unknown.partition("is not known")[0]
        and "train (2 steps)" in unknown
    )


@pytest.mark.parametrize(
    "change",
    [
        {"device": "another machine"},
        {"cost": {**DRAWN, "parameters": 7}},
        {"cost": {name: figure for name, figure in DRAWN.items() if name != "tokens_per_second"}},
    ],
    ids=["device", "model", "no speed"],
)
def test_what_was_measured_of_something_else_is_not_used(planned, change):
    steps = steps_of(planned)
    build(planned, steps["sample@1"], **{"cost": DRAWN, **change})
    assert durations_of(planned).estimate(steps["sample@2"]) is None


def test_another_backend_has_its_own_speed(planned):
    steps = steps_of(planned)
    build(planned, steps["sample@1"], DRAWN)
    path = planned.folder(steps["sample@1"]) / "manifest.json"
    made = json.loads(path.read_text())
    write_json(
        path,
        {
            **made,
            "config": {**made["config"], "backend": {"kind": "transformers", "dtype": "bfloat16"}},
        },
    )
    assert durations_of(planned).estimate(steps["sample@2"]) is None


def test_the_newest_measure_counts(planned):
    steps = steps_of(planned)
    build(planned, steps["sample@1"], {**DRAWN, "tokens_per_second": 1.0}, created="2026-01-01")
    build(
        planned,
        steps["sample@test sft"],
        {**DRAWN, "tokens_per_second": 10.0},
        created="2026-01-02",
    )
    build(
        planned,
        steps["sample@test round-1"],
        {**DRAWN, "tokens_per_second": 200.0},
        created="2026-01-03",
    )
    evaluation = steps["sample@test round-2"]
    each = sum(setting.n for setting in evaluation.config.settings.values())
    assert durations_of(planned).estimate(evaluation).seconds == 20 + 30 * each * 50 / 200


def test_references_and_marks_are_told_by_rows(planned):
    steps = steps_of(planned)
    build(
        planned,
        steps["reference@1"],
        {"rows": 100, "tokens": 1, "parameters": PARAMETERS},
        seconds=50,
    )
    build(planned, steps["score@1"], {"answers": 800, "scores": 800}, seconds=40)
    found = durations_of(planned)
    assert (
        found.estimate(steps["reference@2"]).seconds
        == 2 * 100 * steps["pair@2"].config.pairs_per_prompt * 50 / 100
    )
    assert found.estimate(steps["score@2"]).seconds == 40


def test_a_training_s_time_has_its_looks_in_it(planned):
    steps = steps_of(planned)
    cfg = steps["train@1"].config
    rows = 100 * steps["pair@2"].config.pairs_per_prompt
    taken = 2 + 100 // cfg.batch  # steps, and so evaluations with eval_every=1
    assert cfg.eval_every > taken, "one evaluation before the first step, and one at the end"
    cost = {"tokens": 1000, "steps": 4, "step_seconds": 25.0, "evaluation_seconds": 30.0}
    cost |= {"loop_seconds": 160.0, "phases": {"load": 15.0, "work": 185.0}}
    cost["pairs"] = 1000 / cfg.epochs / 20  # of 20 tokens each
    # An earlier attempt was killed after 300 s. In the last one 1000 tokens took 100 s, evaluations
    # 60 s, and opening and saving 40 s, which more tokens do not lengthen.
    build(planned, steps["train@1"], {**cost, "parameters": PARAMETERS}, seconds=500)
    assert durations_of(planned).estimate(steps["train@2"]).seconds == pytest.approx(
        rows * cfg.epochs * 20 / 10 + 60 + 40, rel=1e-6
    )
    shown = describe_memory(planned)
    assert any("as measured before, of it 1.0 min in 2 evaluations" in line for line in shown)


def test_the_first_shard_of_a_draw_that_runs_tells_what_follows(planned, monkeypatch):
    """Nothing is published yet: the running step's own figures are read."""
    steps = steps_of(planned)
    monkeypatch.setattr(durations, "REFRESH_SECONDS", 0.0)
    at = planned.steps.index(steps["sample@1"])
    rest = TimeLeft(planned, planned.steps[at:])
    assert rest.describe() == ""
    work = store.partial_folder(planned.folder(steps["sample@1"]))
    config = steps["sample@1"].config.model_dump(mode="json")
    write_json(
        work / "step.json", {"config": config, "device": hardware.describe_device(), "inputs": {}}
    )
    write_json(work / "cost.json", {"parameters": PARAMETERS})
    assert rest.describe() == ""
    write_json(work / "cost.json", DRAWN)
    assert re.fullmatch(
        r" · then about \d+\.\d min for \d+ steps, and \d+ steps of unknown time", rest.describe()
    )


def test_where_time_was_spent_foretells_where_it_will_be(planned):
    steps = steps_of(planned)
    phases = {"start": 1.0, "load": 19.0, "work": 60.0, "write": 0.0, "wait": 0.0}
    build(planned, steps["sample@1"], {**DRAWN, "phases": phases})
    [sample] = [step for name, step in steps.items() if name == "sample@2"]
    found = durations_of(planned).estimate(sample)
    assert found.split() == phases | {"work": found.seconds - 20.0}
    [line] = [line for line in lines(planned) if line.startswith("    of which ")]
    parts = line.removeprefix("    of which ").split(" · ")
    assert [part.split()[0] for part in parts] == [*phases]
