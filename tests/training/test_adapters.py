"""LoRA, its variants and QLoRA: training, publishing, continuing, merging, and what is refused."""

import json
import math
import shutil

import polars as pl
import pytest
import torch

from pipeline.artifacts import Model, Pairs, write_json, write_table
from pipeline.config import Checkpoint, ReferenceConfig, TrainConfig
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.stages import reference, train
from tests.support.house import SMALL, composed, named
from tests.support.preferences import LORA, QLORA, dpo, write_logps, write_pairs
from tests.support.tiny import tiny_model

KINDS = {
    "lora": LORA,
    "rank-stabilised": {**LORA, "rank_stabilized": True},
    "dora": {**LORA, "dora": True},
    "qlora": QLORA,
    "8 bits": {**QLORA, "quantization": {"bits": 8, "double": True}},
}
# In four epochs each kind learns to rank the dev pairs, and not by chance alone.
LEARNED = {"learning_rate": 1e-2}
# How far a merged model's logits may be from its adapter's, in float32: their spread is near 3.
LOGIT = 2e-3


class Round:
    """A published SFT model with layers wide enough to quantise, and pairs without values yet."""

    def __init__(self, store):
        self.store = store
        self.sft = tiny_model(store / "sft" / "aaaaaaaaaaaa", hidden=64)
        self.pairs = write_pairs(store / "pair" / "aaaaaaaaaaaa", self.sft)
        self.made: dict[str, Model] = {}

    def logps(self, name: str, model: Model, adapter: dict):
        runtime = {"batch_tokens": 512, "workers": 1}
        cfg = ReferenceConfig(
            dtype="float32", quantization=adapter["quantization"], runtime=runtime
        )
        return reference.run(cfg, self.store / "reference" / name, model=model, rows=self.pairs)

    def train(self, name: str, cfg: TrainConfig, **changes) -> Model:
        given = {"init": self.sft, "reference": self.sft, "pairs": [self.pairs], **changes}
        if "logps" not in given:
            quantization = getattr(cfg.adapter, "quantization", None)
            form = {"quantization": quantization.model_dump() if quantization else None}
            given["logps"] = [self.logps(name, given["reference"], form)]
        return train.run(cfg, self.store / "train" / name, **given)

    def kind(self, name: str) -> Model:
        """One training of each kind for all tests, merged next to its adapter."""
        from pipeline.models import loading

        if name not in self.made:
            model = self.train(name.replace(" ", "-"), dpo({**KINDS[name], **LEARNED}, epochs=4))
            loading.save_merged(model, "float32", model.path / "merged")
            self.made[name] = model
        return self.made[name]


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"))


def losses(model: Model) -> list[float]:
    return [entry["loss"] for entry in model.read_metrics() if "loss" in entry]


def logits(module, pairs: Pairs) -> torch.Tensor:
    row = pairs.read_dev().to_dicts()[0]
    with torch.no_grad():
        return module(
            torch.tensor([row["prompt_token_ids"] + row["chosen_token_ids"]])
        ).logits.float()


# ── training, publishing, merging ─────────────────────────────────────────────────────────────────


@pytest.mark.model
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_starts_from_its_reference_and_learns(round_, name):
    """The stage's check at step 0 passed, the first loss agrees, and the dev loss improves."""
    model = round_.kind(name)
    assert losses(model)[0] == pytest.approx(math.log(2), abs=1e-5 if name != "8 bits" else 1e-3)
    evals = [entry for entry in model.read_metrics() if "eval_loss" in entry]
    assert evals[-1]["eval_loss"] < math.log(2) - 0.005
    shape = json.loads((model.adapter / "adapter_config.json").read_text())
    assert (shape["use_rslora"], shape["use_dora"]) == (name == "rank-stabilised", name == "dora")


