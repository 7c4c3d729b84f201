"""Log-probabilities of given tokens: whatever shares their batch, once each, resumable."""

import json
import shutil
from functools import cache

import polars as pl
import pytest

from pipeline.artifacts import Model, Pairs, Samples, write_table
from pipeline.config import ReferenceConfig
from pipeline.errors import StageError, UserError
from pipeline.report.analysis.eval_results import read_eval
from pipeline.stages import reference, sample
from tests.stages.test_sample import PLAIN, ask
from tests.stages.test_sample import config as drawing
from tests.support.preferences import write_pairs
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "aaaaaaaaaaaa")


@pytest.fixture(scope="module")
def pairs(model, tmp_path_factory) -> Pairs:
    return write_pairs(tmp_path_factory.mktemp("pairs"), model)


def config(batch_tokens: int = 512, workers: int = 1) -> ReferenceConfig:
    runtime = {"batch_tokens": batch_tokens, "workers": workers}
    return ReferenceConfig(dtype="float32", quantization=None, runtime=runtime)


@cache
def opened(model: Model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model.weights)


def alone(model: Model, prompt: list[int], completion: list[int]) -> float:
    """One sequence, no padding, every logit: the definition."""
    import torch

    module = opened(model)
    with torch.no_grad():
        logits = module(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + at - 1, token].item() for at, token in enumerate(completion))


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_every_batch_size_gives_the_plain_definition(model, pairs, tmp_path, batch_tokens):
    table = reference.run(config(batch_tokens), tmp_path, model=model, rows=pairs).read()
    rows = pl.concat([pairs.read_train(), pairs.read_dev()])
    assert table["sample_id"].to_list() == sorted([*rows["chosen_id"], *rows["rejected_id"]])
    found = {row["sample_id"]: row for row in table.to_dicts()}
    for row in rows.to_dicts():
        for side in ("chosen", "rejected"):
            ids = row[f"{side}_token_ids"]
            assert found[row[f"{side}_id"]]["logp"] == pytest.approx(
                alone(model, row["prompt_token_ids"], ids), abs=1e-4
            )
            assert found[row[f"{side}_id"]]["tokens"] == len(ids)
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["tokens"] == sum(
        2 * len(r["prompt_token_ids"]) + len(r["chosen_token_ids"]) + len(r["rejected_token_ids"])
        for r in rows.to_dicts()
    )


def test_a_sample_in_two_pairs_is_computed_once(model, pairs, tmp_path):
    twice = tmp_path / "pairs"
    write_table(
        twice / "train.parquet", pl.concat([pairs.read_train(), pairs.read_train().head(3)])
    )
    write_table(twice / "dev.parquet", pairs.read_dev())
    table = reference.run(config(), tmp_path / "out", model=model, rows=Pairs(twice)).read()
    assert table.height == table["sample_id"].n_unique() == 2 * 28


def test_an_exam_refers_only_its_kl_draws(model, tmp_path):
    row = {"prompt_id": "p", "prompt_token_ids": [1, 4, 9], "token_ids": [7, 8, 2]}
    drawn = [
        {**row, "sample_id": f"{setting}-0", "setting": setting} for setting in ("answer", "kl")
    ]
    write_table(tmp_path / "evaluation" / "samples" / "0.parquet", pl.DataFrame(drawn))
    table = reference.run(
        config(), tmp_path / "out", model=model, rows=Samples(tmp_path / "evaluation")
    ).read()
    assert table["sample_id"].to_list() == ["kl-0"]
    assert table["logp"][0] == pytest.approx(alone(model, [1, 4, 9], [7, 8, 2]), abs=1e-4)


def exact_kl(policy: Model, sft: Model, prompt: list[int]) -> float:
    """KL of answers of two tokens, over every first token and all that can follow it."""
    import torch

    def after(of: Model, ids: list[list[int]]) -> "torch.Tensor":
        with torch.no_grad():
            return opened(of)(torch.tensor(ids)).logits[:, -1].double().log_softmax(-1)

    first, first_sft = after(policy, [prompt])[0], after(sft, [prompt])[0]
    longer = [[*prompt, token] for token in range(len(first))]
    second, second_sft = after(policy, longer), after(sft, longer)
    further = (second.exp() * (second - second_sft)).sum(-1)
    further[opened(policy).config.eos_token_id] = 0.0  # the answer is over
    return float((first.exp() * (first - first_sft + further)).sum())


