"""The backend `endpoint` against real servers on loopback: a faulty one of ours, and vLLM's own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import Model, read_table
from pipeline.backends import BilledTokens, Completion, CompletionRequest, FailedRequest, api_client
from pipeline.backends.in_flight import RequestPool
from pipeline.config import Limits
from pipeline.errors import StageError, UserError
from pipeline.sampling.journal import Journal
from tests.backends.test_backends import open_sampler, transformers
from tests.stages import test_sample
from tests.support.house import HOUSE, composed
from tests.support.servers import Fault, Server, drawn_by, serving
from tests.support.tiny import tiny_model

model = pytest.mark.model
LIMITS = {"prompt": 64, "completion": 24}
PROMPTS = 10  # in shards of 4, four draws each
KEY = "sk-planted-0123456789"


def endpoint(
    base_url: str, require_token_ids: bool = True, name: str = "served", **runtime: object
) -> dict:
    known = {
        "api_key_env": None,
        "concurrency": 4,
        "retries": 2,
        "timeout": 60.0,
        "tolerance": 0.01,
    }
    prices = {"input": 1.0, "output": 3.0}
    return {
        "kind": "endpoint",
        "model": name,
        "require_token_ids": require_token_ids,
        "runtime": {"base_url": base_url, "prices": prices, **known, **runtime},
    }


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Model:
    """Heads of 32, as vLLM on a CPU wants them."""
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "0123456789ab", hidden=128)


@pytest.fixture(scope="module")
def complete(policy):
    return drawn_by(open_sampler(transformers(1), policy).start(policy, Limits(**LIMITS)))


@pytest.fixture
def prompts(tmp_path):
    return test_sample.ask(
        tmp_path / "train", *(f"name {number} facts about the river" for number in range(PROMPTS))
    )


def run(out: Path, prompts, policy: Model, backend: dict, max_failed: float = 0.0) -> pl.DataFrame:
    runtime = {"blocks": 1, "workers": 1, "max_failed": max_failed}
    return test_sample.run(out, prompts, policy, backend=backend, limits=LIMITS, runtime=runtime)


def cost_of(out: Path) -> dict:
    return json.loads((out / "cost.json").read_text())


def once(fault: str, every: int = 3) -> Fault:
    """The first try of every third request fails."""
    return lambda seed, tries: fault if tries == 1 and seed % every == 0 else None


def always(fault: str, every: int) -> Fault:
    return lambda seed, tries: fault if seed % every == 0 else None


# ── the same columns ──────────────────────────────────────────────────────────────────────────────


@model
def test_a_server_of_the_policy_gives_what_the_policy_gives_here(
    complete, policy, prompts, tmp_path
):
    with serving(complete) as server:
        rows = run(tmp_path / "a", prompts, policy, endpoint(server.base_url))
    here = run(tmp_path / "b", prompts, policy, transformers(4))
    assert rows.drop("logprob").equals(here.drop("logprob"))
    assert (rows["logprob"] - here["logprob"]).abs().max() < 1e-3
    assert set(server.tries.values()) == {1} and len(server.tries) == PROMPTS * 4
    cost = cost_of(tmp_path / "a")
    assert cost["money"] == pytest.approx((cost["prompt_tokens"] + 3 * cost["tokens"]) / 1e6)
    assert not (tmp_path / "a" / "failed.parquet").exists()


STOPS = {
    "draw": {"n": 4, "temperature": 1.0, "top_p": 1.0, **test_sample.PLAIN, "stop": ["e", "an"]}
}


@model
def test_a_server_ends_at_stop_strings_and_the_rows_are_the_same(
    complete, policy, prompts, tmp_path
):
    came = []

    def told(body):
        came.append(complete(body))
        return came[-1]

    def drawn(out: str, backend: dict) -> pl.DataFrame:
        return test_sample.run(
            tmp_path / out, prompts, policy, backend=backend, limits=LIMITS, settings=STOPS
        )

    with serving(told) as server:
        rows = drawn("a", endpoint(server.base_url))
    ended = [choice for choice in came if choice["stop_reason"]]
    assert rows.drop("logprob").equals(drawn("b", transformers(4)).drop("logprob"))
    assert len(ended) == rows["stop_string"].count() > 10, "the server ended all that are cut"
    assert all(choice["token_ids"][-1] != 2 for choice in ended), (
        "and they bring no token past the string"
    )


@model
def test_where_the_server_alone_sees_a_stop_string_it_is_asked_again_without(
    complete, policy, prompts, tmp_path
):
    def odd(body):
        early = {"finish_reason": "stop", "stop_reason": "never said"} if body.get("stop") else {}
        return complete({**body, "stop": []}) | early

    stops = {"draw": {**STOPS["draw"], "stop": ["never said"]}}
    with serving(odd) as server:
        backend = endpoint(server.base_url)
        rows = test_sample.run(
            tmp_path / "a", prompts, policy, backend=backend, limits=LIMITS, settings=stops
        )
    here = test_sample.run(
        tmp_path / "b", prompts, policy, backend=transformers(4), limits=LIMITS, settings=stops
    )
    assert rows.drop("logprob").equals(here.drop("logprob")) and set(server.tries.values()) == {2}
    cost = cost_of(tmp_path / "a")
    assert (cost["billed_prompt_tokens"], cost["billed_tokens"]) == (
        2 * cost["prompt_tokens"],
        2 * cost["tokens"],
    )


@model
@pytest.mark.parametrize("counts", [True, False])
def test_what_is_cut_here_costs_what_the_server_wrote(complete, policy, prompts, tmp_path, counts):
    """A server without stop strings: it counts seven more prompt tokens than we do, or nothing."""
    came = []

    def on_and_on(body):
        choice = complete({**body, "stop": []})
        if body["seed"] >= 100:  # none of those that measure the policy
            came.append((len(body["prompt"]) + 7 * counts, len(choice["token_ids"])))
        usage = {
            "prompt_tokens": len(body["prompt"]) + 7,
            "completion_tokens": len(choice["token_ids"]),
        }
        return {**choice, "usage": usage} if counts else choice

    with serving(on_and_on) as server:
        backend = endpoint(server.base_url)
        test_sample.run(
            tmp_path / "out", prompts, policy, backend=backend, limits=LIMITS, settings=STOPS
        )
    cost, (read, written) = cost_of(tmp_path / "out"), map(sum, zip(*came, strict=True))
    assert cost["stopped_by_string"] > 10 and written > cost["tokens"]
    assert cost["money"] == pytest.approx((read + 3 * written) / 1e6)


@model
def test_without_token_ids_text_is_cut_again_and_says_so(complete, policy, prompts, tmp_path):
    def bare(body):
        assert not {"return_token_ids", "stop_token_ids", "logprobs"} & set(body)
        return {
            key: value
            for key, value in complete(body).items()
            if key in ("index", "text", "finish_reason")
        }

    with serving(bare, root=str(policy.weights)) as server:
        rows = run(
            tmp_path / "out", prompts, policy, endpoint(server.base_url, require_token_ids=False)
        )
    assert rows["logprob"].null_count() == rows.height == PROMPTS * 4
    assert cost_of(tmp_path / "out")["retokenised"] == rows.height
    here = run(tmp_path / "here", prompts, policy, transformers(4))
    assert rows["completion"].to_list() == here["completion"].to_list()
    ended = rows.filter(finish_reason="stop")
    assert ended.height and set(ended["token_ids"].list.last()) == {2}


@model
def test_text_that_is_odd_becomes_an_answer_of_the_policy_or_a_failed_row(
    policy, prompts, tmp_path
):
    """Its end spelled out, nothing at all, half a character, and far more than was asked for."""
    texts = "Yes <|end|> and no.", None, "\ud800", "river " * 100

    def odd(body):
        return {"index": 0, "text": texts[body["seed"] % len(texts)], "finish_reason": "stop"}

    with serving(odd, root=str(policy.weights)) as server:
        rows = run(
            tmp_path / "out",
            prompts,
            policy,
            endpoint(server.base_url, require_token_ids=False),
            0.9,
        )
    failed = read_table(tmp_path / "out" / "failed.parquet")
    assert (
        set(failed["reason"]) == {"the answer holds no text"}
        and rows.height + failed.height == PROMPTS * 4
    )
    ended, longer = rows.filter(finish_reason="stop"), rows.filter(finish_reason="length")
    assert set(ended["completion"]) == {texts[0]} and set(
        ended["token_ids"].list.count_matches(2)
    ) == {1}
    assert set(longer["completion"]) == {texts[3]} and ended.height, (
        "it counts as truncated, and is not cut"
    )


@model
def test_more_tokens_than_were_asked_for_are_a_failed_row(complete, policy, prompts, tmp_path):
    def longer(body):
        answer = complete(body)
        if body["seed"] < 100:
            return answer
        ids, logprobs = [5] * (LIMITS["completion"] + 1), [-1.0] * (LIMITS["completion"] + 1)
        return {
            **answer,
            "token_ids": ids,
            "logprobs": {"token_logprobs": logprobs},
            "finish_reason": "length",
        }

    with (
        serving(longer) as server,
        pytest.raises(StageError, match="more than the 24 tokens that were asked for"),
    ):
        run(tmp_path / "out", prompts, policy, endpoint(server.base_url))


@model
@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"token_ids": ["token_id:5"]}, "without token ids"),
        (
            {"logprobs": {"token_logprobs": [None]}, "token_ids": [5]},
            "without a log-probability for each token",
        ),
    ],
)
def test_ids_that_are_no_numbers_are_a_failed_row(complete, policy, prompts, tmp_path, odd, said):
    with (
        serving(lambda body: complete(body) | (odd if body["seed"] >= 100 else {})) as server,
        pytest.raises(StageError, match=said),
    ):
        run(tmp_path / "out", prompts, policy, endpoint(server.base_url))


def test_what_came_beside_a_fault_is_handed_on_before_it():
    class Client:
        async def close(self) -> None: ...

    async def ask(request: CompletionRequest) -> Completion | FailedRequest:
        if request.sample_id == "refused":
            raise UserError("the key was taken back")
        return (
            FailedRequest("f", "no")
            if request.sample_id == "f"
            else Completion(request.sample_id, [1], None, "stop")
        )

    under_way = RequestPool(9, timeout=5)
    under_way.open(Client())
    names = ["refused", "f", *map(str, range(7))]
    came = under_way.run_requests(
        [[CompletionRequest(name, [1], 0.0, 1.0, 1) for name in names]], ask
    )
    assert {next(came).sample_id for _ in range(7)} == set(names[2:])
    assert next(came) == FailedRequest("f", "no")
    with pytest.raises(UserError, match="taken back"):
        next(came)
    under_way.close()


def test_a_kill_while_the_journal_is_opened_again_loses_nothing(tmp_path, monkeypatch):
    """Nor does the line that an earlier kill has cut short spoil the next."""
    requests = [CompletionRequest(str(at), [1], 0.0, 1.0, at) for at in range(3)]

    class Backend:
        def generate(self, blocks):
            for block in blocks:
                yield from (
                    Completion(r.sample_id, [7, 8], -0.5, "stop", None, BilledTokens(3, 2))
                    for r in block
                )

    first = Journal(tmp_path).generate(Backend(), [requests])
    came = [next(first), next(first)]
    [file] = tmp_path.iterdir()
    file.write_text(file.read_text() + '{"sample_id": "2", "tok')

    def killed(path: Path, text: str) -> None:
        path.open("w").close()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(Path, "write_text", killed)
        next(Journal(tmp_path).generate(Backend(), [requests[:2]]))
    assert file.read_text().count("\n") == 2
    again = {drawn.sample_id: drawn for drawn in Journal(tmp_path).generate(Backend(), [requests])}
    assert (
        [again["0"], again["1"]] == came
        and set(again) == {"0", "1", "2"}
        and not list(tmp_path.iterdir())
    )


# ── a server with faults ──────────────────────────────────────────────────────────────────────────


@model
@pytest.mark.parametrize("fault", ["429", "500", "hang", "half"])
def test_what_goes_wrong_once_is_asked_again(complete, policy, prompts, tmp_path, fault):
    limit = 6.0 if fault == "hang" else 60.0  # a good reply takes a second on a busy machine
    with serving(complete, once(fault)) as server:
        rows = run(
            tmp_path / "out",
            prompts,
            policy,
            endpoint(server.base_url, concurrency=8, timeout=limit),
        )
    assert rows.height == PROMPTS * 4
    assert {tries: seed % 3 == 0 for seed, tries in server.tries.items()} == {1: False, 2: True}


@model
@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        ("429", "HTTP 429", 3),
        ("500", "HTTP 500", 3),
        ("half", "the connection broke", 3),
        ("400", "HTTP 400", 1),
        ("junk", "the answer holds no completion", 1),
        ("no json", "the answer holds no completion", 1),
        ("bare", "the answer holds a completion without finish_reason", 1),
    ],
)
def test_what_stays_wrong_is_listed_and_kept_out(
    complete, policy, prompts, tmp_path, fault, reason, tries
):
    with serving(complete, always(fault, every=5)) as server:
        rows = run(
            tmp_path / "out",
            prompts,
            policy,
            endpoint(server.base_url, concurrency=8),
            max_failed=0.5,
        )
    failed = read_table(tmp_path / "out" / "failed.parquet")
    assert failed.height > 0 and rows.height + failed.height == PROMPTS * 4
    assert not set(failed["sample_id"]) & set(rows["sample_id"])
    assert all(said.startswith(reason) for said in failed["reason"])
    assert {server.tries[seed] for seed in server.tries if seed % 5 == 0} == {tries}
    assert cost_of(tmp_path / "out")["failed"] == failed.height


@model
def test_a_server_that_hangs_is_given_up_on(complete, policy, prompts, tmp_path):
    with serving(complete, always("hang", every=5)) as server:
        backend = endpoint(server.base_url, concurrency=8, timeout=2.0, retries=0)
        rows = run(tmp_path / "out", prompts, policy, backend, max_failed=0.5)
    failed = read_table(tmp_path / "out" / "failed.parquet")
    assert set(failed["reason"]) == {"no reply within 2 s"}
    assert failed.height > 0 and rows.height + failed.height == PROMPTS * 4


@model
def test_past_the_limit_it_stops_and_the_next_run_asks_only_for_what_is_missing(
    complete, policy, prompts, tmp_path
):
    with serving(complete, always("500", every=5)) as server:
        with pytest.raises(
            StageError,
            match=r"of 40 completions failed .*500.*\n.*failed.parquet.*run the same command",
        ):
            run(
                tmp_path / "out",
                prompts,
                policy,
                endpoint(server.base_url, retries=0),
                max_failed=0.1,
            )
        came = {seed for seed in server.tries if seed % 5}
        assert read_table(tmp_path / "out" / "failed.parquet").height == 5
        server.fault, server.tries = lambda seed, tries: None, type(server.tries)()
        rows = run(tmp_path / "out", prompts, policy, endpoint(server.base_url))
        again = came & set(server.tries)
    assert rows.height == 40 and rows["sample_id"].n_unique() == 40
    assert len(again) <= 4  # under way when it stopped
    assert cost_of(tmp_path / "out")["billed_tokens"] == rows["token_ids"].list.len().sum()
    assert not (tmp_path / "out" / "failed.parquet").exists()
    assert not list((tmp_path / "out" / "scratch" / "journal").iterdir())


CHILD = """
import json, sys
from pathlib import Path
from pipeline.artifacts import Model, Prompts
from tests.backends import test_endpoint as t
out, prompts, policy, base_url = sys.argv[1:]
t.run(Path(out), Prompts(Path(prompts)), Model(Path(policy)), t.endpoint(base_url))
"""


def child(out: Path, prompts, policy: Model, server: Server) -> "subprocess.Popen[bytes]":
    words = [
        sys.executable,
        "-c",
        CHILD,
        str(out),
        str(prompts.path),
        str(policy.path),
        server.base_url,
    ]
    return subprocess.Popen(words, cwd=HOUSE, stderr=subprocess.DEVNULL)


@model
def test_killed_inside_a_shard_it_asks_only_for_what_had_not_come(
    complete, policy, prompts, tmp_path
):
    with serving(complete) as server:
        killed = child(tmp_path / "out", prompts, policy, server)
        while len(server.tries) < 22:  # in the second shard
            assert killed.poll() is None
            time.sleep(0.002)
        killed.kill()
        killed.wait()
        lines = (tmp_path / "out" / "scratch" / "journal").glob("*.jsonl")
        assert sum(len(file.read_text().splitlines()) for file in lines) > 0
        before = set(server.tries)
        server.tries.clear()
        rows = run(tmp_path / "out", prompts, policy, endpoint(server.base_url))
    assert rows["sample_id"].n_unique() == rows.height == 40
    assert len(set(server.tries) & before) <= 4  # under way when it was killed
    assert rows.drop("logprob").equals(
        run(tmp_path / "b", prompts, policy, transformers(4)).drop("logprob")
    )


# ── what is refused ───────────────────────────────────────────────────────────────────────────────


@model
def test_a_server_of_another_model_is_refused_with_the_names_it_has(
    complete, policy, prompts, tmp_path
):
    with (
        serving(complete, id="other") as server,
        pytest.raises(UserError, match=r"model=served: .* does not serve it, but other\.\n"),
    ):
        run(tmp_path / "out", prompts, policy, endpoint(server.base_url))
    assert not server.tries


@model
def test_another_model_under_the_policy_s_name_is_refused_by_measure(complete, prompts, tmp_path):
    other = tiny_model(tmp_path / "store" / "sft" / "ba9876543210", hidden=128, seed=1)
    with (
        serving(complete) as server,
        pytest.raises(UserError, match=r"not the policy sft/ba98.*nats a token.*\n.*Serve"),
    ):
        run(tmp_path / "out", prompts, other, endpoint(server.base_url))
    assert not server.tries


@model
def test_unmeasured_the_server_has_to_call_the_policy_by_its_name(
    complete, policy, prompts, tmp_path
):
    with (
        serving(complete) as server,
        pytest.raises(UserError, match=r"--served-model-name sft/0123456789ab"),
    ):
        run(tmp_path / "out", prompts, policy, endpoint(server.base_url, require_token_ids=False))


@model
@pytest.mark.parametrize(
    ("missing", "said"),
    [("token_ids", "without token ids"), ("logprobs", "without a log-probability")],
)
def test_a_server_that_gives_no_token_ids_is_refused_saying_what_to_set(
    complete, policy, prompts, tmp_path, missing, said
):
    def bare(body):
        return {**complete(body), missing: None}

    with (
        serving(bare) as server,
        pytest.raises(
            UserError, match=rf"(?s){said}.*return_token_ids.*sample\.backend\.require_token_ids=fa"
        ),
    ):
        run(tmp_path / "out", prompts, policy, endpoint(server.base_url))


@model
def test_a_server_with_a_shorter_context_is_refused(complete, policy, prompts, tmp_path):
    with (
        serving(complete, max_model_len=50) as server,
        pytest.raises(UserError, match=r"of 50 tokens.*need 88.*\n.*-len"),
    ):
        run(tmp_path / "out", prompts, policy, endpoint(server.base_url))


@model
def test_a_key_that_is_not_taken_or_not_there_stops_at_once(
    complete, policy, prompts, tmp_path, monkeypatch
):
    monkeypatch.setenv("WRONG_KEY", KEY)
    with serving(complete, key="another") as server:
        for variable, said in (
            (None, "a request without a key"),
            ("WRONG_KEY", "the key in WRONG_KEY"),
        ):
            with pytest.raises(UserError, match=f"does not accept {said}") as refusal:
                run(
                    tmp_path / "out",
                    prompts,
                    policy,
                    endpoint(server.base_url, api_key_env=variable),
                )
            assert KEY not in str(refusal.getrepr(showlocals=False))
        with pytest.raises(UserError, match=r"UNSET_KEY: this environment variable is not set"):
            run(
                tmp_path / "out",
                prompts,
                policy,
                endpoint(server.base_url, api_key_env="UNSET_KEY"),
            )
    assert not server.tries


@model
def test_a_key_taken_back_on_the_way_stops_at_once(complete, policy, prompts, tmp_path):
    with serving(complete, lambda seed, tries: "403" if len(server.tries) > 9 else None) as server:
        with pytest.raises(UserError, match="does not accept"):
            run(tmp_path / "out", prompts, policy, endpoint(server.base_url))
    assert len(server.tries) < 20 and max(server.tries.values()) == 1


@pytest.mark.slow
@model
def test_the_key_is_in_no_file_and_on_no_screen(complete, policy, tmp_path):
    """Through the command line, with a server that repeats the key in each of its errors."""
    lines = [
        json.dumps({"prompt": f"name {at} {what} about the river"})
        for at in range(8)
        for what in ("facts", "tales")
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    words = [
        *(
            "score=rules",
            "prompts.path=p.jsonl",
            f"sft.model={policy.weights}",
            "dtype=float32",
            "until=sample",
            "sample.shard=4",
        ),
        *(
            "prompts.split.test=2",
            "prompts.split.dev=2",
            "prompts.decontamination.ngram=13",
            "limits.prompt=64",
        ),
        *("limits.completion=24", "backend@sample.backend=endpoint", "sample.backend.model=served"),
        *("sample.backend.runtime.api_key_env=SERVER_KEY", "sample.backend.runtime.retries=1"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "SERVER_KEY": KEY, "OPENAI_LOG": "debug"}

    def pipeline(*more: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pipeline", *words, *more]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    with serving(complete, always("500", every=4), key=KEY) as server:
        address = f"{URL}={server.base_url}"
        broke = pipeline(address, "sample.runtime.max_failed=0")
        done = pipeline(address, "sample.runtime.max_failed=0.9")
        server.key = "another"
        refused = pipeline(address, "seed=43")
    assert [code for code, _ in (broke, done, refused)] == [1, 0, 2]
    assert "completions failed" in broke[1] and "failed.parquet" in done[1]
    assert "does not accept the key in SERVER_KEY" in refused[1]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 20 and list(tmp_path.glob("store/sample/*/failed.parquet"))
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in broke[1] + done[1] + refused[1]


@model
def test_where_no_server_answers_it_is_refused(policy, prompts, tmp_path):
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1: no server answers there"):
        run(tmp_path / "out", prompts, policy, endpoint("http://127.0.0.1:9/v1"))


def test_a_server_that_takes_the_call_and_says_nothing_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr(api_client, "LIST_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        backend = composed(*GIVEN, f"{URL}={url}").sample.backend
        begun = time.monotonic()
        with pytest.raises(UserError, match="no server answers there"):
            api_client.fetch_model_card("sample.backend", backend.runtime, "m")
        assert time.monotonic() - begun < 10


GIVEN = [
    "score=rules",
    "prompts.path=p.jsonl",
    "sft.model=./m",
    "backend@sample.backend=endpoint",
    "sample.backend.model=m",
]
URL = "sample.backend.runtime.base_url"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], f"{URL} has no value yet"),
        ([f"{URL}=localhost:8000"], "expected an address such as http://localhost:8000/v1"),
        ([f"{URL}=http://localhost:abc/v1"], "with a port from 1 to 65535"),
        ([f"{URL}=http://localhost:99999/v1"], "with a port from 1 to 65535"),
        ([f"{URL}=http://exa mple.com/v1"], "expected an address such as"),
        ([f"{URL}=http://me:secret@localhost/v1"], "must not contain a key.*api_key_env"),
        (
            [f"{URL}=http://h/v1", "sample.backend.runtime.api_key_env=sk-123"],
            "expected the name of an environment variable",
        ),
        (
            [f"{URL}=http://h/v1", "rounds=2", "sample.per_round=9"],
            "rounds=2: .*Give rounds=1, or backend@sample.backend=vllm",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_the_door(words, said):
    with pytest.raises(UserError, match=said) as refusal:
        composed(*GIVEN, *words)
    assert not any(secret in str(refusal.value) for secret in ("me:secret", "sk-123"))


@pytest.mark.parametrize("key", ["clé-secret", "abcd\nefgh", "ключ"])
def test_a_key_that_no_request_can_carry_is_refused_without_its_value(monkeypatch, key):
    monkeypatch.setenv("ODD_KEY", key)
    words = [f"{URL}=http://localhost:1/v1", "sample.backend.runtime.api_key_env=ODD_KEY"]
    server = composed(*GIVEN, *words).sample.backend.runtime
    with pytest.raises(UserError, match=r"api_key_env=ODD_KEY: .*\n.*export ODD_KEY") as refusal:
        api_client.read_key("sample.backend", server)
    assert key not in str(refusal.value)


def test_a_host_that_the_client_cannot_read_is_refused():
    import openai

    server = composed(*GIVEN, f"{URL}=http://256.1.1.1/v1").sample.backend.runtime
    with pytest.raises(UserError, match=r"base_url=http://256\.1\.1\.1/v1: not an address"):
        api_client.make_client(openai, openai.AsyncOpenAI, "sample.backend", server)
    with pytest.raises(UserError, match=r"base_url=http://256\.1\.1\.1/v1: not an address"):
        api_client.fetch_model_card("sample.backend", server, "m")


@pytest.mark.parametrize(
    "card", [{"max_model_len": "4096"}, {"max_model_len": -1}, {"root": ["x"]}, {"root": {}}]
)
def test_what_a_server_says_of_its_model_counts_where_it_is_of_its_type(card):
    with serving(lambda body: body, **card) as server:
        runtime = composed(*GIVEN, f"{URL}={server.base_url}").sample.backend.runtime
        found = api_client.fetch_model_card("sample.backend", runtime, "served")
    assert found == {"id": "served", "root": None, "max_model_len": None}


def test_an_exam_through_an_endpoint_is_refused_at_the_door():
    words = [
        "evaluate.sample.backend.model=m",
        "evaluate.sample.backend.runtime.base_url=http://h/v1",
    ]
    with pytest.raises(
        UserError, match="Give backend@evaluate.sample.backend=vllm or transformers"
    ):
        composed(*GIVEN[:3], "backend@evaluate.sample.backend=endpoint", *words)


# ── vLLM's own server ─────────────────────────────────────────────────────────────────────────────

VLLM = [
    *(
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "256",
        "--gpu-memory-utilization",
        "0.3",
    ),
    # A request with a seed whose prefill is split kills vLLM on CPU.
    *(
        "--no-enable-chunked-prefill",
        "--max-num-batched-tokens",
        "2048",
        "--no-enable-prefix-caching",
    ),
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class VllmServer:
    """vLLM's own server in its own process group; `kill` is kill -9 of the whole group."""

    def __init__(self, policy: Model, log: Path, port: int):
        self.base_url = f"http://127.0.0.1:{port}/v1"
        words = [
            "--model",
            str(policy.weights),
            "--served-model-name",
            "served",
            "--port",
            str(port),
            *VLLM,
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
            env={
                **os.environ,
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "TORCHDYNAMO_DISABLE": "1",
                "VLLM_API_KEY": KEY,
            },
            stdout=log.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.log = log

    def wait(self) -> "VllmServer":
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.base_url.replace("/v1", "/health"), timeout=1)
                return self
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def vllm(policy, tmp_path, monkeypatch):
    monkeypatch.setenv("SERVER_KEY", KEY)
    server = VllmServer(policy, tmp_path / "server.log", free_port())
    yield server
    server.kill()


