"""runs/index.html: every run with its state, figures and links; what cannot be read is named."""

import json
import re
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import pytest

from pipeline.artifacts import write_json, write_text
from pipeline.driver import run_index
from pipeline.driver.ledger import FAILED_SIGN
from pipeline.driver.run_index import list_runs, refresh_index, write_index
from pipeline.driver.run_record import LEASE, RunEnd, read_state, record_run
from pipeline.errors import UserError
from pipeline.report.render.index_page import read_figures, render_index
from pipeline.resources import leases
from tests.stages.test_evaluate import Run, scored
from tests.support.house import SMALL, Toys

KL = [(f"p{i:03d}", -10.0, -10.6) for i in range(60)]


def make_run(runs: Path, name: str, **record) -> Path:
    """A run's folder as a run leaves it before its first step has ended."""
    run = runs / name
    write_json(run / "plan.json", {"a" * 12: "sft"})
    write_text(run / "config.yaml", "# cd x && strop run recipes=mine train.beta=0.3 store=s\n")
    (run / "logs").mkdir()
    if record:
        write_json(run / "run.json", {"started": "2026-11-02 10:00:00", "steps": 3, **record})
    return run


def finish(run: Path, folder: Path, chosen="round-1") -> dict:
    """Give it a real report."""
    made = Run(folder).add("sft", scored(0.4))
    made.add("round-1", scored(lambda i: 0.6 + 0.1 * (i % 3), tokens=12), KL)
    report = made.evaluate(chosen=chosen)
    for file in ("report.json", "report.html"):
        write_text(run / file, (made.out / file).read_text())
    return report


def page_of(runs: Path) -> str:
    return write_index(runs).read_text()


def rows_of(page: str) -> list[str]:
    """The text of each run, without tags."""
    bodies = re.findall(r"<tbody>(.*?)</tbody>", page, re.S)
    return [" ".join(re.sub(r"<[^>]*>", " ", body).split()) for body in bodies]


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def test_a_finished_run_shows_its_verdict_figures_and_links(runs, tmp_path):
    finish(make_run(runs, "mine/2026-11-01_10-00-00"), tmp_path / "made")
    page = page_of(runs)
    (row,) = rows_of(page)
    for words in ("mine 2026-11-01 10:00", "Better", "round-1 chosen", "0.400 → 0.700", "+0.300"):
        assert words in row
    assert "rules on test" in row and "0.60" in row and "12.0 sft 10.0" in row
    assert "train.beta=0.3" in row and "store=s" not in row and "recipes=mine" not in row
    links = re.findall(r'href="([^"]*)"', page)
    assert len(links) == 3 and all((runs / unquote(link)).exists() for link in links)
    assert "1 finished in" in page and "://" not in page and "<script" not in page


def test_where_sft_was_chosen_there_is_no_difference(runs, tmp_path):
    finish(make_run(runs, "mine/2026-11-01_10-00-00"), tmp_path / "made", chosen="sft")
    (row,) = rows_of(page_of(runs))
    assert "Not better sft chosen" in row and "0.400 rules on test" in row and "→" not in row


def test_each_state_is_told_by_the_record_the_lease_and_the_ledger(runs):
    failed = make_run(runs, "a/2026-11-01_10-00-01", code=1, message="no.", worker_exit=1)
    stopped = make_run(runs, "b/2026-11-01_10-00-02", code=75, message="x", worker_exit=None)
    done = make_run(runs, "c/2026-11-01_10-00-03", code=0, message="", worker_exit=None)
    killed = make_run(runs, "d/2026-11-01_10-00-04", killed=True)
    old = make_run(runs, "e/2026-11-01_10-00-05")
    line = {"sign": "✗", "stage": "sft", "label": 0, "fingerprint": "a" * 12, "seconds": 1}
    write_json(old / "ledger.json", [line])
    order = [failed, stopped, done, killed, old]
    states = ["failed", "interrupted", "finished", "interrupted", "failed"]
    assert [read_state(run).status for run in order] == states
    with leases.hold(killed / LEASE):
        assert read_state(killed).status == "running"
        page = page_of(runs)
        assert "1 running, 1 finished, 1 interrupted, 2 failed in" in page
    assert read_state(killed).status == "interrupted"
    assert any("Failed" in row and "no." in row for row in rows_of(page))


