"""What the user sees of long work: nothing is silent, and the time left goes by tokens."""

import json
import random
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from pipeline.artifacts import Model
from pipeline.backends import Completion
from pipeline.backends.scripted import ScriptedTokenizer
from pipeline.driver.ledger import Ledger
from pipeline.driver.worker_log import LogWatch
from pipeline.plan import plan
from pipeline.progress import Progress, format_clock, print_phase
from pipeline.sampling import sampler, throughput
from pipeline.stages import reference, sample
from tests.stages.test_sample import CONFIG, POLICY, ask
from tests.stages.test_sample import config as drawing
from tests.support.house import SMALL, composed

LIMIT, FACTOR = 512, 1.5


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks(monkeypatch) -> Clock:
    ticking = Clock()
    monkeypatch.setattr(time, "monotonic", ticking)
    return ticking


# ── sampling: tokens, finished or not ─────────────────────────────────────────────────────────────


class Lockstep:
    """An engine that makes a token for every request at each step; a second is so many tokens."""

    tokenizer = ScriptedTokenizer(200)
    reading = 0.0  # seconds for a prompt, before its first token

    def __init__(self, ticking: Clock, lengths: list[int]):
        self.clock, self.lengths = ticking, iter(lengths)
        self.drawn: list[tuple[float, int]] = []  # when, and how many tokens by then

    def start(self, *_):
        return self

    def close(self):
        pass

    def generate(self, blocks, on_tokens=None):
        total = 0
        for block in blocks:
            left = {request.sample_id: next(self.lengths) for request in block}
            whole, told = dict(left), self.clock.now
            self.clock.now += self.reading * len(left)
            while left:
                total += len(left)
                self.clock.now += len(left) / 100
                left = {name: count - 1 for name, count in left.items()}
                for name in [name for name, count in left.items() if not count]:
                    del left[name]
                    ends = "stop" if whole[name] < LIMIT else "length"
                    yield Completion(name, [1] * whole[name], -1.0, ends)
                if on_tokens and self.clock.now - told >= 0.5:
                    on_tokens({name: whole[name] - count for name, count in left.items()})
                    told = self.clock.now
                self.drawn.append((self.clock.now, total))


def seconds_of(left: str) -> int:
    total = 0
    for part in left.removeprefix("at most ").split(":"):
        total = 60 * total + int(part)
    return total


def length(kind: str, chance: random.Random) -> int:
    match kind:
        case "limit":
            return LIMIT
        case "some never end":
            return chance.randint(20, 60) if chance.random() < 0.6 else LIMIT
        case "wide":
            return max(1, min(LIMIT, int(chance.lognormvariate(5.3, 1.0))))
        case "geometric":
            return min(LIMIT, 1 + int(chance.expovariate(1 / 120)))
        case "alike":
            return max(1, int(chance.gauss(150, 20)))
    raise ValueError(kind)


def watched(
    monkeypatch, tmp_path: Path, ticking: Clock, lengths: list[int], prompts: int, shard: int
):
    """The lines of a draw, each with when it came and the time left; and the engine that drew."""
    engine, lines = Lockstep(ticking, lengths), []

    class Recorded(Progress):
        def advance(self, by: int = 1, **facts: str) -> None:
            super().advance(by, **facts)
            lines.append((ticking.now, self.time_left, self.done))

    monkeypatch.setattr(throughput, "Progress", Recorded)
    monkeypatch.setattr(sampler, "open_backend", lambda *_: engine)
    asked = ask(tmp_path / "train", *(f"say {at} things" for at in range(prompts)))
    limits = {"prompt": 64, "completion": LIMIT}
    rows = sample.run(
        drawing(limits=limits, shard=shard), tmp_path / "out", policy=POLICY, prompts=asked
    ).read()
    assert rows.height == 4 * prompts
    return lines, engine.drawn


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("kind", ["limit", "some never end", "wide", "geometric"])
def test_half_way_through_the_tokens_the_time_left_is_known(
    monkeypatch, tmp_path, ticks, kind, blocks
):
    """With one block no prompt is done before its last completion, maybe at the very end."""
    chance = random.Random(3)
    prompts = 32 * blocks
    lengths = [length(kind, chance) for _ in range(4 * prompts)]
    lines, drawn = watched(monkeypatch, tmp_path, ticks, lengths, prompts, shard=32)
    end, total = drawn[-1]
    half = next(at for at, tokens in drawn if tokens >= total / 2)
    at, left, done = next(line for line in lines if line[0] >= half)
    assert left is not None and 1 / FACTOR <= seconds_of(left) / (end - at) <= FACTOR, (
        left,
        end - at,
    )
    assert left.startswith("at most") == (kind == "limit"), (
        "where nothing ended by itself the limit is all we know"
    )
    if kind == "limit" and blocks == 1:
        assert done == 0, "prompts alone would tell nothing"
    assert seconds_of(lines[-1][1]) == 0


