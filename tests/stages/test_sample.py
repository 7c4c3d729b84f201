import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from pipeline.artifacts import Model, Prompts, read_table, write_json, write_table
from pipeline.backends import Completion
from pipeline.backends.scripted import ScriptedSampler, ScriptedTokenizer
from pipeline.commands import work
from pipeline.config import Prices, SampleRequest
from pipeline.driver.ledger import summarize_cost
from pipeline.errors import StageError, UserError
from pipeline.hashing import hash_code
from pipeline.plan import plan
from pipeline.resources import machines, worker_pool
from pipeline.sampling import collector, prompt_selection, sampler, shards, throughput
from pipeline.stages import sample
from tests.support.house import HOUSE, SMALL, Toys, composed, named

POLICY = Model(Path("store/sft/0123456789ab"))
WEIGHTS = SimpleNamespace(weights="hub/model", revision=None)
PLAIN = {"min_p": 0.0, "stop": [], "system": None, "few_shot": []}
CONFIG = {
    "settings": {
        "draw": {"n": 3, "temperature": 0.8, "top_p": 0.9, **PLAIN},
        "calm": {"n": 1, "temperature": 0.0, "top_p": 1.0, **PLAIN},
    },
    "per_round": None,
    "limits": {"prompt": 64, "completion": 32},
    "template_kwargs": {},
    "reasoning": {"open": "<think>", "close": "</think>"},
    "seed": 42,
    "seeded": "auto",
    "shard": 4,
    "backend": {"kind": "scripted", "vocabulary": 200},
    "runtime": {"blocks": 1, "workers": 1, "max_failed": 0.01},
    "purpose": "train",
    "round": 1,
    "wave": 0,
    "ties_by": None,
    "prompt_share": None,
    "reuse_prompts": False,
}


def config(**changes) -> SampleRequest:
    return SampleRequest.model_validate({**CONFIG, **changes})


def ask(folder: Path, *contents: str) -> Prompts:
    """Prompts in an order that is not that of their ids."""
    rows = [
        (f"p{at * 7 % 11:02d}-{at:03d}", [{"role": "user", "content": text}], "{}")
        for at, text in enumerate(contents)
    ]
    schema = {"prompt_id": pl.String, "prompt": collector.MESSAGES, "columns": pl.String}
    write_table(folder / "prompts.parquet", pl.DataFrame(rows, schema=schema, orient="row"))
    return Prompts(folder)


@pytest.fixture
def prompts(tmp_path) -> Prompts:
    return ask(tmp_path / "train", *(f"say {number} things" for number in range(10)))


def run(out: Path, prompts: Prompts, policy: Model = POLICY, **changes) -> pl.DataFrame:
    return sample.run(config(**changes), out, policy=policy, prompts=prompts).read()


