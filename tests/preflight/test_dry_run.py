"""A dry run reports and counts, in the same words, all that a run would refuse before building."""

import json
from pathlib import Path

import pytest

from pipeline.artifacts import read_table, write_json, write_table
from pipeline.driver.run import run_point
from pipeline.errors import DONE, USER_ERROR
from pipeline.preflight import rows
from tests.support.house import composed

HEAD = "A run here would be refused:\n"
JUDGE = ["+scorer@score.scorers.j=rubric", "score.scorers.j.engine.model=m"]
JUDGE += ["score.scorers.j.engine.runtime={base_url: 'http://localhost:1/v1', api_key_env: null}"]
OFFLINE = [
    "pair.mix.on_policy=0.5",
    "pair.mix.offline=0.5",
    "offline=file",
    "offline.source.path=pairs.jsonl",
]
REWARD = ["reward=train", "scorer@score.scorers.rules=reward_model", "preferences@reward.data=file"]
MATH = [
    "score=own",
    "pair.scorer=m",
    *(f"+scorer@{at}.scorers.m=math" for at in ("score", "evaluate.score")),
]
OWN = ["+scorer@score.scorers.own=function", "score.scorers.own.function=./own.py:soner"]
PACKAGES = {
    "vllm": [],
    "openai": JUDGE,
    "anthropic": [*JUDGE[:2], "engine@score.scorers.j.engine=anthropic"],
}


@pytest.fixture(autouse=True)
def house(tmp_path, monkeypatch) -> Path:
    """A folder with a checkpoint, 40 prompts, and files with faults of every kind."""
    monkeypatch.chdir(tmp_path)
    checkpoint(Path("model"))
    columns = {"constraints": [], "kind": "x"}
    lines("prompts.jsonl", *({"prompt": f"Say {number}.", **columns} for number in range(40)))
    lines("bare.jsonl", *({"prompt": f"Say {number}."} for number in range(40)))
    lines("odd.jsonl", {"prompt": "Say one."}, {"prompt": 7})
    lines("shapeless.jsonl", {"quest": "Say one."})
    asked = {"role": "user", "content": "Hi."}
    answered = [asked, {"role": "assistant", "content": "Ho."}]
    lines("shown.jsonl", {"messages": [asked]}, {"messages": answered})
    lines("pairs.jsonl", {"prompt": "Hi.", "chosen": 3, "rejected": "No."})
    lines("edits.jsonl", {"action": "kept", "chosen_id": "a", "rejected_id": "b"})
    Path("own.py").write_text("def sooner(completions): ...\n")
    Path("template.md").write_text("$question $answer $nonce $reply\n")
    write_json(Path("schema.json"), {"type": "nothing"})
    Path("taken").write_text("a file\n")
    return tmp_path


def lines(name: str, *rows: object) -> None:
    Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def checkpoint(folder: Path, **files: object) -> None:
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(4)
    )
    told = {
        "config": {},
        "tokenizer_config": {"chat_template": "{{ messages[0].content }}"},
        **files,
    }
    for name, content in told.items():
        write_json(folder / f"{name}.json", content)


def planned(*words: str):
    given = {
        "score": "rules",
        "prompts.path": "prompts.jsonl",
        "sft.model": "./model",
        "prompts.split.dev": 5,
        "prompts.split.test": 5,
    }
    typed = {word.partition("=")[0] for word in words}
    typed |= (
        {"prompts.path"}
        if "prompts=playground" in words
        else {"sft.model"}
        if "sft=train" in words
        else set()
    )
    return composed(*(f"{key}={value}" for key, value in given.items() if key not in typed), *words)


def said_by_dry_run(capsys, *words: str) -> tuple[list[str], str]:
    """What it says of a refusal, and its last line. It ends as a run would, and writes nothing."""
    before = sorted(Path().rglob("*"))
    code = run_point(planned(*words, "dry_run=true"))
    assert sorted(Path().rglob("*")) == before
    shown = capsys.readouterr().out
    *said, last = shown.partition(HEAD)[2].splitlines() or [shown.splitlines()[-1]]
    assert code == (USER_ERROR if said else DONE)
    return said, last


def said_by_run(capsys, *words: str) -> list[str]:
    assert run_point(planned(*words)) == USER_ERROR
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.splitlines()