def test_answers_of_like_length_are_known_once_a_block_is_done(monkeypatch, tmp_path, ticks):
    chance = random.Random(3)
    lines, drawn = watched(
        monkeypatch,
        tmp_path,
        ticks,
        [length("alike", chance) for _ in range(4 * 128)],
        128,
        shard=32,
    )
    end, total = drawn[-1]
    for share in (0.5, 0.75):
        reached = next(at for at, tokens in drawn if tokens >= share * total)
        at, left, _ = next(line for line in lines if line[0] >= reached)
        assert 1 / FACTOR <= seconds_of(left) / (end - at) <= FACTOR, share


def test_the_start_of_a_shard_does_not_change_the_time_left(monkeypatch, tmp_path, ticks):
    """Its prompts are read first, which makes no tokens; before, there was five times as much."""
    monkeypatch.setattr(Lockstep, "reading", 0.3)
    chance = random.Random(3)
    lengths = [length("alike", chance) for _ in range(4 * 128)]
    lines, drawn = watched(monkeypatch, tmp_path, ticks, lengths, 128, shard=32)
    began, end = lines[0][0], drawn[-1][0]
    middle = [line for line in lines if 0.25 < (line[0] - began) / (end - began) < 0.75]
    shares = [seconds_of(left) / (end - at) for at, left, _ in middle]
    assert len(shares) > 100 and min(shares) >= 1 / FACTOR and max(shares) <= FACTOR


def test_tokens_of_the_unfinished_are_shown_and_never_counted_twice(ticks, capfd):
    found = dict.fromkeys(("prompts", "completions", "tokens", "truncated"), 0)
    watcher = throughput.ThroughputMeter(found, 2, 8, 100)
    watcher.update({throughput.ENGINE: 1.0})
    ticks.now += throughput.FIRST_ESTIMATE
    watcher.update({f"{throughput.UNFINISHED_BIN}3": 8, throughput.UNFINISHED_TOKENS: 80})
    said = capfd.readouterr().err
    assert (
        "sample 0/2 prompts" in said and "under way 8 with 80 tokens" in said and "at most" in said
    )


def test_what_is_counted_of_a_completion_goes_when_it_is_finished(tmp_path):
    """Reported or not in between, a whole request's news add up and nothing stays in flight."""
    heard: list[dict[str, float]] = []

    class Counting(Lockstep):
        def generate(self, blocks, on_tokens=None):
            for block in blocks:
                on_tokens({request.sample_id: 7 for request in block})
                for request in block:
                    yield Completion(request.sample_id, [1] * 9, -1.0, "stop")
                on_tokens({})

    asked = ask(tmp_path / "train", *(f"say {at} things" for at in range(6)))
    engine, real = Counting(Clock(), []), throughput.ThroughputMeter.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "open_backend", lambda *_: engine)
        patch.setattr(
            throughput.ThroughputMeter,
            "update",
            lambda self, news: (heard.append(dict(news)), real(self, news))[1],
        )
        sample.run(drawing(), tmp_path / "out", policy=POLICY, prompts=asked)
    sums = {name: sum(news.get(name, 0) for news in heard) for news in heard for name in news}
    assert max(news.get(throughput.UNFINISHED_TOKENS, 0) for news in heard) > 0
    assert sums[throughput.UNFINISHED_TOKENS] == 0 and sums["tokens"] == 9 * 24
    assert all(
        not count for name, count in sums.items() if name.startswith(throughput.UNFINISHED_BIN)
    )


# ── reference ─────────────────────────────────────────────────────────────────────────────────────


def test_refer_tells_time_by_tokens_since_the_longest_rows_come_first(ticks, capfd):
    lengths = [100] * 10 + [10] * 90
    watch = reference.ChunkProgress(pl.DataFrame({"length": lengths}), ["chunk-000000.parquet"])
    watch.update({"rows": 0, "tokens": 0})
    ticks.now += 100
    watch.update({"rows": 10, "tokens": 1000})
    assert "reference 10/100 completions · speed 10 tok/s · 1:30 left" in capfd.readouterr().err


# ── a training's steps and evaluations ────────────────────────────────────────────────────────────


@pytest.mark.model
def test_looks_are_counted_apart_from_steps(ticks, capfd, tmp_path):
    from pipeline.training.monitoring.callbacks import ProgressLine

    line = ProgressLine("train", tmp_path)
    args = SimpleNamespace(eval_strategy="steps", eval_steps=10)
    state = SimpleNamespace(max_steps=20, global_step=0, is_world_process_zero=True)
    line.on_train_begin(args, state, None)
    for _ in range(3):
        ticks.now += 20
        line.on_prediction_step(args, state, None, eval_dataloader=range(3))
    line.on_evaluate(args, state, None)
    said = capfd.readouterr().err
    assert "train, evaluation at step 0: 1/3 dev batches" in said
    line.on_step_begin(args, state, None)
    ticks.now += 5
    state.global_step = 1
    line.on_step_end(args, state, None)
    line.on_log(args, state, None, {"loss": 0.5})
    # 19 steps of 5 s and two evaluations of 60 s; counted in the speed, they would give 20 minutes.
    assert "train 1/20 steps · loss 0.5 · 3:35 left" in capfd.readouterr().err
    line.on_train_end(args, state, None)
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost == {"loop_seconds": 65, "step_seconds": 5, "evaluation_seconds": 60}


