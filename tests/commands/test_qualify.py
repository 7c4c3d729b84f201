"""`strop qualify`: files with counts computed by hand, and what a run makes of a record."""

import json
import math
import re
from pathlib import Path

import polars as pl
import pytest

from pipeline.commands import qualify
from pipeline.data.known_answers import read_known_answers
from pipeline.driver.outline import prepare_plan
from pipeline.errors import UserError, run_all
from pipeline.plan import plan
from pipeline.preflight.qualification import fill_reward_model, list_checks, warn_of_unqualified
from pipeline.report.analysis.accuracy import ScoredAnswers, average_subsets, measure_accuracy
from tests.support.house import SMALL, composed, fingerprints
from tests.support.judges import KEY, fake_judge

GOOD = ["plain", "good", "good good", "good good good", "good good good good"]
# RewardBench 2's shape. The fake judge gives one mark more for each "good".
ROWS = [
    ("0", "Math", [GOOD[2]], [GOOD[1], "x", "y"]),  # right
    ("1", "Math", [GOOD[1]], [GOOD[2], "x", "y"]),  # wrong
    ("2", "Math", [GOOD[1]], ["good indeed", "x", "y"]),  # shares the first place with one
    ("3", "Focus", [GOOD[1]], ["x", "y", "z"]),  # right
    ("4", "Focus", [GOOD[3]], [GOOD[2], "y", "z"]),  # right
    # Marks 3.75 over 1.75: a gap of 2. And 3.75, 4.75 over 1.75: a gap of 2, a spread of 1.
    ("ref:0", "Ties", [GOOD[3]], [GOOD[1], "x"]),
    ("tied:0", "Ties", [GOOD[3], GOOD[4]], [GOOD[1], "x"]),
    # 1.75 over 2.75: a gap of −1. And 3.75, 4.75 over 1.25: a gap of 2.5, a spread of 1.
    ("ref:1", "Ties", [GOOD[1]], [GOOD[2]]),
    ("tied:1", "Ties", [GOOD[3], GOOD[4]], ["x"]),
]
TIES = [1 + 0.01 * math.tanh(1), 0.3 + 0.2 + 0.01 * math.tanh(-2)]


@pytest.fixture(scope="module")
def server():
    with fake_judge() as judge:
        yield judge