def test_the_newest_run_is_first_and_the_latest_is_marked(runs):
    for day in (2, 3, 1):
        make_run(runs, f"mine/2026-11-0{day}_10-00-00")
    (runs / "latest").symlink_to(runs / "mine" / "2026-11-02_10-00-00")
    rows = rows_of(page_of(runs))
    assert [re.search(r"2026-11-0\d", row)[0][-1] for row in rows] == ["3", "2", "1"]
    assert ["latest" in row for row in rows] == [False, True, False]


def test_a_sweep_is_one_row_with_its_points_page_and_its_best_point(runs, tmp_path):
    sweep = runs / "grid" / "2026-11-01_10-00-00"
    for point in ("0", "1"):
        run = make_run(sweep, point, code=int(point), message="", worker_exit=None)
        write_text(run / "config.yaml", "# cd x && strop run\nsweep: {kl_budget: 2.0}\n")
    finish(sweep / "0", tmp_path / "made")
    points = [
        {"point": 0, "overrides": ["seed=1"], "status": "done", "score": 0.7, "kl": 0.6},
        {"point": 1, "overrides": ["seed=2"], "status": "failed"},
    ]
    write_json(sweep / "points.json", points)
    write_text(sweep / "sweep.html", "")
    page = page_of(runs)
    (row,) = rows_of(page)
    assert "Better 2 points, 1 failed" in row and "0.400 → 0.700" in row
    assert f'href="grid/{sweep.name}/sweep.html"' in page
    assert f'href="grid/{sweep.name}/0/report.html"' in page
    points[0]["kl"] = 2.5  # over the budget: there is no best point
    write_json(sweep / "points.json", points)
    assert "→" not in rows_of(page_of(runs))[0]


DAMAGED = [
    ("plan.json", "["),
    ("plan.json", "[]"),
    ("run.json", "{"),
    ("run.json", '{"started": 1}'),
    ("ledger.json", '{"sign": "x"}'),
    ("report.json", "not json"),
]


SWEEP_FILES = [
    ("points.json", "[1]"),
    ("points.json", "{"),
    ("0/config.yaml", "["),
    ("0/config.yaml", ""),
]


@pytest.mark.parametrize(("file", "text"), SWEEP_FILES)
def test_a_damaged_sweep_is_left_out_and_named(runs, file, text):
    make_run(runs, "whole/2026-11-01_10-00-00")
    sweep = runs / "grid" / "2026-11-01_10-00-00"
    make_run(sweep, "0")
    write_json(sweep / "points.json", [{"point": 0, "score": 1.0, "kl": 0.0, "overrides": []}])
    write_text(sweep / file, text)
    page = page_of(runs)
    (row,) = rows_of(page)
    assert "whole" in row and str(sweep) in page


@pytest.mark.parametrize(("file", "text"), DAMAGED)
def test_a_damaged_folder_is_left_out_and_named_and_the_others_stay(runs, file, text):
    make_run(runs, "whole/2026-11-01_10-00-00", code=0, message="", worker_exit=None)
    write_text(make_run(runs, "broken/2026-11-01_10-00-00") / file, text)
    page = page_of(runs)
    (row,) = rows_of(page)
    assert "whole" in row and f"broken/2026-11-01_10-00-00/{file}" in page
    assert "Left out: cannot be read" in page


def test_a_broken_link_and_a_foreign_file_disturb_nothing(runs):
    make_run(runs, "mine/2026-11-01_10-00-00")
    (runs / "gone").symlink_to(runs / "nowhere")
    (runs / "notes.txt").write_text("mine")
    page = page_of(runs)
    assert len(rows_of(page)) == 1 and "gone: a broken link" in page


def test_a_report_without_its_parts_shows_no_figures(runs):
    run = make_run(runs, "mine/2026-11-01_10-00-00")
    write_json(run / "report.json", {"evaluation": {"chosen": "round-1"}, "models": []})
    write_text(run / "report.html", "")
    assert "Finished" in rows_of(page_of(runs))[0]
    assert read_figures({}) is None


def test_text_of_others_is_text(runs):
    name = "a<b>&\"'#%?/2026-11-01_10-00-00"
    sly = make_run(runs, name, code=1, message="<script>alert(1)</script>", worker_exit=None)
    page = page_of(runs)
    assert "<script>" not in page and "a<b>" not in page and "alert(1)" in page
    links = re.findall(r'href="([^"]*)"', page)
    assert (runs / unquote(links[0])).samefile(sly / "config.yaml")


def test_a_page_of_no_runs_is_a_page():
    assert "None in runs" in render_index("runs", [], [], "now")


