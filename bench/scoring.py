"""Scoring's cost over its minimum, one function per ratio.

python bench/scoring.py [RATIO …] [rows=20000]

`rules`: the speed-up of IFEval's checkers by worker processes.
`judge`: requests/s of the pairwise judge at concurrency 16, over the 16/0.05 that a server with
50 ms latency allows.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
from measure import Ratio, report, run_in_turn

from pipeline.config import DuelConfig
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.pairwise import PAIRWISE_FIELDS, Comparison, judge_comparisons
from tests.support.house import composed
from tests.support.judges import KEY, FakeJudge, fake_judge

ROWS = 20_000
PER_SHARD = 2048
RUNS, JUDGE_RUNS = 2, 5
CONCURRENCY, LATENCY, BOUTS = 16, 0.05, 800
TEXT = (
    "the quiet river bends around an old mill, where *lantern light* falls; on still water in the"
    " EVENING. We walked along its bank until the path ended! What remained? A gate [name] of iron,"
    " - and a field.\n\n* Beyond it"
)


def rules() -> Ratio:
    """One process over the stage's default number, from imports over 20,000 answers to tables."""
    with tempfile.TemporaryDirectory() as folder:
        make_samples(Path(folder))
        pairs = list(
            run_in_turn(
                RUNS,
                lambda: measure_seconds(folder, "auto"),
                lambda: measure_seconds(folder, "1"),
            )
        )
    for ours, one in pairs:
        print(f"rules: {ours:.1f} s, one process {one:.1f} s")
    return Ratio([one / ours for ours, one in pairs], ">= 1.6")


def measure_seconds(folder: str, workers: str) -> float:
    started = time.monotonic()
    subprocess.run(
        [sys.executable, __file__, "stage", folder, workers], check=True, capture_output=True
    )
    return time.monotonic() - started


def run_stage(folder: Path, workers: str) -> None:
    from pipeline.artifacts import Prompts, Samples
    from pipeline.config import CheckRuntime, IfevalScorer, ScoreConfig, ScoreRuntime
    from pipeline.stages.score import run

    runtime = CheckRuntime(workers="auto" if workers == "auto" else int(workers))
    scorer = IfevalScorer(kind="ifeval", reading="strict", gold=False, runtime=runtime)
    shutil.rmtree(folder / "out", ignore_errors=True)
    cfg = ScoreConfig(scorers={"ifeval": scorer}, max_failed=0.0, runtime=ScoreRuntime(workers=1))
    run(cfg, folder / "out", samples=Samples(folder), prompts=Prompts(folder))


def make_samples(folder: Path) -> None:
    """Each prompt has three instructions. Answers are random words, of a realistic length."""
    import polars as pl

    from pipeline.artifacts import write_table

    kwargs_of = list_instructions()
    rng, words = random.Random(0), TEXT.split(" ")
    row_count, prompts = parse_row_count(), []
    for at in range(0, row_count, PER_SHARD):
        shard = []
        for number in range(at, min(at + PER_SHARD, row_count)):
            ids = rng.sample(sorted(kwargs_of), 3)
            columns = {"instruction_id_list": ids, "kwargs": [kwargs_of[each] for each in ids]}
            name = f"p{number}"
            text = " ".join(rng.choice(words) for _ in range(rng.randint(100, 400)))
            prompts.append({"prompt_id": name, "prompt": [], "columns": json.dumps(columns)})
            shard.append(
                {
                    "prompt_id": name,
                    "sample_id": f"{name}-0",
                    "setting": "draw",
                    "token_ids": [1],
                    "prompt": [{"role": "user", "content": "Describe a river."}],
                    "completion": text,
                }
            )
        write_table(folder / "samples" / f"{at:06d}.parquet", pl.DataFrame(shard))
    write_table(folder / "prompts.parquet", pl.DataFrame(prompts))