@pytest.mark.model
def test_an_evaluation_without_batches_and_a_checkpoint_are_timed(ticks, tmp_path):
    """As of online training, whose answers the guards sample after `on_evaluate`."""
    from pipeline.training.monitoring.callbacks import ProgressLine

    line = ProgressLine("train", tmp_path)
    args = SimpleNamespace(eval_strategy="steps", eval_steps=1)
    state = SimpleNamespace(max_steps=2, global_step=0, is_world_process_zero=True)
    line.on_train_begin(args, state, None)
    for save, evaluate in ((4, 0), (0, 30)):
        line.on_step_begin(args, state, None)
        ticks.now += 5
        line.on_step_end(args, state, None)
        ticks.now += save
        if evaluate:
            line.on_evaluate(args, state, None)
            ticks.now += evaluate
    line.on_train_end(args, state, None)
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost == {"loop_seconds": 44, "step_seconds": 7, "evaluation_seconds": 30}


@pytest.mark.model
def test_a_batch_of_transformers_tells_how_far_its_rows_are(monkeypatch):
    import torch

    from pipeline.backends import CompletionRequest, transformers

    monkeypatch.setattr(transformers, "COUNT_EVERY", 0.0)
    heard: list[dict[str, int]] = []
    batch = [CompletionRequest(name, [1, 2], 0.0, 1.0, 0) for name in "ab"]
    count = transformers.TokenReporter([9], batch, lambda told: heard.append(dict(told)))
    for drawn in ([], [[5], [9]], [[5, 6], [9, 0]]):
        rows = torch.tensor([[1, 2, *more] for more in drawn] if drawn else [[1, 2]] * 2)
        scores = torch.zeros(2, 10)
        assert count(rows, scores) is scores
    assert heard == [{"a": 0, "b": 0}, {"a": 1, "b": 1}, {"a": 2, "b": 1}]


# ── the driver's line ─────────────────────────────────────────────────────────────────────────────


def shown_over(
    tmp_path: Path, said: list[tuple[float, str]], until: float
) -> list[tuple[float, str]]:
    """What the driver shows of a worker that says these lines at these seconds."""
    log, ticking, shown = tmp_path / "log", Clock(), []
    log.write_text("")
    watch = LogWatch(log, ticking)
    begun = ticking.now
    while ticking.now - begun < until:
        ticking.now += 0.5
        for line in [line for line in said if line[0] <= ticking.now - begun]:
            said.remove(line)
            log.write_text(log.read_text() + line[1] + "\n")
        watch.poll(lambda text: shown.append((ticking.now - begun, text)), pytest.fail)
    return shown


def test_a_worker_that_says_nothing_is_shown_with_its_seconds(tmp_path):
    shown = shown_over(tmp_path, [(10, "▸ starting the vLLM engine …")], until=60)
    assert (9.5, "starting, 9 s") in shown or (9.0, "starting, 9 s") in shown
    assert shown[-1][1] == "starting the vLLM engine, 50 s"
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(shown)]
    assert max(gaps) <= 1.0


def test_a_line_that_counts_says_how_old_it_is(tmp_path):
    line = "▸ reference 1/9 completions · 0:21 left"
    shown = [text for _, text in shown_over(tmp_path, [(1, line)], until=25)]
    assert "reference 1/9 completions · 0:21 left" in shown
    assert shown[-1] == "reference 1/9 completions · 0:21 left · 24 s ago"


def test_in_a_log_a_silent_phase_has_a_line_every_thirty_seconds(tmp_path, ticks, capsys):
    [*_, step] = plan(composed(*SMALL)).ancestors()
    ledger, watch = Ledger(None), LogWatch(_empty(tmp_path / "log"), ticks)
    for _ in range(200):
        ticks.now += 0.5
        watch.poll(lambda text: ledger.show_running(step, "0" * 12, text), pytest.fail)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[2].split(", ")[1] for line in lines] in (
        ["30 s", "60 s", "90 s"],
        ["30 s", "61 s", "92 s"],
    )


def _empty(path: Path) -> Path:
    path.write_text("")
    return path


def test_a_phase_and_a_long_time_are_written_for_people(capfd):
    print_phase("loading the model")
    assert capfd.readouterr().err == "▸ loading the model …\n"
    assert [format_clock(seconds) for seconds in (9, 2160, 7800)] == ["0:09", "36:00", "2:10:00"]


def test_each_engine_says_what_is_waited_for():
    backends = {"scripted": "first completions", "vllm": "vLLM engine", "transformers": "loading"}
    for name, said in backends.items():
        cfg = composed(*SMALL, f"backend@sample.backend={name}").sample.request("train")
        assert said in sampler.describe_start(cfg)
    assert CONFIG["backend"]["kind"] == "scripted" and isinstance(POLICY, Model)
