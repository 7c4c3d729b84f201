"""Judging by batch, against a fake service of each shape: nothing is ever paid for twice."""

import json
import os
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from pipeline.artifacts import Prompts, Samples, write_table
from pipeline.commands import qualify
from pipeline.errors import StageError, UserError, WorkPending
from pipeline.stages import score
from tests.scorers.test_judge import answers, config, overall_scores, run_scorer
from tests.stages.test_pair import SAMPLE
from tests.stages.test_score import sample_row
from tests.support.batch_server import batch_server
from tests.support.house import HOUSE, SMALL, fingerprints
from tests.support.judges import KEY

TEXTS = "good good good", "good", "bad"  # three answers: six requests
ENGINES = "endpoint", "anthropic"
BOTH = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with batch_server() as service:
        yield service


def make_config(server, folder, engine, **given):
    url = server.url.removesuffix("/v1") if engine == "anthropic" else server.url
    if engine == "anthropic":
        pytest.importorskip("anthropic")
    return config(server, folder, engine=engine, base_url=url, **{"batch": True, **given})


def judge_answers(cfg):
    return run_scorer(cfg, answers(*TEXTS))


def submit(cfg):
    with pytest.raises(WorkPending, match="Run the same command again") as raised:
        judge_answers(cfg)
    return str(raised.value)


def was_paid_once(server, requests=6):
    return len(server.answered) == requests and set(server.answered.values()) == {1}


# ── submit, come again, collect ───────────────────────────────────────────────────────────────────


@BOTH
def test_one_call_submits_and_a_later_one_collects(server, tmp_path, engine):
    cfg = make_config(server, tmp_path, engine)
    text = submit(cfg)
    assert "6 verdicts wait in a batch (batch" in text and server.sizes == [6]
    assert submit(cfg) == text and server.sizes == [6]  # it has not ended
    server.finish()
    scores = overall_scores(judge_answers(cfg))
    assert scores["p/0"] > scores["p/1"] > scores["p/2"]
    assert was_paid_once(server) and server.singles == 0
    # The verdicts are those of the same judge asked one by one.
    assert (
        overall_scores(judge_answers(make_config(server, tmp_path, engine, batch=False))) == scores
    )
    assert server.singles == 0
    anew = make_config(server, tmp_path / "other", engine, batch=False)
    assert overall_scores(judge_answers(anew)) == pytest.approx(scores)
    assert server.singles == 6


@BOTH
def test_two_runs_that_ask_the_same_submit_once(server, tmp_path, engine):
    cfg = make_config(server, tmp_path, engine)
    submit(cfg)
    # Of eight answers, three are those above: their six requests wait already.
    more = answers(*TEXTS, *(f"good {n}" for n in range(5)))
    with pytest.raises(WorkPending, match="56 verdicts wait"):
        run_scorer(cfg, more)
    assert server.sizes == [6, 50]
    server.finish()
    run_scorer(cfg, more)
    judge_answers(cfg)
    assert was_paid_once(server, 56) and server.sizes == [6, 50]


# ── killed in between ─────────────────────────────────────────────────────────────────────────────


@BOTH
def test_a_batch_whose_name_was_lost_is_found_at_the_service(server, tmp_path, engine):
    cfg = make_config(server, tmp_path, engine)
    server.fault = "after"
    with pytest.raises(StageError, match="What was submitted is kept"):
        judge_answers(cfg)
    assert server.sizes == [6]
    submit_other(server)
    with pytest.raises(WorkPending):  # Anthropic's may be another's of its size, until it ends
        judge_answers(cfg)
    server.finish()
    assert len(judge_answers(cfg)) == 3
    assert was_paid_once(server, 12) and server.sizes == [6, 6]


def submit_other(server):
    """Another program's batch in the same account, of the same size and newer."""
    [first] = server.batches.values()
    requests = [{**one, "custom_id": f"x{at}"} for at, one in enumerate(first["requests"])]
    other = {**first, "id": "other", "requests": requests, "metadata": None, "outcomes": []}
    server.batches["other"] = {**other, "created": time.time()}


@BOTH
def test_a_batch_that_never_reached_the_service_is_submitted_again(server, tmp_path, engine):
    cfg = make_config(server, tmp_path, engine)
    server.fault = "before"
    with pytest.raises(StageError):
        judge_answers(cfg)
    assert server.sizes == []
    submit(cfg)
    server.finish()
    judge_answers(cfg)
    assert was_paid_once(server) and server.sizes == [6]


