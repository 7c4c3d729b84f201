"""Pairs from 200,000 prompts × 8 samples, with most filters, against plain Python.

All filters are on but near duplicates and language. Both sides begin with the same rows in memory,
each in its best form (columns; tuples, whose making does not count), and end with the same pairs
and the same counts of dropped rows. A run of our side in its own process has to keep its peak
memory below 2 GB. All of that for samples of one model, and for a pool of four models, each of
which has written two of a prompt's samples. Then the near-duplicate search over 100,000 prompts.

The goals are on the clock. The ratios of CPU seconds (`cpu`, all threads) have no goal: they say
whether another program on the machine moved those of the clock.
"""

import gc
import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import polars as pl
from measure import Ratio, report

from pipeline.config.compose import Arguments, compose
from pipeline.data import minhash
from pipeline.pairing import filters, selection
from pipeline.pairing.candidates import join_candidates

PROMPTS, SAMPLES, RUNS = 200_000, 8, 5
POOL = ["policy", "strong", "weak", "other"]
GB = 1e9
WORDS = [
    "recipes=smoke",
    "pair=best_worst",
    "pair.filters={allow_refusals: false, repeats: true, min_margin: 0.5, min_chosen: -1.0,"
    " max_rejected: 1.0, max_length_ratio: 3.0, pass_rate: {threshold: 0.0, min: 0.1, max: 0.9}}",
    "pair.limits={prompt: 1024, completion: 1024}",
]
CONFIG = compose(Arguments.parse(WORDS))[0][0].pair.for_round(1)


