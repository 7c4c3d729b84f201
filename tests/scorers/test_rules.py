"""Rules: what they score, that they repeat exactly, and what a fault of theirs costs."""

import json
import multiprocessing
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.config import (
    CheckRuntime,
    CodeLimits,
    CodeScorer,
    Function,
    FunctionScorer,
    IfevalScorer,
    JsonScorer,
    LanguageScorer,
    LengthScorer,
    Local,
    MathScorer,
    RegexScorer,
)
from pipeline.config.score import list_criteria
from pipeline.errors import StageError, UserError
from pipeline.scorers import Answer, Score, ifeval, open_scorer, rules
from tests.support.house import SMALL, composed, fingerprints

ONE = CheckRuntime(workers=1)


def answer(text: str, name: str = "s", prompt: str = "p", **columns) -> Answer:
    return Answer(
        name,
        prompt,
        [{"role": "user", "content": "Tell me of rivers."}],
        text,
        columns,
        len(text.split()),
    )


def run_scorer(cfg, *answers: Answer) -> list[Score]:
    scorer = open_scorer(cfg)
    try:
        return list(scorer.score(list(answers)))
    finally:
        scorer.close()


def scores(cfg, *answers: Answer) -> list[float | None]:
    return [row.score for row in run_scorer(cfg, *answers) if not row.criterion]


# ── on the text alone ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("whole", "wanted", "expected"),
    [(False, True, [1, 1, 0]), (True, True, [1, 0, 0]), (False, False, [0, 0, 1])],
)
def test_a_pattern_is_found_fits_or_is_kept_out(whole, wanted, expected):
    cfg = RegexScorer(kind="regex", pattern=r"(?i)yes\b", whole=whole, wanted=wanted, gold=False)
    assert scores(cfg, answer("Yes"), answer("yes, it is"), answer("yesterday")) == expected


def test_json_has_to_be_json_and_fit_its_schema(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}'
    )
    cfg = JsonScorer(kind="json", schema_file=Local(schema), calls=None, fenced=True, gold=False)
    good = ['{"name": "x"}', '```json\n{"name": "x"}\n```']
    bad = ['{"name": 3}', "[]", "name: x", '{"name": NaN}', 'Here: {"name": "x"}', "[" * 100_000]
    assert scores(cfg, *map(answer, good + bad)) == [1.0] * 2 + [0.0] * 6
    assert scores(
        cfg.model_copy(update={"schema_file": None, "fenced": False}), *map(answer, good)
    ) == [1.0, 0.0]
    schema.write_text('{"type": "no such type"}')
    with pytest.raises(UserError, match="not a JSON schema"):
        scores(cfg, answer("{}"))
    schema.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        scores(cfg, answer("{}"))


def test_a_length_outside_the_band_scores_less_the_further_off():
    cfg = LengthScorer(kind="length", unit="words", min=4, max=8, gold=False)
    texts = [answer("w " * n) for n in (0, 2, 4, 8, 16)]
    assert scores(cfg, *texts) == [0.0, 0.5, 1.0, 1.0, 0.5]
    assert scores(cfg.model_copy(update={"unit": "tokens"}), *texts) == [0.0, 0.5, 1.0, 1.0, 0.5]
    unknown = Answer("s", "p", [], "four words are here", {})
    assert scores(cfg.model_copy(update={"unit": "tokens"}), unknown) == [None]


def test_a_language_is_told_apart_and_an_unknown_code_refused():
    cfg = LanguageScorer(kind="language", languages=["de", "fr"], gold=False)
    texts = (
        "Der Fluss fließt ruhig durch das alte Tal.",
        "The river runs quietly through the old valley.",
        "123 !",
    )
    assert scores(cfg, *map(answer, texts)) == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="languages: german: .* Known: "):
        scores(cfg.model_copy(update={"languages": ["german"]}), answer("x"))


# ── IFEval ──────────────────────────────────────────────────────────────────────────────────────

IFEVAL = IfevalScorer(kind="ifeval", reading="strict", gold=False, runtime=ONE)
TEXT = "Sure!\nthe *river* is long, and the mill is old. [name] saw it\n\n***\n\nbonne nuit"


