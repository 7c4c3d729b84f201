"""`strop serve MODEL`: vLLM's OpenAI server on a model, with the settings that work on this device.

An adapter that vLLM can run is served next to its base, so that both answer; any other adapter is
merged for as long as the server runs. Prints the command that it starts and an example of a call.
Words after `--` are passed on to vLLM's server. Ctrl-C and SIGTERM end it, and its exit code is
ours.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import hardware
from pipeline.artifacts import Model, read_json
from pipeline.backends import vllm_engine
from pipeline.backends.lora_support import choose_engine_rank, is_quantized, supports_adapter
from pipeline.commands.find_model import FoundModel, find_model, silence_libraries
from pipeline.commands.table import PASS_ON, describe_usage, parse_words, reports_errors
from pipeline.errors import UserError, unwind_on_signals
from pipeline.hashing import find_local_folder

CONFIG = "config.json"
SERVER = "vllm.entrypoints.openai.api_server"
# Of prompt and answer together, on a CPU: its cache is in main memory, which other programs use.
CPU_CONTEXT = 4096
CPU_CACHE_BYTES = 2 << 30
MIN_BATCHED_TOKENS = 2048
HIGHEST_PORT = 65535
DTYPES = ("auto", "float32", "bfloat16", "float16")
KNOB_OF_OPTION = {
    "--port": "port",
    "--host": "host",
    "--dtype": "dtype",
    "--max-model-len": "context",
}


@reports_errors
def main(arguments: list[str]) -> int:
    own, passed = split_words(arguments)
    words = parse_words("serve", own)
    check_knobs(words.knobs)
    check_passed(passed)
    check_vllm()
    check_port(words.knob("host"), int(words.knob("port")))
    unwind_on_signals()
    with tempfile.TemporaryDirectory(prefix="strop-serve-") as scratch:
        found = find_model(str(words.place(0)), Path(scratch) / "model")
        dtype = choose_dtype(found, words.knob("dtype"))
        on_cpu = not hardware.list_gpus()
        model = prepare_model(found.model, dtype, on_cpu, Path(scratch) / "merged")
        tokenizer = prepare_tokenizer(found.model, Path(scratch) / "tokenizer")
        command = build_command(found, model, tokenizer, words.knobs, dtype, on_cpu) + passed
        environment = build_environment(on_cpu)
        print_command(command, environment)
        print_example(words.knob("host"), words.knob("port"), found.name)
        return run_server(command, environment)


def split_words(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our own words, and those after `--`, which are for vLLM's server."""
    end = arguments.index(PASS_ON) if PASS_ON in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


def check_passed(passed: list[str]) -> None:
    """Refuse what has a knob: the port would be checked, and shown, by the knob alone."""
    for word in passed:
        option = word.partition("=")[0].replace("_", "-")
        if knob := KNOB_OF_OPTION.get(option):
            raise UserError(
                f"{word}: strop serve has a knob for it. Give {knob}=… before the {PASS_ON}.\n"
                f"  {describe_usage('serve')}"
            )


def check_knobs(knobs: Mapping[str, str | None]) -> None:
    for name, highest in (("port", HIGHEST_PORT), ("context", None)):
        value = knobs[name]
        if value is None:
            continue
        is_number = value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0
        if not is_number or (highest and int(value) > highest):
            limit = f" to {highest}" if highest else " on, in tokens of prompt and answer"
            raise UserError(
                f"{name}={value}: expected a whole number from 1{limit}.\n"
                f"  {describe_usage('serve')}"
            )
    if knobs["dtype"] not in DTYPES:
        raise UserError(f"dtype={knobs['dtype']}: expected one of {', '.join(DTYPES)}.")


def check_vllm() -> None:
    if find_spec("vllm") is None:
        raise UserError(
            "strop serve: vLLM is not installed here.\n"
            "  Type make install on Linux, or talk with the model without it: strop chat."
        )