def test_kl_of_an_exam_is_the_exact_one_where_all_answers_can_be_counted(tmp_path):
    """Two models unlike each other, answers of two tokens at most, 1,500 draws of each of two
    prompts."""
    sft, policy = (
        tiny_model(tmp_path / "store" / "sft" / (key * 12), seed=seed)
        for key, seed in (("a", 0), ("b", 1))
    )
    asked = ask(tmp_path / "prompts", "the river", "the lantern")
    kl = {"n": 1500, "temperature": 1.0, "top_p": 1.0, **PLAIN}
    backend = {"kind": "transformers", "dtype": "float32", "runtime": {"batch": 500}}
    limits = {"prompt": 64, "completion": 2}
    drawn = sample.run(
        drawing(settings={"kl": kl, "answer": {**kl, "n": 1}}, backend=backend, limits=limits),
        tmp_path / "drawn",
        policy=policy,
        prompts=asked,
    )
    logps = reference.run(config(8192), tmp_path / "logps", model=sft, rows=drawn)
    evaluation = {"model": policy, "samples": drawn, "logps": logps}
    found = read_eval("round-1", evaluation, frozenset(asked.read()["prompt_id"]), "rules").kl
    table = drawn.read("kl").unique("prompt_id")
    for prompt, ids in table.select("prompt_id", "prompt_token_ids").iter_rows():
        exact = exact_kl(policy, sft, ids)
        assert exact > 0.5
        assert found[prompt] == pytest.approx(exact, rel=0.08)


def test_no_rows_give_an_empty_table_and_load_no_model(pairs, tmp_path):
    none = tmp_path / "pairs"
    for part in (pairs.read_train(), pairs.read_dev()):
        write_table(none / "train.parquet", part.clear())
        write_table(none / "dev.parquet", part.clear())
    table = reference.run(
        config(), tmp_path / "out", model=Model(tmp_path / "no model"), rows=Pairs(none)
    ).read()
    assert table.height == 0
    assert table.columns == ["sample_id", "prompt_id", "logp", "tokens"]


def test_a_killed_run_keeps_its_finished_chunks(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 8)
    whole = reference.run(config(), tmp_path / "whole", model=model, rows=pairs)
    shutil.copytree(tmp_path / "whole" / "scratch", tmp_path / "again" / "scratch")
    chunks = sorted((tmp_path / "again" / "scratch").glob("chunk-*"))
    assert len(chunks) == 7
    chunks[3].unlink()
    before = {path.name: path.stat().st_mtime_ns for path in chunks if path.exists()}
    again = reference.run(config(batch_tokens=64), tmp_path / "again", model=model, rows=pairs)
    assert {path.name: path.stat().st_mtime_ns for path in chunks if path.name in before} == before
    assert (
        again.read()
        .select("sample_id", "tokens")
        .equals(whole.read().select("sample_id", "tokens"))
    )
    assert (again.read()["logp"] - whole.read()["logp"]).abs().max() < 1e-4


def test_two_workers_give_the_bytes_of_one(model, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 8)
    for workers in (1, 2):
        reference.run(config(workers=workers), tmp_path / str(workers), model=model, rows=pairs)
    one, two = ((tmp_path / str(workers) / "logps.parquet").read_bytes() for workers in (1, 2))
    assert one == two
    assert len(list((tmp_path / "2" / "scratch" / "workers").iterdir())) == 2


def test_tokens_of_another_tokenizer_are_refused(model, pairs, tmp_path):
    strange = pairs.read_train().with_columns(chosen_token_ids=pl.lit([5, 999]))
    write_table(tmp_path / "pairs" / "train.parquet", strange)
    write_table(tmp_path / "pairs" / "dev.parquet", pairs.read_dev())
    with pytest.raises(UserError, match=r"token id 999 .* 320 embeddings"):
        reference.run(config(), tmp_path / "out", model=model, rows=Pairs(tmp_path / "pairs"))


def test_a_prompt_without_tokens_is_refused(model, pairs, tmp_path):
    bare = pairs.read_train().with_columns(prompt_token_ids=pl.lit([], dtype=pl.List(pl.Int64)))
    write_table(tmp_path / "pairs" / "train.parquet", bare)
    write_table(tmp_path / "pairs" / "dev.parquet", pairs.read_dev())
    with pytest.raises(UserError, match="48 rows without prompt tokens"):
        reference.run(config(), tmp_path / "out", model=model, rows=Pairs(tmp_path / "pairs"))


def test_a_broken_model_publishes_no_log_probabilities(model, pairs, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(model.path, tmp_path / "nan")
    file = tmp_path / "nan" / "weights" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(StageError, match="no finite log-probability"):
        reference.run(config(), tmp_path / "out", model=Model(tmp_path / "nan"), rows=pairs)
    assert not (tmp_path / "out" / "logps.parquet").exists()
