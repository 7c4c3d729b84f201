"""The one parser of the words after a command, and what each command says of itself."""

import pytest

from pipeline.__main__ import run_command
from pipeline.commands.table import COMMANDS, describe_command, parse_words, reports_errors
from pipeline.errors import FAILED, USER_ERROR, StageError, UserError

PARSED = [name for name in COMMANDS if COMMANDS[name].places[1] or COMMANDS[name].knobs]
# After its file, calibrate takes words for the config, which `config.compose` refuses.
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


def test_what_calibrate_leaves_for_the_config_is_refused_there():
    with pytest.raises(UserError, match="Usage: strop calibrate FILE"):
        parse_words("calibrate", ["--no-such-flag"])
    assert parse_words("calibrate", ["a", "--no-such-flag"]).overrides == ["--no-such-flag"]


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
