"""Pairs from 200,000 prompts × 8 samples, every filter but near duplicates and language asked; against plain Python.

Both sides begin with the same rows in memory, each in the form it likes best (columns; tuples, whose making is not
counted), and end with the same pairs and the same counts of what was dropped. Our side runs in a process of its own,
whose peak memory is printed and held below 2 GB. Then the near-duplicate search over 100,000 prompts.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import polars as pl
from measure import Ratio, report

from pipeline.config import PairRound
from pipeline.data import minhash
from pipeline.pairing import filters, selection
from pipeline.pairing.candidates import join_candidates

PROMPTS, SAMPLES, RUNS = 200_000, 8, 5
GB = 1e9
ASKED = {
    "allow_truncated": False, "allow_refusals": False, "languages": None, "repeats": True,
    "pass_rate": {"at": 0.0, "least": 0.1, "most": 0.9}, "min_margin": 0.5, "min_chosen": -1.0, "max_rejected": 1.0,
    "max_length_ratio": 3.0, "max_disagreement": None, "max_flip_rate": None, "min_reference": None, "near": None,
}  # fmt: skip
CONFIG = PairRound(
    strategy={"kind": "best_worst"}, scorer="rules", pairs_per_prompt=1, ties="drop", filters=ASKED,
    mix={"on_policy": 1, "offline": 0, "per_round": None}, thumbs_at=None, edits=None,
    limits={"prompt": 1024, "completion": 1024}, template_kwargs={},
    dev={"share": 0.02, "least": 0, "most_share": 0.1}, seed=0, round=1,
)  # fmt: skip


def made(prompts: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Samples and scores as the stages write them, in the order of prompts."""
    draw, count = np.random.default_rng(0), prompts * SAMPLES
    words = np.array(
        [
            "name",
            "three",
            "short",
            "facts",
            "about",
            "the",
            "quiet",
            "river",
            "and",
            "an",
            "old",
            "lantern",
            "in",
            "one",
            "sentence",
            "or",
            "two",
        ]
    )
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
    samples = samples.with_columns(second_bos=pl.Series(draw.random(count) < 0.001))
    score = pl.Series(draw.normal(size=count).round(2))
    scores = samples.select("sample_id", "prompt_id", scorer=pl.lit("rules"), score=score)
    return samples, scores.with_columns(detail=pl.lit(""))


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ours(samples: pl.DataFrame, scores: pl.DataFrame) -> tuple[pl.DataFrame, Counter]:
    found = selection.propose_pairs(CONFIG, join_candidates(samples, scores, CONFIG.scorer))
    pairs = selection.sort_pairs(found.pairs).with_columns(prompt_text="prompt_id")
    kept, dropped = selection.filter_pairs(CONFIG, pairs)
    gone = pl.concat([found.dropped_samples, found.dropped_prompts, dropped])
    return kept, Counter(dict(gone["reason"].value_counts().rows()))


def hash_of(rows: Any, counts: Counter) -> str:
    told = [[a, b, round(m, 9)] for a, b, m in sorted(rows)]
    return hashlib.sha256(json.dumps([told, sorted(counts.items())]).encode()).hexdigest()[:16]


# ── plain Python ──────────────────────────────────────────────────────────────────────────────────────────────────

REFUSAL = re.compile(filters.REFUSAL)


def plain(samples: list[tuple], scores: list[tuple]) -> tuple[list[tuple], Counter]:
    """One dict by prompt, one pass over the rows, then one over the prompts; nothing is looked at twice."""
    asked, gone, by_prompt = CONFIG.filters, Counter(), {}
    for (prompt, name, text, finish, tokens, asked_tokens, again), (scored, score) in zip(
        samples, scores, strict=True
    ):
        if scored != name:
            raise ValueError("a score of another sample")
        if prompt not in by_prompt:
            by_prompt[prompt] = (asked_tokens, [])
        if score is None or score != score:
            gone["no score"] += 1
        elif finish != "stop":
            gone["truncated"] += 1
        elif not text.strip():
            gone["empty"] += 1
        elif again:
            gone["second BOS"] += 1
        elif REFUSAL.search(text):
            gone["refusal"] += 1
        else:
            by_prompt[prompt][1].append((score, name, text, tokens))
    pairs, seen = [], set()
    band, limits = asked.pass_rate, CONFIG.limits
    for prompt, (asked_tokens, rows) in by_prompt.items():
        if len({row[2] for row in rows}) < len(rows):
            first = {}
            for row in rows:
                if row[2] not in first or row[1] < first[row[2]][1]:
                    first[row[2]] = row
            gone["repeated answer"] += len(rows) - len(first)
            rows = list(first.values())
        if not rows:
            gone["no usable sample"] += 1
            continue
        if len(rows) == 1:
            gone["one usable sample"] += 1
            continue
        best = worst = rows[0]
        passed = 0
        for row in rows:
            score = row[0]
            passed += score >= band.at
            if score > best[0] or (score == best[0] and row[1] < best[1]):
                best = row
            if score < worst[0] or (score == worst[0] and row[1] < worst[1]):
                worst = row
        longer, shorter = (best[3], worst[3]) if best[3] > worst[3] else (worst[3], best[3])
        margin = best[0] - worst[0]
        if not band.least <= passed / len(rows) <= band.most:
            gone["pass rate outside the band"] += 1
        elif margin == 0:
            gone["tie"] += 1
        elif best[2] == worst[2]:
            gone["equal answers"] += 1
        elif margin < asked.min_margin:
            gone["margin too small"] += 1
        elif best[0] < asked.min_chosen:
            gone["chosen score too low"] += 1
        elif worst[0] > asked.max_rejected:
            gone["rejected score too high"] += 1
        elif asked_tokens > limits.prompt or longer > limits.completion:
            gone["longer than limits"] += 1
        elif longer > asked.max_length_ratio * shorter:
            gone["length ratio"] += 1
        elif (key := (prompt, best[2], worst[2])) in seen:
            gone["repeated pair"] += 1
        else:
            seen.add(key)
            pairs.append((best[1], worst[1], margin))
    return pairs, gone