def list_instructions() -> dict[str, dict[str, Any]]:
    from pipeline.scorers.ifeval import NEED_PUNKT, has_punkt

    known = {
        "keywords:existence": {"keywords": ["river", "mill"]},
        "keywords:frequency": {"keyword": "river", "frequency": 2, "relation": "at least"},
        "keywords:forbidden_words": {"forbidden_words": ["sea"]},
        "keywords:letter_frequency": {
            "letter": "q",
            "let_frequency": 3,
            "let_relation": "at least",
        },
        "language:response_language": {"language": "en"},
        "length_constraints:number_sentences": {"num_sentences": 4, "relation": "at least"},
        "length_constraints:number_paragraphs": {"num_paragraphs": 2},
        "length_constraints:number_words": {"num_words": 100, "relation": "at least"},
        "length_constraints:nth_paragraph_first_word": {
            "num_paragraphs": 2,
            "nth_paragraph": 1,
            "first_word": "the",
        },
        "detectable_content:number_placeholders": {"num_placeholders": 2},
        "detectable_content:postscript": {"postscript_marker": "P.S."},
        "detectable_format:number_bullet_lists": {"num_bullets": 3},
        "detectable_format:constrained_response": {},
        "detectable_format:number_highlighted_sections": {"num_highlights": 2},
        "detectable_format:multiple_sections": {"section_spliter": "SECTION", "num_sections": 2},
        "detectable_format:json_format": {},
        "detectable_format:title": {},
        "combination:two_responses": {},
        "combination:repeat_prompt": {"prompt_to_repeat": "Describe a river."},
        "startend:end_checker": {"end_phrase": "the end"},
        "change_case:capital_word_frequency": {
            "capital_frequency": 3,
            "capital_relation": "at least",
        },
        "change_case:english_capital": {},
        "change_case:english_lowercase": {},
        "punctuation:no_comma": {},
        "startend:quotation": {},
    }
    if has_punkt():
        return known
    print(f"without nltk's punkt_tab: {len(known) - len(NEED_PUNKT)} of {len(known)} checkers")
    return {name: kwargs for name, kwargs in known.items() if name not in NEED_PUNKT}


# ── the judge ─────────────────────────────────────────────────────────────────────────────────────


def judge() -> Ratio:
    """Two requests per comparison, each a row of the verdict store.

    Each run has a fresh store. The start of the client does not count.
    """
    os.environ["JUDGE_KEY"] = KEY
    ideal, shares = CONCURRENCY / LATENCY, []
    with fake_judge(LATENCY) as server:
        for run in range(JUDGE_RUNS + 1):
            speed = _measure_requests_per_second(_compose_duel(server), run)
            print(f"judge: {speed:.0f} requests/s of {ideal:.0f}")
            shares += [speed / ideal] if run else []  # the first run does not count
    return Ratio(shares, ">= 0.85")


def _compose_duel(server: FakeJudge) -> DuelConfig:
    at = "evaluate.duels.j"
    runtime = {"base_url": server.url, "api_key_env": "JUDGE_KEY", "concurrency": CONCURRENCY}
    words = [f"{at}.engine.runtime.{name}={value}" for name, value in runtime.items()]
    return composed(
        "recipes=smoke", f"+duel@{at}=default", f"{at}.engine.model=good", *words
    ).evaluate.duels["j"]


def _measure_requests_per_second(cfg: DuelConfig, run: int) -> float:
    bouts = [
        Comparison(f"Question {i} of run {run}?", f"good {i}", f"bad {i}") for i in range(BOUTS + 1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = cfg.runtime.model_copy(update={"verdicts": Path(folder) / "verdicts.sqlite"})
        cached_judge = CachedJudge(
            cfg.model_copy(update={"runtime": store}), PAIRWISE_FIELDS, "evaluate.duels.bench"
        )
        judge_comparisons(cached_judge, bouts[BOUTS:])
        started = time.perf_counter()
        verdicts = judge_comparisons(cached_judge, bouts[:BOUTS])
        seconds = time.perf_counter() - started
        cached_judge.close()
    assert all(verdict.ab.winner == verdict.ba.winner == "a" for verdict in verdicts)
    return 2 * BOUTS / seconds


RATIOS: dict[str, Callable[[], Ratio]] = {"rules": rules, "judge": judge}


def parse_row_count() -> int:
    given = [word.removeprefix("rows=") for word in sys.argv[1:] if word.startswith("rows=")]
    return int(given[0]) if given else ROWS


def main() -> None:
    if sys.argv[1:2] == ["stage"]:
        run_stage(Path(sys.argv[2]), sys.argv[3])
        return
    chosen = [word for word in sys.argv[1:] if "=" not in word] or list(RATIOS)
    report("scoring", {name: RATIOS[name]() for name in chosen})


if __name__ == "__main__":
    main()
