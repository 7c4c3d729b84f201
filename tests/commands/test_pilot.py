"""The pilot's arithmetic over the real plan: steps of `fixed + each × prompts` are extrapolated."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import hardware
from pipeline.artifacts import write_json
from pipeline.commands.pilot import __main__ as pilot
from pipeline.commands.pilot.__main__ import FEW, MANY, compose_one, lower_sizes
from pipeline.commands.pilot.estimate import estimate, price_gpus
from pipeline.commands.pilot.seen import (
    ROUND,
    MeasuredStep,
    count_prompts,
    count_sizes,
    measure_steps,
)
from pipeline.commands.pilot.words import format_lines
from pipeline.config import Config
from pipeline.driver.outline import prepare_plan, select_targets
from pipeline.errors import UserError
from pipeline.plan import plan
from tests.support.house import SMALL, composed

FIXED = {"sample": 30.0, "score": 1.0, "pair": 2.0, "reference": 5.0, "train": 10.0}
EACH = {"sample": 0.5, "score": 0.01, "pair": 0.02, "reference": 0.1, "train": 0.4}
ONCE = {"prompts": 3.0, "sft": 100.0}
REPORT = {
    "differences": [{"model": "round-1", "scorer": "rules", "n": 50, "detectable": 0.1}],
    "models": [{"name": "sft", "metrics": {"rules": {"low": 0.4, "high": 0.6, "n": 50}}}],
}
PUBLISHED = {
    "prompts": {"funnel.json": {"out": {"train": 2000, "dev": 200, "test": 300}}},
    "pair": {
        "funnel.json": {"prompts_in": 50, "ties": {"prompts": 6, "all_easy": 4, "all_hard": 2}}
    },
    "evaluate": {"report.json": REPORT},
}
WORDS = [*SMALL[:3], "sample.per_round=400", "rounds=2", "train_on=all", "prompts.split.test=300"]


def seconds(step, prompts: int) -> float:
    if step.stage in ONCE or step.stage == "evaluate":
        return ONCE.get(step.stage, 6.0)
    return FIXED[step.stage] + EACH[step.stage] * prompts


def pretend(cfg) -> None:
    """Every step of a pilot as if built: its manifest and what the estimate reads of it."""
    planned = prepare_plan(cfg, select_targets(plan(cfg), cfg.until))
    for step in sorted(planned.steps, key=lambda step: step.stage != "prompts"):
        path = planned.folder(step)
        for name, value in PUBLISHED.get(step.stage, {}).items():
            write_json(path / name, value)
        prompts = count_prompts(step, count_sizes(cfg, planned))
        cost = {"score": {"money": 0.01 * prompts}, "sample": {"engine_start_seconds": 4.0}}.get(
            step.stage, {}
        )
        size = 1000 if step.stage in ("sft", "train") else 10 * prompts
        files = [{"path": "x", "size": size, "sha256": ""}]
        write_json(
            path / "manifest.json",
            {"files": files, "seconds": seconds(step, prompts), "cost": cost},
        )


def piloted(tmp_path, *words: str) -> tuple[Config, Config, list[MeasuredStep]]:
    """The whole run, the larger pilot, and what both pilots measured."""
    words = *WORDS, f"store={tmp_path / 'store'}", f"runs={tmp_path / 'runs'}", *words
    whole = composed(*words)
    small, large = (composed(*words, *lower_sizes(whole, n)) for n in (FEW, MANY))
    small = small.model_copy(update={"until": "train@1"})
    pretend(small), pretend(large)
    return whole, large, [*measure_steps(small), *measure_steps(large)]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    whole, large, seen = piloted(tmp_path_factory.mktemp("pilot"))
    return whole, estimate(whole, large, seen, overhead=2.0)


def test_what_grows_with_prompts_is_extrapolated_and_what_does_not_is_not(told):
    whole, found = told
    planned = prepare_plan(whole, [plan(whole)])
    sizes = count_sizes(whole, planned)
    truth = sum(
        seconds(step, count_prompts(step, sizes))
        for step in planned.steps
        if step.stage != "evaluate"
    )
    report = 6.0 * 300 / 50  # one size alone: all of it is taken to grow
    assert 3600 * found["hours"] == pytest.approx(truth + report + 2.0 * len(planned.steps))
    most = 2.0 * len(planned.steps)
    for step in planned.steps:  # had all of it grown but the engine's measured start
        start = {"sample": 4.0, **ONCE}.get(step.stage, 0.0)
        most += start + (seconds(step, 50) - start) * count_prompts(step, sizes) / 50
    assert 3600 * found["hours_at_most"] == pytest.approx(most)


def test_a_round_that_trains_on_all_pairs_reads_those_of_every_round(told):
    _, found = told
    [train] = [row for row in found["stages"] if row["stage"] == "train"]
    assert train["steps"] == 2 and train["seconds"] == pytest.approx(2 * 10 + 0.4 * (400 + 800))


def test_disk_money_ties_and_what_can_be_detected(told):
    _, found = told
    # Two rounds, and the evals of sft, both rounds and the control.
    assert found["money"] == pytest.approx(0.01 * (2 * 400 + 4 * 300))
    # sample, score and pair of each round; four evals, one of them without KL, and the report.
    drawn, asked = 10 * 400 * (2 + 2 + 2), 10 * 300 * 12
    assert found["disk_bytes"] == 3 * 1000 + 10 + drawn + 10 * 400 * 2 + asked
    assert found["ties"] == {"of": 50, "prompts": 6, "all_easy": 4, "all_hard": 2}
    least, most = found["detectable"]["least"], found["detectable"]["most"]
    assert least == pytest.approx(0.1 * (50 / 300) ** 0.5)
    assert most == pytest.approx(2.8016 * 2**0.5 * 0.1 / 1.96 * (50 / 300) ** 0.5, rel=1e-4)
    shown = "\n".join(format_lines(found))
    assert "12% of prompts" in shown and "in rules with 300 " in shown
    json.dumps(found, allow_nan=False)


def test_a_later_wave_that_drew_nothing_makes_no_other_wave_free(tmp_path):
    whole, large, seen = piloted(tmp_path, "sample.resample_ties=[4]")
    later = [
        each for each in seen if (each.stage, each.kind, each.prompts) == ("score", ROUND, MANY)
    ][-1]
    seen[seen.index(later)] = replace(later, size=0, cost={"money": 0.0})
    assert estimate(whole, large, seen, 0.0)["money"] == pytest.approx(0.01 * (2 * 400 + 4 * 300))


def test_the_gpus_are_paid_for_every_hour_that_they_are_there(told, monkeypatch):
    whole = told[0].model_copy(update={"cost": told[0].cost.model_copy(update={"gpu_hour": 2.5})})
    monkeypatch.setattr(
        hardware, "list_gpus", lambda: [hardware.Gpu("NVIDIA H100", 80 << 30, 80 << 30, 9.0)] * 2
    )
    assert price_gpus(whole, hours=3.0) == 15 and price_gpus(told[0], hours=3.0) is None
    shown = "\n".join(format_lines({**told[1], "gpu_money": 15.0}))
    assert "20.00 for judges and servers · 15.00 for the GPUs of this machine" in shown
    monkeypatch.setattr(hardware, "list_gpus", list)
    assert price_gpus(whole, hours=3.0) is None


def test_a_pilot_changes_how_many_prompts_are_asked_and_nothing_else():
    whole = composed(*WORDS, "evaluate.sample.per_round=20")
    words = lower_sizes(whole, 50)
    assert words == [
        "sample.per_round=50",
        "evaluate.sample.per_round=20",
        "rounds=1",
        "runs=runs/pilot",
    ]
    small = composed(*WORDS, *words)
    assert (small.prompts, small.sft, small.train) == (whole.prompts, whole.sft, whole.train)


def test_a_pilot_is_of_one_whole_run():
    with pytest.raises(UserError, match="not a sweep"):
        compose_one(["recipes=sweep_smoke"])
    with pytest.raises(UserError, match="until=score: .* Leave until out"):
        compose_one(["recipes=smoke", "until=score"])


def test_of_the_smaller_one_only_what_it_built_is_measured(tmp_path, monkeypatch):
    """Where both have as many prompts, its report would be the larger one's."""
    monkeypatch.chdir(tmp_path)
    measured = []
    monkeypatch.setattr(pilot, "run_point", lambda cfg, folder=None: 0)
    monkeypatch.setattr(pilot, "measure_steps", lambda cfg: measured.append(cfg.until) or [])
    for name in ("estimate", "format_lines"):
        monkeypatch.setattr(pilot, name, lambda *_: [])
    monkeypatch.setattr(pilot, "measure_overhead", lambda *_: 0)
    assert pilot.run_pilot(WORDS) == 0
    assert measured == ["train@1", None]


def test_the_estimate_s_place_is_told_as_a_run_s_is(tmp_path, monkeypatch):
    """In the larger pilot's own folder, whatever runs/latest is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "elsewhere")
    write_json(tmp_path / "runs/pilot/latest/pilot.json", "mine")
    folders = []
    monkeypatch.setattr(pilot, "run_point", lambda cfg, folder=None: folders.append(folder) or 0)
    for name in ("measure_steps", "estimate", "format_lines"):
        monkeypatch.setattr(pilot, name, lambda *_: [])
    monkeypatch.setattr(pilot, "measure_overhead", lambda *_: 0)
    assert pilot.run_pilot(WORDS) == 0
    assert [path.parent for path in Path("runs").rglob("pilot.json")] == [
        Path("runs/pilot/latest"),
        folders[-1],
    ] and not folders[-1].is_absolute()
    assert json.loads((tmp_path / "runs/pilot/latest/pilot.json").read_text()) == "mine"
