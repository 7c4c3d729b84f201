"""bench/gpu.sh: what is left by a crash, a hang and the end of the time; the page; a toy run."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.gpu import run
from bench.gpu.lines import read_lines
from bench.gpu.run import Check
from tests.support.house import HOUSE

CARD = "1 x NVIDIA H200"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_page", HOUSE / "docs" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ── the order, the limits and the lines ───────────────────────────────────────────────────────────


def make_check(end: str, least: int = 1, most: int = 60) -> Check:
    return Check(end, ("tests.support.gpu_checks", end), least, most)


@pytest.mark.long
def test_a_check_that_fails_leaves_its_lines_and_the_others(tmp_path, capsys):
    ends = [make_check("crash"), make_check("kill"), make_check("hang", most=5), make_check("well")]
    lines = run.run_checks([*ends, make_check("late", least=900)], tmp_path / "gpu.jsonl", 60)
    assert lines == read_lines(tmp_path / "gpu.jsonl")
    found = {line["check"]: line["values"] for line in lines}
    assert [*found] == [
        *("before crash", "crash", "before kill", "kill", "before hang", "hang"),
        *("before well", "late"),
    ]
    assert found["crash"] == {"holds": False, "failed": "exit code 1: the cause"}
    assert found["kill"]["failed"].startswith("killed by signal 9")
    assert found["hang"]["failed"] == "not finished within 5 s"
    assert re.fullmatch(r"\d+ s were left, and it needs 900", found["late"]["skipped"])
    assert {*lines[0]} == {"check", "values", "seconds", "card", "versions", "date"}
    assert "late, 0.0 s  skipped: " in capsys.readouterr().out


@pytest.mark.long
def test_a_check_that_the_time_for_all_cuts_short_is_no_failure(tmp_path):
    lines = run.run_checks([make_check("hang")], tmp_path / "gpu.jsonl", 5)
    assert [line["check"] for line in lines] == ["before hang", "hang"]
    assert lines[1]["values"] == {"skipped": "cut after 5 s, when the time for all was up"}


@pytest.mark.parametrize(("end", "code"), [("well", 0), ("crash", 1)])
@pytest.mark.long
def test_the_exit_code_says_whether_all_held(tmp_path, monkeypatch, end, code):
    monkeypatch.setattr(run, "CHECKS", [make_check(end), make_check("hang")])
    assert run.main(tmp_path / "gpu.jsonl", 60, [end]) == code


def test_a_package_that_is_missing_is_named_before_anything_is_measured(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "PACKAGES", ("json", "no_such_package"))
    assert run.main(tmp_path / "gpu.jsonl", 60, []) == 2
    assert "no_such_package: not installed" in capsys.readouterr().err
    assert not (tmp_path / "gpu.jsonl").exists()


def test_the_checks_fit_into_the_time_and_their_modules_exist():
    script = (HOUSE / "bench" / "gpu.sh").read_text()
    assert int(re.search(r"2:-(\d+)}", script)[1]) == run.USUAL < 600
    assert sum(check.least for check in run.CHECKS) <= run.USUAL
    assert all(importlib.util.find_spec(check.words[0]) for check in run.CHECKS)
    assert all(check.least < check.most for check in run.CHECKS)


def test_each_wheel_has_one_version_in_the_lock():
    script = (HOUSE / "bench" / "gpu_wheels.sh").read_text()
    lock = (HOUSE / "requirements" / "gpu.txt").read_text()
    names = " ".join(re.findall(r'^ +\[\d\]="([^"]+)"', script, re.M)).split()
    assert {"polars", "bitsandbytes", "trl", "datasets"} < {*names}
    pins = [re.findall(rf"^{re.escape(name)}==\S+(.)", lock, re.M) for name in names]
    assert [name for name, found in zip(names, pins, strict=True) if len(found) != 1] == []


# ── the page ──────────────────────────────────────────────────────────────────────────────────────


def make_line(check: str, card: str = CARD, **values: Any) -> dict[str, Any]:
    versions = {"torch": "2.14.0", "trl": "1.16.0"}
    rest = {"seconds": 12.3, "card": card, "versions": versions, "date": "2026-11-29T20:00:00"}
    return {"check": check, "values": values, **rest}


def make_lines() -> list[dict[str, Any]]:
    memory = {"parameters": 1235814400, "rows": 4, "longest": 1024, "reserved": 30.5}
    sides = "trl", "precomputed", "lengths", "defaults"
    rounds = [
        {
            "round": number,
            "parameters": 1235814400,
            "tokens": 100000,
            "tokens_per_second": dict(
                zip(sides, (10000, 15000, 20000 + number, 25000), strict=True)
            ),
            "mfu": dict(zip(sides, (0.075, 0.112, 0.15, 0.19), strict=True)),
            "time_over_trl": dict(zip(sides, (1.0, 0.667, 0.5, 0.4), strict=True)),
            "greatest_loss_difference": {"precomputed": 0.0004, "lengths": 0.0123},
        }
        for number in (1, 2, 3)
    ]
    resumed = {"killed_after": 9, "steps": 24, "resumed_at": 8, "greatest_loss_difference": 0.001}
    return [
        make_line("test", name="a training learns", holds=True),
        make_line("test", name="sdpa gives what flash gives", skipped="no flash-attn"),
        make_line("test", name="it is halved", holds=False, failed="assert 64 in (8, 16, 32)"),
        make_line(
            "memory of medium, lora", **memory, estimated=20.0, measured=19.5, ratio=1.026,
            holds=True,
        ),
        make_line(
            "memory of medium, full", **memory, estimated=20.0, measured=30.0, ratio=0.667,
            holds=False,
        ),
        *(make_line("speed", **values) for values in rounds),
        make_line("kill and resume", **resumed, weights_gap=0.01, holds=True),
        make_line(
            "whole run", seconds={"sft": 21.4, "train": 9.0}, sampled_tokens_per_second=1234.5,
            holds=True,
        ),
        make_line("memory of large", skipped="60 s were left, and it needs 80"),
    ]  # fmt: skip


def test_the_page_shows_each_line(page):
    text = page.render_page(make_lines())
    assert f"Measured on {CARD}, 2026-11-29." in text and page.NONE_YET not in text
    for row in (
        "| a training learns | 12 |",
        "| 1.24B | lora | 4 × 1024 | 20.00 | 19.50 | 30.50 | 1.03 |",
        "| 1.24B | full | 4 × 1024 | 20.00 | 30.00 | 30.50 | **0.67** |",
        "| plain TRL | 10,000 | 7.5% | 1.00 (1.00 to 1.00) |",
        "| and batches of similar length | 20,002 | 15.0% | 0.50 (0.50 to 0.50) |",
        "| sft | 21 |",
        "| sdpa gives what flash gives | skipped | no flash-attn |",
        "| it is halved | failed | assert 64 in (8, 16, 32) |",
        "| memory of large | skipped | 60 s were left, and it needs 80 |",
    ):
        assert row in text.splitlines()
    assert "differs from TRL's by more than 0.012" in text
    assert "Killed after step 9 of 24, resumed at step 8." in text
    assert "Versions: torch 2.14.0, trl 1.16.0." in text


def test_the_page_is_made_of_the_lines_that_are_kept(page):
    lines = page.read_lines(page.LINES)
    assert page.PAGE.read_text() == page.render_page(lines), "type python3 docs/gpu.py"
    assert lines or page.NONE_YET in page.PAGE.read_text()


@pytest.mark.parametrize("cards", [["2 cores of x86_64"], [CARD, "1 x NVIDIA L4"], []])
def test_lines_of_a_cpu_or_of_two_cards_make_no_page(page, tmp_path, cards):
    file = tmp_path / "gpu.jsonl"
    file.write_text("".join(json.dumps(make_line("speed", card)) + "\n" for card in cards))
    with pytest.raises(SystemExit, match="one GPU's are expected"):
        page.main([str(file)])


# ── the whole of it ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.timeout(1900)
def test_the_script_runs_on_a_cpu_at_toy_size(tmp_path, page):
    """Everything that needs no GPU holds, and the page takes the lines."""
    file = tmp_path / "gpu.jsonl"
    shown = subprocess.run(
        ["bash", str(HOUSE / "bench" / "gpu.sh"), str(file), "1800"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    logs = "\n".join(log.read_text() for log in sorted(Path(tmp_path).glob("gpu.*.log")))
    assert shown.returncode == 0, shown.stdout + shown.stderr + logs
    lines = read_lines(file)
    held = {line["check"] for line in lines if line["values"].get("holds")}
    sizes = {f"memory of {size}, {kind}" for size in SIZES for kind in ("lora", "qlora", "full")}
    assert held == {*sizes, "test", "kill and resume", "whole run"}
    [speed] = [line["values"] for line in lines if line["check"] == "speed"]
    assert max(speed["greatest_loss_difference"].values()) < 1e-4
    [resumed] = [line["values"] for line in lines if line["check"] == "kill and resume"]
    assert resumed["weights_gap"] == 0 and 0 < resumed["resumed_at"] < resumed["steps"]
    skipped = [line["values"]["name"] for line in lines if "skipped" in line["values"]]
    assert len(skipped) == 7, "flash attention, kernels, and a GPU's memory and float32"
    assert "time over TRL's" in page.render_page(lines)


SIZES = "small", "medium", "large"