KILLED = """
import sys
from pipeline.config import ScoreConfig
from tests.scorers.test_judge import answers, run_scorer
run_scorer(ScoreConfig.model_validate_json(sys.stdin.read()), answers(*{texts!r}))
"""


@pytest.mark.long
@BOTH
def test_a_process_killed_while_it_submits_leaves_its_batch_to_the_next(server, tmp_path, engine):
    cfg = make_config(server, tmp_path, engine, timeout=60)
    server.fault = "hang"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(texts=TEXTS)],
        stdin=subprocess.PIPE,
        cwd=HOUSE,
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
        text=True,
    )
    child.stdin.write(cfg.model_dump_json())
    child.stdin.close()
    deadline = time.monotonic() + 120
    while not server.batches and time.monotonic() < deadline:
        time.sleep(0.05)
    submit(cfg)  # it is still alive: its batch is not ours to look for
    assert server.sizes == [6]
    child.send_signal(signal.SIGKILL)
    child.wait()
    server.finish()
    assert len(judge_answers(cfg)) == 3
    assert was_paid_once(server) and server.sizes == [6]


# ── what a batch did not answer ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["half", "some"], ids=["expired", "failed"])
@BOTH
def test_only_what_is_missing_is_submitted_again(server, tmp_path, engine, how):
    cfg = make_config(server, tmp_path, engine)
    submit(cfg)
    server.finish(how)
    assert "3 verdicts wait" in submit(cfg) and server.sizes == [6, 3]
    first, second = server.batches.values()
    names = [{one["custom_id"] for one in batch["requests"]} for batch in (first, second)]
    assert names[1] < names[0] and len(server.answered) == 3
    server.finish()
    assert None not in overall_scores(judge_answers(cfg)).values()
    assert was_paid_once(server)


@BOTH
def test_a_request_that_always_fails_ends_as_a_failed_score(server, tmp_path, engine):
    """retries=1: it is sent twice. Of six requests three fail, and then one of the three."""
    cfg = make_config(server, tmp_path, engine)
    submit(cfg)
    server.finish("some")
    submit(cfg)
    server.finish("some")
    failed = [row for row in judge_answers(cfg) if row.score is None]
    assert len(failed) == 2 and server.sizes == [6, 3]  # the two answers that it compares
    assert all("HTTP 500" in row.detail or "api_error" in row.detail for row in failed)
    assert was_paid_once(server, 5)


@BOTH
def test_a_request_that_is_wrong_is_not_sent_again(server, tmp_path, engine):
    cfg = make_config(server, tmp_path, engine)
    submit(cfg)
    server.finish("wrong")
    assert [row.score for row in judge_answers(cfg)] == [None] * 3
    assert server.sizes == [6] and not server.answered


def test_a_batch_that_the_service_refuses_is_told_and_submitted_again(server, tmp_path):
    cfg = make_config(server, tmp_path, "endpoint")
    submit(cfg)
    [batch] = server.batches.values()
    batch |= {"ended": True, "how": "refused"}
    with pytest.raises(StageError, match=r"did not accept batch .*too much"):
        judge_answers(cfg)
    submit(cfg)
    assert server.sizes == [6, 6]


# ── whose batch, at what price ────────────────────────────────────────────────────────────────────


@BOTH
def test_a_batch_of_another_account_is_named(server, tmp_path, engine, monkeypatch):
    cfg = make_config(server, tmp_path, engine)
    submit(cfg)
    monkeypatch.setenv("JUDGE_KEY", "sk-of-another-account")
    with pytest.raises(UserError, match=r"this account has no batch batch\d+.*") as raised:
        judge_answers(cfg)
    assert "JUDGE_KEY" in str(raised.value) and "engine.batch=false" in str(raised.value)
    assert "sk-of" not in str(raised.value)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.finish()
    judge_answers(cfg)
    assert was_paid_once(server) and server.sizes == [6]