@pytest.fixture
def words(server, tmp_path, monkeypatch):
    """Of a judge by rubric with one criterion, and a store of this test."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    at = "score.scorers.rubric"
    dropped = [f"{at}.criteria.{name}=null" for name in ("correct", "clear")]
    return ["score=rubric", *dropped, *place(server, at), f"store={tmp_path / 'store'}"]


def place(server, at: str, model: str = "good") -> list[str]:
    runtime = f"{at}.engine.runtime"
    return [
        f"{at}.engine.model={model}",
        f"{runtime}.base_url={server.url}",
        f"{runtime}.api_key_env=JUDGE_KEY",
    ]


def as_rows(*rows: tuple) -> list[dict]:
    names = "id", "subset", "chosen", "rejected"
    asked = [dict(zip(names, row, strict=True)) for row in rows]
    return [
        {**row, "prompt": f"question {row['id']}", "num_correct": len(row["chosen"])}
        for row in asked
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def run_qualify(capsys, *words: object) -> tuple[dict, str]:
    """The record that was written, and what was printed."""
    code = qualify.main([str(word) for word in words])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return json.loads(Path(shown.out.splitlines()[-1]).read_text()), shown.out


# ── the shapes, by hand ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_file_of_reward_bench_2_has_the_counts_computed_by_hand(ending, words, tmp_path, capsys):
    file = write_rows(tmp_path / f"rb2.{ending}", as_rows(*ROWS))
    record, shown = run_qualify(capsys, file, *words)
    subsets = record["subsets"]
    assert subsets["Math"]["counts"] == {"right": 1, "wrong": 1, "shared": 1}
    assert subsets["Math"]["accuracy"]["mean"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert subsets["Focus"]["counts"] == {"right": 2}
    assert subsets["Ties"]["counts"] == {
        "ref right": 1,
        "tied right": 2,
        "gap above spread": 2,
        "smaller gap above spread": 1,
    }
    assert subsets["Ties"]["accuracy"]["mean"] == pytest.approx(sum(TIES) / 2)
    assert record["accuracy"]["mean"] == pytest.approx((0.5 + 1 + sum(TIES) / 2) / 3)
    assert record["accuracy"]["low"] < record["accuracy"]["mean"] < record["accuracy"]["high"]
    assert record["accuracy"]["n"] == 3 + 2 + 2
    assert record["scorer"] == "rubric" and [*record["files"]] == [str(file)]
    assert re.search(r"^Math +0\.500 .* 3 .* 1 right · 1 wrong · 1 shared$", shown, re.MULTILINE)


def test_pandalm_and_llmbar_are_subsets_and_a_verdict_is_asked_for_once(
    server, words, tmp_path, capsys
):
    """Of PandaLM: a majority that is right, one that is wrong, a tie and a split."""
    asked = {"input": "", "response1": GOOD[1], "response2": GOOD[2]}
    votes = [(2, 2, 1), (1, 1, 0), (0, 0, 1), (0, 1, 2)]
    panda = [
        {"idx": at, "instruction": f"q{at}", **asked}
        | {f"annotator{n}": vote for n, vote in enumerate(each, 1)}
        for at, each in enumerate(votes)
    ]
    bar = [
        {"input": "a", "output_1": GOOD[3], "output_2": "x", "label": 1},
        {"input": "b", "output_1": GOOD[3], "output_2": "x", "label": 1},
        {"input": "c", "output_1": "y", "output_2": "x", "label": 2},  # both alike: one half
    ]
    natural = tmp_path / "Natural"
    natural.mkdir()
    files = [
        write_rows(tmp_path / "testset-v1.json", panda),
        write_rows(natural / "dataset.json", bar),
    ]
    at = "score.scorers.pairwise"
    words = ["score=pairwise", *place(server, at), words[-1]]
    before = len(server.seen())
    record, shown = run_qualify(capsys, *files, *words)
    assert len(server.seen()) - before == 2 * 5  # two orders of the five pairs with a verdict
    assert record["undecided"] == 2 and "left out: 2 pairs" in shown
    panda_found, bar_found = record["subsets"]["testset-v1"], record["subsets"]["Natural"]
    assert panda_found["counts"] == {"right": 1, "wrong": 1}
    assert (panda_found["accuracy"]["mean"], panda_found["flip_rate"]) == (0.5, 0.0)
    assert bar_found["counts"] == {"right": 2, "shared": 1}
    assert bar_found["accuracy"]["mean"] == pytest.approx(2.5 / 3)
    again, _ = run_qualify(capsys, *files, *words)
    assert again == record and len(server.seen()) - before == 2 * 5


def test_a_judge_that_goes_by_position_is_right_by_half_and_always_flips(
    server, words, tmp_path, capsys
):
    file = write_rows(tmp_path / "own.jsonl", as_rows(*[row for row in ROWS if row[1] == "Focus"]))
    biased = place(server, "score.scorers.pairwise", "biased")
    record, _ = run_qualify(capsys, file, "score=pairwise", *biased, words[-1])
    focus = record["subsets"]["Focus"]
    assert focus["flip_rate"] == 1.0 and focus["counts"] == {"shared": 2}
    assert focus["accuracy"]["mean"] == 0.25  # four answers share the first place


def test_own_labels_are_read_as_calibrate_reads_them(words, tmp_path, capsys):
    row = {"prompt": "q", "a": GOOD[2], "b": "x", "a_id": "1", "b_id": "2"}
    rows = [{**row, "verdict": "a", "annotator": name} for name in ("kim", "lee")]
    other = {**row, "a": "y", "b": GOOD[1], "a_id": "3", "b_id": "4", "verdict": "b"}
    file = write_rows(tmp_path / "verdicts.jsonl", [*rows, other])
    record, _ = run_qualify(capsys, file, *words)
    assert record["subsets"]["verdicts"]["counts"] == {"right": 2}
    # Both pairs are of one prompt: they are averaged, and give no interval.
    accuracy = record["subsets"]["verdicts"]["accuracy"]
    assert accuracy == {"mean": 1.0, "low": None, "high": None, "n": 1}


# ── counting ──────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_score_measures_nothing_and_is_counted():
    rows = [
        ScoredAnswers("s", "p", [1.0], [0.0]),
        ScoredAnswers("s", "q", [None], [0.0]),
        ScoredAnswers("Ties", "r", [1.0], [0.0], ("ref", "0")),
        ScoredAnswers("Ties", "t", [1.0, None], [0.0], ("tied", "0")),
    ]
    found = measure_accuracy(rows)
    assert found["s"].counts == {"right": 1, "failed": 1} and found["s"].accuracy.n == 1
    assert found["Ties"].counts == {"failed": 1} and found["Ties"].accuracy.mean is None
    assert average_subsets(found).mean is None


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_order_of_rows_and_the_scale_of_scores_change_nothing(scale):
    rows = [
        ScoredAnswers(subset, f"{subset}{at}", [scale * at], [scale * 2, scale, 0.0])
        for subset in ("a", "b")
        for at in range(5)
    ]
    found, turned = measure_accuracy(rows), measure_accuracy(rows[::-1])
    assert found == {name: turned[name] for name in found}
    assert found["a"].counts == {"wrong": 2, "shared": 1, "right": 2}
    assert found["a"].accuracy.mean == pytest.approx((0 + 0 + 1 / 2 + 1 + 1) / 5)


def test_the_error_of_the_mean_of_subsets_is_smaller_than_theirs():
    rows = [
        ScoredAnswers(subset, f"{at}", [float(at % 2)], [0.5])
        for subset in ("a", "b", "c", "d")
        for at in range(20)
    ]
    found = measure_accuracy(rows)
    overall, one = average_subsets(found), found["a"].accuracy
    assert overall.mean == one.mean == 0.5
    assert overall.mean - overall.low == pytest.approx((one.mean - one.low) / 2)


@pytest.mark.parametrize(("prompts", "low"), [(2, 0.158), (20, 0.832), (200, 0.982)])
def test_a_few_right_answers_leave_a_doubt(prompts, low):
    """The exact binomial interval's end, as tables have it."""
    right = [ScoredAnswers("s", f"{at}", [1.0], [0.0]) for at in range(prompts)]
    wrong = [ScoredAnswers("s", f"{at}", [0.0], [1.0]) for at in range(prompts)]
    [best], [worst] = (measure_accuracy(rows).values() for rows in (right, wrong))
    assert (best.accuracy.mean, best.accuracy.high) == (1.0, 1.0)
    assert (worst.accuracy.mean, worst.accuracy.low) == (0.0, 0.0)
    assert best.accuracy.low == pytest.approx(low, abs=5e-4)
    assert worst.accuracy.high == pytest.approx(1 - low, abs=5e-4)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"chosen": []}, "its chosen and its rejected are not texts"),
        ({"rejected": None}, "its chosen and its rejected are not texts"),
        ({"chosen": [1]}, "its chosen and its rejected are not texts"),
        ({"num_correct": 2}, "num_correct is 2, and it has 1 chosen"),
        ({"prompt": None}, "its prompt is neither text nor messages"),
        ({"prompt": [{"role": "user"}]}, "its prompt is neither text nor messages"),
        ({"chosen": ["\ud800"]}, "half of a surrogate pair"),
        ({"subset": "Ties", "id": "tied:7"}, "expected is one ref:7 with one tied:7"),
    ],
)
def test_a_row_of_another_shape_is_refused_with_its_place(tmp_path, changes, fault):
    rows = as_rows(ROWS[0], ROWS[3])
    file = write_rows(tmp_path / "rb2.jsonl", [rows[0], {**rows[1], **changes}])
    with pytest.raises(UserError, match=rf"rb2\.jsonl.*{fault}"):
        read_known_answers(file)