# ── who writes it ────────────────────────────────────────────────────────────────────────────────


def test_a_page_that_cannot_be_written_is_a_warning(runs, capsys):
    make_run(runs, "mine/2026-11-01_10-00-00")
    (runs / "index.html").mkdir()
    refresh_index(runs)
    assert f"! {runs}/index.html: the page of all runs was not written" in capsys.readouterr().err


def test_an_error_of_our_own_is_a_warning_too(runs, capsys, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(run_index, "list_runs", fail)
    refresh_index(runs)
    assert "not written (of ours)" in capsys.readouterr().err


def test_runs_that_end_together_write_one_after_the_other(runs, capsys):
    for number in range(20):
        make_run(runs, f"mine/2026-11-01_10-00-{number:02d}")
    threads = [threading.Thread(target=refresh_index, args=(runs,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err == ""
    assert len(rows_of((runs / "index.html").read_text())) == 20


def test_hundreds_of_runs_take_seconds(runs, tmp_path):
    first = make_run(runs, "mine/0", code=0, message="", worker_exit=None)
    finish(first, tmp_path / "made")
    report = (first / "report.json").read_text()
    for number in range(1, 300):
        run = make_run(runs, f"mine/{number}", code=0, message="", worker_exit=None)
        (run / "report.json").write_text(report)
    started = time.monotonic()
    assert len(list_runs(runs)[0]) == 300
    assert time.monotonic() - started < 10


def run_into(run_dir: Path, error: Exception | None = None) -> None:
    with record_run(run_dir, 7, lambda error: RunEnd(1, repr(error), 9)):
        assert read_state(run_dir).status == "running"
        if error:
            raise error


def test_how_a_run_ended_is_recorded_whatever_ended_it(tmp_path):
    with pytest.raises(KeyError):
        run_into(tmp_path, KeyError("x"))
    state = read_state(tmp_path)
    assert (state.status, state.steps, state.end) == ("failed", 7, RunEnd(1, "KeyError('x')", 9))
    run_into(tmp_path)
    assert read_state(tmp_path).status == "finished"


def test_a_record_that_cannot_be_written_hides_no_error(tmp_path):
    class PlantFull(UserError):
        """As it is shown, the disk is full."""

        def __repr__(self):
            (tmp_path / ".run.json.tmp").symlink_to("/dev/full")
            return "full"

    with pytest.raises(UserError, match="the cause"):
        run_into(tmp_path, PlantFull("the cause"))
    assert "code" not in json.loads((tmp_path / "run.json").read_text())


def test_a_run_knows_its_runs_folder(runs, tmp_path):
    run = make_run(runs, "mine/2026-11-01_10-00-00")
    assert run_index.find_runs_folder(run) is None
    write_json(runs / ".strop-runs", {"format": 1})
    assert run_index.find_runs_folder(run) == runs


@pytest.mark.long
def test_real_runs_and_sweeps_write_the_page_as_they_end(tmp_path):
    toys = Toys(tmp_path)
    page = tmp_path / "runs" / "index.html"
    toys.run(*SMALL, "until=sample", refuse="sample", code=2)
    (row,) = rows_of(page.read_text())
    assert "Failed step 3 of 3, sample round 1" in row and "sample: the toy refuses." in row
    toys.run(*SMALL, "until=sample")
    assert "1 finished, 1 failed" in page.read_text()
    toys.run(*SMALL, "until=sft", "-m", "seed=1,2")
    rows = rows_of(page.read_text())
    assert len(rows) == 3 and "Finished 2 points" in rows[0]
    record = json.loads(next((tmp_path / "runs").glob("run/*/0/run.json")).read_text())
    assert record["code"] == 0 and record["steps"] > 0


def test_of_steps_side_by_side_the_one_that_failed_is_named(tmp_path):
    run = make_run(tmp_path, "one", code=1, message="x")
    for number, name in ((4, "a" * 12), (5, "b" * 12)):
        record = run / "steps" / f"{number:03d}-train-{name}.json"
        write_json(record, {"stage": "train", "knob": "train", "config": {}})
    state = read_state(run)
    assert state.broken and state.broken.number == 6, "none failed: the one that began last"
    line = {"sign": FAILED_SIGN, "stage": "train", "fingerprint": "a" * 12, "seconds": 1.0}
    write_json(run / "ledger.json", [line])
    state = read_state(run)
    assert state.broken and state.broken.number == 5