def files(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.parquet")}


def test_every_prompt_gets_n_completions_of_each_setting(tmp_path, prompts):
    rows = run(tmp_path / "out", prompts)
    asked = sorted(prompts.read()["prompt_id"])
    assert rows.columns == list(collector.SAMPLE)
    assert rows["prompt_id"].to_list() == [prompt for prompt in asked for _ in range(4)]
    assert rows["setting"].to_list() == ["calm", "draw", "draw", "draw"] * 10
    assert rows["sample_id"].n_unique() == 40
    assert set(rows["policy"]) == {"0123456789ab"}
    assert rows.join(prompts.read(), on=["prompt_id", "prompt"], how="semi").height == 40
    for row in rows.iter_rows(named=True):
        assert (row["token_ids"][-1] == 0) == (row["finish_reason"] == "stop")
        assert len(row["token_ids"]) <= 32 + (row["finish_reason"] == "stop")


def test_cost_counts_what_was_drawn(tmp_path, prompts):
    rows = run(tmp_path / "out", prompts)
    cost = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert cost["completions"] == 40
    assert cost["tokens"] == rows["token_ids"].list.len().sum()
    assert cost["prompt_tokens"] == rows["prompt_token_ids"].list.len().sum()
    assert cost["truncated"] == rows.filter(finish_reason="length").height > 0
    assert cost["mean_tokens"] == pytest.approx(cost["tokens"] / 40, abs=0.05)
    assert cost["tokens_per_second"] > 0


def test_what_a_person_watches_is_joined_over_hands_and_attempts(capfd):
    found = {"prompts": 10, "completions": 40, "tokens": 400, "prompt_tokens": 0, "truncated": 4}
    found |= {"billed_prompt_tokens": 10**6, "billed_tokens": 0}
    watched = throughput.ThroughputMeter(found, 20, 80, 40, Prices(input=2, output=3))
    for seconds in (3.0, 5.0):
        watched.update({throughput.ENGINE: seconds})
    for prompts, tokens, truncated in ((4, 320, 0), (6, 480, 8)):
        drawn = {
            "prompts": prompts,
            "completions": 4 * prompts,
            "tokens": tokens,
            "truncated": truncated,
        }
        watched.update({**drawn, "billed_tokens": 250_000})
    said = (
        r"sample 20/20 prompts · speed \d+ tok/s · length 15 tokens · truncated 15%"
        r" · money 3\.50 · 0:00 left"
    )
    assert re.search(said, capfd.readouterr().err)
    assert watched.measure_cost()[throughput.ENGINE] == 5.0
    told = {
        "prompts": 20,
        "mean_tokens": 15.0,
        "tokens_per_second": 9.0,
        "truncated": 12,
        "completions": 80,
    }
    assert summarize_cost({**told, "money": 3.5}).endswith(
        "15 tokens each · 15.0% truncated · money 3.50"
    )


# ── seeds and ids ─────────────────────────────────────────────────────────────────────────────────


def test_no_two_draws_share_a_seed_or_an_id():
    places = itertools.product(
        (42, 43), ("train", "exam"), (1, 2, 11), (0, 1, 11), ("a", "b"), ("p", "q"), range(12)
    )
    seeds, ids = set(), set()
    for count, (seed, purpose, round, wave, setting, prompt, index) in enumerate(places, start=1):
        cfg = config(seed=seed, purpose=purpose, round=round, wave=wave)
        seeds.add(collector.derive_seed(cfg, setting, prompt, index))
        ids |= {
            collector.derive_sample_id(cfg, setting, prompt, index, policy)
            for policy in ("0a", "0b")
        }
        assert (len(seeds), len(ids)) == (count, 2 * count)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_samples_stand_in_the_same_order_whatever_the_policy_is_called():
    """Ties are broken by that order: a renamed knob, which changes every fingerprint, must not
    choose other pairs."""
    draws = list(itertools.product(("draw", "cold"), ("p", "q"), range(8)))
    orders = []
    for policy in ("0a1b2c3d4e5f", "f5e4d3c2b1a0", "sft"):
        ids = {draw: collector.derive_sample_id(config(), *draw, policy) for draw in draws}
        orders.append(sorted(draws, key=ids.__getitem__))
    assert orders[0] == orders[1] == orders[2] != draws
    assert {len(sample_id) for sample_id in ids.values()} == {16}


def test_a_second_wave_round_or_purpose_repeats_no_completion(tmp_path, prompts):
    changes = [{}, {"wave": 1}, {"round": 2}, {"purpose": "exam"}, {"seed": 43}]
    drawn = [
        run(tmp_path / str(at), prompts, **change).filter(setting="draw")
        for at, change in enumerate(changes)
    ]
    assert pl.concat(drawn)["sample_id"].n_unique() == 5 * 30
    assert pl.concat(drawn).unique(["prompt_id", "completion"]).height == 5 * 30


def test_another_policy_has_other_ids(tmp_path, prompts):
    other = Model(Path("store/train/ba9876543210"))
    mine, theirs = run(tmp_path / "a", prompts), run(tmp_path / "b", prompts, policy=other)
    assert not set(mine["sample_id"]) & set(theirs["sample_id"])


def test_the_order_of_settings_in_the_config_changes_nothing(tmp_path, prompts):
    run(tmp_path / "a", prompts)
    run(tmp_path / "b", prompts, settings=dict(reversed(CONFIG["settings"].items())))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_engines_without_seeds_of_their_requests_differ_as_requests_do():
    changes = [{}, {"seed": 43}, {"purpose": "exam"}, {"round": 2}, {"wave": 1}]
    changes.append({"settings": {"calm": CONFIG["settings"]["calm"]}})
    seeds = {
        collector.derive_engine_seed(config(**change), gpus)
        for change in changes
        for gpus in (None, "0", "1")
    }
    assert len(seeds) == 3 * len(changes)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_log_probability_is_asked_for_where_something_reads_it(tmp_path, prompts):
    """The KL reads its setting's; of each prompt's others the first shows a broken model."""
    kl = {"n": 3, "temperature": 1.0, "top_p": 1.0, **PLAIN}
    rows = run(tmp_path / "out", prompts, settings={**CONFIG["settings"], "kl": kl})
    known = rows.group_by("setting").agg(known=pl.col("logprob").count())
    assert dict(known.iter_rows()) == {"calm": 10, "draw": 10, "kl": 30}
    first = rows.filter(setting="draw").group_by("prompt_id", maintain_order=True).first()
    assert first["logprob"].null_count() == 0
    assert json.loads((tmp_path / "out" / "cost.json").read_text())["retokenised"] == 0


# ── which prompts ─────────────────────────────────────────────────────────────────────────────────


def test_each_round_takes_its_own_block_in_the_order_the_prompts_lie_in(tmp_path, prompts):
    lie = prompts.read()["prompt_id"].to_list()
    for round, expected in ((1, lie[:4]), (2, lie[4:8])):
        rows = run(
            tmp_path / str(round),
            prompts,
            round=round,
            per_round=4,
            runtime={"blocks": 2, "workers": 1, "max_failed": 0.01},
        )
        assert set(rows["prompt_id"]) == set(expected)


def test_too_few_prompts_for_all_rounds_are_refused_in_the_first(tmp_path, prompts):
    with pytest.raises(
        UserError, match=r"per_round=4.*need 12 prompts.*there are 10.*\n.*sample.per_round=3"
    ):
        run(
            tmp_path / "out",
            prompts,
            per_round=4,
            runtime={"blocks": 3, "workers": 1, "max_failed": 0.01},
        )
    assert not (tmp_path / "out").exists()


def test_a_prompt_too_long_is_dropped_and_listed_never_cut(tmp_path):
    prompts = ask(tmp_path / "train", "short", "long " * 64, "short too", "longer " * 80)
    rows = run(tmp_path / "out", prompts)
    dropped = read_table(tmp_path / "out" / "dropped.parquet")
    assert set(dropped["reason"]) == {"prompt_too_long"}
    assert "limits.prompt=64" in dropped["detail"][0]
    assert sorted([*dropped["prompt_id"], *rows["prompt_id"].unique()]) == sorted(
        prompts.read()["prompt_id"]
    )
    assert dropped.height == 2


def test_a_prompt_whose_completion_would_not_fit_the_context_is_dropped(tmp_path):
    class Short(ScriptedTokenizer):
        context = 4 + 32  # user: say 9 things

    prompts = ask(tmp_path / "train", *(f"say {number} things" for number in (9, "so many", 7)))
    kept, dropped = prompt_selection.split_by_length(config(), lambda: Short(200), prompts.read())
    assert sorted(row[0]["content"] for row in kept["prompt"]) == ["say 7 things", "say 9 things"]
    assert dropped["reason"].to_list() == ["context_too_short"]


def test_no_prompt_left_is_refused(tmp_path, prompts):
    with pytest.raises(
        UserError, match=r"limits.prompt=3: 3 tokens .*the shortest of 10 has 4.*\n  Raise"
    ):
        run(tmp_path / "out", prompts, limits={"prompt": 3, "completion": 32})


# ── resuming ──────────────────────────────────────────────────────────────────────────────────────


def test_only_what_is_missing_or_cut_short_is_drawn_again_and_comes_out_the_same(tmp_path, prompts):
    out = tmp_path / "out"
    run(out, prompts)
    whole, shards = files(out), sorted((out / "samples").iterdir())
    assert [shard.name for shard in shards] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    kept = shards[1].stat().st_mtime_ns
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    shards[2].unlink()
    run(out, prompts)
    assert files(out) == whole
    assert shards[1].stat().st_mtime_ns == kept


def test_shards_that_are_sampled_together_are_missing_together(tmp_path, prompts, monkeypatch):
    run(tmp_path / "apart", prompts, shard=2)
    monkeypatch.setattr(sampler, "count_grouped", lambda *_: 2)
    out = tmp_path / "together"
    run(out, prompts, shard=2)
    whole = files(out)
    assert whole == files(tmp_path / "apart") and len(whole) == 6
    listed = (out / "shards.json").read_bytes()
    written = {at: out / "samples" / f"0000{at}.parquet" for at in range(5)}
    before = {at: file.stat().st_mtime_ns for at, file in written.items()}
    written[2].unlink()
    run(out, prompts, shard=2)
    assert files(out) == whole and (out / "shards.json").read_bytes() == listed
    again = {at for at, file in written.items() if file.stat().st_mtime_ns > before[at]}
    assert again == {2, 3}
    cost = json.loads((out / "cost.json").read_text())
    assert cost["completions"] == 40


@pytest.mark.parametrize(
    ("parameters", "changes", "expected"),
    [
        (10**6, {}, 32),  # 64 times 256 sequences, of shards of 128 prompts with 4 samples each
        (10**7, {}, 12),
        (10**9, {}, 1),
        (None, {}, 1),
        (10**6, {"seeded": False}, 1),
        (10**6, {"backend": CONFIG["backend"]}, 1),
    ],
)
def test_only_a_small_model_s_shards_are_sampled_together(
    monkeypatch, parameters, changes, expected
):
    known = {} if parameters is None else {"parameters": parameters}
    monkeypatch.setattr(sampler, "parameter_cost", lambda *_: known)
    backend = composed("recipes=smoke").sample.backend.model_dump()
    cfg = config(**{"backend": backend, "shard": 128} | changes)
    assert sampler.count_grouped(cfg, WEIGHTS) == expected


def test_on_a_gpu_nothing_drains_and_each_shard_is_by_itself(card, monkeypatch):
    card(80)
    monkeypatch.setattr(sampler, "parameter_cost", lambda *_: {"parameters": 10**6})
    cfg = config(backend=composed("recipes=smoke").sample.backend.model_dump())
    assert sampler.count_grouped(cfg, WEIGHTS) == 1


def test_a_shard_that_is_not_listed_does_not_count(tmp_path, prompts):
    out = tmp_path / "out"
    run(out, prompts)
    whole = files(out)
    listed = json.loads((out / "shards.json").read_text())
    write_table(out / "samples" / "00001.parquet", read_table(out / "samples" / "00000.parquet"))
    (out / "shards.json").write_text(
        json.dumps({name: listed[name] for name in ("00000.parquet", "00002.parquet")})
    )
    run(out, prompts)
    assert files(out) == whole
    assert json.loads((out / "shards.json").read_text()) == listed


def test_nothing_is_started_when_all_shards_are_there(tmp_path, prompts, monkeypatch):
    first = run(tmp_path / "out", prompts)

    def start(*_):
        raise AssertionError("an engine was started")

    monkeypatch.setattr(ScriptedSampler, "start", start)
    assert run(tmp_path / "out", prompts).equals(first)


def test_completions_are_joined_by_id_in_whatever_order_they_come(tmp_path, prompts, monkeypatch):
    run(tmp_path / "a", prompts)

    def backwards(self, blocks, on_tokens=None):
        requests = [request for block in blocks for request in block]
        yield from (self.complete(request) for request in reversed(requests))

    monkeypatch.setattr(ScriptedSampler, "generate", backwards)
    run(tmp_path / "b", prompts)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_backend_that_loses_a_completion_breaks_the_run(tmp_path, prompts, monkeypatch):
    def lossy(self, blocks, on_tokens=None):
        requests = [request for block in blocks for request in block]
        yield from (self.complete(request) for request in requests[:-1])

    monkeypatch.setattr(ScriptedSampler, "generate", lossy)
    with pytest.raises(StageError, match=r"without all completions of 1 shard .00002.parquet"):
        run(tmp_path / "out", prompts)


def test_an_engine_does_not_wait_for_its_completions_to_be_written(tmp_path, prompts, monkeypatch):
    """They are detokenised and written by another thread; what that raises breaks the run."""
    threads, decode = set(), ScriptedTokenizer.decode

    def noting(self, completion):
        threads.add(threading.current_thread())
        return decode(self, completion)

    monkeypatch.setattr(ScriptedTokenizer, "decode", noting)
    run(tmp_path / "out", prompts)
    assert len(threads) == 1 and threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)

    def failing(self, completion):
        raise StageError("cannot be decoded")

    monkeypatch.setattr(ScriptedTokenizer, "decode", failing)
    with pytest.raises(StageError, match="cannot be decoded"):
        run(tmp_path / "broken", prompts)
    assert not (tmp_path / "broken" / "shards.json").exists()