def of_vllm(server: VllmServer, **runtime: object) -> dict:
    return endpoint(server.base_url, api_key_env="SERVER_KEY", concurrency=16, **runtime)


def killed_after(server: VllmServer, out: Path, completions: int) -> threading.Thread:
    """Kills the server once so many completions are written down."""

    def watch() -> None:
        while (
            sum(len(file.read_bytes().splitlines()) for file in out.glob("scratch/journal/*"))
            < completions
        ):
            time.sleep(0.005)
        server.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def broken_on_the_way(server: VllmServer, out: Path, prompts, policy: Model) -> int:
    """Draws until the server is killed; how many completions are kept."""
    watcher = killed_after(server, out, 8)
    with pytest.raises(StageError, match=r"the connection broke.*\n.*run the same command again"):
        run(out, prompts, policy, of_vllm(server, retries=1), max_failed=0.02)
    watcher.join()
    finished = sum(read_table(file).height for file in (out / "samples").glob("*"))
    return finished + sum(
        len(file.read_text().splitlines()) for file in out.glob("scratch/journal/*")
    )


@pytest.fixture
def many(tmp_path):
    return test_sample.ask(
        tmp_path / "many", *(f"name {number} words about the old lantern" for number in range(100))
    )


@pytest.mark.slow
@model
def test_vllm_s_server_gives_the_policy_s_tokens_and_its_death_loses_nothing(
    vllm, policy, many, tmp_path
):
    vllm.wait()
    calm = {"n": 1, "temperature": 0.0, "top_p": 1.0, **test_sample.PLAIN}
    greedy = {"calm": calm, "calm stopped": {**calm, "stop": STOPS["draw"]["stop"]}}
    shape = {
        "limits": LIMITS,
        "settings": greedy,
        "runtime": {"blocks": 1, "workers": 1, "max_failed": 0.0},
        "shard": 25,
    }
    theirs = test_sample.run(tmp_path / "theirs", many, policy, backend=of_vllm(vllm), **shape)
    ours = test_sample.run(tmp_path / "ours", many, policy, backend=transformers(16), **shape)
    assert theirs.height == 200 and theirs.drop("logprob").equals(ours.drop("logprob"))
    assert (theirs["logprob"] - ours["logprob"]).abs().max() < 1e-3
    assert stopped_early(of_vllm(vllm), policy, theirs.filter(pl.col("stop_string").is_not_null()))

    assert 8 <= broken_on_the_way(vllm, tmp_path / "out", many, policy) < 400


