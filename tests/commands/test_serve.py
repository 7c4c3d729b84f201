"""`strop serve`: the command that it starts, and a real server on a CPU."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.__main__ import run_command
from pipeline.commands import serve
from pipeline.commands.find_model import find_model
from tests.support.finished_run import make_run
from tests.support.house import HOUSE

KNOBS = {"port": "8000", "host": "127.0.0.1", "context": None, "dtype": "auto"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made"))


def option(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


@pytest.mark.model
def test_on_a_gpu_an_adapter_is_served_next_to_its_base(run, tmp_path):
    found = find_model(str(run), tmp_path)
    model = serve.prepare_model(found.model, "bfloat16", False, tmp_path / "merged")
    command = serve.build_command(found, model, tmp_path, KNOBS, "bfloat16", False)
    assert option(command, "model") == str(found.model.weights)
    assert option(command, "served-model-name") == "sft"
    assert option(command, "lora-modules") == f"round-1={found.model.adapter}"
    assert int(option(command, "max-lora-rank")) >= 4 and "--enable-lora" in command
    assert "--enforce-eager" not in command and not (tmp_path / "merged").exists()


@pytest.mark.model
def test_on_a_cpu_an_adapter_is_merged_and_the_settings_are_those_that_work(run, tmp_path):
    found = find_model(str(run), tmp_path)
    model = serve.prepare_model(found.model, "float32", True, tmp_path / "merged")
    tokenizer = serve.prepare_tokenizer(found.model, tmp_path / "tokenizer")
    command = serve.build_command(found, model, tokenizer, KNOBS, "float32", True)
    assert option(command, "model") == str(tmp_path / "merged" / "weights")
    assert option(command, "served-model-name") == "round-1" and "--enable-lora" not in command
    assert option(command, "max-model-len") == "256", "the context of the model"
    assert (tokenizer / "config.json").is_file() and (tokenizer / "tokenizer.json").is_file()
    assert not list(tokenizer.glob("*.safetensors"))


@pytest.mark.parametrize(
    "word", ["port=0", "port=65536", "port=x", "context=0", "context=-1", "dtype=int3"]
)
def test_a_knob_that_is_not_understood_is_named(word, capsys):
    assert serve.main(["runs/latest", word]) == 2
    assert word in (error := capsys.readouterr().err) and "expected" in error


@pytest.mark.model
def test_words_after_two_dashes_are_for_vllm(run, monkeypatch, capsys):
    started: list[list[str]] = []
    monkeypatch.setattr(serve, "unwind_on_signals", lambda: None)
    monkeypatch.setattr(serve, "check_vllm", lambda: None)
    monkeypatch.setattr(serve, "check_port", lambda *_: None)
    monkeypatch.setattr(serve, "run_server", lambda command, _: started.append(command) or 0)
    words = ["--max-num-seqs", "4", "context=ours", "--help"]
    assert serve.main([f"{run}:sft", "--", *words]) == 0
    assert started[0][-4:] == words and shlex.join(words) in capsys.readouterr().out


@pytest.mark.parametrize("word", ["--port=1", "--max_model_len", "--dtype"])
def test_an_option_that_has_a_knob_is_refused(word, capsys):
    assert serve.main(["runs/latest", "--", word]) == 2
    assert f"{word}: strop serve has a knob for it. Give " in capsys.readouterr().err


def test_help_of_vllm_s_server_is_not_ours(monkeypatch):
    given: list[list[str]] = []
    monkeypatch.setattr(serve, "main", lambda words: given.append(words) or 0)
    assert run_command(["serve", "runs/latest", "--", "--help"]) == 0
    assert given == [["runs/latest", "--", "--help"]]


def test_a_port_that_is_taken_is_named_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve.main(["runs/latest", f"port={port}"]) == 2
    assert f"port={port}: cannot listen" in capsys.readouterr().err


def ask(url: str, body: dict | None = None, wait: float = 300) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    deadline = time.monotonic() + wait
    while True:
        try:
            return json.loads(urllib.request.urlopen(request, timeout=60).read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()) from error
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.model
def test_a_real_server_answers_and_a_signal_ends_it(run, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "log").open("w+")
    scratch = {"TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "serve", str(run), f"port={port}"],
        env={**os.environ, "PYTHONPATH": str(HOUSE), **scratch},
        cwd=tmp_path,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        assert [one["id"] for one in ask(f"{url}/models")["data"]] == ["round-1"]
        messages = [{"role": "user", "content": "red"}]
        body = {"model": "round-1", "messages": messages, "temperature": 0, "max_tokens": 12}
        answer = ask(f"{url}/chat/completions", body)["choices"][0]["message"]["content"]
        # At the limit of tokens vLLM leaves out the bytes of a character that has not ended.
        assert answer.rstrip("\ufffd") == greedy_answer(run).rstrip("\ufffd") != ""
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    text = (tmp_path / "log").read_text()
    assert code == 0, text[-3000:]
    assert "api_server" in text and f"curl {url}/chat/completions" in text
    assert not list(Path(scratch["TMPDIR"]).glob("strop-serve-*")), "the merged copy is removed"


def greedy_answer(run) -> str:
    from pipeline.commands import chat

    [speaker] = chat.open_speakers([find_model(str(run), run / "x")], {"seed": "1"})
    return speaker.answer("red", lambda _: None)
