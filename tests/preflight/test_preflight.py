"""What is refused before anything is built, because machine or config cannot do it."""

import errno
import functools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import preflight
from pipeline.artifacts import read_table, write_json, write_table
from pipeline.backends.chat import ModelTokenizer
from pipeline.config import ScoreConfig
from pipeline.driver.outline import prepare_plan
from pipeline.driver.run import run_point
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.preflight.inputs import check_lengths, check_offline, check_prompts
from pipeline.preflight.lineage import trace_lineage
from pipeline.preflight.prompt_lengths import PromptTokenizer
from pipeline.sampling.prompt_selection import split_by_length
from pipeline.step import Identity, Step
from tests.stages import test_sample
from tests.support import evals
from tests.support.house import HOUSE, check_steps, composed, identity_of
from tests.support.tiny import CHAT, tiny_model

GIVEN = ["score=rules", "prompts.path=p.jsonl", "sft.model=hub/model"]


@pytest.fixture
def two_gpus(card):
    card(80, 80)


@functools.cache
def steps(*words: str) -> list:
    return plan(composed(*words)).ancestors()


@pytest.mark.parametrize(
    ("wanted", "visible", "there"),
    [(2, None, "2 GPUs"), (3, None, "2 GPUs"), (2, "1", "1 GPU"), (2, "", "0 GPUs")],
)
def test_more_gpus_than_there_are(two_gpus, monkeypatch, wanted, visible, there):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    asked = steps(*GIVEN, f"sample.backend.runtime.tensor_parallel={wanted}")
    check_steps(step for step in asked if step.stage != "sample")  # what is built needs no GPU
    if there == "2 GPUs" and wanted == 2:
        check_steps(asked)
    else:
        with pytest.raises(
            UserError, match=rf"tensor_parallel={wanted}: this machine shows {there}[. ].*\n  Give"
        ):
            check_steps(asked)


def test_a_pipeline_needs_gpus_for_each_of_its_stages(two_gpus):
    pipeline = "sample.backend.runtime.engine={pipeline_parallel_size: 2}"
    check_steps(steps(*GIVEN, pipeline))
    with pytest.raises(
        UserError,
        match=r"parallel=2 with pipeline_parallel_size=2: this machine shows 2 .*\n  Give 1,",
    ):
        check_steps(steps(*GIVEN, pipeline, "sample.backend.runtime.tensor_parallel=2"))


def test_an_exam_s_engine_is_named_by_its_own_knob(two_gpus):
    with pytest.raises(
        UserError,
        match=r"^evaluate.sample.backend.runtime.tensor_parallel=3: this machine shows 2 GPUs",
    ):
        check_steps(steps(*GIVEN, "evaluate.sample.backend.runtime.tensor_parallel=3"))
    with pytest.raises(
        UserError,
        match=r"^evaluate.sample.runtime.workers=3 of 1 GPU each: this machine shows 2 GPUs",
    ):
        check_steps(steps(*GIVEN, "evaluate.sample.runtime.workers=3"))