def stopped_early(backend: dict, policy: Model, cut: pl.DataFrame) -> bool:
    """Whether the server drew nothing past the stop strings."""
    server = open_sampler(backend, policy).start(policy, Limits(**LIMITS))
    stops = tuple(STOPS["draw"]["stop"])
    asked = [
        CompletionRequest(str(at), ids, 0.0, 1.0, at, stop=stops)
        for at, ids in enumerate(cut["prompt_token_ids"].to_list())
    ]
    came = {drawn.sample_id: drawn for drawn in server.generate([asked])}
    server.close()
    longest = max(
        len(came[str(at)].token_ids) - len(kept)
        for at, kept in enumerate(cut["token_ids"].to_list())
    )
    return (
        cut.height > 50 and longest <= 2
    )  # tokens that the string itself may lie in, instead of EOS


@model
@pytest.mark.slow
def test_a_vllm_server_killed_and_started_again_is_asked_for_the_rest(vllm, policy, many, tmp_path):
    out = tmp_path / "out"
    kept = broken_on_the_way(vllm.wait(), out, many, policy)
    again = VllmServer(policy, vllm.log, int(vllm.base_url.split(":")[2].split("/")[0])).wait()
    try:
        rows = run(out, many, policy, of_vllm(again), max_failed=0.0)
        whole = run(tmp_path / "whole", many, policy, of_vllm(again), max_failed=0.0)
    finally:
        again.kill()
    answered = vllm.log.read_text().count('POST /v1/completions HTTP/1.1" 200')
    assert rows.drop("logprob").equals(whole.drop("logprob"))
    assert (
        answered <= 400 + 400 + 16 + 3 * 4
    )  # under way at the kill, and the measuring of each start
    assert kept < 400
