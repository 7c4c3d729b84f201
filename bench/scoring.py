"""What scoring costs over what it has to: a function for each ratio. python bench/scoring.py [RATIO …] [rows=20000]

`rules`: what processes of its own gain for IFEval's checkers.
`judge`: requests/s of the pairwise judge at concurrency 16, over the 16/0.05 that a server with 50 ms latency allows.
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
from measure import Ratio, in_turn, report

from pipeline.config import DuelConfig
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.pairwise import NEEDS, Bout, fought
from tests.support.house import composed
from tests.support.judges import KEY, FakeJudge, fake_judge

ROWS = 20_000
PER_SHARD = 2048
RUNS, JUDGE_RUNS = 2, 5
CONCURRENCY, LATENCY, BOUTS = 16, 0.05, 800
TEXT = (
    "the quiet river bends around an old mill, where *lantern light* falls; on still water in the EVENING. We walked"
    " along its bank until the path ended! What remained? A gate [name] of iron, - and a field.\n\n* Beyond it"
)


def rules() -> Ratio:
    """One process over the stage's own number of them, each a worker's whole life: imports, 20,000 answers, tables."""
    with tempfile.TemporaryDirectory() as folder:
        make_samples(Path(folder))
        pairs = list(in_turn(RUNS, lambda: seconds(folder, "auto"), lambda: seconds(folder, "1")))
    for ours, one in pairs:
        print(f"rules: {ours:.1f} s, one process {one:.1f} s")
    return Ratio([one / ours for ours, one in pairs], ">= 1.6")


def seconds(folder: str, workers: str) -> float:
    started = time.monotonic()
    subprocess.run(
        [sys.executable, __file__, "stage", folder, workers], check=True, capture_output=True
    )
    return time.monotonic() - started


def stage(folder: Path, workers: str) -> None:
    from pipeline.artifacts import Prompts, Samples
    from pipeline.config import CheckRuntime, IfevalScorer, ScoreConfig, ScoreRuntime
    from pipeline.stages.score import run

    runtime = CheckRuntime(workers="auto" if workers == "auto" else int(workers))
    scorer = IfevalScorer(kind="ifeval", reading="strict", gold=False, runtime=runtime)
    shutil.rmtree(folder / "out", ignore_errors=True)
    cfg = ScoreConfig(scorers={"ifeval": scorer}, max_failed=0.0, runtime=ScoreRuntime(workers=1))
    run(cfg, folder / "out", samples=Samples(folder), prompts=Prompts(folder))


def make_samples(folder: Path) -> None:
    """Each prompt gives three instructions; answers are words at random, as long as answers are."""
    import polars as pl

    from pipeline.artifacts import write_table

    asked = instructions()
    draw, words = random.Random(0), TEXT.split(" ")
    prompts = []
    for at in range(0, rows_asked(), PER_SHARD):
        shard = []
        for number in range(at, min(at + PER_SHARD, rows_asked())):
            chosen = draw.sample(sorted(asked), 3)
            told = {"instruction_id_list": chosen, "kwargs": [asked[name] for name in chosen]}
            name, text = (
                f"p{number}",
                " ".join(draw.choice(words) for _ in range(draw.randint(100, 400))),
            )
            prompts.append({"prompt_id": name, "prompt": [], "columns": json.dumps(told)})
            ids = {"prompt_id": name, "sample_id": f"{name}-0", "setting": "draw", "token_ids": [1]}
            shard.append(
                {
                    **ids,
                    "prompt": [{"role": "user", "content": "Describe a river."}],
                    "completion": text,
                }
            )
        write_table(folder / "samples" / f"{at:06d}.parquet", pl.DataFrame(shard))
    write_table(folder / "prompts.parquet", pl.DataFrame(prompts))


def instructions() -> dict[str, dict[str, Any]]:
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
    return {name: given for name, given in known.items() if name not in NEED_PUNKT}


# ── the judge ─────────────────────────────────────────────────────────────────────────────────────


def judge() -> Ratio:
    """Two requests a bout, each a row of the verdict store; a fresh store each run, the client's start not counted."""
    os.environ["JUDGE_KEY"] = KEY
    ideal, shares = CONCURRENCY / LATENCY, []
    with fake_judge(LATENCY) as server:
        for run in range(JUDGE_RUNS + 1):
            speed = _requests_per_second(_judging(server), run)
            print(f"judge: {speed:.0f} requests/s of {ideal:.0f}")
            shares += [speed / ideal] if run else []  # the first run does not count
    return Ratio(shares, ">= 0.85")


def _judging(server: FakeJudge) -> DuelConfig:
    at = "exam.duels.j"
    runtime = {"base_url": server.url, "api_key_env": "JUDGE_KEY", "concurrency": CONCURRENCY}
    words = [f"{at}.engine.runtime.{name}={value}" for name, value in runtime.items()]
    return composed(
        "recipes=smoke", f"+duel@{at}=default", f"{at}.engine.model=good", *words
    ).exam.duels["j"]


def _requests_per_second(cfg: DuelConfig, run: int) -> float:
    bouts = [Bout(f"Question {i} of run {run}?", f"good {i}", f"bad {i}") for i in range(BOUTS + 1)]
    with tempfile.TemporaryDirectory() as folder:
        store = cfg.runtime.model_copy(update={"verdicts": Path(folder) / "verdicts.sqlite"})
        court = CachedJudge(cfg.model_copy(update={"runtime": store}), NEEDS, "exam.duels.bench")
        fought(court, bouts[BOUTS:])
        started = time.perf_counter()
        verdicts = fought(court, bouts[:BOUTS])
        seconds = time.perf_counter() - started
        court.close()
    assert all(verdict.ab.winner == verdict.ba.winner == "a" for verdict in verdicts)
    return 2 * BOUTS / seconds


RATIOS: dict[str, Callable[[], Ratio]] = {"rules": rules, "judge": judge}


def rows_asked() -> int:
    return next(
        (int(word.removeprefix("rows=")) for word in sys.argv[1:] if word.startswith("rows=")), ROWS
    )


def main() -> None:
    if sys.argv[1:2] == ["stage"]:
        stage(Path(sys.argv[2]), sys.argv[3])
        return
    chosen = [word for word in sys.argv[1:] if "=" not in word] or list(RATIOS)
    report("scoring", {name: RATIOS[name]() for name in chosen})


if __name__ == "__main__":
    main()