@BOTH
def test_it_costs_half_and_a_cap_counts_what_waits(server, tmp_path, engine):
    inputs, out = write_inputs(tmp_path), tmp_path / "out"
    prices = {"input": 10000.0, "output": 10000.0}
    cfg = make_config(server, tmp_path, engine, prices=prices)
    with pytest.raises(WorkPending):
        score.run(cfg, out, **inputs)
    server.finish()
    score.run(cfg, out, **inputs)
    cost = json.loads((out / "cost.json").read_text())
    assert cost["judge_requests"] == 12
    assert cost["money"] == pytest.approx(12 * 101 * 10000 / 1e6 / 2)
    # The same store has spent 12 requests: a cap of 14 leaves room for two.
    capped = make_config(server, tmp_path, engine, max_requests=14)
    with pytest.raises(WorkPending, match="2 verdicts wait"):
        run_scorer(capped, answers("good", "better", "best", prompt="other"))
    assert server.sizes == [6, 6, 2]
    server.finish()
    with pytest.raises(StageError, match="could exceed .*max_requests=14"):
        run_scorer(capped, answers("good", "better", "best", prompt="other"))


# ── in the stage ──────────────────────────────────────────────────────────────────────────────────


def write_inputs(folder):
    """Two shards of a prompt with three answers each."""
    for shard, prompt in enumerate("pq"):
        rows = [
            {**sample_row(prompt, f"{prompt}/{i}", f"{text} of {prompt}"), "setting": "draw"}
            for i, text in enumerate(["good", "bad", "good good"])
        ]
        table = pl.DataFrame(rows, schema=SAMPLE)
        write_table(folder / "sample" / "samples" / f"{shard}.parquet", table)
    columns = '{"constraints": [{"kind": "lower"}]}'
    prompts = [{"prompt_id": prompt, "prompt": [], "columns": columns} for prompt in "pq"]
    write_table(folder / "prompts" / "prompts.parquet", pl.DataFrame(prompts))
    return {"samples": Samples(folder / "sample"), "prompts": Prompts(folder / "prompts")}


def test_all_shards_are_submitted_by_the_first_call(server, tmp_path):
    inputs, out = write_inputs(tmp_path), tmp_path / "out"
    cfg = make_config(server, tmp_path, "endpoint")
    with pytest.raises(WorkPending, match="12 verdicts wait"):
        score.run(cfg, out, **inputs)
    assert server.sizes == [6, 6]
    server.finish()
    table = score.run(cfg, out, **inputs).read().filter(scorer="j")
    assert table.height == 6 and table["score"].null_count() == 0
    assert was_paid_once(server, 12)


@pytest.mark.parametrize(
    ("how", "model", "paid"),
    [("wrong", "good", 6), ("all", "chatty", 12)],
    ids=["rejected", "no verdict"],
)
@BOTH
def test_what_has_failed_waits_for_the_other_batches_and_is_not_asked_again(
    server, tmp_path, engine, how, model, paid
):
    inputs, out = write_inputs(tmp_path), tmp_path / "out"
    cfg = make_config(server, tmp_path, engine, model=model)
    with pytest.raises(WorkPending, match="12 verdicts wait"):
        score.run(cfg, out, **inputs)
    server.finish(how, count=1)
    for _ in range(2):
        with pytest.raises(WorkPending, match="6 verdicts wait"):
            score.run(cfg, out, **inputs)
        (out / "scores" / "0.parquet").unlink()  # as if another scorer had not been ready
    server.finish()
    with pytest.raises(StageError, match="scores by j failed"):
        score.run(cfg, out, **inputs)
    assert server.sizes == [6, 6] and was_paid_once(server, paid)
    # That command came to its end: the next one asks again for what it lacks.
    with pytest.raises(WorkPending):
        score.run(cfg, out, **inputs)
    assert server.sizes[:3] == [6, 6, 6]


def test_a_command_by_batch_ends_with_75_and_then_is_done(server, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "q", "chosen": ["good"], "rejected": ["bad"], "subset": "s"}\n')
    at = "score.scorers.rubric.engine"
    words = [f"{at}.model=good", f"{at}.batch=true", f"{at}.runtime.base_url={server.url}"]
    words += [f"{at}.runtime.api_key_env=JUDGE_KEY", f"store={tmp_path / 'store'}"]
    assert qualify.main([str(file), "score=rubric", *words]) == 75
    assert "6 verdicts wait in a batch" in capsys.readouterr().err  # two answers, three criteria
    server.finish()
    assert qualify.main([str(file), "score=rubric", *words]) == 0
    assert "1 right" in capsys.readouterr().out and was_paid_once(server)


def test_the_knob_changes_no_fingerprint():
    words = [*SMALL, "+scorer@score.scorers.j=rubric", "score.scorers.j.engine.model=m"]
    assert fingerprints(*words) == fingerprints(*words, "score.scorers.j.engine.batch=true")
