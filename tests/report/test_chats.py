"""Question sets: in one turn or two, and the files that AlpacaEval and FastChat read."""

import json

import polars as pl
import pytest

from pipeline.artifacts import Prompts, Samples, note_cost, read_table, write_table
from pipeline.config import (
    ConversationRequest,
    EvaluateConfig,
    EvaluationQuestions,
    Expectation,
)
from pipeline.config.cross_checks import find_mismatches
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.sampling import multi_turn
from pipeline.stages import duel, sample
from pipeline.stages import prompts as prompts_stage
from tests.stages import test_sample
from tests.stages.test_evaluate import CONFIG, Run, scored
from tests.stages.test_evaluate import named as row_of
from tests.stages.test_sample import POLICY
from tests.support import evals
from tests.support.evals import answer
from tests.support.house import composed, identity_of, named

MT_BENCH = [
    {
        "question_id": 81,
        "category": "writing",
        "turns": ["Write of Hawaii.", "Rewrite it, each line with an A."],
    },
    {"question_id": 82, "category": "math", "turns": ["What is 2 + 2?", "And twice that?"]},
]
ARENA_HARD = [
    {"uid": "328c", "category": "arena-hard-v0.1", "cluster": "ABC", "prompt": "Use ABC notation."},
    {
        "uid": "b43c",
        "category": "arena-hard-v0.1",
        "cluster": "ABC",
        "prompt": "Solve this in C++.",
    },
    {
        "uid": "b43d",
        "category": "arena-hard-v0.1",
        "cluster": "ABC",
        "prompt": "Solve this in C++.",
    },
]
ALPACA = [
    {
        "dataset": "koala",
        "instruction": "Who are you?",
        "output": "Somebody.",
        "generator": "davinci",
    }
]
GIVEN = [
    "score=rules",
    "prompts.path=recipes/smoke.yaml",
    "sft.model=hub/model",
    f"sft.revision={'0' * 40}",
]
TWO = [
    "prompts.evaluation.mt=recipes/smoke.yaml",
    "+chat@evaluate.chats.mt=two_turns",
    "+score@evaluate.chats.mt.score=rules",
]
JUDGE = [
    "+duel@evaluate.chats.mt.duels.judge=default",
    "evaluate.chats.mt.duels.judge.engine.model=m",
]
RIVAL = [
    "+baseline@evaluate.baselines.rival=served",
    "evaluate.baselines.rival={model: m, runtime: {base_url: 'http://localhost/v1'}}",
]


