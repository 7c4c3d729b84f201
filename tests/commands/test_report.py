"""`make report`: the same report from the same store, no model loaded; missing steps are named."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline import store
from pipeline.artifacts import Model, write_json
from pipeline.commands import report as reprint
from pipeline.errors import UserError
from tests.stages.test_evaluate import CONFIG, Run, whole


@pytest.fixture
def story(tmp_path):
    """A finished evaluation of two rounds, published with its inputs, and linked from a run."""
    run = whole(Run(tmp_path))
    report = run.evaluate(chosen="round-2")
    inputs = {
        "prompts": run.prompts,
        "chosen": run.evals["round-2"]["model"],
        "pairs.0": run.pairs[0],
    }
    inputs |= {
        f"evals.{name}.{part}": made
        for name, evaluation in run.evals.items()
        for part, made in evaluation.items()
    }
    told = {name: _source(made) for name, made in inputs.items()}
    for manifest in {Path(source["path"]) / store.MANIFEST for source in told.values()}:
        if not manifest.exists():
            write_json(manifest, {"files": []})
    config = CONFIG.model_dump(mode="json")
    listed = json.loads((run.out / store.STEP).read_text())
    write_json(run.out / store.STEP, {**listed, "config": config, "inputs": told})
    folder = tmp_path / "run" / "store"
    folder.mkdir(parents=True)
    (folder / "30-evaluate-report").symlink_to(run.out)
    return tmp_path / "run", report, run


def _source(made):
    test = made.path.name == "test"
    path = made.path.parent if test else made.path
    return {"stage": path.parent.name, "path": str(path), "part": "test" if test else None}


def test_the_report_is_written_anew_from_the_store(story, capsys):
    run, report, made = story
    assert reprint.main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    again = json.loads((run / "report.json").read_text())
    assert len(again["funnel"].pop("pairs")) == 1 and report["funnel"].pop(
        "pairs"
    )  # one round's pairs were linked
    assert again == report
    assert sorted(file.name for file in run.glob("report.*")) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    assert (made.out / "report.json").exists()


def test_the_page_of_all_runs_is_written_too(story):
    run, _, _ = story
    write_json(run.parent / ".strop-runs", {"format": 1})
    write_json(run / "plan.json", {})
    assert reprint.main([str(run)]) == 0
    assert 'href="run/report.html"' in (run.parent / "index.html").read_text()


def test_what_was_pruned_and_what_never_was_is_refused(story, capsys):
    run, _, made = story
    write_json(
        made.evals["sft"]["scores"].path / store.MANIFEST,
        {"files": [{"path": "x", "size": 1}], "pruned": True},
    )
    assert reprint.main([str(run)]) == 2
    assert "evals.sft.scores" in (error := capsys.readouterr().err) and "was pruned" in error
    assert reprint.main([str(run / "nowhere")]) == 2
    assert "no run with a report in the store" in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_a_damaged_file_is_named_with_its_step(story, capsys):
    run, _, made = story
    path = made.pairs[0].path
    write_json(path / store.MANIFEST, {"files": store.list_files(path)})
    (path / "funnel.json").write_text("{}")
    assert reprint.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert "its pairs.0" in error and "funnel.json has 2 bytes" in error


def test_metrics_that_are_not_json_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"a":')
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read as JSON lines"):
        Model(tmp_path).read_metrics()


def test_a_file_that_a_link_leads_to_is_not_written(story, tmp_path):
    run, _, _ = story
    (tmp_path / "mine.json").write_text("mine")
    (run / "report.json").symlink_to(tmp_path / "mine.json")
    assert reprint.main([str(run)]) == 0
    assert (tmp_path / "mine.json").read_text() == "mine"


def test_on_a_full_disk_the_earlier_report_stays(story):
    run, _, _ = story
    (run / "report.html").write_text("before")
    (run / ".report.html.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError) as fault:
        reprint.main([str(run)])
    assert fault.value.filename == str(run / "report.html")
    assert (run / "report.html").read_text() == "before"


def test_a_store_that_is_gone_is_named_with_what_to_type(story, capsys):
    run, _, _ = story
    link, root = run / "store" / "30-evaluate-report", run.parent / "unmounted"
    link.unlink()
    link.symlink_to(root / "evaluate" / ("a" * 12))
    assert reprint.main([str(run)]) == 2
    assert f"the store {root}, which is not there" in capsys.readouterr().err


def test_a_store_that_was_moved_is_read_where_it_is_now(story, capsys):
    run, report, made = story
    moved = run.parent / "moved"
    shutil.move(made.store, moved)
    shutil.move(made.out, moved / "evaluate" / ("a" * 12))
    link = run / "store" / "30-evaluate-report"
    link.unlink()
    link.symlink_to(moved / "evaluate" / ("a" * 12))
    assert reprint.main([str(run)]) == 0, capsys.readouterr().err
    assert json.loads((run / "report.json").read_text())["verdict"] == report["verdict"]