def test_faults_of_the_words_and_of_the_judge(server, words, tmp_path, capsys):
    file = write_rows(tmp_path / "rb2.jsonl", as_rows(*ROWS))
    assert qualify.main([str(tmp_path / "none.jsonl"), *words]) == 2
    assert "no such file" in capsys.readouterr().err
    assert qualify.main([str(file), "scorer=nope", *words]) == 2
    assert "scorer=nope: score.scorers has no such scorer" in capsys.readouterr().err
    assert qualify.main([str(file), "scorer=rubric,rubrik", *words]) == 2
    shown = capsys.readouterr()
    assert "scorer=rubrik: score.scorers has no such scorer. Did you mean rubric" in shown.err
    assert not shown.out and not (tmp_path / "store" / "qualified").exists()
    assert qualify.main([str(file), *words, "score.scorers.rubric.engine.model=garbage"]) == 1
    shown = capsys.readouterr().err
    assert "scores failed" in shown and "score.max_failed=0.01" in shown
    assert not (tmp_path / "store" / "qualified").exists()


def test_a_run_s_reward_model_is_the_scorer_s(tmp_path):
    words = ["score=reward", "reward.model=./my-reward"]
    (tmp_path / "my-reward").mkdir()
    cfg = qualify.compose_block(qualify.Arguments.parse(words), qualify.QualifyConfig)
    filled = fill_reward_model(cfg.score.scorers, cfg.reward)
    assert filled["reward"].model == "./my-reward"