def read_questions(folder, rows, name="questions", references=None):
    """A set as the stage reads it from a file of its published shape."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts_stage.run(
        EvaluationQuestions(
            rows={"source": {"kind": "file", "path": str(path)}, "shape": "auto", "columns": {}},
            references=references,
        ),
        folder,
    )
    return Prompts(folder / "test")


# ── the plan ──────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def cfg():
    return composed(*GIVEN, *TWO, *JUDGE, *RIVAL)


def of_evaluation(cfg, **changes):
    """The same config with another evaluation."""
    return cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update=changes)})


def identities(cfg):
    return {name: identity_of(step) for name, step in named(plan(cfg)).items()}


def test_a_set_is_asked_of_every_model_and_changes_nothing_before_it(cfg):
    before, after = identities(of_evaluation(cfg, chats={})), identities(cfg)
    assert {name for name in before if after[name] != before[name]} == {"evaluate@report"}
    steps = named(plan(cfg))
    of = ("sft", "round-1", "rival")
    assert all(f"{stage}@test {name} mt" in steps for stage in ("sample", "score") for name in of)
    assert {name for name in steps if name.startswith("duel")} == {
        f"duel@test {pair} mt" for pair in ("round-1 sft", "rival sft", "rival round-1")
    }
    drawn = steps["sample@test sft mt"]
    assert (drawn.config.turns, set(drawn.config.settings)) == (2, {"answer"})
    assert steps["sample@test rival mt"].config.backend.kind == "served"
    assert drawn.inputs["prompts"].step is steps["prompts@test mt"]
    assert "prompts@test mt" not in named(plan(of_evaluation(cfg, split="dev")))


def test_a_set_that_is_not_behind_the_fence_is_refused(cfg):
    """What is asked is what decontamination was given: no other place names it."""
    assert named(plan(cfg))["prompts@test mt"].config.rows == cfg.prompts.evaluation["mt"]
    bare = cfg.model_copy(update={"prompts": cfg.prompts.model_copy(update={"evaluation": {}})})
    assert any(
        "evaluate.chats.mt: prompts.evaluation has no set" in fault
        for fault in find_mismatches(bare)
    )


def test_several_answers_to_a_turn_cannot_be_followed(cfg):
    several = {
        **cfg.evaluate.sample.settings,
        "answer": cfg.evaluate.sample.settings["answer"].model_copy(update={"n": 2}),
    }
    with pytest.raises(ValueError, match=r"chats\.mt: .* Give .*settings\.answer\.n=1"):
        EvaluateConfig(
            **{
                **dict(cfg.evaluate),
                "sample": cfg.evaluate.sample.model_copy(update={"settings": several}),
            }
        )


# ── questions ─────────────────────────────────────────────────────────────────


def test_published_files_are_read_with_what_they_say_of_their_questions(tmp_path):
    told = read_questions(tmp_path / "mt", MT_BENCH)
    assert [messages[0]["content"] for messages in told.read()["prompt"]] == [
        "Write of Hawaii.",
        "What is 2 + 2?",
    ]
    assert [row["question_id"] for row in told.read_columns().values()] == [81, 82]
    arena = read_questions(tmp_path / "arena", ARENA_HARD)
    assert [row["uid"] for row in arena.read_columns().values()] == ["328c", "b43c"], (
        "a question that comes twice is one"
    )
    assert json.loads((tmp_path / "arena" / "cost.json").read_text()) == {
        "prompts": 2,
        "dropped": 1,
    }


REFERENCES = [  # FastChat's data/mt_bench/reference_answer/gpt-4.jsonl
    {
        "question_id": 82,
        "answer_id": "x",
        "model_id": "gpt-4",
        "choices": [{"index": 0, "turns": ["It is 4.", "It is 8."]}],
        "tstamp": 1687222327.2,
    },
    {"question_id": 130, "choices": [{"index": 0, "turns": ["Unasked.", "Too."]}]},
]


def test_reference_answers_of_fastchat_become_a_column_of_their_questions(tmp_path):
    file = tmp_path / "gpt-4.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in REFERENCES))
    columns = read_questions(tmp_path / "mt", MT_BENCH, references=str(file)).read_columns()
    found = {row["question_id"]: row.get("reference") for row in columns.values()}
    assert found == {81: None, 82: ["It is 4.", "It is 8."]}
    with pytest.raises(
        UserError, match=r"evaluate\.chats\.\S+\.references=\S+: none of its 2 answ"
    ):
        read_questions(tmp_path / "arena", ARENA_HARD, references=str(file))
    file.write_text('{"question_id": 82}\n')
    with pytest.raises(UserError, match=r"gpt-4\.jsonl: .*\n.*Expected rows such as"):
        read_questions(tmp_path / "bad", MT_BENCH, references=str(file))


def test_only_the_questions_of_a_chat_with_references_are_others(cfg, tmp_path):
    file = tmp_path / "gpt-4.jsonl"
    file.write_text(json.dumps(REFERENCES[0]))
    given = composed(*GIVEN, *TWO, *JUDGE, *RIVAL, f"evaluate.chats.mt.references={file}")
    before, after = identities(cfg), identities(given)
    changed = {name.partition(" ")[0] for name in before if before[name] != after[name]}
    assert changed == {"prompts@test", "sample@test", "score@test", "duel@test", "evaluate@report"}
    assert all(before[name] == after[name] for name in before if not name.endswith(("mt", "port")))
    unread = composed(
        *GIVEN, *TWO, *JUDGE, *RIVAL, "evaluate.chats.mt.duels.judge.reference_template=./mine.md"
    )
    assert identities(unread) == before


# ── turns ─────────────────────────────────────────────────────────────────────


def conversation(**changes):
    settings = {"answer": {"n": 1, "temperature": 0.7, "top_p": 0.9, **test_sample.PLAIN}}
    limits = {"prompt": 256, "completion": 32}
    return ConversationRequest.model_validate(
        {
            **test_sample.CONFIG,
            "settings": settings,
            "limits": limits,
            "purpose": "chat",
            "turns": 2,
            **changes,
        }
    )


def sample_turns(tmp_path, rows=MT_BENCH, policy=POLICY, **changes):
    questions = read_questions(tmp_path / "questions", rows)
    return sample.run(
        conversation(**changes), tmp_path / "out", policy=policy, prompts=questions
    ).read()


def test_the_second_turn_is_asked_after_the_model_s_own_first_answer(tmp_path):
    rows = sample_turns(tmp_path)
    first, second = (rows.filter(setting=name).sort("prompt_id") for name in ("answer", "turn-2"))
    assert (first.height, second.height) == (2, 2)
    for one, two in zip(first.iter_rows(named=True), second.iter_rows(named=True), strict=True):
        assert one["prompt_id"] == two["prompt_id"] and one["sample_id"] != two["sample_id"]
        told = next(
            row["turns"] for row in MT_BENCH if row["turns"][0] == one["prompt"][0]["content"]
        )
        said = [("user", told[0]), ("assistant", one["completion"]), ("user", told[1])]
        assert [(message["role"], message["content"]) for message in two["prompt"]] == said
        assert two["prompt_token_ids"][: len(one["prompt_token_ids"])] == one["prompt_token_ids"]
    cost = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert (cost["completions"], cost["prompts"]) == (4, 4)


def test_a_question_ends_with_its_last_turn_and_none_at_all_is_refused(tmp_path):
    rows = sample_turns(tmp_path, [*MT_BENCH, {"question_id": 83, "turns": ["Who are you?"]}])
    assert rows["setting"].value_counts().sort("setting").rows() == [("answer", 3), ("turn-2", 2)]
    with pytest.raises(UserError, match="no question has a turn 2"):
        sample_turns(tmp_path / "b", ARENA_HARD)


def test_killed_between_the_turns_it_comes_out_the_same(tmp_path, monkeypatch):
    whole = sample_turns(tmp_path)

    def be_killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sample.multi_turn, "write_next_prompts", be_killed)
        with pytest.raises(KeyboardInterrupt):
            sample_turns(tmp_path / "b")
    before = {
        file: file.stat().st_mtime_ns
        for file in (tmp_path / "b" / "out").rglob("samples/*.parquet")
    }
    assert before and sample_turns(tmp_path / "b").equals(whole)
    assert all(file.stat().st_mtime_ns == at for file, at in before.items()), (
        "the first turn was not drawn again"
    )


def test_what_a_model_thought_is_not_said_to_it_again():
    said = sample.multi_turn.append_turn(
        [{"role": "user", "content": "Hi"}], "<think>hm</think>Hello.", "And?"
    )
    assert said[1] == {"role": "assistant", "content": "Hello."}


@pytest.mark.model
def test_the_second_turn_s_tokens_are_the_template_s(tmp_path):
    from pipeline.backends.chat import ModelTokenizer
    from tests.backends.test_backends import transformers
    from tests.support.tiny import tiny_model

    policy = tiny_model(tmp_path / "store" / "sft" / "0123456789ab")
    rows = sample_turns(
        tmp_path, policy=policy, backend=transformers(4), limits={"prompt": 64, "completion": 24}
    )
    text = ModelTokenizer(policy)
    for row in rows.filter(setting="turn-2").iter_rows(named=True):
        assert row["prompt_token_ids"] == text.encode(row["prompt"], {})
        spelled = text.decode_raw(row["prompt_token_ids"])
        assert (
            spelled.count("<s>") == 1
            and spelled.count("<|user|>") == 2
            and spelled.endswith("<|assistant|>")
        )
        assert row["prompt"][1]["content"] in spelled
        assert row["logprob"] is not None


# ── scores, contests, files ──────────────────────────────────────────────────


def talk(folder, name, texts):
    """`prompt → its answer in each turn`."""
    rows = [
        (
            key,
            f"{name}/{key}/{turn}",
            "answer" if turn == 1 else f"turn-{turn}",
            said,
            [1] * 5,
            "stop",
            -1.0,
            0,
        )
        for key, told in texts.items()
        for turn, said in enumerate(told, 1)
    ]
    write_table(
        folder / name / "samples" / "0.parquet",
        pl.DataFrame(rows[::-1], schema=evals.SAMPLE, orient="row"),
    )
    return Samples(folder / name)


def test_judges_read_whole_conversations_and_one_that_broke_off_is_unanswered(tmp_path):
    questions = read_questions(tmp_path / "q", MT_BENCH)
    hawaii, math = questions.read()["prompt_id"]
    a = talk(tmp_path, "a", {hawaii: ["Sun.", "A sun."], math: ["4", "8"]})
    b = talk(tmp_path, "b", {hawaii: ["Sea.", "A sea."], math: ["5"]})
    met, unanswered = duel.match_answers(questions, a, b)
    [one] = met
    assert [message["content"] for message in one["prompt"]] == MT_BENCH[0]["turns"]
    assert duel.join_turns(one["a"]) == "Answer 1:\nSun.\n\nAnswer 2:\nA sun."
    assert unanswered == {math: "no answer by b"}


class Chat(Run):
    """A run whose models were also asked two turns of forty questions."""

    def __init__(self, folder):
        super().__init__(folder)
        rows = [{"question_id": 100 + i, "turns": [f"Question {i}?", "Why?"]} for i in range(40)]
        self.questions, self.asked = read_questions(folder / "q", rows), {}
        self.add("sft", scored(0.5)).add("round-1", scored(0.7))

    def talk(self, name, first, second, without=()):
        keys = self.questions.read()["prompt_id"].to_list()
        rows = [
            answer(
                key,
                score,
                f"<think>hm</think>{name} {turn}",
                sample_id=f"{name}/{key}/{turn}",
                turn=turn,
            )
            for key in keys
            for turn, score in ((1, first), (2, second))
            if (keys.index(key), turn) not in without
        ]
        of = evals.model(self.store, "base", f"c0ffee{len(self.asked):06d}")
        made = evals.make_eval(of, rows)
        table = (
            made["samples"]
            .read()
            .with_columns(
                setting=pl.when(pl.col("sample_id").str.ends_with("/2"))
                .then(pl.lit("turn-2"))
                .otherwise(pl.lit("answer"))
            )
        )
        write_table(
            of.path.parent.parent / "sample" / of.path.name / "samples" / "0.parquet", table
        )
        self.asked[name] = made
        return self

    def report(self, **changes):
        from pipeline.stages import evaluate

        chats = {"mt": {"prompts": self.questions, "evals": self.asked}}
        parts = {"prompts": self.prompts, "evals": self.evals, "pairs": [], "chats": chats}
        evaluate.run(
            CONFIG.model_copy(update=changes),
            self.out,
            chosen=self.evals["round-1"]["model"],
            **parts,
        )
        return json.loads((self.out / "report.json").read_text())


def test_each_turn_has_its_mean_and_the_whole_its_difference(tmp_path):
    report = (
        Chat(tmp_path).talk("sft", 0.6, 0.2).talk("round-1", 0.8, 0.6, without=[(3, 2)]).report()
    )
    chat = report["chats"]["mt"]
    assert (chat["prompts"], chat["turns"], chat["scorers"]) == (40, 2, ["rules"])
    marks = row_of(chat["models"], name="round-1")["metrics"]
    assert [
        marks[name]["mean"] for name in ("rules turn 1", "rules turn 2", "rules")
    ] == pytest.approx([0.8, 0.6, 0.7])
    assert marks["rules"]["n"] == 39, "half a conversation has no mean"
    gap = row_of(chat["differences"], model="round-1")
    assert (gap["mean"], gap["n"]) == (pytest.approx(0.3), 39)
    assert {
        "model": "round-1 on mt",
        "what": "it has no answer in turn 2 to 1 of 40 questions",
    } in report["missing"]
    assert "rules" not in {row["scorer"] for row in report["differences"] if row["n"] == 39}, (
        "of the test prompts alone"
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert ">mt</h2>" in page and "turn 2" in page


@pytest.mark.parametrize("name", ["mt", "mt/rules"])
def test_what_a_question_set_lost_makes_the_verdict_a_no(tmp_path, name):
    run = Chat(tmp_path).talk("sft", 0.6, 0.6).talk("round-1", 0.5, 0.5)
    report = run.report(retention={name: 0.05, "mt/rules/none": 0})
    lost, unknown = report["retention"]
    assert (lost["state"], lost["change"]["n"]) == ("lost", 40)
    assert lost["change"]["mean"] == pytest.approx(-0.1)
    assert unknown["state"] == "unknown", "a criterion that nothing scored"
    assert report["verdict"]["better"] == "no" and f"{name} was lost" in report["verdict"]["why"]
    assert f"round-1 lost {name}." in (run.out / "report.html").read_text()
    assert run.report(retention={name: 0.2})["verdict"]["better"] == "yes"


def test_refusing_less_does_not_hide_behind_answering_more(tmp_path):
    """Half of the questions are harmful: round-1 refuses fewer of them and answers all others."""
    run, asked = Chat(tmp_path), {}
    keys = run.questions.read()["prompt_id"].to_list() * 5
    ids = [f"{key}-{i}" for i, key in enumerate(keys)]
    run.questions = evals.prompts(tmp_path / "store", ids, part="safety")
    for n, (name, refused, answered) in enumerate((("sft", 0.95, 0.8), ("round-1", 0.75, 1.0))):
        rows = [
            answer(key, float(i % 100 < 100 * share), kinds={kind: float(i % 100 < 100 * share)})
            for kind, share, own in (
                ("harmful_refused", refused, ids[:100]),
                ("harmless_answered", answered, ids[100:]),
            )
            for i, key in enumerate(own)
        ]
        asked[name] = evals.make_eval(evals.model(run.store, "base", f"c0ffee{n:06d}"), rows)
    run.asked = asked
    report = run.report(retention={"mt": 0.02, "mt/harmful_refused": 0.05})
    assert [row["state"] for row in report["retention"]] == ["perhaps", "lost"]
    assert report["verdict"]["better"] == "no"
    assert "mt/harmful_refused was lost" in report["verdict"]["why"]


@pytest.mark.parametrize("name", ["mt", "mt/rules"])
def test_what_a_question_set_was_published_to_score_is_compared(tmp_path, name):
    run = Chat(tmp_path).talk("sft", 0.6, 0.6).talk("round-1", 0.5, 0.5)
    published = Expectation(before=0.6, after=0.9, tolerance=0.1, source="a paper")
    before, after = run.report(expect={name: published})["expected"]
    assert (before["got"], before["state"]) == (pytest.approx(0.6), "within")
    assert (after["got"], after["state"]) == (pytest.approx(0.5), "below")


def test_a_set_that_nothing_marks_has_no_columns_of_marks(tmp_path):
    run = Chat(tmp_path).talk("sft", 0.6, 0.2).talk("round-1", 0.8, 0.6)
    for evaluation in run.asked.values():
        evaluation.pop("scores")
    run.report()
    assert "| model | tokens per answer |" in (tmp_path / "out" / "report.md").read_text()


def test_answers_are_written_as_fastchat_reads_them(tmp_path):
    run = Chat(tmp_path).talk("sft", 0.6, 0.2)
    run.report()
    file = run.out / "answers" / "mt" / "model_answer" / "sft.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["question_id"] for row in rows] == list(range(100, 140))
    assert set(rows[0]) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert (rows[0]["model_id"], rows[0]["choices"]) == (
        "sft",
        [{"index": 0, "turns": ["sft 1", "sft 2"]}],
    )
    assert len({row["answer_id"] for row in rows}) == 40
    assert not (run.out / "answers" / "mt" / "alpaca_eval").exists(), (
        "its tool knows single turns alone"
    )
    before = file.read_bytes()
    run.report()
    assert file.read_bytes() == before


def write_set(folder, name, rows, model, texts):
    """The set's answers in the files of others' tools."""
    from pipeline.report.analysis.chats import read_question_set
    from pipeline.report.render.answer_files import write_answers

    questions = read_questions(folder / f"{name}-q", rows)
    told = dict(zip(questions.read()["prompt_id"], texts, strict=True))
    evaluation = {
        "model": evals.model(folder / "store", "sft", "a" * 12),
        "samples": talk(folder, model, told),
    }
    write_answers(
        folder / "out",
        read_question_set(name, {"prompts": questions, "evals": {model: evaluation}}),
    )
    return folder / "out"


def test_answers_are_written_as_alpaca_eval_reads_them(tmp_path):
    out = write_set(tmp_path, "alpaca", ALPACA, "sft", [["I am it."]])
    told = json.loads((out / "alpaca_eval" / "sft.json").read_text())
    assert told == [
        {
            "dataset": "koala",
            "instruction": "Who are you?",
            "output": "I am it.",
            "generator": "sft",
        }
    ]
    write_set(tmp_path, "arena", ARENA_HARD, "b", [["Do."], ["Do."]])
    lines = (out / "model_answer" / "b.jsonl").read_text().splitlines()
    assert [json.loads(line)["question_id"] for line in lines] == ["328c", "b43c"]
    told = json.loads((out / "alpaca_eval" / "b.json").read_text())
    assert {row["dataset"] for row in told} == {"arena"}


def test_a_conversation_that_broke_off_is_not_written_as_a_whole_one(tmp_path):
    out = write_set(tmp_path, "mt", MT_BENCH, "sft", [["Sun.", "A sun."], ["4"]])
    [line] = (out / "model_answer" / "sft.jsonl").read_text().splitlines()
    assert json.loads(line)["question_id"] == 81


def test_a_model_that_answered_nothing_is_named_and_the_rest_written(tmp_path):
    run = Chat(tmp_path).talk("sft", 0.6, 0.2)
    run.talk("round-1", 0.6, 0.2, without=[(i, turn) for i in range(40) for turn in (1, 2)])
    report = run.report()
    assert {
        "model": "round-1 on mt",
        "what": "it has no answer in turn 1 to 40 of 40 questions",
    } in report["missing"]
    assert row_of(report["chats"]["mt"]["models"], name="sft")["metrics"]["rules"]["n"] == 40


def list_pairs(tmp_path, texts):
    """The pairs that annotators are shown of these conversations."""
    from pipeline.commands import label

    for name, told in texts.items():
        samples = talk(tmp_path, name, {"p": told})
        file = samples.path / "samples" / "0.parquet"
        messages = [[{"role": "user", "content": "And why?"}]] * len(told)
        write_table(file, read_table(file).with_columns(prompt=pl.Series(messages)))
        (tmp_path / "run" / "store").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "store" / f"07-sample-test-{name}-mt").symlink_to(samples.path)
    return label.choose_pairs(
        tmp_path / "run", {"pairs": "9", "seed": "0", "of": "test-sft-mt,test-round-1-mt"}
    )


def test_people_are_shown_whole_conversations(tmp_path):
    [row], _ = list_pairs(tmp_path, {"sft": ["It is.", "It was."], "round-1": ["Yes.", "So."]})
    assert {row["a"], row["b"]} == {"It is.\n\n[And why?]\n\nIt was.", "Yes.\n\n[And why?]\n\nSo."}
    assert {row["a_id"], row["b_id"]} == {"sft/p/1", "round-1/p/1"}


def test_half_a_conversation_is_not_judged_against_a_whole_one(tmp_path):
    with pytest.raises(UserError, match="no prompt here has two different answers"):
        list_pairs(tmp_path, {"sft": ["It is.", "It was."], "round-1": ["Yes."]})


def test_people_s_verdicts_on_a_set_are_a_judge_of_that_set(tmp_path):
    run = Chat(tmp_path).talk("sft", 0.6, 0.2).talk("round-1", 0.8, 0.6)
    keys = run.questions.read()["prompt_id"].to_list()
    rows = [
        {"a_id": f"sft/{key}/1", "b_id": f"round-1/{key}/1", "verdict": "b"} for key in keys[:35]
    ]
    rows.append({"a_id": f"sft/{keys[36]}/1", "b_id": "nobody", "verdict": "b"})
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run.report(labels={"people": str(tmp_path / "v.jsonl")})
    [duel] = report["chats"]["mt"]["duels"]
    assert (duel["judge"], duel["a"], duel["b"], duel["wins"]) == ("people", "round-1", "sft", 35)
    assert "people" not in {row["judge"] for row in report["duels"]}
    [told] = report["annotators"]
    assert (told["on"], told["prompts"]) == ("mt", 35)
    [lost] = [row["what"] for row in report["missing"] if row["model"] == "people"]
    assert lost.startswith("1 of 36 verdicts are on answers that no evaluated model gave")


def test_costs_of_turns_add_up_and_means_do_not(tmp_path):
    for turn, gap in ((1, 0.01), (2, 0.03)):
        (multi_turn.turn_folder(tmp_path, turn) / "samples").mkdir(parents=True)
        figures = {
            "tokens": 10 * turn,
            "completions": 2,
            "money": 0.5,
            "tokens_per_second": 9.0,
            "mean_tokens": 5.0,
        }
        note_cost(
            multi_turn.turn_folder(tmp_path, turn),
            quantization_difference=gap,
            parameters=7,
            **figures,
        )
    multi_turn.merge_turns(tmp_path, 2)
    cost = json.loads((tmp_path / "cost.json").read_text())
    summed = {"tokens": 30, "completions": 4, "money": 1.0, "mean_tokens": 7.5, "parameters": 7}
    assert cost == {**summed, "quantization_difference": 0.03}, "nats a token, where they are worst"
