"""`strop chat`: what is answered, remembered and shown, by real tiny models."""

import io
import signal

import pytest

from pipeline.commands import chat
from pipeline.commands.chat.columns import lay_columns, make_safe, measure_width, wrap_text
from pipeline.commands.find_model import find_model
from pipeline.errors import UserError
from tests.support.finished_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(autouse=True)
def signals():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def say(monkeypatch, capsys):
    """Types lines to `strop chat` and returns what it printed."""

    def say(lines: str, *words: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert chat.main([*words]) == code
        return capsys.readouterr().out

    return say


def open_speaker(run, name="sft", **typed):
    found = find_model(f"{run}:{name}", run / "scratch")
    [speaker] = chat.open_speakers([found], {"seed": "1", **typed})
    return speaker


@pytest.mark.model
def test_answers_are_greedy_where_the_run_s_were_and_a_reset_forgets(run, say):
    printed = say("red\nred\n/reset\n\nred\n/quit\nblue\n", str(run))
    first, second, third, *rest = printed.split("\n\n")
    assert first == third and first != second, "the second answer has the first in its prompt"
    assert rest == [""], "nothing is answered after /quit"


@pytest.mark.model
def test_two_models_answer_each_by_its_own_weights(run, say):
    printed = say("red\n", f"{run}:sft", str(run))
    sft, tuned = printed.split("round-1:\n")
    assert sft.startswith("sft:\n") and sft.strip() != tuned.strip()
    assert tuned.strip() == say("red\n", str(run)).strip()


@pytest.mark.model
def test_the_answer_is_what_sampling_gives_and_arrives_in_parts(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    speaker, parts = open_speaker(run), []
    answer = speaker.answer("red", parts.append)
    weights = find_model(f"{run}:sft", run).model.weights
    tokenizer = AutoTokenizer.from_pretrained(weights)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "red"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    model = AutoModelForCausalLM.from_pretrained(weights)
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    expected = tokenizer.decode(ids[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "".join(parts) == expected and len(parts) > 1


@pytest.mark.model
def test_a_seed_repeats_a_sampled_answer(run, say):
    words = [str(run), "temperature=1.5", "seed=7"]
    once = say("red\n", *words)
    assert say("red\n", *words) == once
    assert say("red\n", *words[:2], "seed=8") != once


@pytest.mark.model
def test_ctrl_c_stops_an_answer_and_keeps_what_there_is(run):
    whole = open_speaker(run).answer("red", lambda _: None)
    speaker, parts = open_speaker(run), []

    def stop_at_once(text: str) -> None:
        parts.append(text)
        raise KeyboardInterrupt

    cut = speaker.answer("red", stop_at_once)
    assert whole.startswith(cut) and 0 < len(cut) < len(whole)
    assert speaker.messages[-1] == {"role": "assistant", "content": cut}


@pytest.mark.model
def test_a_stop_string_ends_an_answer_before_it(run):
    whole = open_speaker(run).answer("red", lambda _: None)
    stop = whole[4:7]
    speaker, parts = open_speaker(run), []
    object.__setattr__(speaker.settings, "stop", (stop,))
    assert speaker.answer("red", parts.append) == "".join(parts) == whole[: whole.index(stop)]


@pytest.mark.model
def test_a_conversation_longer_than_the_context_is_refused_and_chat_goes_on(run, say, capsys):
    printed = say(f"{'red ' * 300}\nred\n", str(run))
    assert printed == say("red\n", str(run))
    speaker = open_speaker(run)
    with pytest.raises(UserError, match=r"at most 256(.|\n)*/reset"):
        speaker.answer("red " * 300, lambda _: None)


@pytest.mark.model
def test_a_system_prompt_is_the_first_message_and_survives_a_reset(run):
    speaker = open_speaker(run, system="Be brief.")
    speaker.answer("red", lambda _: None)
    speaker.reset()
    assert speaker.messages == [{"role": "system", "content": "Be brief."}]


@pytest.mark.parametrize(
    "word",
    [
        "temperature=hot",
        "temperature=-1",
        "temperature=nan",
        "top_p=0",
        "max_tokens=0",
        "max_tokens=1.5",
        "seed=x",
        "dtype=int3",
        "template_kwargs=[1]",
        "template_kwargs={",
    ],
)
def test_a_knob_that_is_not_understood_is_named(word, capsys):
    assert chat.main(["runs/latest", word]) == 2
    error = capsys.readouterr().err
    assert word in error and "expected" in error


def test_a_place_that_is_no_model_is_refused(capsys):
    assert chat.main(["nowhere"]) == 2
    assert "nowhere: neither a run nor a model" in capsys.readouterr().err


def test_columns_are_as_wide_as_they_look():
    texts = ["A\n\n你好 你好 你好 你好 café\tx", "B\n\n" + "long " * 20 + "w" * 70]
    lines = [*lay_columns(texts, 80)]
    assert {measure_width(line.partition("│")[0]) for line in lines} == {39}
    assert all(measure_width(line) <= 80 for line in lines)
    words = "".join(line.partition("│")[2] for line in lines)
    assert words.count("long") == 20 and words.count("w") == 70


def test_wrapping_loses_no_word_and_keeps_empty_lines():
    text = "one two  three\n\n" + "x" * 25 + " four"
    lines = wrap_text(text, 10)
    assert "" in lines and all(len(line) <= 10 for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_model_cannot_move_the_cursor():
    assert make_safe("a\x1b[2Jb\r\x07c\n\td") == "a[2Jbc\n\td"