REFUSED_BOTH_TIMES = [
    (["prompts.path=nowhere.jsonl"], "prompts.path=nowhere.jsonl: no such file or folder"),
    (
        ["prompts.split.test=50"],
        "prompts: there are 40; dev 5 and test 50 leave nothing to train on",
    ),
    (["prompts.path=odd.jsonl"], "odd.jsonl: 1 of 2 rows cannot be used:"),
    (
        ["prompts.path=shapeless.jsonl"],
        "Give prompts.columns={prompt: …} with this file's name for it",
    ),
    (["prompts.evaluation.own=odd.jsonl"], "odd.jsonl: 1 of 2 rows cannot be used:"),
    (["prompts.split.test=shapeless.jsonl"], "Give prompts.split.test.columns="),
    (
        ["prompts.caps={column: kinds, max: 3}"],
        "prompts.caps.column=kinds: no row has this column. Did you mean kind",
    ),
    (
        ["prompts.path=bare.jsonl"],
        "the scorer rules (rules) reads the prompts' column constraints, and no prompt",
    ),
    (
        [*MATH, "rounds=1"],
        "the scorer m (math) reads the prompts' column answer, and no prompt has it",
    ),
    (
        ["evaluate.slices=[kinds]"],
        "evaluate.slices: no prompt has the column kinds. Did you mean kind",
    ),
    (
        ["prompts.path=bare.jsonl", "evaluate.slices=[x]"],
        "no prompt has the column x. Give evaluate.slices=[]",
    ),
    (
        ["pair=demonstration"],
        "pair=demonstration reads the prompts' column answer, and no prompt has it (they have",
    ),
    (
        ["rounds=4", "sample.per_round=8"],
        "  Give sample.per_round=7 or less, or sample.reuse_prompts=true, or fewer rounds,",
    ),
    (["rounds=4", "sample.per_round=8"], "rounds=4 need 32 prompts, and there are at most 30."),
    (
        ["evaluate.sample.per_round=6"],
        "sample.per_round=6: rounds=1 need 6 prompts, and there are at most 5",
    ),
    (
        ["prompts=playground", "prompts.rows=20000", "prompts.constraints=1"],
        "prompts.rows=20000: the playground has only",
    ),
    (OWN, "function=./own.py:soner: ./own.py has no function soner. Did you mean sooner"),
    (
        ["+scorer@score.scorers.s=json", "score.scorers.s.schema_file=schema.json"],
        "not a JSON schema: 'nothing' is not",
    ),
    (
        [*JUDGE, "score.scorers.j.template=template.md"],
        "template.md: this template does not use $criterion. A judge needs",
    ),
    (
        [*JUDGE, "score.scorers.j.engine.runtime.api_key_env=NO_KEY"],
        "NO_KEY: this environment variable is not set",
    ),
    (["sft.model=./empty"], "./empty: is not a checkpoint: it has no config.json"),
    (["sft.model=./pickled"], "it has no *.safetensors, only pickled weights (pytorch_model.bin)"),
    (["sft.model=./coded"], "it brings its own Python code (auto_map in config.json)"),
    (["sft.model=./mute"], "./mute: its tokenizer has no chat template"),
    (
        [*REWARD[1:2], "reward=checkpoint", "reward.model=./adapter"],
        "./adapter: it is an adapter; a complete reward model was expected",
    ),
    (
        ["sft=train", "base=tiny", "demonstrations@sft.data=jsonl", "sft.data.path=shown.jsonl"],
        "shown.jsonl: 1 of 2 lines cannot be used:",
    ),
    (
        [
            "+rehearsal@train.rehearsal=default",
            "demonstrations@train.rehearsal.data=jsonl",
            "train.rehearsal.data.path=shown.jsonl",
        ],
        "count them with train.rehearsal.data.on_bad_row=skip",
    ),
    (OFFLINE, "offline.source.path=pairs.jsonl: 1 of 1 row cannot be used"),
    (
        [*REWARD, "reward.data.source.path=pairs.jsonl"],
        "reward.data.source.path=pairs.jsonl: 1 of 1 row cannot be",
    ),
    (
        ["+scorer@score.scorers.own=function", "score.scorers.own.function=./own.py:sooner"],
        "score.scorers.own.function=./own.py:sooner: TypeError: sooner() got an unexpected keyword",
    ),
    (["pair.edits.1=edits.jsonl"], "pair.edits.1=edits.jsonl: 1 line cannot be used:"),
    (["runs=taken"], "runs=taken: cannot be written (File exists)"),
    (["store=taken/store"], "store=taken/store: cannot be written (Not a directory)"),
    (
        ["limits.completion=4096", "base=tiny", "sft=train"],
        "limits.completion=4096: the model has a context of",
    ),
    (
        ["train.runtime.launch=fsdp2"],
        "train.runtime.launch=fsdp2 shards a model across GPUs, and this machine has none",
    ),
]


