"""The stage `sample` on the smoke run's SFT model, 400 prompts × 8, against other ways to sample.

over_vllm: one `LLM.generate` of all requests, already tokenised, on the engine of the stage itself.
over_defaults: the stage with `seeded=false`, as on a GPU, against vLLM's usual way: default engine,
one request with n=8 per prompt, no seeds, no log-probabilities.
over_naive: one `model.generate` per sample, on a few of the prompts. growth: 400 prompts over 100.
Engines start before the clock; tokens/s count completion tokens.
memory: driver and stage, 100,000 scripted prompts × 8 over 10,000.
Arguments: `store=FOLDER` to find the SFT model again, and names of ratios to measure only those.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import Ratio, list_children, read_peak_memory, report

from pipeline.artifacts import Model, Prompts, Samples
from pipeline.backends import open_backend
from pipeline.backends.vllm_engine import open_platform
from pipeline.config import SampleRequest, Seeded
from pipeline.config.compose import Arguments, compose
from pipeline.resources.inference_memory import missing_vllm
from pipeline.sampling import sampler
from pipeline.sampling.collector import needs_logprob
from pipeline.stages import sample

HOUSE = Path(__file__).parent.parent
RUNS, PROMPTS, FEW, NAIVE = 5, 400, 100, 8
MANY, LESS = 100_000, 10_000
# Each ratio of speeds, with the two ways that it compares and its goal.
SPEEDS = {
    "over_vllm": ("stage", "vllm", ">= 0.97"),
    "over_defaults": ("unseeded", "defaults", ">= 0.97"),
    "over_naive": ("stage", "naive", ">= 10"),
}


def main() -> None:
    store = next((word for word in sys.argv[1:] if word.startswith("store=")), "store=store")
    names = [word for word in sys.argv[1:] if "=" not in word] or [*SPEEDS, "growth", "memory"]
    ratios: dict[str, Ratio] = {}
    with tempfile.TemporaryDirectory() as folder:
        smoke = "recipes=smoke", store, f"runs={folder}/runs"
        sft = Model(build("sft", *smoke))
        if set(names) - {"memory"}:
            ratios |= measure_speeds(sft, Prompts(build("prompts", *smoke) / "train"), names)
        if "memory" in names:
            ratios["memory"] = Ratio(list(measure_memory(sft, Path(folder))), "<= 1.3")
    report("sampling", ratios)


def build(stage: str, *words: str) -> Path:
    """Build a step with the real pipeline, which prints the step's folder in its last line."""
    command = [sys.executable, "-m", "pipeline", f"until={stage}", *words]
    done = subprocess.run(command, cwd=HOUSE, check=True, stdout=subprocess.PIPE, text=True)
    return (HOUSE / done.stdout.splitlines()[-1]).absolute()


# ── speed ─────────────────────────────────────────────────────────────────────────────────────────


def measure_speeds(sft: Model, prompts: Prompts, names: list[str]) -> dict[str, Ratio]:
    sides = Sides(sft, prompts)
    ways: dict[str, Callable[[], float]] = {
        "stage": lambda: sides.stage(PROMPTS),
        "vllm": sides.vllm,
        "unseeded": lambda: sides.stage(PROMPTS, seeded=False),
        "defaults": sides.defaults,
        "naive": sides.naive,
        "few": lambda: sides.stage(FEW),
    }
    needed = {way for name in names if name in SPEEDS for way in SPEEDS[name][:2]}
    needed |= {"stage", "few"} if "growth" in names else set()
    ways = {name: way for name, way in ways.items() if name in needed}
    turns = []
    for turn in range(RUNS + 1):  # the first does not count
        turns.append({})
        for name, way in ways.items():
            sides.steps.begin()
            turns[-1][name] = way()
            print(
                f"{f'run {turn}' if turn else 'warm-up'}: {name} {turns[-1][name]:.0f} tokens/s"
                f"{sides.steps.describe()}",
                flush=True,
            )

    ratios = {
        name: Ratio([turn[ours] / turn[theirs] for turn in turns[1:]], goal)
        for name, (ours, theirs, goal) in SPEEDS.items()
        if name in names
    }
    if "growth" in names:
        growth = [many / few for many, few in zip(*sides.stage_seconds(), strict=True)]
        ratios["growth"] = Ratio(growth, "<= 4.2")
    return ratios


