"""Errors of the command line: what is wrong, where, what was expected, what to type.

They end with exit code 2, and nothing has started.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.compose import Arguments, compose
from pipeline.errors import UserError
from tests.support.house import HOUSE, SMALL, composed

GIVEN = ["sft.model=./m", "score=rules", "prompts.path=p.jsonl"]


def said(*words: str) -> str:
    with pytest.raises(UserError) as refusal:
        compose(Arguments.parse(list(words)))
    return str(refusal.value)


def test_a_typo_in_a_key_names_its_source_its_neighbours_and_its_file():
    assert said("recipes=smoke", "train.betta=1") == (
        "command line: train.betta is not a knob of stage 'train'. Did you mean beta? Known:"
        " adapter, args, attention, batch, beta, clip, dtype, epochs, eval_every,"
        " gradient_checkpointing, guards, learning_rate, loss, loss_group, loss_weights, mask,"
        " max_length, reference_logps, rehearsal, runtime, scheduler, seed, trainer, warmup,"
        " weight, weight_decay  (conf/train/dpo.yaml)"
    )


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("beta=0.05", "train.beta"),
        ("learning_rate=1e-6", "train.learning_rate or train.adapter.learning_rate"),
        ("draw.n=4", "sample.settings.draw.n"),
        ("temperature=0", "sample.settings.draw.temperature or"),
    ],
)
def test_a_knob_without_its_group_is_told_in_full(word, meant):
    key = word.partition("=")[0].partition(".")[0]
    text = said(*SMALL, word)
    assert f"command line: {key} is not a knob of the config. Did you mean {meant}" in text
    assert text.count(" or ") < 3 and "Known:" not in text


@pytest.mark.parametrize(
    "knob", ["gate.min_gain=0.1", "reward.start=sft", "benchmark.gsm8k.limit=3"]
)
def test_a_knob_of_a_group_that_is_off_says_where_it_is_switched_on(knob):
    group = knob.partition(".")[0]
    with pytest.raises(UserError) as refusal:
        composed(*SMALL, knob)
    assert str(refusal.value) == (
        f"command line: {group} is none, which takes no knobs."
        f" Choose another file of conf/{group}/.  (conf/{group}/none.yaml)"
    )


def test_what_is_no_knob_is_not_told_to_be_known_beside_another():
    for line in said(
        "recipes=smoke", "reference.microbatch=1", "reference.quantisation=1"
    ).splitlines():
        assert (
            "microbatch" not in line.split("Known:")[1]
            and "quantisation" not in line.split("Known:")[1]
        )


def test_a_typo_deep_in_a_mounted_group_names_the_group_s_file():
    text = said("recipes=smoke", "adapter=lora", "train.adapter.rnk=3")
    assert (
        "train.adapter.rnk is not a knob" in text
        and "Did you mean rank?" in text
        and "conf/adapter/lora.yaml" in text
    )


def test_a_wrong_type_and_a_wrong_value_are_said_at_once():
    lines = said("recipes=smoke", "train.beta=-1", "sample.shard=many", "init=neither").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("command line: ") for line in lines)
    assert any("sample.shard='many'" in line for line in lines) and any(
        "init='neither'" in line for line in lines
    )


def test_a_typo_in_a_key_hides_no_fault_of_the_values_beside_it():
    lines = said(
        "recipes=smoke", "sample.settings.draw.temprature=1", "sample.settings.draw.temperature=0"
    ).splitlines()
    assert (
        len(lines) == 2
        and "temprature is not a knob" in lines[0]
        and "samples the same" in lines[1]
    )


def test_a_fault_inside_a_list_or_a_dict_is_laid_at_who_gave_it(tmp_path):
    text = said(
        "recipes=smoke",
        "sample.resample_ties=[4,0]",
        "sample.settings={draw: {n: 0, stop: [a, '']}}",
    )
    places = (
        "sample.resample_ties.1=0",
        "sample.settings.draw.n=0",
        "sample.settings.draw.stop.1=''",
    )
    assert all(f"command line: {place}: " in text for place in places)
    own = tmp_path / "recipes" / "mine.yaml"
    own.parent.mkdir()
    own.write_text(
        "# @package _global_\n"
        "sample: {resample_ties: [4, 0], settings: {draw: {n: 0, stop: [a, '']}}}\n"
    )
    beside = "sample.settings={draw: {temperature: 0.5}}"  # holds the place of none of them
    text = said("--config-dir", str(tmp_path), "recipes=mine", beside, *GIVEN)
    assert all(f"recipes/mine.yaml: {place}: " in text for place in places)


def test_a_missing_recipe_names_the_ones_there_are():
    known = ", ".join(sorted(file.stem for file in (HOUSE / "recipes").glob("*.yaml")))
    assert said("recipes=smok") == (
        f"recipes=smok: recipes/smok.yaml does not exist. Did you mean smoke? Known: {known}"
    )


def test_a_recipe_in_another_folder_is_found_and_its_first_line_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("my/recipes/own.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("defaults:\n  - override /score: length\n")
    assert said("recipes=own", *GIVEN) == (
        "recipes=own: it is my/recipes/own.yaml. Add --config-dir my"
    )
    assert said("--config-dir", "my", "recipes=own", *GIVEN) == (
        "recipes/own.yaml: its first line has to be `# @package _global_`."
    )


def test_a_missing_choice_of_a_group_names_the_ones_there_are():
    assert "train/dppo.yaml does not exist. Did you mean dpo" in said("recipes=smoke", "train=dppo")
    assert "benchmark/gsm.yaml does not exist. Did you mean gsm8k" in said(
        "recipes=smoke", "benchmark=[arc,gsm]"
    )


def test_values_that_must_be_given_are_all_named():
    text = said()
    assert "Give prompts.path=VALUE" in text and "Give sft.model=VALUE" in text


def test_a_value_that_must_be_given_is_explained_by_the_comment_above_its_knob():
    assert said("prompts.path=p", "sft.model=./m", "score=reward") == (
        "reward.model has no value yet. Give reward.model=VALUE:\n"
        "  A local folder, or a name on the hub: a sequence-classification model.\n"
        "  reward=train trains one here instead."
    )
    judge = said("prompts.path=p", "sft.model=./m", "score=pairwise")
    assert judge.endswith("=VALUE:\n  The server's name for the model; a dated name is a judge that"
                          " does not change.")  # fmt: skip


@pytest.mark.parametrize("rounds", ["0", "101", "1000000000000000000"])
def test_more_rounds_than_a_plan_can_show_are_refused_at_once(rounds):
    assert f"command line: rounds={rounds}: " in said("recipes=smoke", f"rounds={rounds}")


def test_equal_samples_are_refused():
    text = said("recipes=smoke", "sample.settings.draw.temperature=0")
    knobs = "sample.settings.draw.n=8 at sample.settings.draw.temperature=0"
    assert f"{knobs} samples the same completion 8 times" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sample.settings.draw.n=0"], "sample.settings.draw.n=0: Input should be greater than 0"),
        (
            ["sample.settings.draw.min_p=1.5"],
            "sample.settings.draw.min_p=1.5: Input should be less than or equal to 1",
        ),
        (
            ['sample.settings.draw.stop=[""]'],
            "sample.settings.draw.stop.0='': String should have at least 1 character",
        ),
        (
            ["sample.settings.draw.few_shot=[{role: user, content: a}]"],
            "give each question with its answer",
        ),
        (
            ["evaluate.sample.settings.kl.system=hi"],
            "evaluate.sample: settings.kl: the KL needs plain samples of the policy",
        ),
        (
            ["sample.settings.draw={n: 1, temperature: 0}", "sample.resample_ties=[4]"],
            "would repeat its samples; give sample.resample_ties=[]",
        ),
        (["evaluate.sample.resample_ties=[4]"], "Give evaluate.sample.resample_ties=[]"),
        (
            ["init=best_of_n"],
            "init=best_of_n: there is no best_of_n block. Give init=best_of_n best_of_n=default",
        ),
        (["best_of_n=default"], "best_of_n: init=previous does not use it"),
        (
            ["init=best_of_n", "best_of_n=default", "best_of_n.scorer=rewards"],
            "best_of_n.scorer=rewards: there is no such scorer",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_setting_a_wave_or_a_refit_that_cannot_be_is_refused(words, expected):
    assert expected in said("recipes=smoke", *words)


def test_one_sample_of_a_prompt_is_refused_where_it_makes_no_pair():
    one = ["recipes=smoke", "sample.settings.draw.n=1"]
    assert "sample.settings.draw.n=1: one sample of a prompt makes no pair" in said(*one)
    composed(*one, "pair=demonstration")


def test_a_scorer_that_nobody_has_is_refused_before_anything_runs():
    text = said("recipes=smoke", "pair.scorer=rewards", "evaluate.scorer=rewards")
    assert "pair.scorer" in text and "evaluate.scorer" in text and "Known: rules" in text


def test_a_gold_scorer_makes_no_pairs():
    assert "gold" in said("recipes=smoke", "score.scorers.rules.gold=true")


@pytest.mark.parametrize("maker", ["rules", "both"])
def test_a_scorer_that_makes_the_pairs_is_not_gold(maker):
    words = [
        "+scorer@score.scorers.len=length",
        "+scorer@score.scorers.both=ensemble",
        "score.scorers.both.weights={rules: 1, len: 1}",
    ]
    gold = "evaluate.score.scorers.rules.gold=true"
    alone = ["evaluate.score.scorers.both=null", "evaluate.scorer=rules"]
    text = said("recipes=smoke", *words, f"pair.scorer={maker}", *alone, gold)
    assert f"{gold}: rules makes the pairs (pair.scorer={maker})" in text


def test_a_guard_that_stops_needs_dev_pairs_to_be_evaluated_on():
    none = ["recipes=smoke", "pair.dev.share=0", "pair.dev.min=0"]
    assert "never evaluated" in said(*none, "train.guards.stop_on=loss")
    composed(*none)


@pytest.mark.parametrize(("ties", "most"), [("both", 2), ("drop", 1)])
def test_a_prompt_whose_samples_tie_makes_two_pairs_where_ties_are_kept(ties, most):
    assert composed("recipes=smoke", f"pair.ties={ties}").pair.max_pairs_per_prompt == most


def test_flags_that_the_trainer_would_ignore_are_refused():
    text = said(
        "recipes=smoke", "train.args={padding_free: true, label_smoothing: 0.1, gradiant_clip: 1}"
    )
    assert text.startswith("command line: train: ")
    assert "args.padding_free would be ignored" in text
    assert "args.label_smoothing would be ignored by sigmoid" in text
    assert "args.gradiant_clip is not a field of TRL's DPOConfig" in text


def test_a_flag_that_a_knob_sets_names_the_knob():
    assert "use train.batch" in said("recipes=smoke", "train.args={per_device_train_batch_size: 4}")


def test_a_loss_with_a_typo_names_the_nearest():
    assert "Did you mean sigmoid" in said("recipes=smoke", "train.loss=[sigmoidd]")


def test_a_value_where_a_list_is_wanted_is_said_with_what_is_wrong_in_it():
    [alone] = said("recipes=smoke", "train.loss=hinge").splitlines()
    where = "expected a list: write train.loss="
    assert alone == f"command line: train.loss=hinge: {where}[hinge].  (conf/train/dpo.yaml)"
    unlisted, unknown = said("recipes=smoke", "train.loss=sigmod").splitlines()
    assert (
        where in unlisted
        and "sigmod is not a loss of the installed TRL. Did you mean sigmoid or" in unknown
    )


def test_what_no_alternative_takes_is_one_fault():
    [fault] = said("recipes=smoke", "sample.runtime.workers=0").splitlines()
    assert fault.startswith(
        "command line: sample.runtime.workers=0: Input should be 'auto' or greater than 0."
    )
    two = said(
        "recipes=smoke", "sample.runtime.workers=many", "train.runtime.micro_batch=0"
    ).splitlines()
    assert len(two) == 2 and {line.split("=")[0].split(": ")[1] for line in two} == {
        "sample.runtime.workers",
        "train.runtime.micro_batch",
    }


def test_sft_training_without_a_base_is_refused():
    assert "base is none" in said("prompts=playground", "sft=train")


def test_a_word_that_is_no_override_and_broken_grammar_are_in_the_house_form():
    assert "bla: not an override" in said("bla") and "docs/cli.md" in said("bla")
    assert (HOUSE / "docs" / "cli.md").is_file()
    faults = said("recipes=smoke", "prompts.seed=[1", "train..beta=3", "rounds=2").splitlines()
    assert faults[0].startswith(
        "command line: prompts.seed=[1: Hydra cannot read it (no viable alternative"
    )
    assert faults[1].startswith("command line: train..beta=3: Hydra cannot read it (")
    assert faults[2].startswith("  Write key=value. ") and not any(
        "hydra.cc" in fault for fault in faults
    )


def test_what_a_recipe_mounts_can_be_taken_out(tmp_path):
    own = tmp_path / "recipes" / "own.yaml"
    own.parent.mkdir()
    own.write_text(
        "# @package _global_\n# Own.\n"
        "defaults: [smoke, /scorer@score.scorers.short: length, _self_]\n"
    )
    words = ["--config-dir", str(tmp_path), "recipes=own"]
    assert set(composed(*words).score.scorers) == {"rules", "short"}
    assert set(composed(*words, "~scorer@score.scorers.short").score.scorers) == {"rules"}


def test_an_equals_sign_in_a_path_needs_no_quoting():
    cfg = composed("sft.model=./m", "score=rules", "prompts.path=data/step=3,lr=1.jsonl")
    assert cfg.prompts.path == "data/step=3,lr=1.jsonl"


def test_a_recipe_s_mistake_is_laid_at_the_recipe(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("# @package _global_\ntrain: {betta: 3}\n")
    text = said(
        "--config-dir",
        str(tmp_path),
        "recipes=mine",
        "sft.model=./m",
        "score=rules",
        "prompts.path=p.jsonl",
    )
    assert text.startswith("recipes/mine.yaml: train.betta is not a knob")


def test_a_user_s_own_recipe_folder_works_from_any_working_directory(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [smoke]\ntrain: {beta: 0.7}\n"
    )
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "--config-dir",
        ".",
        "recipes=mine",
        "dry_run=true",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(HOUSE)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "train     round 2" in done.stdout


def test_a_folder_named_like_a_knob_is_no_config_group(tmp_path):
    """The house, with its store/ and runs/, is on no search path of Hydra's; only conf/ is."""
    assert Arguments.parse(["recipes=smoke"]).searchpath == ["hydra.searchpath=[]"]
    assert composed("recipes=smoke", "store=elsewhere", "runs=stories").store.name == "elsewhere"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "store").mkdir()
    assert "Hydra would take its folder 'store'" in said(
        "--config-dir", str(tmp_path), "recipes=smoke"
    )