@pytest.mark.parametrize(("words", "expected"), REFUSED_BOTH_TIMES, ids=lambda part: str(part)[:70])
def test_a_dry_run_and_a_run_refuse_in_the_same_words(capsys, words, expected):
    Path("empty").mkdir()
    for name, files in {
        "pickled": {},
        "coded": {"config": {"auto_map": {"AutoModel": "m.M"}}},
        "mute": {"tokenizer_config": {}},
        "adapter": {"adapter_config": {}},
    }.items():
        checkpoint(Path(name), **files)
    (Path("pickled") / "model.safetensors").rename("pickled/pytorch_model.bin")
    said, last = said_by_dry_run(capsys, *words)
    assert any(expected in line for line in said), said
    reasons = [line for line in said if not line.startswith("  ")]
    counted = "1 reason" if len(reasons) == 1 else f"{len(reasons)} reasons"
    assert last.endswith(f" to do · a run here would be refused for {counted}")
    assert said_by_run(capsys, *words) == said


@pytest.mark.parametrize(("package", "words"), PACKAGES.items(), ids=PACKAGES)
def test_a_package_that_is_not_installed_is_said_before_anything_is_built(
    capsys, monkeypatch, package, words
):
    import importlib.util

    known, key = importlib.util.find_spec, ["score.scorers.j.engine.runtime.api_key_env=PATH"]
    for module in ("environment", "scorers"):
        monkeypatch.setattr(
            f"pipeline.preflight.{module}.find_spec",
            lambda name: None if name == package else known(name),
        )
    words = [*words, *key] if words else words
    said, _ = said_by_dry_run(capsys, *words)
    assert any(f"(No module named '{package}')" in line for line in said)
    assert said_by_run(capsys, *words) == said


def test_everything_is_said_at_once_and_counted(capsys):
    """Also where a file is missing, on which half of the plan depends."""
    words = [
        "prompts.split.test=50",
        "sft.model=./nowhere",
        *OWN,
        "pair.edits.1=edits.jsonl",
        "runs=taken",
    ]
    said, last = said_by_dry_run(capsys, *words)
    assert len([line for line in said if not line.startswith("  ")]) == 5
    assert last == "16 steps, 16 to do · a run here would be refused for 5 reasons"
    assert said_by_run(capsys, *words) == said


def test_nothing_is_said_of_a_plan_that_a_run_would_build(capsys):
    assert said_by_dry_run(capsys) == ([], "16 steps, 16 to do · a run here would be accepted")


def test_what_is_in_the_store_already_is_held_against_what_is_still_to_do(capsys):
    """The prompts are there: their own columns count, and their source is not read again."""
    from pipeline.driver.outline import prepare_plan
    from pipeline.plan import plan
    from tests.support import evals

    cfg = planned("evaluate.slices=[kinds]")
    prepared = prepare_plan(cfg, [plan(cfg)])
    [made] = [step for step in prepared.steps if step.stage == "prompts"]
    folder = prepared.folder(made)
    write_json(folder / "funnel.json", {"out": dict.fromkeys(("train", "dev", "test"), 1)})
    for part in ("train", "dev", "test"):
        table = read_table(evals.prompts(Path("made"), ["p"]).path / "prompts.parquet")
        write_table(folder / part / "prompts.parquet", table)
    manifest = {
        "stage": "prompts",
        "version": 3,
        "inputs": {},
        "config": {},
        "files": [],
        "seconds": 1,
        "cost": {},
    }
    write_json(folder / "manifest.json", {**manifest, "fingerprint": folder.name})
    rows.LARGEST_FILE, kept = -1, rows.LARGEST_FILE
    try:
        said, _ = said_by_dry_run(capsys, "evaluate.slices=[kinds]")
    finally:
        rows.LARGEST_FILE = kept
    assert "evaluate.slices: no prompt has the column kinds. Known: category" in said
    assert any("no prompt has it (they have category)" in line for line in said)


def test_a_name_on_the_hub_is_left_to_a_run_and_that_is_said(capsys):
    words = ["sft.model=some/model", "dry_run=true"]
    left = "  some/model: the hub is not asked here; a run asks it for the commit before it starts"
    assert run_point(planned(*words)) == DONE and left in capsys.readouterr().out
    assert run_point(planned(*words, f"sft.revision={'0' * 40}")) == DONE
    assert "the hub is not asked" not in capsys.readouterr().out


def test_a_file_that_is_large_is_left_to_its_step_and_that_is_said(capsys, monkeypatch):
    monkeypatch.setattr(rows, "LARGEST_FILE", 100)
    assert (
        run_point(
            planned(
                "prompts.path=odd.jsonl", "prompts.evaluation.own=prompts.jsonl", "dry_run=true"
            )
        )
        == USER_ERROR
    )
    shown = capsys.readouterr().out
    assert "  prompts.evaluation.own=prompts.jsonl: not checked here (0 MiB)" in shown
    assert "odd.jsonl: 1 of 2 rows cannot be used" in shown