# ── measured ──────────────────────────────────────────────────────────────────────────────────────────────────────


def memory(name: str) -> int:
    """Of this process, by the kernel's own count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def settled() -> int:
    """What the rows themselves take; from here on the kernel counts the peak anew."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def timed(work: Any, *inputs: Any) -> tuple[float, Any]:
    gc.collect()
    gc.freeze()  # neither side pays for walking over the rows that were there before it began
    started = time.perf_counter()
    made = work(*inputs)
    return time.perf_counter() - started, made


def alone(prompts: int) -> None:
    """Our side in a process of its own: its fastest seconds and its peak memory, as one JSON line."""
    samples, scores = made(prompts)
    before = settled()
    seconds = [timed(ours, samples, scores)[0] for _ in range(RUNS)]
    peak = memory("VmHWM")
    print(json.dumps({"seconds": min(seconds), "peak": peak, "before": before}))


def near() -> None:
    """The search itself, over answers of 60 words, a tenth of them nearly another's."""
    draw = np.random.default_rng(1)
    words = pl.Series([f"w{i}" for i in range(20_000)])
    texts = [" ".join(words.gather(draw.integers(0, 20_000, 60))) for _ in range(90_000)]
    texts += [text.rsplit(" ", 1)[0] + " other" for text in texts[:10_000]]
    series = pl.Series(texts)
    before = settled()
    seconds, found = timed(minhash.find_nearest_above, series, 0.9)
    peak = memory("VmHWM")
    print(
        json.dumps(
            {"seconds": seconds, "found": int((found >= 0).sum()), "peak": peak, "before": before}
        )
    )


def in_a_process(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    samples, scores = made(PROMPTS)
    rows, marks = samples.rows(), scores.select("sample_id", "score").rows()
    speed, hashes = [], set()
    for run in range(RUNS + 1):
        mine, (kept, gone) = timed(ours, samples, scores)
        theirs, (pairs, gone_too) = timed(plain, rows, marks)
        print(
            f"{PROMPTS} prompts × {SAMPLES}: ours {mine:.3f} s, plain Python {theirs:.2f} s, {len(pairs)} pairs"
        )
        hashes |= {
            hash_of(kept.select("chosen_id", "rejected_id", "margin").rows(), gone),
            hash_of(pairs, gone_too),
        }
        speed += [theirs / mine] if run else []  # the first run of each does not count
    assert len(hashes) == 1, f"the two sides made different pairs: {hashes}"
    print(f"output hash of both {hashes.pop()}; dropped {dict(sorted(gone.items()))}")
    del rows, marks, samples, scores

    growth = []
    for _ in range(3):
        half, whole = in_a_process("alone", str(PROMPTS)), in_a_process("alone", str(2 * PROMPTS))
        growth.append(whole["seconds"] / half["seconds"])
    print(
        f"peak memory {half['peak'] / GB:.2f} GB with {PROMPTS} prompts"
        f" ({half['before'] / GB:.2f} GB before it began: the rows)"
    )
    assert half["peak"] < 2 * GB, f"peak memory {half['peak'] / GB:.2f} GB is not below 2 GB"
    search = in_a_process("near")
    print(
        f"near duplicates of 100000 prompts: {search['seconds']:.1f} s, {search['found']} found, "
        f"peak {search['peak'] / GB:.2f} GB ({search['before'] / GB:.2f} GB before it began)"
    )
    report("pairing", {"speed": Ratio(speed, ">= 10"), "growth": Ratio(growth, "<= 2.2")})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["alone", prompts]:
            alone(int(prompts))
        case ["near"]:
            near()
        case _:
            main()