@pytest.mark.model
@pytest.mark.parametrize("name", KINDS)
def test_the_merged_copy_gives_the_adapter_s_logits(round_, name):
    from transformers import AutoModelForCausalLM

    from pipeline.models import loading

    model = round_.kind(name)
    adapter = logits(loading.load(model, "float32"), round_.pairs)
    merged = logits(AutoModelForCausalLM.from_pretrained(model.path / "merged"), round_.pairs)
    again = logits(loading.load_merged(model), round_.pairs)
    base = logits(loading.load(round_.sft, "float32"), round_.pairs)
    assert (merged - again).abs().max() < 1e-5
    if name == "8 bits":  # bitsandbytes rounds the activations too, which nothing merged does
        assert (adapter - merged).abs().mean() < 0.1 < (adapter - base).abs().mean() / 2
    else:
        assert (adapter - merged).abs().max() < LOGIT < (adapter - base).abs().max() / 10
    assert (model.path / "merged" / "tokenizer.json").exists()


@pytest.mark.model
def test_a_quantised_base_is_recorded_and_its_adapter_stays_precise(round_, tmp_path):
    model = round_.kind("qlora")
    assert model.record["quantization"] == {"bits": 4, "double": True, "dtype": "float32"}
    assert model.record["base"] == "sft/aaaaaaaaaaaa" and model.weights == round_.sft.weights
    from safetensors.torch import load_file

    weights = load_file(model.adapter / "adapter_model.safetensors")
    assert {each.dtype for each in weights.values()} == {
        torch.float32
    }  # TRL alone would leave bfloat16
    assert "quantization" not in round_.kind("lora").record


@pytest.mark.model
def test_merging_into_the_unquantised_base_would_be_another_model(round_):
    """Why `load_merged` dequantises: the adapter was trained on top of the four-bit weights."""
    from pipeline.models import loading

    model = round_.kind("qlora")
    plain = Model(shutil.copytree(model.path, round_.store / "train" / "plain"))
    write_json(
        plain.path / "model.json", {k: v for k, v in model.record.items() if k != "quantization"}
    )
    trained = logits(loading.load(model, "float32"), round_.pairs)
    assert (trained - logits(loading.load_merged(plain), round_.pairs)).abs().max() > 10 * LOGIT


@pytest.mark.model
def test_values_of_an_unquantised_reference_are_caught_at_step_0(round_):
    from pipeline.errors import StageError

    plain = write_logps(round_.store / "reference" / "plain", round_.sft, round_.pairs)
    with pytest.raises(StageError, match="the reference is wrong"):
        round_.train("plain-reference", dpo(QLORA), logps=[plain])


# ── a next round ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.model
@pytest.mark.parametrize("name", ["qlora", "dora"])
@pytest.mark.parametrize("reference", ["itself", "sft"])
def test_the_same_adapter_is_trained_on(round_, name, reference):
    """`init: previous` with either reference continues one adapter on the same base."""
    first = round_.kind(name)
    held_to = first if reference == "itself" else round_.sft
    second = round_.train(f"{name}-on-{reference}", dpo(KINDS[name]), init=first, reference=held_to)
    assert second.record == first.record | {"base": "sft/aaaaaaaaaaaa"}
    at_start = abs(losses(second)[0] - math.log(2))
    assert at_start < 1e-5 if reference == "itself" else at_start > 1e-4


@pytest.mark.model
def test_an_adapter_is_continued_in_its_own_form_only(round_):
    with pytest.raises(
        UserError,
        match=r"adapter.quantization=None, but training continues .* quantization is\s+bits=4",
    ):
        round_.train("refused", dpo(LORA), init=round_.kind("qlora"))
    with pytest.raises(
        UserError, match=r"adapter.dora=False, but training continues .* whose dora is True"
    ):
        round_.train("refused", dpo(LORA), init=round_.kind("dora"))


@pytest.mark.model
def test_full_training_of_a_qlora_model_starts_from_what_was_trained(round_):
    """The dequantised base with the adapter in it; the reference read it from the quantised one."""
    first = round_.kind("qlora")
    logps = [round_.logps("of-qlora", first, QLORA)]
    second = round_.train("full-after-qlora", dpo(), init=first, reference=first, logps=logps)
    assert second.record == {"weights": "weights", "tokenizer": "weights"}
    assert losses(second)[0] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.model