def answer_to(text: str, **instructions) -> Answer:
    names = [name.replace("__", ":") for name in instructions]
    return answer(text, instruction_id_list=names, kwargs=list(instructions.values()))


@pytest.mark.model
def test_ifeval_gives_the_share_followed_and_both_readings():
    asked = answer_to(
        "Sure, here it is:\nriver *lower* case",
        change_case__english_lowercase={},
        keywords__existence={"keywords": ["river"]},
        punctuation__no_comma={},
    )
    found = {m.criterion: m.score for m in run_scorer(IFEVAL, asked)}
    assert sorted(found) == sorted(["", *list_criteria(IFEVAL)])
    assert found == {
        "": pytest.approx(1 / 3),
        "instruction_strict": pytest.approx(1 / 3),
        "instruction_loose": 1.0,
        "prompt_strict": 0.0,
        "prompt_loose": 1.0,
    }
    assert scores(IFEVAL.model_copy(update={"reading": "loose"}), asked) == [1.0]


@pytest.mark.model
def test_ifeval_agrees_with_lm_eval_s_own_verdicts_and_repeats_exactly():
    """Language detection samples, and an instruction without its number draws one."""
    import random

    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    from lm_eval.tasks.ifeval.utils import process_results

    given = {
        "keywords:existence": {"keywords": ["mill"]},
        "keywords:letter_frequency": {"letter": "q"},
        "language:response_language": {"language": "en"},
        "startend:end_checker": {"end_phrase": "nuit"},
        "keywords:forbidden_words": {"forbidden_words": ["sea"]},
        "combination:repeat_prompt": {"prompt_to_repeat": "Tell me of rivers."},
    }
    names = sorted(INSTRUCTION_DICT.keys() - ifeval.NEED_PUNKT)
    assert len(names) == 23
    asked = [
        answer_to(text, **{name.replace(":", "__"): given.get(name, {})})
        for name in names
        for text in (TEXT, "")
    ]
    before = random.getstate()
    first, second, third = (run_scorer(IFEVAL, *asked) for _ in range(3))
    assert first == second == third and random.getstate() == before
    assert all(row.score is not None for row in first)
    by_answer = [first[at : at + 5] for at in range(0, len(first), 5)]
    for one, own in zip(asked, by_answer, strict=True):
        random.seed(0)
        theirs = process_results(
            {"key": 0, "prompt": "Tell me of rivers.", **one.columns}, [one.completion]
        )
        assert own[1].score == theirs["inst_level_strict_acc"][0], one.columns
        assert own[2].score == theirs["inst_level_loose_acc"][0], one.columns


@pytest.mark.model
def test_ifeval_draws_what_a_prompt_leaves_open_anew_for_the_loose_reading():
    """A `#` is not a letter to count (IFEval's key 1122).

    The program draws a letter for the strict reading, and another one for the loose reading.
    """
    import random

    from lm_eval.tasks.ifeval.utils import process_results

    given = {"let_relation": "at least", "letter": "#", "let_frequency": 4}
    texts = [letter * 4 for letter in "abcdefghijklmnopqrstuvwxyz"]
    asked = [
        answer_to(text, change_case__english_lowercase={}, keywords__letter_frequency=given)
        for text in texts
    ]
    found = run_scorer(IFEVAL, *asked)
    readings = [(found[at + 1].score, found[at + 2].score) for at in range(0, len(found), 5)]
    theirs = []
    for one in asked:
        random.seed(0)
        verdicts = process_results({"key": 1122, "prompt": "", **one.columns}, [one.completion])
        theirs.append(
            tuple(sum(verdicts[f"inst_level_{reading}_acc"]) / 2 for reading in ("strict", "loose"))
        )
    assert readings == theirs
    assert any(strict > loose for strict, loose in readings), (
        "the strict letter is not the loose one"
    )