# ── what a run makes of it ────────────────────────────────────────────────────────────────────────


def check_run(words: list[str]) -> list[str]:
    """Raises what would refuse a run, and returns its warnings about the scorer of the pairs."""
    cfg = composed(*SMALL, "evaluate.scorer=rules", *words)
    run_plan = prepare_plan(cfg, [plan(cfg)])
    run_all(list_checks(run_plan, run_plan.steps))
    return [*warn_of_unqualified(run_plan, run_plan.steps)]


def test_a_run_asks_for_a_record_of_the_very_scorer(server, words, tmp_path, capsys):
    # All right, and enough of them for a lower end of 0.74.
    right = [(f"{at}", "Focus", [GOOD[3]], [GOOD[2], "y", "z"]) for at in range(12)]
    file = write_rows(tmp_path / "rb2.jsonl", as_rows(*right))
    few = write_rows(tmp_path / "few.jsonl", as_rows(*right[:2]))
    mounted = ["+scorer@score.scorers.rubric=rubric", *words[1:], "pair.scorer=rubric"]
    asks = [*mounted, "pair.min_scorer_accuracy=0.7"]
    assert check_run(mounted) == []
    with pytest.raises(UserError, match=r"no record of strop qualify.*min_scorer_accuracy=0\.7"):
        check_run(asks)
    [warning] = check_run([*asks, "pair.unqualified=warn"])
    assert warning.startswith("! pair.scorer=rubric: ")
    run_qualify(capsys, few, *words)
    with pytest.raises(UserError, match=r"its accuracy on \S*few\.jsonl is 1\.000 \(95 %: 0\.158"):
        check_run(asks)
    run_qualify(capsys, file, *words)
    assert check_run(asks) == check_run([*asks, "score.scorers.rubric.gold=false"]) == []
    with pytest.raises(UserError, match="no record"):
        check_run([*asks, "score.scorers.rubric.engine.model=other"])
    with pytest.raises(UserError, match="no record"):
        check_run([*asks, "score.scorers.rubric.criteria.kind=It is kind."])
    # The same judge on rows that it gets wrong: the newer record counts.
    worse = write_rows(tmp_path / "worse.jsonl", as_rows(*ROWS[:5]))
    run_qualify(capsys, worse, *words)
    with pytest.raises(UserError, match=r"its accuracy on \S*worse\.jsonl is 0\.750 \(95 %: .*"):
        check_run(asks)


def test_a_rule_needs_no_record_and_the_knobs_change_no_fingerprint():
    assert check_run(["pair.min_scorer_accuracy=0.7", "pair.scorer=rules"]) == []
    asks = "pair.min_scorer_accuracy=0.7", "pair.unqualified=warn"
    assert fingerprints(*SMALL) == fingerprints(*SMALL, *asks)


def test_a_reward_model_that_the_run_trains_is_told_how_to_qualify():
    words = ["+scorer@score.scorers.reward=reward_model", "pair.scorer=reward", "reward=train"]
    with pytest.raises(
        UserError, match=r"Train it first \(until=reward\) and qualify .*/reward/.*/weights:"
    ):
        check_run([*words, "pair.min_scorer_accuracy=0.7"])


def test_what_no_row_has_is_missed_before_anything_is_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = write_rows(tmp_path / "whole.jsonl", as_rows(ROWS[0]))
    half = write_rows(tmp_path / "half.jsonl", [{"prompt": "a", "chosen": "x"}])
    empty = write_rows(tmp_path / "empty.jsonl", [])
    assert qualify.main([str(whole), "score=math"]) == 2
    assert "the scorer math (math) reads the prompts' column answer" in capsys.readouterr().err
    for file in (half, empty):
        assert qualify.main([str(file), "score=length"]) == 2
        assert "and rejected: [wrong answers], as RewardBench 2 has" in capsys.readouterr().err
    labels = tmp_path / "dataset.json"
    row = {"input": "a", "output_1": "x", "output_2": "y", "label": 1}
    labels.write_text(json.dumps([row]))
    [known] = read_known_answers(Path("dataset.json")).rows
    assert known.subset == tmp_path.name
