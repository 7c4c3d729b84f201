"""`strop publish` against a small hub on loopback: what arrives, and what is refused."""

import io
import os
import subprocess
import sys

import polars as pl
import pytest

from pipeline.commands.origins import split_card
from tests.support.finished_run import make_run
from tests.support.house import HOUSE
from tests.support.hub_server import Repository, run_hub


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def hub():
    with run_hub() as hub:
        yield hub


def publish(hub, *words: str, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "publish", *words],
        env={**os.environ, "PYTHONPATH": str(HOUSE), **hub.environment(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.mark.model
def test_model_and_data_arrive_in_private_repositories(run, hub):
    printed = publish(hub, str(run), "my-org/mine", "--yes")
    assert f"{hub.address}/my-org/mine\n{hub.address}/datasets/my-org/mine-data" in printed
    model = hub.repositories["models/my-org/mine"]
    data = hub.repositories["datasets/my-org/mine-data"]
    assert model.private and data.private
    assert {"model.safetensors", "tokenizer.json", "README.md", "NOTICE.md"} <= set(model.files)
    assert "adapter/adapter_model.safetensors" in model.files
    for name in (*model.files, *data.files):
        assert f" {name}\n" in printed, "what is pushed was listed"

    pairs = pl.read_parquet(io.BytesIO(data.files["pairs/round-1-train.parquet"]))
    assert pairs.height == 3 and pairs["chosen"][0][0]["role"] == "assistant"
    assert not [name for name in pairs.columns if "token" in name]
    candidates = pl.read_parquet(io.BytesIO(data.files["candidates/round-1.parquet"]))
    assert candidates.height == 6
    assert candidates["scores"][0][0] == {
        "scorer": "rules",
        "score": 0.5,
        "status": "ok",
        "detail": "",
    }
    fields, body = split_card(data.files["README.md"].decode())
    assert [one["config_name"] for one in fields["configs"]] == ["pairs", "candidates"]
    assert fields["license"] == "unknown" and "my-org/start (licence unknown)" in body
    assert "prompts.jsonl | unknown" in body and "/home/me" not in body


@pytest.mark.model
def test_nothing_is_pushed_that_was_not_confirmed(run, hub):
    printed = publish(hub, f"{run}:sft", "my-org/mine", "data=none", code=2)
    assert "model my-org/mine (new, private)" in printed and "model.safetensors" in printed
    assert "Nothing was pushed" in printed and hub.writes == [] and hub.repositories == {}


@pytest.mark.slow
@pytest.mark.model
def test_a_public_repository_gets_nothing_that_was_to_be_private(run, hub):
    hub.repositories["models/my-org/mine"] = Repository(private=False)
    words = [f"{run}:sft", "my-org/mine", "data=none", "--yes"]
    assert "exists and is public" in publish(hub, *words, code=2) and hub.writes == []
    publish(hub, *words, "--public")
    assert hub.repositories["models/my-org/mine"].files


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/api/repos/create", "my-org/mine: this model cannot be created (HTTP 403"),
        ("/commit/", "my-org/mine: the files cannot be written (HTTP 403"),
    ],
)
def test_a_repository_that_may_not_be_written_is_named(run, hub, path, says):
    hub.refuse[path] = 403
    assert says in publish(hub, f"{run}:sft", "my-org/mine", "data=none", "--yes", code=1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"HF_TOKEN": "", "HF_HOME": "/nonexistent"}, "there is no token"),
        ({"HF_TOKEN": "hf_old"}, "does not know this token (HTTP 401"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9: the hub cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_a_hub_that_cannot_be_used_is_known_before_anything_is_written(run, hub, environment, says):
    printed = publish(hub, str(run), "my-org/mine", "--yes", code=2, **environment)
    assert says in printed and hub.writes == []


@pytest.mark.parametrize("words", [["mine"], ["a/b/c"], ["my-org/mine", "data=mine"]])
def test_a_name_without_its_owner_is_refused(words, capsys):
    from pipeline.commands.publish import main

    assert main(["runs/latest", *words]) == 2
    assert "as OWNER/NAME" in capsys.readouterr().err