def test_a_live_reference_is_the_quantised_base_too(round_):
    live = round_.train(
        "live", dpo({**QLORA, **LEARNED}, epochs=4, reference_logps="online"), logps=None
    )
    assert losses(live) == pytest.approx(losses(round_.kind("qlora")), abs=1e-5)


# ── refused ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.model
def test_an_adapter_on_four_bits_is_not_merged_into_them(round_, tmp_path):
    """As an SFT checkpoint: rounding the merged weights would lose what was learned."""
    from pipeline.models.checkpoint import import_checkpoint

    base = shutil.copytree(round_.sft.weights, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    write_json(
        base / "config.json", {**config, "quantization_config": {"load_in_4bit": True, "bits": 4}}
    )
    adapter = shutil.copytree(round_.kind("lora").adapter, tmp_path / "adapter")
    shape = json.loads((adapter / "adapter_config.json").read_text())
    write_json(adapter / "adapter_config.json", {**shape, "base_model_name_or_path": str(base)})
    trust = {"remote_code": False, "pickled_weights": False}
    cfg = Checkpoint(
        kind="checkpoint", model=str(adapter), revision=None, trust=trust, dtype="float32",
        template={"chat_template": None, "kwargs": {}},
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"is an adapter, and its base .* is quantised.*\n.*unquantised"
    ):
        import_checkpoint(cfg, tmp_path / "out")


@pytest.mark.model
def test_pairs_of_another_tokenizer_are_refused_before_the_model_is_loaded(
    round_, tmp_path, monkeypatch
):
    """Ids that the model knows, and that say something else in its own tokenizer."""
    from pipeline.models import loading

    pairs = Pairs(tmp_path / "strange")
    for part in ("train", "dev"):
        turned = (pl.col("chosen_token_ids").list.eval((pl.element() + 50) % 300),)
        write_table(
            pairs.path / f"{part}.parquet",
            getattr(round_.pairs, f"read_{part}")().with_columns(*turned),
        )
    monkeypatch.setattr(loading, "_load_base", lambda *_: pytest.fail("the model was loaded"))
    logps = [write_logps_without_model(tmp_path, pairs)]
    with pytest.raises(
        UserError, match=r"its token ids are not of the policy's tokenizer: the answer '"
    ):
        round_.train("refused", dpo(), pairs=[pairs], logps=logps)


def write_logps_without_model(folder, pairs: Pairs):
    from pipeline.artifacts import Logps

    ids = pl.concat([reference.collect_completions(pairs).select("sample_id")])
    write_table(folder / "logps.parquet", ids.with_columns(logp=pl.lit(-1.0)))
    return Logps(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train.adapter=lora"],
            r"train.adapter=lora: .* conf/adapter/ .* Type adapter=lora",
        ),
        (
            ["train.adapter.kind=prefix_tuning"],
            r"train.adapter.*prefix_tuning .*virtual tokens.* lora, qlora or full",
        ),
        (["train.adapter.kind=prompt_tuning"], r"cannot be merged, vLLM does not sample from it"),
        (
            ["adapter=lora", "train.adapter.quantization={bits: 4, double: true}"],
            r"kind=lora does not",
        ),
        (
            ["adapter=qlora", "train.adapter.quantization.bits=3"],
            r"quantization.bits=3",
        ),
        (
            ["adapter=qlora", "reference.quantization=null"],
            r"reference.quantization: .* follows train.adapter",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        composed(*SMALL, *words)


def test_the_reference_is_read_in_the_policy_s_own_form_and_the_exam_s_is_not():
    steps = named(plan(composed(*SMALL, "adapter=qlora")))
    assert steps["reference@1"].config.quantization.bits == 4
    assert steps["reference@test round-1"].config.quantization is None
    assert named(plan(composed(*SMALL, "adapter=lora")))["reference@1"].config.quantization is None