@pytest.mark.parametrize(
    "word", ["backend@sample.backend=vllm", "backend@sample.backend=transformers"]
)
def test_more_workers_than_gpus_are_refused_before_anything_is_trained(two_gpus, monkeypatch, word):
    check_steps(steps(*GIVEN, word, "sample.runtime.workers=2"))
    with pytest.raises(
        UserError,
        match=r"workers=3 of 1 GPU each: this machine shows 2 .*\n  Give a number up to 2",
    ):
        check_steps(steps(*GIVEN, word, "sample.runtime.workers=3"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_steps(steps(*GIVEN, word, "sample.runtime.workers=3"))  # on a CPU they share its cores


def test_more_scorers_than_gpus(two_gpus):
    marks = [
        *GIVEN,
        "score=reward",
        "reward=checkpoint",
        "reward.model=hub/reward",
        "pair.scorer=reward",
    ]
    check_steps(steps(*marks, "score.runtime.workers=2"))
    with pytest.raises(
        UserError, match=r"score.runtime.workers=3 of 1 GPU each: this machine shows 2"
    ):
        check_steps(steps(*marks, "score.runtime.workers=3"))
    at = "score.scorers.judge"
    judge = [f"+scorer@{at}=rubric", f"engine@{at}.engine=vllm", f"{at}.engine.model=hub/judge"]
    with pytest.raises(
        UserError, match=r"judge.engine.runtime.tensor_parallel=3: this machine shows 2"
    ):
        check_steps(steps(*marks, *judge, f"{at}.engine.runtime.tensor_parallel=3"))


OWN = """\
from elsewhere import taken
import a.b as borrowed
async def later(completions): ...
def sooner(completions):
    inside = 1
if True:
    def perhaps(completions): ...
made = lambda completions: []
"""


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (
            {"kind": "language", "languages": ["en", "xx"]},
            "score.scorers.s.languages: xx",
        ),
        (
            {"kind": "json", "schema_file": "no.json", "fenced": True, "calls": None},
            "not a JSON schema: 'nothing' is not valid",
        ),
        (
            {"kind": "json", "schema_file": "own.py", "fenced": True, "calls": None},
            "cannot be read as JSON",
        ),
        ({"kind": "json", "schema_file": "yes.json", "fenced": True, "calls": None}, None),
        *(
            ({"kind": "function", "function": function, "runtime": {"timeout": 60}}, said)
            for function, said in {
                "./own.py:soner": r"has no function soner\. Did you mean sooner",
                "./own.py:inside": "has no function inside",
                "./own.py:later": "it is async",
                "./no.json:later": "has no function later",
                "nowhere_installed.module.score": "the package nowhere_installed is not installed",
                "json.decoder.scan": None,
                **{
                    f"./own.py:{name}": None
                    for name in ("taken", "borrowed", "sooner", "perhaps", "made")
                },
            }.items()
        ),
    ],
)
def test_what_scorers_are_given_is_read_before_anything_is_sampled(
    tmp_path, monkeypatch, knobs, said
):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    Path("yes.json").write_text('{"type": "object"}')
    Path("no.json").write_text('{"type": "nothing"}')
    cfg = ScoreConfig(scorers={"s": {**knobs, "gold": False}}, max_failed=0, runtime={"workers": 1})
    scoring = Step("score", cfg)
    if said is None:
        check_steps([scoring])
    else:
        with pytest.raises(UserError, match=said):
            check_steps([scoring])


def test_offline_rows_that_do_not_last_are_refused_before_anything_is_drawn(tmp_path):
    mix = "pair.mix={on_policy: 0.5, offline: 0.5, per_round: 20}"
    planned = steps("recipes=smoke", "offline=file", f"offline.source.path={tmp_path}", mix)
    [made] = [step for step in planned if step.stage == "offline"]
    [drawn] = [step for step in planned if (step.stage, step.label) == ("sample", 1)]
    assert planned.index(made) < planned.index(drawn)
    write_json(tmp_path / "funnel.json", {"pairs": 39})
    with pytest.raises(
        UserError,
        match=r"per_round=20: round 2 needs 40 offline rows, and there are 39\.\n.*19 or less",
    ):
        check_offline(made, tmp_path, planned)
    write_json(tmp_path / "funnel.json", {"pairs": 40})
    check_offline(made, tmp_path, planned)


