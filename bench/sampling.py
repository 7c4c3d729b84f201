"""The stage `sample` on the smoke run's SFT model, 400 prompts × 8, against other ways to draw the same.

over_vllm: one `LLM.generate` of all requests, ready tokenised, on the very engine that the stage uses. over_defaults:
vLLM's own way (an engine with its defaults, one request with n=8 a prompt, no seeds, no log-probabilities). over_naive:
one `model.generate` a sample, on a few of the prompts. growth: 400 prompts over 100. Engines start before the clock;
tokens/s count what came out. memory: driver and stage, 100,000 scripted prompts × 8 over 10,000.
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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import Ratio, report

from pipeline.artifacts import Model, Prompts, Samples
from pipeline.backends import open_backend
from pipeline.config import SampleRequest
from pipeline.config.compose import Arguments, compose
from pipeline.stages import sample

HOUSE = Path(__file__).parent.parent
RUNS, PROMPTS, FEW, NAIVE = 5, 400, 100, 8
MANY, LESS = 100_000, 10_000
ENGINE_RATIOS = "over_vllm", "over_defaults", "over_naive", "growth"


def main() -> None:
    store = next((word for word in sys.argv[1:] if word.startswith("store=")), "store=store")
    asked = [word for word in sys.argv[1:] if "=" not in word] or [*ENGINE_RATIOS, "memory"]
    found: dict[str, Ratio] = {}
    with tempfile.TemporaryDirectory() as place:
        smoke = "recipes=smoke", store, f"runs={place}/runs"
        sft = Model(built("sft", *smoke))
        if set(asked) & set(ENGINE_RATIOS):
            found |= speeds(sft, Prompts(built("prompts", *smoke) / "train"))
        if "memory" in asked:
            found["memory"] = Ratio(list(memory(sft, Path(place))), "<= 1.3")
    report("sampling", found)


def built(stage: str, *words: str) -> Path:
    """The folder of a step of the real pipeline, which names it in its last line."""
    command = [sys.executable, "-m", "pipeline", f"until={stage}", *words]
    done = subprocess.run(command, cwd=HOUSE, check=True, stdout=subprocess.PIPE, text=True)
    return (HOUSE / done.stdout.splitlines()[-1]).absolute()


# ── speed ─────────────────────────────────────────────────────────────────────────────────────────


def speeds(sft: Model, prompts: Prompts) -> dict[str, Ratio]:
    sides = Sides(sft, prompts)
    ways: dict[str, Callable[[], float]] = {
        "stage": lambda: sides.stage(PROMPTS),
        "vllm": sides.vllm,
        "defaults": sides.defaults,
        "naive": sides.naive,
        "few": lambda: sides.stage(FEW),
    }
    turns = []
    for turn in range(RUNS + 1):  # the first does not count
        turns.append({name: way() for name, way in ways.items()})
        told = ", ".join(f"{name} {speed:.0f}" for name, speed in turns[-1].items())
        print(f"{'warm-up' if turn == 0 else f'run {turn}'}: {told} tokens/s", flush=True)
    return {
        "over_vllm": Ratio([turn["stage"] / turn["vllm"] for turn in turns[1:]], ">= 0.95"),
        "over_defaults": Ratio([turn["stage"] / turn["defaults"] for turn in turns[1:]], None),
        "over_naive": Ratio([turn["stage"] / turn["naive"] for turn in turns[1:]], ">= 10"),
        "growth": Ratio([many / few for many, few in zip(*sides.seconds(), strict=True)], "<= 4.2"),
    }


class Sides:
    """Every way to draw, each with its engine running; a call gives tokens per second."""

    def __init__(self, sft: Model, prompts: Prompts):
        self.sft, self.prompts = sft, prompts
        [point], _ = compose(Arguments.parse(["recipes=smoke", f"sample.per_round={PROMPTS}"]))
        self.cfg: SampleRequest = point.sample.draw("train")
        self.backend: Any = open_backend(self.cfg.backend, sft)
        self.clock: dict[int, list[float]] = {PROMPTS: [], FEW: []}
        self._start_defaults()  # first: it lives in a process of its own, as vLLM has it
        self._start()
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

    def _start(self) -> None:
        """One engine for the stage and for `LLM.generate`."""
        from vllm import LLM

        backend = self.backend
        backend.limits, backend.refill_threshold = self.cfg.limits, 0
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self.llm = LLM(**backend._build_engine_arguments(self.sft, on_cpu=True))
        backend.engine = self.llm.llm_engine

        class Running:
            tokenizer, generate = backend.tokenizer, backend.generate
            start = close = staticmethod(lambda *_: None)

        sample.open_backend = lambda *_: Running()  # type: ignore[assignment]

    def _load(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.module: Any = AutoModelForCausalLM.from_pretrained(self.sft.weights)
        self.tokenizer = AutoTokenizer.from_pretrained(self.sft.tokenizer)

    def stage(self, count: int) -> float:
        cfg = self.cfg.model_copy(update={"per_round": count})
        with tempfile.TemporaryDirectory() as out, silence():
            started = time.monotonic()
            sample.run(cfg, Path(out), policy=self.sft, prompts=self.prompts)
            self.clock[count].append(time.monotonic() - started)
            tokens = sum(
                int(shard["token_ids"].list.len().sum()) for shard in Samples(Path(out)).shards()
            )
        return tokens / self.clock[count][-1]

    def seconds(self) -> tuple[list[float], list[float]]:
        return self.clock[PROMPTS][1:], self.clock[FEW][1:]

    def vllm(self) -> float:
        from pipeline.backends import CompletionRequest

        [setting] = self.cfg.settings.values()
        chance = random.Random(0)
        ids = [ids for ids in self.ids for _ in range(setting.n)]
        asked = [
            CompletionRequest("", row, setting.temperature, setting.top_p, chance.getrandbits(63))
            for row in ids
        ]
        parameters = [self.backend._sampling_parameters(request) for request in asked]
        return self._generated(self.llm, ids, parameters)

    def defaults(self) -> float:
        from vllm import SamplingParams

        [setting] = self.cfg.settings.values()
        limit = self.cfg.limits.completion
        how = SamplingParams(
            n=setting.n, temperature=setting.temperature, top_p=setting.top_p, max_tokens=limit
        )
        return self._generated(self.plain, self.ids, how)

    def _generated(self, llm: Any, ids: list[list[int]], how: Any) -> float:
        prompts = [{"prompt_token_ids": row} for row in ids]
        started = time.monotonic()
        outputs = llm.generate(prompts, how, use_tqdm=False)
        seconds = time.monotonic() - started
        return sum(len(drawn.token_ids) for output in outputs for drawn in output.outputs) / seconds

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
                given = self.tokenizer.apply_chat_template(
                    row, add_generation_prompt=True, return_tensors="pt"
                )
                drawn = self.module.generate(
                    **given, max_new_tokens=self.cfg.limits.completion, **how
                )
                tokens += drawn.shape[1] - given["input_ids"].shape[1]
        return tokens / (time.monotonic() - started)


@contextmanager
def silence() -> Iterator[None]:
    """The stage's progress lines stay out of the bench's own."""
    kept, sys.stderr = sys.stderr, Path(os.devnull).open("w")  # noqa: SIM115
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = kept


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


def memory(sft: Model, folder: Path) -> Iterator[float]:
    """Peak of driver and stage together; prompts and model come from the store, so that only `sample` runs."""
    plans = {count: scripted(folder, count, sft) for count in (MANY, LESS)}
    for words in plans.values():
        built("prompts", *words)
        built("sft", *words)
    for _ in range(RUNS):
        peaks = {count: peak(folder, words) for count, words in plans.items()}
        told = "; ".join(
            f"{count} prompts {' + '.join(map(str, found))} MB" for count, found in peaks.items()
        )
        print(f"driver and stage: {told}", flush=True)
        yield sum(peaks[MANY]) / sum(peaks[LESS])


def scripted(folder: Path, count: int, sft: Model) -> list[str]:
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


def peak(folder: Path, words: list[str]) -> list[int]:
    """MB of the driver and of every process under it, each at its own highest."""
    shutil.rmtree(folder / "store" / "sample", ignore_errors=True)
    command = [sys.executable, "-m", "pipeline", "until=sample", *words]
    driver = subprocess.Popen(command, cwd=HOUSE, stdout=subprocess.DEVNULL)
    highest: dict[int, float] = {}
    while driver.poll() is None:
        for pid in [driver.pid, *children(driver.pid)]:
            highest[pid] = max(highest.get(pid, 0.0), resident(pid))
        time.sleep(0.1)
    assert driver.returncode == 0
    return [round(size) for size in highest.values() if size]


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def resident(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