@pytest.mark.model
def test_ifeval_without_nltk_s_data_refuses_what_needs_it_and_marks_the_rest(monkeypatch, tmp_path):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(
        nltk, "download", lambda *_: pytest.fail("nothing is fetched behind one's back")
    )
    with pytest.raises(
        UserError,
        match="punkt_tab is not on this machine, and length_constraints:number_sentences needs",
    ):
        run_scorer(
            IFEVAL,
            answer_to("One. Two.", length_constraints__number_sentences={"num_sentences": 2}),
        )
    assert scores(IFEVAL, answer_to("no", punctuation__no_comma={})) == [1.0]


def test_ifeval_s_checkers_load_nothing_large_and_leave_the_rest_of_lm_eval_as_it_was():
    code = """if True:
        import sys
        from pipeline.scorers import ifeval
        checkers = ifeval._load_checkers()
        large = {"torch", "datasets", "pandas", "scipy", "sklearn", "lm_eval.tasks"}
        print(len(checkers), large & {*sys.modules})
        import scipy, lm_eval.tasks
        print(lm_eval.tasks.TaskManager.__name__)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "25 set()\nTaskManager\n", done.stderr


@pytest.mark.model
def test_ifeval_columns_that_cannot_be_read_cost_one_score():
    wrong = [answer("x"), answer("x", instruction_id_list=["a:b"], kwargs=[{}]),
             answer("x", instruction_id_list=["punctuation:no_comma"], kwargs=[])]  # fmt: skip
    found = run_scorer(IFEVAL, *wrong)
    assert [row.score for row in found] == [None] * 3
    assert "instruction_id_list" in found[0].detail and "a:b is none of IFEval's" in found[1].detail


# ── mathematics ─────────────────────────────────────────────────────────────────────────────────

MATH = MathScorer(kind="math", column="answer", seconds=30, gold=False, runtime=ONE)


def test_results_that_are_equal_as_mathematics_are_right():
    told = [("So it is $\\frac{1}{2}$.", "0.5"), ("The answer is 72", "6 * 12 = 72\n#### 72")]
    told += [("\\boxed{2x+1}", "1 + 2x"), ("I do not know", "3"), ("The answer is 4", "5")]
    assert scores(MATH, *(answer(text, answer=gold) for text, gold in told)) == [
        1.0,
        1.0,
        1.0,
        0.0,
        0.0,
    ]
    assert run_scorer(MATH, answer("3", answer=""))[0].score is None


@pytest.mark.model
def test_off_the_main_thread_mathematics_is_marked_all_the_same():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(scores, MATH, answer("It is 1/2", answer="0.5")).result() == [1.0]


# ── code ────────────────────────────────────────────────────────────────────────────────────────

CODE = CodeScorer(
    kind="code",
    column="tests",
    allow_code_execution=True,
    network=True,
    limits=CodeLimits(seconds=30, cpu_seconds=1, memory_mb=512, file_mb=1),
    gold=False,
    runtime=ONE,
)
TESTS = ["assert double(2) == 4", "assert double('a') == 'aa'"]


def score_code(*codes: str, cfg=CODE, tests=TESTS) -> list[float | None]:
    return scores(
        cfg, *(answer(f"Here:\n```python\n{code}\n```\nDone.", tests=tests) for code in codes)
    )


def test_code_gets_the_share_of_tests_that_it_passes():
    right, half, broken = (
        "def double(x): return x * 2",
        "def double(x): return abs(x) * 2",
        "def double(x) return",
    )
    assert score_code(right, half, broken) == [1.0, 0.5, 0.0]
    rows = run_scorer(CODE, answer(right, tests=TESTS))
    assert [row.criterion for row in rows] == ["", *list_criteria(CODE)]
    assert scores(CODE, answer(right, tests="assert double(1) == 2"), answer(right, tests=[])) == [
        1.0,
        None,
    ]


def test_leaving_early_passes_nothing_and_printing_is_no_verdict():
    assert (
        score_code(
            "import sys; sys.exit(0)", "import os; os._exit(0)", "print('0\\n1')", "double = exit"
        )
        == [0.0] * 4
    )


@pytest.mark.model
def test_code_is_held_to_its_limits():
    """Time, CPU time, memory and files: each alone, next to code that keeps within it."""
    soon = CODE.model_copy(update={"limits": CODE.limits.model_copy(update={"seconds": 1.0})})
    begun = time.monotonic()
    assert score_code("import time; time.sleep(60)", cfg=soon, tests=["pass"]) == [0.0]
    assert score_code("while True: pass", tests=["pass"]) == [0.0]
    assert time.monotonic() - begun < CODE.limits.seconds
    within = ["x = bytearray(1 << 20)", "open('f', 'wb').write(bytes(1 << 16))"]
    beyond = ["x = bytearray(1 << 30)", "f = open('f', 'wb'); f.write(bytes(1 << 22)); f.close()"]
    assert score_code(*within, *beyond, tests=["pass"]) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.model
def test_what_code_starts_ends_with_it_and_it_sees_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_KEY", "secret")
    alive = tmp_path / "alive"
    command = f"['/bin/sh', '-c', 'sleep 1; touch {alive}']"
    child = f"import os, subprocess; subprocess.Popen({command}, start_new_session=True)"
    assert score_code(child, tests=["assert 'PLANTED_KEY' not in os.environ"]) == [1.0]
    time.sleep(1.5)
    assert not alive.exists()


def test_code_has_no_network_or_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = f"socket.create_connection(('127.0.0.1', {port}), timeout=1)"
        reach = f"import socket\ndef reach(): {connect}"
        assert score_code(reach, tests=["reach()"]) == [1.0]
        without = CODE.model_copy(update={"network": False})
        try:
            assert score_code(reach, cfg=without, tests=["reach()"]) == [0.0]
        except UserError:  # this machine cannot take the network away, and says so
            with pytest.raises(UserError, match="Give network=true"):
                score_code(reach, cfg=without, tests=["reach()"])


def test_code_runs_only_where_that_was_allowed():
    with pytest.raises(
        UserError, match="is not allowed yet. Give score.scorers.code.allow_code_execution=true"
    ):
        composed(*SMALL, "+scorer@score.scorers.code=code")


@pytest.mark.model
def test_marks_are_the_same_and_in_order_however_many_processes_check(monkeypatch):
    monkeypatch.setattr(rules, "MIN_ANSWERS_FOR_PROCESSES", 16)
    answers = [answer(f"It is {i}/4", name=f"s{i}", answer=f"{i % 3}/4") for i in range(20)]
    alone = run_scorer(MATH, *answers)
    assert (
        run_scorer(MATH.model_copy(update={"runtime": CheckRuntime(workers=2)}), *answers) == alone
    )
    assert [row.sample_id for row in alone] == [f"s{i}" for i in range(20)]
    assert {row.score for row in alone} == {0.0, 1.0}
    assert [
        row for at in range(0, 20, 7) for row in run_scorer(MATH, *answers[at : at + 7])
    ] == alone


@pytest.mark.model
def test_a_process_that_was_killed_is_said_with_what_to_do(monkeypatch):
    """Also for the next shard, whose answers are sent before the scores of this one are read."""
    monkeypatch.setattr(rules, "MIN_ANSWERS_FOR_PROCESSES", 2)
    answers = [answer("It is 1/4", name=f"s{i}", answer="1/4") for i in range(4)]
    with closing(
        open_scorer(MATH.model_copy(update={"runtime": CheckRuntime(workers=2)}))
    ) as scorer:
        assert len(list(scorer.score(answers))) == 4
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        for _ in range(2):
            with pytest.raises(StageError, match="a process that checks answers .* was killed"):
                list(scorer.score(answers))


# ── a function of the user's ────────────────────────────────────────────────────────────────────

MINE = """
def by_wish(completions, wish, **columns):
    return [float(len(c[0]["content"]) == w) for c, w in zip(completions, wish)]