def test_an_unknown_flag_starts_nothing():
    assert "--dry-run: no such flag" in said("recipes=smoke", "--dry-run")
    assert "Usage:" in said("--help")
    assert "it has no folder recipes/" in said("--config-dir=nowhere", "recipes=smoke")


@pytest.mark.parametrize(
    "name", ["a b(1)=x.jsonl", "a[1].jsonl", "it's.jsonl", "a{b}.jsonl", "a#b.jsonl"]
)
def test_odd_characters_in_a_path_need_no_quoting(name):
    assert (
        composed("sft.model=./m", "score=rules", f"prompts.path=data/{name}").prompts.path
        == f"data/{name}"
    )


def test_a_recipe_without_its_first_line_and_one_that_is_no_yaml(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "bare.yaml").write_text("rounds: 2\n")
    (tmp_path / "recipes" / "broken.yaml").write_text("rounds: [1\n")
    assert "@package _global_" in said("--config-dir", str(tmp_path), "recipes=bare", *GIVEN)
    broken = said("--config-dir", str(tmp_path), "recipes=broken", *GIVEN)
    assert "broken.yaml, line 2: this file is not YAML" in broken
    assert broken.count("broken.yaml") == 1


def test_a_column_that_is_nearly_one_that_is_read_is_refused():
    refusal = said(*GIVEN, "prompts.columns={promt: x}")
    assert "prompts.columns" in refusal and "promt is not a column that is read" in refusal
    assert "Did you mean prompt?" in refusal
    assert composed(*GIVEN, "prompts.columns={prompt: x, answer: y}").prompts.columns["answer"]