def test_an_unknown_language_of_pairs():
    with pytest.raises(UserError, match=r"pair\.filters\.languages: klingon"):
        check_steps(
            step
            for step in steps("recipes=smoke", "pair.filters.languages=[klingon]")
            if step.stage == "pair"
        )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "sample.settings.draw.n=0",
            r"sample.settings.draw.n=0: Input should be greater than 0\..*conf/setting",
        ),
        ("sft.model=./nowhere", r"sft.model=./nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_drawn(word, said):
    with pytest.raises(UserError, match=said):
        identity_of(plan(composed("prompts=playground", "sft.model=hub/model", word)))


def test_every_file_that_is_not_there_is_said_at_once(tmp_path):
    given = {
        "prompts.path": "no.jsonl",
        "prompts.split.test": "nor.jsonl",
        "sft.model": "./nowhere",
    }
    cfg = composed(
        *(f"{knob}={path}" for knob, path in given.items()),
        *("score=length", f"store={tmp_path}", "dry_run=true"),
    )
    with pytest.raises(UserError) as refusal:
        prepare_plan(cfg, [plan(cfg)])
    said = str(refusal.value).splitlines()
    assert len(said) == 3
    for path, line in zip(given.values(), sorted(said), strict=True):
        _, _, fault = line.partition(f"={path}: no such file or folder ")
        assert fault.startswith(f"(looked for {Path(path).absolute()}). Give the path of one")


def test_a_file_that_may_not_be_read_is_refused():
    def locked(path: str) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    with pytest.raises(
        UserError, match=r"^prompts.path=p.jsonl: cannot be read \(Permission denied\). Give"
    ):
        Identity(locked).fingerprint(steps(*GIVEN)[0])


def test_all_that_is_wrong_at_the_door_is_said_at_once(tmp_path):
    (tmp_path / "marks.csv").write_text("sample_id,score\na,1\n")
    (tmp_path / "people.csv").write_text("sample_id,score\na,high\n")
    people = [
        "+scorer@score.scorers.people=labels",
        f"score.scorers.people.path={tmp_path}/people.csv",
    ]
    words = [*people, f"evaluate.labels.panel={tmp_path}/marks.csv", "pair.filters.languages=[xx]"]
    with pytest.raises(UserError) as refusal:
        check_steps(steps(*GIVEN, *words, "rounds=2", "sample.per_round=9"))
    said = str(refusal.value)
    assert said.count("languages: xx") == said.count("score='high' is not a number") == 1
    assert "evaluate.labels.panel=" in said and "a contest needs verdicts on two" in said


def test_completions_that_fill_the_context():
    words = [
        "recipes=smoke",
        "backend@sample.backend=transformers",
        "backend@evaluate.sample.backend=transformers",
    ]
    check_steps(steps(*words))
    with pytest.raises(
        UserError, match=r"limits.completion=4096: the model has a context of \d+ tokens"
    ):
        check_steps(steps(*words, "limits.completion=4096"))


TALK = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} ;\n{% endfor %}"
    "{% generation %}me :{% endgeneration %}"
)