def test_what_is_paid_for_is_written_before_its_last_completion_is_given_back(tmp_path, prompts):
    """Or a kill in between would lose what the journal has forgotten by then."""
    cfg, listed = config(shard=10), []
    shown = shards.Shards(tmp_path / "out", cfg.shard)
    [name] = shown.write_prompts(prompts.read().select("prompt_id", "prompt"))
    queue = worker_pool.StageQueue(
        tmp_path / "out", [name], lambda shard, _: listed.append(shard), lambda figures: None
    )
    worker = worker_pool.InProcess(queue)
    sampler = ScriptedSampler(cfg.backend).start(POLICY, cfg.limits)
    draws = collector.SampleCollector(cfg, "policy", sampler.tokenizer, shown, worker, is_paid=True)
    assert draws.claim_group()
    *most, last = sampler.generate(draws.build_blocks())
    for completion in most:
        draws.add_result(completion)
    assert not listed
    draws.add_result(last)
    assert listed == [name]


CHILD = """
import sys
from pathlib import Path
from tests.stages import test_sample as t
t.run(Path(sys.argv[1]), t.Prompts(Path(sys.argv[2])), shard=1)
print(sorted({"torch", "transformers", "tokenizers", "vllm"} & set(sys.modules)))
"""


@pytest.mark.long
def test_killed_in_the_middle_it_goes_on_from_the_shard_it_was_in(tmp_path):
    """And with the scripted backend it never loads torch or a tokenizer."""
    prompts = ask(tmp_path / "train", *(f"say {number} things" for number in range(300)))

    def child(out: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", CHILD, str(out), str(prompts.path)]
        return subprocess.Popen(
            command, cwd=HOUSE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    killed = child(tmp_path / "killed")
    while not (tmp_path / "killed" / "samples" / "00009.parquet").exists():
        assert killed.poll() is None
        time.sleep(0.001)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = len(list((tmp_path / "killed" / "samples").iterdir()))
    assert 10 <= done < 300

    assert child(tmp_path / "killed").communicate()[0].strip() == "[]"
    child(tmp_path / "whole").communicate()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert (tmp_path / "killed" / "shards.json").read_bytes() == (
        tmp_path / "whole" / "shards.json"
    ).read_bytes()


class Drawn(Toys):
    """Real prompts and a real `sample` with the scripted backend, through the real runner."""

    def environment(self, **toy: str) -> dict[str, str]:
        return super().environment(**toy) | {"PIPELINE_STAGES": "tests.support.drawn"}

    def drawn(self) -> list[Path]:
        return sorted((self.folder / "store" / "sample").glob("*/samples/*.parquet"))

    def processes(self, parent: int, what: str) -> list[int]:
        """The stage of a driver, or the hands of a stage."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile
                _, fields = (folder / "stat").read_text().rsplit(")", 1)
                if int(fields.split()[1]) == parent and what in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
        return sorted(found)


SCRIPTED = [
    *SMALL,
    "until=sample",
    "backend@sample.backend=scripted",
    "sample.shard=1",
    "sample.per_round=150",
]


@pytest.mark.long
def test_two_workers_one_killed_then_the_stage_and_the_bytes_are_those_of_one_undisturbed(tmp_path):
    killed = Drawn(tmp_path)
    driver = killed.start(*SCRIPTED, "sample.runtime.workers=2", "preload=false")
    while len(killed.drawn()) < 10:
        assert driver.poll() is None, driver.communicate()
    [stage] = killed.processes(driver.pid, "pipeline.driver.worker")
    hands = killed.processes(stage, "spawn_main")
    assert len(hands) == 2
    os.kill(hands[0], signal.SIGKILL)
    before = len(killed.drawn())
    while len(killed.drawn()) < before + 20:  # the other goes on
        assert driver.poll() is None, driver.communicate()
    os.kill(stage, signal.SIGKILL)
    driver.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in killed.drawn()}
    assert 30 <= len(done) < 150

    output = killed.run(*SCRIPTED, "sample.runtime.workers=2")
    [line] = [line for line in output.splitlines() if line.startswith("■ sample")]
    assert (
        "150 prompts · " in line
        and " tok/s · " in line
        and "tokens each" in line
        and "% truncated" in line
    )
    again = [
        name
        for name, at in done.items()
        if next(p for p in killed.drawn() if p.name == name).stat().st_mtime_ns > at
    ]
    assert len(again) <= 2, "a shard that was finished was drawn again"

    step = json.loads((killed.drawn()[0].parent.parent / "step.json").read_text())
    cfg = SampleRequest.model_validate(
        step["config"] | {"runtime": {"blocks": 1, "workers": 1, "max_failed": 0.01}}
    )
    inputs = {name: Path(source["path"]) for name, source in step["inputs"].items()}
    sample.run(
        cfg,
        tmp_path / "whole",
        policy=Model(inputs["policy"]),
        prompts=Prompts(inputs["prompts"] / "train"),
    )
    assert files(tmp_path / "whole") == files(killed.drawn()[0].parent.parent)


@pytest.mark.slow
@pytest.mark.long
def test_workers_that_join_take_shards_and_the_bytes_are_those_of_one(tmp_path):
    (tmp_path / "joined").mkdir()
    (tmp_path / "alone").mkdir()
    joined, alone = Drawn(tmp_path / "joined"), Drawn(tmp_path / "alone")
    driver = joined.start(*SCRIPTED, shard_pause="0.1")
    while not (queue := [*joined.folder.glob("store/sample/*/scratch/queue/queue.json")]):
        assert driver.poll() is None, driver.communicate()
    command = [sys.executable, "-m", "pipeline", "work", "runs/latest", "step=sample", "wait=4"]
    colleagues = [
        subprocess.Popen(
            command,
            cwd=joined.folder,
            env=joined.environment(shard_pause="0.1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    others = queue[0].parent / "others"
    while len({folder.name for folder in others.glob("*")}) < 2:
        assert driver.poll() is None, [one.communicate() for one in (driver, *colleagues)]
    colleagues[0].kill()  # in the middle of a shard, which is sampled again
    assert driver.wait(120) == 0, driver.communicate()
    output, _ = colleagues[1].communicate(timeout=120)
    assert colleagues[1].returncode == 0 and "joined sample 1" in output
    taken = int(re.search(r"(\d+) pieces of work finished", output)[1])
    assert taken > 5
    alone.run(*SCRIPTED)
    folders = [one.drawn()[0].parent.parent for one in (joined, alone)]
    assert files(folders[0]) == files(folders[1]) and len(joined.drawn()) == 150


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["nowhere"], "this machine sees no such folder"),
        (["empty", "wait=0"], "not a run that this machine sees"),
        (["run", "step=pair"], "its work is not in shards. Expected one of sample"),
        (["run", "wait=soon"], "expected whole seconds"),
        (["run", "same_device=no"], "same_device=no: expected one of auto, true, false"),
    ],
)
def test_what_cannot_be_joined_is_refused(tmp_path, monkeypatch, capsys, words, fault):
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "run" / "plan.json", {})
    (tmp_path / "empty").mkdir()
    assert work.main(words) == 2
    assert fault in capsys.readouterr().err


def test_a_partner_of_one_training_joins_no_other(tmp_path):
    for name in ("a", "b"):
        out = tmp_path / "store" / "train" / name
        call = {"machines": 2, "processes": 1, "attempt": "x", "code": "y"}
        write_json(out.with_name(f"{name}.partial") / "scratch/machines/invitation.json", call)
        record = {"stage": "train", "fingerprint": name, "out": str(out), "inputs": {}}
        write_json(tmp_path / "run" / "steps" / f"{name}.json", record)

    def list_joined(wanted: str | None) -> list[str]:
        return [step["fingerprint"] for step, _ in work.list_open_steps(tmp_path / "run", wanted)]

    assert list_joined(None) == list_joined("train") == ["a", "b"]
    assert list_joined("train@b") == ["b"] and list_joined("sample") == []


def test_a_machine_with_too_few_gpus_leaves_a_training_to_others(tmp_path, monkeypatch, capsys):
    invitation = machines.Invitation(tmp_path, 2, 8, "x", hash_code())
    monkeypatch.setattr(work, "_check_machine", lambda *_: None)
    monkeypatch.setattr(work.hardware, "list_gpus", lambda: ["one"])
    monkeypatch.setattr(work.machines, "join", lambda *_: pytest.fail("it took a number"))
    assert work._train_along({"stage": "train"}, tmp_path, invitation, "auto") == 0
    assert "train asks each machine for 8 GPUs, and this process sees 1" in capsys.readouterr().err


def test_a_worker_of_another_version_or_kind_of_machine_is_refused(tmp_path):
    with pytest.raises(UserError, match="another version of this software"):
        work.check_same_code("0" * 12, tmp_path)
    with pytest.raises(UserError, match="Join from a machine of the same kind"):
        work.check_same_device({"stage": "sample", "device": "3 cores of sparc"})


H100, H200 = "2 x NVIDIA H100", "8 x NVIDIA H200"


@pytest.mark.parametrize(
    ("here", "run", "same", "may_join"),
    [
        (H200, "1 x NVIDIA H200", "true", True),  # of one kind, however many
        (H200, H100, "auto", True),
        (H200, H100, "true", False),
        (H200, "3 cores of x86_64", "auto", False),
        ("4 cores of x86_64", "3 cores of x86_64", "auto", False),
        ("4 cores of x86_64", H200, "auto", False),
        ("4 cores of x86_64", H200, "false", True),
    ],
)
def test_which_devices_may_work_on_one_step(monkeypatch, here, run, same, may_join):
    gpus = [1] if "NVIDIA" in here else []
    monkeypatch.setattr(work.hardware, "describe_device", lambda: here)
    monkeypatch.setattr(work.hardware, "list_gpus", lambda: gpus)
    step = {"stage": "sample", "device": run}
    if may_join:
        work.check_same_device(step, same)
    else:
        with pytest.raises(UserError, match="or give same_device=false"):
            work.check_same_device(step, same)


# ── the config ────────────────────────────────────────────────────────────────────────────────────


def test_the_backends_of_rounds_and_exams_are_chosen_apart():
    given = ["score=rules", "prompts.path=p.jsonl", "sft.model=./m"]
    cfg = composed(
        *given, "backend@sample.backend=scripted", "backend@evaluate.sample.backend=transformers"
    )
    assert (cfg.sample.backend.kind, cfg.evaluate.sample.backend.kind) == (
        "scripted",
        "transformers",
    )
    assert composed(*given).sample.backend.kind == "vllm"


def test_a_round_draws_from_the_model_that_was_examined_before_it():
    steps = named(plan(composed("recipes=smoke", "rounds=3")))
    for draws, examined in (("1", "sft"), ("2", "round-1"), ("3", "round-2")):
        policy = steps[f"sample@{draws}"].inputs["policy"]
        assert policy is steps[f"sample@test {examined}"].inputs["policy"]
    assert steps["sample@3"].inputs["policy"].stage == "train"


def test_the_exam_draws_for_kl_from_the_policy_itself():
    kl = composed("score=rules", "prompts.path=p.jsonl", "sft.model=./m").evaluate.sample.settings[
        "kl"
    ]
    assert (kl.n, kl.temperature, kl.top_p) == (1, 1.0, 1.0)


def test_a_completion_without_a_finite_log_probability_is_never_taken(tmp_path: Path) -> None:
    cfg = composed("recipes=smoke").sample.request("train")
    draws = collector.SampleCollector(
        cfg, "policy", ScriptedTokenizer(8), shards.Shards(tmp_path, 1), worker_pool.InProcess([])
    )
    with pytest.raises(StageError, match="log-probability nan"):
        draws.add_result(Completion("any", [0], float("nan"), "length"))