def test_what_a_block_lacks_is_one_fault_with_the_name_that_was_meant():
    assert said("recipes=smoke", "sample.settings.drow.n=3") == (
        "command line: sample.settings.drow lacks temperature, top_p, min_p, stop, system,"
        " few_shot. Did you mean draw? Known: draw  (conf/sample/default.yaml)"
    )
    assert "sample.settings.5 lacks temperature" in said(
        "recipes=smoke", "sample.settings={5: {n: 3}}"
    )
    given = "prompts.path=p.jsonl", "sft.model=x", "score=length"
    assert said(*given, "prompts.split.test={}") == (
        "command line: prompts.split.test lacks source, shape, columns.  (conf/prompts/file.yaml)"
    )


@pytest.mark.parametrize(
    ("word", "mount"),
    [
        ("cluster.kind=ray", "cluster=ray"),
        ("train.adapter.kind=qlora", "adapter=qlora"),
        ("sample.backend.kind=scripted", "backend@sample.backend=scripted"),
    ],
)
def test_a_kind_is_chosen_with_its_whole_file(word, mount):
    assert said("recipes=smoke", word).endswith(f"by its mount. Type {mount}")
    assert composed("recipes=smoke", "cluster.kind=local").cluster.kind == "local"
    assert "cluster: Input tag" in said("recipes=smoke", f"cluster.kind={'a' * 300}")