class EngineSteps:
    """How many steps the engines here took, and how long a side was outside of them.

    That includes the count of its tokens, which is outside of the clock.
    """

    def begin(self) -> None:
        self.count, self.seconds, self.began = 0, 0.0, time.monotonic()

    def watch(self, engine: Any) -> None:
        step = engine.step

        def count_step() -> Any:
            started = time.monotonic()
            outputs = step()
            self.count, self.seconds = self.count + 1, self.seconds + time.monotonic() - started
            return outputs

        engine.step = count_step

    def describe(self) -> str:
        if not self.count:
            return ""
        outside = time.monotonic() - self.began - self.seconds
        return f", {self.count} engine steps, {outside:.2f} s outside of them"


class Sides:
    """Every way to sample, each with its engine running. A call returns tokens per second."""

    def __init__(self, sft: Model, prompts: Prompts):
        self.sft, self.prompts, self.steps = sft, prompts, EngineSteps()
        [point], _ = compose(Arguments.parse(["recipes=smoke", f"sample.per_round={PROMPTS}"]))
        self.cfg: SampleRequest = point.sample.request("train")
        self.clock: dict[int, list[float]] = {PROMPTS: [], FEW: []}
        self._start_defaults()  # first, because vLLM runs it in its own process
        self.backend, self.llm = self._start("auto")
        unseeded, _ = self._start(False)
        running = {"auto": self._stay_open(self.backend), False: self._stay_open(unseeded)}
        sampler.open_backend = lambda *given: running[[*given, "auto"][3]]
        self.rows = prompts.read()["prompt"].to_list()[:PROMPTS]
        self.ids = [
            self.backend.tokenizer.encode(row, self.cfg.template_kwargs) for row in self.rows
        ]
        self._load()

    def _start_defaults(self) -> None:
        from vllm import LLM

        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        cache = self.cfg.backend.runtime.cpu_cache_gib << 30  # type: ignore[union-attr]
        weights = str(self.sft.weights)
        self.plain = LLM(weights, dtype="float32", enforce_eager=True, kv_cache_memory_bytes=cache)
        del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]

    def _start(self, seeded: Seeded) -> tuple[Any, Any]:
        """One engine for the stage and for `LLM.generate`."""
        from vllm import LLM

        backend: Any = open_backend(self.cfg.backend, self.sft, seeded=seeded)
        place = open_platform(partial(missing_vllm, "sample"))
        backend.prepare(place, self.cfg.limits)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        llm = LLM(**backend._build_engine_arguments(self.sft, place))
        backend.engine = llm.llm_engine
        self.steps.watch(backend.engine)
        return backend, llm

    def _stay_open(self, backend: Any) -> Any:
        class RunningBackend:
            tokenizer, generate = backend.tokenizer, backend.generate
            start = close = staticmethod(lambda *_: None)

        return RunningBackend()

    def _load(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.module: Any = AutoModelForCausalLM.from_pretrained(self.sft.weights)
        self.tokenizer = AutoTokenizer.from_pretrained(self.sft.tokenizer)

    def stage(self, count: int, seeded: Seeded = "auto") -> float:
        cfg = self.cfg.model_copy(update={"per_round": count, "seeded": seeded})
        with tempfile.TemporaryDirectory() as out, silence():
            started = time.monotonic()
            sample.run(cfg, Path(out), policy=self.sft, prompts=self.prompts)
            seconds = time.monotonic() - started
            if seeded == "auto":
                self.clock[count].append(seconds)
            tokens = sum(
                int(shard["token_ids"].list.len().sum())
                for shard in Samples(Path(out)).read_shards()
            )
        return tokens / seconds

    def stage_seconds(self) -> tuple[list[float], list[float]]:
        return self.clock[PROMPTS][1:], self.clock[FEW][1:]

    def vllm(self) -> float:
        from pipeline.backends import CompletionRequest

        [(name, setting)] = self.cfg.settings.items()
        chance = random.Random(0)
        requests = [
            CompletionRequest(
                "",
                ids,
                setting.temperature,
                setting.top_p,
                chance.getrandbits(63),
                needs_logprob=needs_logprob(name, index),
            )
            for ids in self.ids
            for index in range(setting.n)
        ]
        parameters = [self.backend._sampling_parameters(request) for request in requests]
        ids = [request.prompt_token_ids for request in requests]
        return self._time_generate(self.llm, ids, parameters)

    def defaults(self) -> float:
        from vllm import SamplingParams

        [setting] = self.cfg.settings.values()
        limit = self.cfg.limits.completion
        how = SamplingParams(
            n=setting.n, temperature=setting.temperature, top_p=setting.top_p, max_tokens=limit
        )
        return self._time_generate(self.plain, self.ids, how)

    def _time_generate(self, llm: Any, ids: list[list[int]], how: Any) -> float:
        prompts = [{"prompt_token_ids": row} for row in ids]
        started = time.monotonic()
        outputs = llm.generate(prompts, how, use_tqdm=False)
        seconds = time.monotonic() - started
        completions = [each for output in outputs for each in output.outputs]
        return sum(len(completion.token_ids) for completion in completions) / seconds

    def naive(self) -> float:
        [setting] = self.cfg.settings.values()
        how = {
            "do_sample": True,
            "temperature": setting.temperature,
            "top_p": setting.top_p,
            "top_k": 0,
        }
        tokens, started = 0, time.monotonic()
        for row in self.rows[:NAIVE]:
            for _ in range(setting.n):
                prompt = self.tokenizer.apply_chat_template(
                    row, add_generation_prompt=True, return_tensors="pt"
                )
                ids = self.module.generate(
                    **prompt, max_new_tokens=self.cfg.limits.completion, **how
                )
                tokens += ids.shape[1] - prompt["input_ids"].shape[1]
        return tokens / (time.monotonic() - started)


@contextmanager
def silence() -> Iterator[None]:
    """Keep the stage's progress lines out of the bench's own."""
    stderr, sys.stderr = sys.stderr, Path(os.devnull).open("w")  # noqa: SIM115
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = stderr


# ── memory ────────────────────────────────────────────────────────────────────────────────────────

WORDS = (
    "river",
    "stone",
    "amber",
    "quiet",
    "garden",
    "copper",
    "lantern",
    "valley",
    "marble",
    "orchard",
    "velvet",
)


def measure_memory(sft: Model, folder: Path) -> Iterator[float]:
    """Peak of driver and stage together. Prompts and model are in the store: only `sample` runs."""
    plans = {count: write_prompts(folder, count, sft) for count in (MANY, LESS)}
    for words in plans.values():
        build("prompts", *words)
        build("sft", *words)
    for _ in range(RUNS):
        peaks = {count: measure_peaks(folder, words) for count, words in plans.items()}
        line = "; ".join(
            f"{count} prompts {' + '.join(map(str, sizes))} MB" for count, sizes in peaks.items()
        )
        print(f"driver and stage: {line}", flush=True)
        yield sum(peaks[MANY]) / sum(peaks[LESS])


def write_prompts(folder: Path, count: int, sft: Model) -> list[str]:
    """Write prompts of random words. Return the command line that samples them."""
    chance, file = random.Random(count), folder / f"{count}.jsonl"
    texts = (
        f"Write {at} lines about {' '.join(chance.choices(WORDS, k=12))}" for at in range(count)
    )
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return [
        f"prompts.path={file}",
        f"sft.model={sft.weights}",
        "dtype=float32",
        "backend@sample.backend=scripted",
        "limits={prompt:512,completion:64}",
        f"store={folder / 'store'}",
        f"runs={folder / 'runs'}",
    ]


def measure_peaks(folder: Path, words: list[str]) -> list[int]:
    """MB of the driver and of each of its child processes, at their peaks."""
    shutil.rmtree(folder / "store" / "sample", ignore_errors=True)
    command = [sys.executable, "-m", "pipeline", "until=sample", *words]
    driver = subprocess.Popen(command, cwd=HOUSE, stdout=subprocess.DEVNULL)
    highest: dict[int, float] = {}
    while driver.poll() is None:
        for pid in [driver.pid, *list_children(driver.pid)]:
            highest[pid] = max(highest.get(pid, 0.0), read_peak_memory(pid))
        time.sleep(0.1)
    assert driver.returncode == 0
    return [round(size) for size in highest.values() if size]


if __name__ == "__main__":
    main()