def make_rows(prompts: int, models: int = 1) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Samples and scores as the stages write them: model by model, each in the order of prompts."""
    draw, count = np.random.default_rng(0), prompts * SAMPLES
    text = "name three short facts about the quiet river and an old lantern in one sentence or two"
    words = np.array(text.split())
    starts = pl.Series([" ".join(words[draw.integers(0, len(words), 18)]) for _ in range(2000)])
    numbers = pl.Series(draw.integers(0, 40, count)).cast(pl.String)
    texts = starts.gather(draw.integers(0, len(starts), count)) + " " + numbers
    chance = pl.Series(draw.random(count))
    odd = (
        pl.when(chance < 0.01)
        .then(pl.lit(""))
        .when(chance < 0.03)
        .then(pl.lit("I'm sorry, but I can't help with it."))
    )
    texts = pl.select(odd.otherwise(texts)).to_series()
    ids = [hashlib.blake2b(str(i).encode(), digest_size=8).hexdigest() for i in range(count)]
    names = sorted(
        hashlib.blake2b(f"p{i}".encode(), digest_size=8).hexdigest() for i in range(prompts)
    )
    samples = pl.DataFrame(
        {
            "prompt_id": np.repeat(names, SAMPLES),
            "sample_id": ids,
            "completion": texts,
            "finish_reason": np.where(draw.random(count) < 0.05, "length", "stop"),
            "tokens": draw.integers(10, 200, count).astype(np.uint32),
            "prompt_tokens": np.repeat(draw.integers(10, 200, prompts), SAMPLES).astype(np.uint32),
        }
    )
    writers = pl.Series(POOL, dtype=pl.Enum(POOL))
    samples = samples.with_columns(
        second_bos=pl.Series(draw.random(count) < 0.001),
        source=writers.gather(np.tile(np.arange(SAMPLES) % models, prompts)),
    ).sort("source", maintain_order=True)
    score = pl.Series(draw.normal(size=count).round(2))
    scores = samples.select("sample_id", "prompt_id", scorer=pl.lit("rules"), score=score)
    return samples, scores.with_columns(detail=pl.lit(""))


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────


def pair_ours(samples: pl.DataFrame, scores: pl.DataFrame) -> tuple[pl.DataFrame, Counter]:
    found = selection.propose_pairs(CONFIG, join_candidates(samples, scores, CONFIG.scorer))
    pairs = selection.sort_pairs(found.pairs).with_columns(prompt_text="prompt_id")
    kept, dropped = selection.filter_pairs(CONFIG, pairs)
    gone = pl.concat([found.dropped_samples, found.dropped_prompts, dropped])
    return kept, Counter(dict(gone["reason"].value_counts().rows()))


def hash_result(rows: Any, counts: Counter) -> str:
    pairs = [[chosen, rejected, round(margin, 9)] for chosen, rejected, margin in sorted(rows)]
    return hashlib.sha256(json.dumps([pairs, sorted(counts.items())]).encode()).hexdigest()[:16]


# ── plain Python ──────────────────────────────────────────────────────────────────────────────────

REFUSAL = re.compile(filters.REFUSAL)


def pair_plain(samples: list[tuple], scores: list[tuple]) -> tuple[list[tuple], Counter]:
    """One pass over the rows into a dict by prompt, then one over the prompts."""
    knobs, dropped, by_prompt = CONFIG.filters, Counter(), {}
    for row, (sample_id, score) in zip(samples, scores, strict=True):
        prompt, name, text, finish, tokens, prompt_tokens, second_bos, _ = row
        if sample_id != name:
            raise ValueError("a score of another sample")
        if prompt not in by_prompt:
            by_prompt[prompt] = (prompt_tokens, [])
        if score is None or score != score:
            dropped["no score"] += 1
        elif finish != "stop":
            dropped["truncated"] += 1
        elif not text.strip():
            dropped["empty"] += 1
        elif second_bos:
            dropped["second BOS"] += 1
        elif REFUSAL.search(text):
            dropped["refusal"] += 1
        else:
            by_prompt[prompt][1].append((score, name, text, tokens))
    pairs, seen = [], set()
    band, limits = knobs.pass_rate, CONFIG.limits
    for prompt, (prompt_tokens, rows) in by_prompt.items():
        if len({row[2] for row in rows}) < len(rows):
            first = {}
            for row in rows:
                if row[2] not in first or row[1] < first[row[2]][1]:
                    first[row[2]] = row
            dropped["repeated answer"] += len(rows) - len(first)
            rows = list(first.values())
        if not rows:
            dropped["no usable sample"] += 1
            continue
        if len(rows) == 1:
            dropped["one usable sample"] += 1
            continue
        best = worst = rows[0]
        passed = 0
        for row in rows:
            score = row[0]
            passed += score >= band.threshold
            if score > best[0] or (score == best[0] and row[1] < best[1]):
                best = row
            if score < worst[0] or (score == worst[0] and row[1] < worst[1]):
                worst = row
        longer, shorter = (best[3], worst[3]) if best[3] > worst[3] else (worst[3], best[3])
        margin = best[0] - worst[0]
        if not band.min <= passed / len(rows) <= band.max:
            dropped["pass rate outside the band"] += 1
        elif margin == 0:
            dropped["tie"] += 1
        elif best[2] == worst[2]:
            dropped["equal answers"] += 1
        elif margin < knobs.min_margin:
            dropped["margin too small"] += 1
        elif best[0] < knobs.min_chosen:
            dropped["chosen score too low"] += 1
        elif worst[0] > knobs.max_rejected:
            dropped["rejected score too high"] += 1
        elif prompt_tokens > limits.prompt or longer > limits.completion:
            dropped["longer than limits"] += 1
        elif longer > knobs.max_length_ratio * shorter:
            dropped["length ratio"] += 1
        elif (key := (prompt, best[2], worst[2])) in seen:
            dropped["repeated pair"] += 1
        else:
            seen.add(key)
            pairs.append((best[1], worst[1], margin))
    return pairs, dropped


# ── measured ──────────────────────────────────────────────────────────────────────────────────────


class Seconds(NamedTuple):
    clock: float
    cpu: float

    def over(self, other: "Seconds") -> "Seconds":
        return Seconds(self.clock / other.clock, self.cpu / other.cpu)


def read_memory(name: str) -> int:
    """Bytes of this process, by the kernel's count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def reset_peak() -> int:
    """Reset the kernel's count of the peak. Return the bytes in use, which are the rows."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return read_memory("VmRSS")


def time_call(work: Any, *inputs: Any) -> tuple[Seconds, Any]:
    gc.collect()
    gc.freeze()  # so that neither side pays for garbage collection over the rows
    clock, cpu = time.perf_counter(), time.process_time()
    result = work(*inputs)
    return Seconds(time.perf_counter() - clock, time.process_time() - cpu), result


def measure_alone(prompts: int, models: int) -> None:
    """Our side in its own process. Print its least seconds and peak memory as one JSON line."""
    samples, scores = make_rows(prompts, models)
    before = reset_peak()
    seconds = [time_call(pair_ours, samples, scores)[0] for _ in range(RUNS)]
    peak = read_memory("VmHWM")
    least = Seconds(*map(min, zip(*seconds, strict=True)))
    print(json.dumps({"seconds": least, "peak": peak, "before": before}))


def measure_near_duplicates() -> None:
    """The search over answers of 60 words, a tenth of which nearly repeat another."""
    draw = np.random.default_rng(1)
    words = pl.Series([f"w{i}" for i in range(20_000)])
    texts = [" ".join(words.gather(draw.integers(0, 20_000, 60))) for _ in range(90_000)]
    texts += [text.rsplit(" ", 1)[0] + " other" for text in texts[:10_000]]
    series = pl.Series(texts)
    before = reset_peak()
    seconds, nearest = time_call(minhash.find_nearest_above, series, 0.9)
    found, peak = int((nearest >= 0).sum()), read_memory("VmHWM")
    print(json.dumps({"seconds": seconds.clock, "found": found, "peak": peak, "before": before}))


def run_in_process(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare_speed(models: int) -> list[Seconds]:
    """How many times faster than plain Python, run by run. Both have to make the same pairs."""
    samples, scores = make_rows(PROMPTS, models)
    sample_rows, score_rows = samples.rows(), scores.select("sample_id", "score").rows()
    speed, hashes = list[Seconds](), set()
    for run in range(RUNS + 1):
        ours, (our_pairs, dropped) = time_call(pair_ours, samples, scores)
        plain, (pairs, plain_dropped) = time_call(pair_plain, sample_rows, score_rows)
        print(
            f"{PROMPTS} prompts × {SAMPLES} of {models}: ours {ours.clock:.3f} s"
            f" (CPU {ours.cpu:.3f} s), plain Python {plain.clock:.2f} s (CPU {plain.cpu:.2f} s),"
            f" {len(pairs)} pairs"
        )
        our_rows = our_pairs.select("chosen_id", "rejected_id", "margin").rows()
        hashes |= {hash_result(our_rows, dropped), hash_result(pairs, plain_dropped)}
        if run:  # the first run of each does not count
            speed.append(plain.over(ours))
    assert len(hashes) == 1, f"the two sides made different pairs: {hashes}"
    print(f"output hash of both {hashes.pop()}; dropped {dict(sorted(dropped.items()))}")
    return speed


def measure_growth(models: int) -> list[Seconds]:
    """How many times longer twice the prompts take."""
    growth = []
    for _ in range(3):
        half = run_in_process("alone", str(PROMPTS), str(models))
        full = run_in_process("alone", str(2 * PROMPTS), str(models))
        growth.append(Seconds(*full["seconds"]).over(Seconds(*half["seconds"])))
    print(
        f"peak memory {half['peak'] / GB:.2f} GB with {PROMPTS} prompts"
        f" ({half['before'] / GB:.2f} GB before it began: the rows)"
    )
    assert half["peak"] < 2 * GB, f"peak memory {half['peak'] / GB:.2f} GB is not below 2 GB"
    return growth


def rate(name: str, runs: list[Seconds], goal: str) -> dict[str, Ratio]:
    """By the clock, with the goal, and by CPU seconds, without one."""
    return {
        name: Ratio([run.clock for run in runs], goal),
        f"{name}_cpu": Ratio([run.cpu for run in runs], None),
    }


def main() -> None:
    ratios: dict[str, Ratio] = {}
    for prefix, models in (("", 1), ("pool_", len(POOL))):
        ratios |= rate(f"{prefix}speed", compare_speed(models), ">= 10")
        ratios |= rate(f"{prefix}growth", measure_growth(models), "<= 2.2")
    search = run_in_process("near")
    print(
        f"near duplicates of 100000 prompts: {search['seconds']:.1f} s, {search['found']} found, "
        f"peak {search['peak'] / GB:.2f} GB ({search['before'] / GB:.2f} GB before it began)"
    )
    report("pairing", ratios)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["alone", prompts, models]:
            measure_alone(int(prompts), int(models))
        case ["near"]:
            measure_near_duplicates()
        case _:
            main()