def test_a_key_left_out_beside_a_typo_is_what_was_meant():
    assert "systm is not a knob of stage 'evaluate'. Did you mean system?" in said(
        "recipes=smoke", "evaluate.prompted={systm: a}"
    )


def test_an_exam_without_scorers_says_how_one_is_mounted():
    text = said(*GIVEN, "score=math", "evaluate.score.scorers.math=null")
    assert "evaluate.score.scorers is empty. Give +scorer@evaluate.score.scorers.NAME=FILE" in text


def test_a_seed_that_no_library_takes_is_refused_once():
    assert said("recipes=smoke", "seed=-1").startswith("command line: seed=-1: ")
    assert "\n" not in said("recipes=smoke", "seed=-1")


@pytest.mark.parametrize("seeds", ["0", "1.5", "-3", "[1,2,3]", "101"])
def test_seeds_are_a_number_of_trainings(seeds):
    assert said("recipes=smoke", f"seeds={seeds}").startswith("command line: seeds=")
    assert "(conf/config.yaml)" in said("recipes=smoke", f"seeds={seeds}")


def test_a_value_taken_over_from_elsewhere_is_blamed_once():
    assert said("recipes=smoke", "seed=abc").splitlines() == [
        "command line: seed='abc': Input should be a valid integer, unable to parse string as an"
        " integer.  (conf/config.yaml)"
    ]


def test_demonstrations_come_from_a_file_when_asked():
    words = [
        "prompts=playground",
        "base=tiny",
        "sft=train",
        "demonstrations@sft.data=jsonl",
        "sft.data.path=d.jsonl",
    ]
    assert composed(*words).sft.data.path == "d.jsonl"


def test_values_of_another_dtype_and_a_fence_of_another_length_are_refused():
    text = said("recipes=smoke", "reference.dtype=bfloat16", "sft.decontamination.ngram=5")
    assert (
        "reference.dtype=bfloat16 and train.dtype=float32" in text
        and "sft.decontamination.ngram=5 finds no overlap" in text
    )


def test_a_mistake_ends_with_2_and_prints_no_traceback(tmp_path):
    command = [sys.executable, "-m", "pipeline", "recipes=smoke", "train.betta=1"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(HOUSE)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