def spelled(folder: Path, template: str | None) -> Path:
    """A model's folder as far as its tokenizer, whose tokens are words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pieces.enable_truncation(3)  # as some checkpoints bring it
    write_json(folder / "model.json", {"weights": "weights", "tokenizer": "weights"})
    (folder / "weights").mkdir()
    pieces.save(str(folder / "weights" / "tokenizer.json"))
    if template is not None:
        (folder / "weights" / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize(
    ("template", "words", "said"),
    [
        (
            None,
            ["base.context=70"],
            "limits.prompt=64, with limits.completion=64 in a context of 70: 6 tokens",
        ),
        (
            TALK,
            ["limits.prompt=11"],
            "512: 11 tokens are left for a prompt, and the shortest of 2 has 12 with",
        ),
        (TALK, ["limits.prompt=12"], None),
        (
            TALK,
            ["template.chat_template=longer.jinja", "limits.prompt=12"],
            "the shortest of 2 has 13 with its",
        ),
        (
            TALK,
            ["sample.settings.draw.system=Be brief", "limits.prompt=15"],
            "has 17 with its template with what the",
        ),
        ("{{ raise_exception('no') }}", ["limits.prompt=7"], None),
        ("{% unknown %}", ["limits.prompt=7"], None),
    ],
)
def test_prompts_that_fit_nowhere_are_refused_before_sft_is_trained(
    tmp_path, monkeypatch, template, words, said
):
    """Seven words the shortest, and five more that a template puts around them."""
    monkeypatch.chdir(tmp_path)
    Path("longer.jinja").write_text(f"well {TALK}")
    planned = steps("recipes=smoke", "rounds=1", "sample.per_round=2", *words)
    made = next(step for step in planned if step.stage == "base")
    texts = ["say six things of a river ?", "and " * 90]
    asked = [evals.prompts(tmp_path, texts, "{}", part).path for part in ("train", "test")]
    folders = {"base": spelled(tmp_path / "base", template), "prompts": asked[0].parent}
    # base answers with its own template; its evaluation does not matter here.
    coming = [step for step in planned if step.label != "test base"]

    def check(coming: list, by: Step = made) -> None:
        check_lengths(by, lambda step: folders.get(step.stage, tmp_path / step.stage), coming)

    if said is None:
        return check(coming)
    with pytest.raises(UserError) as refusal:
        check(coming)
    assert said in str(refusal.value)
    remedy = (
        "Lower limits.completion, give a model with"
        if "context of 70" in said
        else "Raise limits.prompt, or give"
    )
    assert f"\n  {remedy}" in str(refusal.value)
    check([step for step in coming if step.stage != "sample"])
    check(
        coming, next(step for step in planned if step.stage == "sft")
    )  # nothing of it is there yet
    for part in asked:
        (part / "prompts.parquet").unlink()  # pruned
    return check(coming)


def test_each_round_s_own_prompts_have_to_fit(tmp_path):
    """The first round's do, and of the second round's none."""
    planned = steps("recipes=smoke", "sample.per_round=1", "limits.prompt=7")
    made = next(step for step in planned if step.stage == "base")
    folder = evals.prompts(
        tmp_path, ["say six things of a river ?", "and " * 90], "{}", "train"
    ).path.parent
    folders = {"base": spelled(tmp_path / "base", None), "prompts": folder}
    with pytest.raises(
        UserError, match="7 tokens are left for a prompt, and the shortest of 1 has 90"
    ):
        check_lengths(made, lambda step: folders.get(step.stage, tmp_path / step.stage), planned)


TEMPLATES = [
    CHAT,
    "{{- bos_token }}{% for m in messages %}{% if loop.last %}{% break %}{% endif %}\n"
    " {{- m | tojson }}\n{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    "{{ style }}{{ pad_token }}",
    "{% if tools is none and add_generation_prompt %}{{ messages[0]['content'].strip() }}\n"
    "{{ eos_token }}{% endif %}",
]


@pytest.mark.model
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_door_counts_what_the_sampler_counts(tmp_path, template):
    policy = tiny_model(tmp_path / "sft", template=template)
    chat, words = ModelTokenizer(policy), PromptTokenizer(policy.tokenizer, None, 256)
    for content in ("  name three <|end|> facts ", "Ünï\n'\"", ""):
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]
        for kwargs in ({}, {"style": "calm river"}):
            assert words.encode(messages, kwargs) == chat.encode(messages, kwargs) != []
    (tmp_path / "other.jinja").write_text("river " * 9)
    assert (
        len(PromptTokenizer(policy.tokenizer, tmp_path / "other.jinja", 256).encode(messages, {}))
        > 9
    )


@pytest.mark.model
@pytest.mark.parametrize("several", [False, True])
def test_the_door_knows_the_template_of_an_older_checkpoint(tmp_path, several):
    """It is in the tokenizer's config, without a file of its own name."""
    policy = tiny_model(tmp_path / "sft")
    (policy.tokenizer / "chat_template.jinja").unlink()
    file = policy.tokenizer / "tokenizer_config.json"
    named = [{"name": "default", "template": CHAT}, {"name": "tool_use", "template": "no"}]
    write_json(file, {**json.loads(file.read_text()), "chat_template": named if several else CHAT})
    messages = [{"role": "user", "content": "name three facts"}]
    found = PromptTokenizer(policy.tokenizer, None, 256).encode(messages, {})
    assert found == ModelTokenizer(policy).encode(messages, {}) and len(found) > len(
        ModelTokenizer(policy).encode_text("name three facts")
    )