def check_port(host: str, port: int) -> None:
    """A server that finds its port taken says so only after a minute of loading."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"host={host} port={port}: cannot listen there ({error.strerror}).\n"
            "  Give a free port of this machine, such as port=8001."
        ) from error


def choose_dtype(found: FoundModel, typed: str) -> str:
    return hardware.resolve_dtype(found.read_dtype() if typed == hardware.AUTO else typed)


def prepare_model(model: Model, dtype: str, on_cpu: bool, merged: Path) -> Model:
    """The model as vLLM can open it: with its adapter, or merged."""
    vllm_engine.check_weights_path(model.weights)
    if model.adapter is None:
        return model
    # An adapter on a quantised base was trained on other weights than those of its base's files.
    if not is_quantized(model) and supports_adapter(model.adapter, on_cpu):
        return model
    from pipeline.models import loading

    silence_libraries()
    print("Merging the adapter into its base …", file=sys.stderr, flush=True)
    return loading.write_merged(merged, model, dtype)


def prepare_tokenizer(model: Model, folder: Path) -> Path:
    """A tokenizer's folder with a config.json, without which vLLM asks for one again and again."""
    source = find_local_folder(model.weights, model.revision)
    if source is None or (model.tokenizer / CONFIG).exists():
        return model.tokenizer
    shutil.copytree(model.tokenizer, folder, ignore=shutil.ignore_patterns("adapter_*"))
    shutil.copyfile(source / CONFIG, folder / CONFIG)
    return folder


def build_command(
    found: FoundModel,
    model: Model,
    tokenizer: Path,
    knobs: Mapping[str, str | None],
    dtype: str,
    on_cpu: bool,
) -> list[str]:
    context = int(knobs["context"]) if knobs["context"] else None
    options: dict[str, Any] = {
        "model": model.weights,
        "revision": model.revision,
        "tokenizer": tokenizer,
        "host": knobs["host"],
        "port": knobs["port"],
        "dtype": dtype,
        "trust-remote-code": model.remote_code,
    }
    if kwargs := found.read_template_kwargs():
        options["default-chat-template-kwargs"] = json.dumps(kwargs)
    options |= _name_models(found, model)
    options |= _choose_cpu_options(model, context) if on_cpu else {"max-model-len": context}
    return [sys.executable, "-m", SERVER, *_spell_options(options)]


def _name_models(found: FoundModel, model: Model) -> dict[str, Any]:
    """With an adapter there are two: the adapter's, and its base by its stage's name."""
    if model.adapter is None:
        return {"served-model-name": found.name}
    return {
        "served-model-name": model.record["base"].partition("/")[0],
        "enable-lora": True,
        "max-lora-rank": choose_engine_rank(model.adapter),
        "lora-modules": f"{found.name}={model.adapter}",
    }


def _choose_cpu_options(model: Model, context: int | None) -> dict[str, Any]:
    """Without chunked prefill: a seeded request whose prefill is split ends the engine on a CPU."""
    context = context or min(_read_context(model) or CPU_CONTEXT, CPU_CONTEXT)
    return {
        "max-model-len": context,
        "no-enable-chunked-prefill": True,
        "max-num-batched-tokens": max(context, MIN_BATCHED_TOKENS),
        "enforce-eager": True,
        "kv-cache-memory-bytes": CPU_CACHE_BYTES,
    }


def _read_context(model: Model) -> int | None:
    folder = find_local_folder(model.weights, model.revision)
    config = read_json(folder / CONFIG) if folder else {}
    text = config.get("text_config") or config
    return text.get("max_position_embeddings")


def _spell_options(options: Mapping[str, Any]) -> list[str]:
    """`--name value`; a flag for true; nothing for none and false."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def build_environment(on_cpu: bool) -> dict[str, str]:
    """The variables that this adds; what the user has set stays."""
    wanted = vllm_engine.ENVIRONMENT | (vllm_engine.ENVIRONMENT_EAGER if on_cpu else {})
    wanted = {**wanted, "VLLM_LOGGING_LEVEL": "INFO"}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def print_command(command: list[str], environment: Mapping[str, str]) -> None:
    variables = [f"{name}={value}" for name, value in environment.items()]
    print(" ".join([*variables, shlex.join(command)]), flush=True)


def print_example(host: str, port: str, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "Who are you?"}]}
    reachable = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    print(
        "When it says “Application startup complete”, ask it:\n"
        f"  curl http://{reachable}:{port}/v1/chat/completions -H 'Content-Type: application/json'"
        f" -d {shlex.quote(json.dumps(body))}",
        flush=True,
    )


def run_server(command: list[str], environment: Mapping[str, str]) -> int:
    """Run it until it ends. A signal to us is passed on; the terminal sends Ctrl-C to both."""
    server = subprocess.Popen(command, env={**os.environ, **environment})
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = server.wait()
    return code if code >= 0 else 128 - code
