"""The one parser of the words after a command, and what each command says of itself."""

import json

import pytest

from pipeline.__main__ import run_command
from pipeline.commands import calibrate
from pipeline.commands.table import COMMANDS, describe_command, parse_words, reports_errors
from pipeline.errors import FAILED, USER_ERROR, StageError, UserError

PARSED = [name for name in COMMANDS if COMMANDS[name].places[1] or COMMANDS[name].knobs]
# One word too many of a command that takes words for the config is refused by `config.compose`.
STRICT = [name for name in PARSED if not COMMANDS[name].takes_overrides]


def test_places_knobs_flags_and_overrides_are_told_apart():
    words = parse_words("store", ["runs=other", "--prune"])
    assert words.knobs == {"store": "store", "runs": "other", "forget": None}
    assert words.flags == {"--prune"} and words.typed == {"runs"}
    words = parse_words("calibrate", ["v.csv", "scorer=a,b", "recipes=mine", "+scorer@x=math"])
    assert words.places == ["v.csv"] and words.knob("scorer") == "a,b"
    assert words.overrides == ["recipes=mine", "+scorer@x=math"]
    words = parse_words("qualify", ["a.jsonl", "b.jsonl", "--config-dir", "my", "recipes=mine"])
    assert words.places == ["a.jsonl", "b.jsonl"]
    assert words.overrides == ["--config-dir", "my", "recipes=mine"]
    words = parse_words("compare", ["old=runs/a", "runs/b:sft", "level=0.9"])
    assert words.places == ["old=runs/a", "runs/b:sft"] and words.knob("level") == "0.9"
    assert str(parse_words("report", []).place(0)) == "runs/latest"


def test_a_place_may_have_an_equals_sign_in_its_name(tmp_path):
    run = tmp_path / "beta=0.1"
    run.mkdir()
    assert parse_words("label", [str(run)]).places == [str(run)]


@pytest.mark.parametrize("name", STRICT)
def test_every_command_refuses_a_word_too_many_and_an_unknown_flag(name):
    for words in (["a"] * 1001, ["--no-such-flag"]):
        with pytest.raises(UserError, match=rf"\n  Usage: strop {name} "):
            parse_words(name, words)


@pytest.mark.parametrize("name", sorted({*PARSED} - {*STRICT}))
def test_a_command_that_takes_the_config_refuses_what_is_like_its_own_words(name):
    own = "machines" if name == "submit" else "scorer"
    files = ["a"][: COMMANDS[name].places[0]]
    for words, fault in (
        ([*files, "--no-such-flag"], "--no-such-flag: no such flag. Known: "),
        ([*files, f"{own[:3]}{own[2:]}=x"], f"not understood. Did you mean {own}="),
    ):
        with pytest.raises(UserError, match=rf"{fault}(.*)\n  Usage: strop {name} "):
            parse_words(name, words)
    config = ["-m", "--config-dir", "-my", "scale=twin", "score=length", "+scorer@x=math"]
    config += ["steps=x", "backend.x=1", "~x", "no_such_knob=1"]
    assert parse_words(name, [*files, *config[:6]]).overrides == config[:6]
    kept = [word for word in config if "=" in word]
    assert parse_words(name, [*files, *kept]).overrides == kept


@pytest.mark.parametrize("name", ["calibrate", "qualify"])
def test_what_a_command_leaves_for_the_config_is_refused_there(name, tmp_path, capsys):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps([{"input": "a", "output_1": "b", "output_2": "c", "label": 1}]))
    words = [name, str(file), "scorer=length", "score=length"]
    for word, fault in (
        ("foo=1", "command line: foo is not a knob of the config. Known: base"),
        ("prompt.path=x", "prompt is not a knob of the config. Did you mean prompts"),
        ("refer.model=x", "refer is reference now: write reference.model=x"),
    ):
        assert run_command([*words, word]) == USER_ERROR
        assert fault in capsys.readouterr().err


def test_calibrate_refuses_an_unknown_scorer_before_it_asks_the_first(
    tmp_path, capsys, monkeypatch
):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps([{"input": "a", "output_1": "b", "output_2": "c", "label": 1}]))
    monkeypatch.setattr(calibrate, "open_scorer", lambda *_, **__: pytest.fail("asked"))
    out = f"out={tmp_path / 'table.json'}"
    words = ["calibrate", str(file), "scorer=length,lengthh", "score=length", out]
    assert run_command(words) == USER_ERROR
    assert "scorer=lengthh: score.scorers has no such scorer" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_usage_and_an_example(name, capsys):
    assert run_command([name, "--help"]) == 0
    shown = capsys.readouterr().out.rstrip()
    assert shown == describe_command(name, COMMANDS[name])
    assert COMMANDS[name].usage in shown and COMMANDS[name].example in shown


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("no"), USER_ERROR), (StageError("no"), FAILED)]
)
def test_a_fault_is_printed_and_is_an_exit_code(error, code, capsys):
    @reports_errors
    def fail(words: list[str]) -> int:
        raise error

    assert fail([]) == code and capsys.readouterr().err == "no\n"


def test_a_command_that_has_another_name_now_is_named(capsys):
    assert run_command(["merge", "runs/latest"]) == USER_ERROR
    assert "strop merge is strop export now" in capsys.readouterr().err