@pytest.mark.model
def test_a_prompt_that_only_the_template_makes_too_long_is_dropped_and_counted(tmp_path):
    chat = ModelTokenizer(tiny_model(tmp_path / "sft"))
    texts = [
        "the river",
        "the river and the lantern",
        "the river and the old lantern and the quiet river",
    ]
    asked = test_sample.ask(tmp_path / "train", *texts).read()
    bare = len(chat.encode_text(texts[1]))
    limits = {"prompt": bare, "completion": 8}
    kept, dropped = split_by_length(test_sample.config(limits=limits), lambda: chat, asked)
    assert [row[0]["content"] for row in kept["prompt"]] == texts[:1]
    lengths = [len(chat.encode([{"role": "user", "content": text}], {})) for text in texts[1:]]
    assert (
        lengths[0] > bare >= len(chat.encode_text(texts[1]))
        and len(chat.encode_text(texts[2])) > bare
    )
    told = [f"{tokens} tokens, limits.prompt={bare}" for tokens in lengths]
    assert sorted(dropped["detail"]) == sorted(told) and set(dropped["reason"]) == {
        "prompt_too_long"
    }


def test_a_reward_model_s_own_base_has_another_context_and_another_tokenizer():
    words = [
        "reward=train",
        "reward.start={kind: tiny, vocabulary: 300, hidden: 64, layers: 1, heads: 1, context: 9,"
        " seed: 1}",
    ]
    words += [
        "score=reward",
        "pair.scorer=reward",
        "sample.resample_ties=[4]",
        "evaluate.scorer=reward",
    ]
    draws = [step for step in steps("recipes=smoke", *words) if step.stage == "sample"]
    assert {model.stage for draw in draws for model in trace_lineage(draw.inputs["policy"])} == {
        "base",
        "sft",
        "train",
    }
    check_steps(draws)


SCRIPTED = "backend@sample.backend=scripted", "backend@evaluate.sample.backend=scripted"


@pytest.mark.model
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rounds=9", *SCRIPTED], "per_round=400: rounds=9 need 3600 prompts, and there are "),
        (
            ["base.context=80"],
            "in a context of 80: 16 tokens are left for a prompt, and the shortest of ",
        ),
    ],
)
def test_prompts_that_do_not_last_or_fit_are_refused_before_sft_is_trained(tmp_path, words, said):
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "recipes=smoke", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "store" / "sft").exists()


def at_the_door(folder: Path, *words: str) -> None:
    """As soon as the prompts are there, whose one column is `category`."""
    write_json(folder / "funnel.json", {"out": dict.fromkeys(("train", "dev", "test"), 1)})
    for part in ("train", "dev", "test"):
        table = read_table(evals.prompts(folder, ["p"]).path / "prompts.parquet")
        write_table(folder / part / "prompts.parquet", table)
    planned = steps(*GIVEN, *words)
    check_prompts(next(step for step in planned if step.stage == "prompts"), folder, planned)


def test_columns_that_no_prompt_has_are_missed_before_anything_is_drawn(tmp_path):
    math = [
        "score=own",
        "pair.scorer=m",
        *(f"+scorer@{at}.scorers.m=math" for at in ("score", "evaluate.score")),
    ]
    with pytest.raises(
        UserError, match=r"(?s)scorer rules .* column constraints, .* have category.*score=NAME"
    ):
        at_the_door(tmp_path)
    with pytest.raises(UserError, match=r"scorer m \(math\) reads the prompts' column answer"):
        at_the_door(tmp_path, *math)
    math += [f"{at}.scorers.m.column=category" for at in ("score", "evaluate.score")]
    at_the_door(tmp_path, *math, "evaluate.slices=[category]")
    with pytest.raises(
        UserError,
        match=r"evaluate\.slices: no prompt has the column kategory\. Did you mean category",
    ):
        at_the_door(tmp_path, *math, "evaluate.slices=[kategory]")