def seen(prompts, completions, wish):
    assert prompts[0][0]["role"] == "user" and len(prompts) == len(completions) == len(wish)
    return [None, 0.5]

def short(completions, **columns):
    return [1.0]

def raising(completions, wish, **columns):
    return [1 / w for w in wish]

def odd(completions, **columns):
    return [float("nan"), "many"]

def leaving(completions, **columns):
    raise SystemExit(3)

async def later(completions, **columns):
    return []
"""


@pytest.fixture
def mine(tmp_path) -> Path:
    path = tmp_path / "my_scorer.py"
    path.write_text(MINE)
    return path


def function(name: str) -> FunctionScorer:
    return FunctionScorer.model_validate(
        {"kind": "function", "function": name, "gold": False, "runtime": {"timeout": 60}}
    )


def two(wish: int, prompt: str = "p") -> list[Answer]:
    return [
        answer("abc", f"{prompt}-0", prompt, wish=wish),
        answer("abcd", f"{prompt}-1", prompt, wish=wish),
    ]


def test_a_function_sees_what_trl_would_give_it(mine):
    assert scores(function(f"{mine}:by_wish"), *two(3), *two(4, "q")) == [1.0, 0.0, 0.0, 1.0]
    silent, half = run_scorer(function(f"{mine}:seen"), *two(3))
    assert silent.abstained and silent.score is None and half.score == 0.5
    assert scores(function("tests.scorers.test_rules.always"), *two(3)) == [1.0, 1.0]


def always(completions, **columns):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", ["the function gave 1 score for 2 completions"] * 2),
        ("raising", ["ZeroDivisionError: division by zero"] * 2),
        ("leaving", ["SystemExit: 3"] * 2),
        ("odd", ["the function gave nan", "the function gave 'many', which is not a number"]),
    ],
)
def test_a_function_s_fault_costs_the_rows_of_its_prompt_and_is_never_zero(mine, name, said):
    found = run_scorer(function(f"{mine}:{name}"), *two(0))
    assert [row.detail for row in found] == said
    assert all(row.score is None and not row.abstained for row in found)


def test_one_prompt_s_fault_leaves_the_others_alone(mine):
    assert scores(function(f"{mine}:raising"), *two(0), *two(2, "q")) == [None, None, 0.5, 0.5]


def test_a_function_that_is_not_there_is_refused(mine):
    with pytest.raises(UserError, match="has no function by_wosh. Did you mean by_wish"):
        run_scorer(function(f"{mine}:by_wosh"), *two(3))
    with pytest.raises(UserError, match="it is async"):
        run_scorer(function(f"{mine}:later"), *two(3))
    mine.write_text("import nothing_of_this_name")
    with pytest.raises(UserError, match="cannot be imported .ModuleNotFoundError"):
        run_scorer(function(f"{mine}:by_wish"), *two(3))
    mine.with_name("nearby.py").write_text("def grade(): ...")
    mine.write_text("from nearby import grade")
    with pytest.raises(UserError, match="nearby.py is not imported, .* put both into one file"):
        run_scorer(function(f"{mine}:by_wish"), *two(3))
    with pytest.raises(UserError, match="a function is written ./file.py:name"):
        composed(*SMALL, "+scorer@score.scorers.mine=function", "score.scorers.mine.function=score")


def test_a_function_s_file_enters_identity_by_content_and_not_by_place(mine, tmp_path):
    def fingerprint(path: Path, name: str = "by_wish") -> str:
        words = "+scorer@score.scorers.mine=function", f"score.scorers.mine.function={path}:{name}"
        return fingerprints(*SMALL, *words)["score@1"]

    first = fingerprint(mine)
    moved = tmp_path / "elsewhere.py"
    moved.write_text(MINE)
    assert fingerprint(moved) == first != fingerprint(mine, "short")
    mine.write_text(MINE + "\n")
    assert fingerprint(mine) != first
    assert (
        Function("package.module.score").file is None
        and Function("package.module.score").source == "package.module"
    )


def test_a_scorer_s_config_survives_the_way_to_its_worker(mine):
    cfg = composed(
        *SMALL, "+scorer@score.scorers.mine=function", f"score.scorers.mine.function={mine}:short",
        "+scorer@score.scorers.size=length", "+scorer@score.scorers.both=ensemble",
        "score.scorers.both.weights={mine: 1, size: 2}",
    ).score  # fmt: skip
    assert type(cfg).model_validate(json.loads(cfg.model_dump_json())) == cfg