def test_a_judge_s_key_is_missed_before_anything_is_built(monkeypatch):
    judges = {
        "score.scorers.j.engine": [
            "+scorer@score.scorers.j=rubric",
            "score.scorers.j.engine.model=good",
        ],
        "evaluate.duels.j.engine": [
            "+duel@evaluate.duels.j=default",
            "evaluate.duels.j.engine.model=good",
        ],
    }
    for knob, judge in judges.items():
        monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
        check_steps(steps(*GIVEN, *judge))
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(
            UserError,
            match=rf"^{knob}\.runtime\.api_key_env=OPENAI_API_KEY: this environment variable is",
        ):
            check_steps(steps(*GIVEN, *judge))


def asked_at(url: str) -> list[str]:
    """A judge of samples, one of two models and another model, all behind one server."""
    given = {
        "score.scorers.j.engine": ["+scorer@score.scorers.j=rubric"],
        "evaluate.duels.j.engine": ["+duel@evaluate.duels.j=default"],
        "evaluate.baselines.big": ["+baseline@evaluate.baselines.big=served"],
    }
    named = [
        word for knob in given for word in (f"{knob}.model=m", f"{knob}.runtime.base_url={url}")
    ]
    return [*(word for words in given.values() for word in words), *named]


@pytest.fixture
def port(monkeypatch):
    """Somebody listens there, with no proxy before it."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        yield listening


def test_a_server_that_answers_nobody_yet_is_said_and_not_refused(
    tmp_path, monkeypatch, capsys, port
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    url = f"http://127.0.0.1:{port.getsockname()[1]}/v1"
    planned = steps("recipes=smoke", *asked_at(url))
    assert list(preflight.warn_of_silent_servers(planned)) == []
    with port.accept()[0] as heard:
        assert heard.recv(100) == b""  # a connection and nothing else: no key
    port.close()
    where = "score.scorers.j.engine.runtime.base_url"
    [said] = preflight.warn_of_silent_servers(planned)
    silence = f"! {where}={url}: no server answers there now"
    assert said.startswith(f"{silence} (Connection refused).\n  score test base asks it first: ")
    assert said.endswith(f"or give {where}=ADDRESS of one that runs.")
    later = [step for step in planned if step.stage != "score"]  # scored already
    assert "! evaluate.baselines.big.runtime.base_url=" in next(
        preflight.warn_of_silent_servers(later)
    )
    assert not list(
        preflight.warn_of_silent_servers(
            step for step in later if step.stage not in ("sample", "duel")
        )
    )

    drawing = [
        "backend@sample.backend=endpoint",
        "sample.backend.model=m",
        f"sample.backend.runtime.base_url={url}",
    ]
    [said] = preflight.warn_of_silent_servers(steps(*GIVEN, *drawing))
    assert (
        said.startswith("! sample.backend.runtime.base_url=")
        and "\n  A run is refused without it: start" in said
    )

    words = (
        "recipes=smoke",
        "dry_run=true",
        *(f"{at}={tmp_path / at}" for at in ("store", "runs")),
        *asked_at(url),
    )
    assert run_point(composed(*words)) == 0 and silence in capsys.readouterr().err
    assert run_point(composed(*words, "until=sample")) == 0 and capsys.readouterr().err == ""


def test_whether_a_server_answers_is_known_soon_whatever_the_network_does(monkeypatch, port):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(9) or [])
    monkeypatch.setattr("pipeline.preflight.servers.PATIENCE", 0.1)
    planned, started = steps("recipes=smoke", *asked_at("http://far.example/v1")), time.monotonic()
    assert "(nothing within 0.1 s)" in next(preflight.warn_of_silent_servers(planned))
    assert time.monotonic() - started < 2
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")  # it alone can tell
    monkeypatch.setenv("no_proxy", "near.example")
    assert not list(preflight.warn_of_silent_servers(planned))
    assert list(
        preflight.warn_of_silent_servers(
            steps("recipes=smoke", *asked_at("http://near.example:9999/v1"))
        )
    )
