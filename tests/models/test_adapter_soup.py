"""Sums of adapters: the logits of the same sum made of whole weights, and what is refused."""

import json

import pytest
import torch

from pipeline.artifacts import Model
from pipeline.config import LoraAdapter
from pipeline.errors import UserError
from pipeline.models import loading, soup
from tests.support.preferences import LORA
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.model
IDS = torch.arange(8, 40)[None]
# Logits are up to 5, and float32 sums in another order move them this far: an adapter's own from
# those of its merged weights in float64 by 4e-5.
ROUNDING = 1e-4


class Store:
    def __init__(self, path):
        self.path = path
        self.sft = tiny_model(path / "sft" / "aaaaaaaaaaaa")

    def adapter(self, name: str, seed: int, base: Model | None = None, **shape) -> Model:
        """A published adapter with random matrices, of one scale for each name."""
        cfg = LoraAdapter(**{**LORA, **shape})
        torch.manual_seed(seed)
        module = loading.load_with_adapter(base or self.sft, cfg, "float32")
        with torch.no_grad():
            for key, weight in module.named_parameters():
                if "lora_" in key:
                    noise = torch.randn_like(weight)
                    weight.copy_(weight * (1 + noise / 9) if "magnitude" in key else noise / 4)
        out = self.path / "train" / name
        out.mkdir(parents=True)
        return loading.save_adapter(module, base or self.sft, cfg, "float32", out)

    def merge(self, *models, shares=None, densify=False, method="linear") -> Model:
        parents = [soup.open_parent(model) for model in models]
        soup.check_alike(parents)
        shares = shares or [1 / len(models)] * len(models)
        out = self.path / "merge" / f"{len([*self.path.glob('merge/*')]):012x}"
        out.mkdir(parents=True)
        if densify:
            return soup.write_weights(parents, shares, method, out)
        return soup.write_adapter(parents, shares, out)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def a(store) -> Model:
    return store.adapter("aaaaaaaaaaaa", 1)


@pytest.fixture(scope="module")
def b(store) -> Model:
    """Of another scale."""
    return store.adapter("bbbbbbbbbbbb", 2, alpha=3 * LORA["alpha"])


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return loading.load(model, "float32").cpu()(IDS).logits


def averaged(store, *parts: tuple[Model, float]) -> torch.Tensor:
    """The logits of the sum of whole merged weights in float64, by PEFT's own merge."""
    total = loading.load_merged(store.sft).double()
    weights = {name: torch.zeros_like(value) for name, value in total.state_dict().items()}
    for model, share in parts:
        for name, value in loading.load_merged(model).state_dict().items():
            weights[name] += share * value.double()
    total.load_state_dict(weights)
    with torch.no_grad():
        return total(IDS).logits.float()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_an_adapter_between_itself_and_its_base_stays_one_of_its_rank(store, a, share):
    made = store.merge(a, store.sft, shares=[share, 1 - share])
    expected = averaged(store, (a, share), (store.sft, 1 - share))
    assert made.record["peft"] == a.record["peft"] and made.weights == a.weights
    assert (logits(made) - expected).abs().max() < ROUNDING
    ends = {0.0: store.sft, 1.0: a}
    if share in ends:
        assert torch.equal(logits(made), logits(ends[share]))


def test_a_sum_of_adapters_is_exact_at_the_sum_of_their_ranks(store, a, b):
    made = store.merge(a, b, shares=[0.3, 0.7])
    expected = averaged(store, (a, 0.3), (b, 0.7))
    assert made.record["peft"]["r"] == 2 * LORA["rank"]
    assert (logits(made) - expected).abs().max() < ROUNDING
    # The mean of the matrices is another model: this test would see it.
    assert (logits(a) * 0.3 + logits(b) * 0.7 - expected).abs().max() > 100 * ROUNDING


def test_a_rank_stabilised_adapter_brings_its_own_scale(store, a):
    other = store.adapter("rrrrrrrrrrrr", 5, rank_stabilized=True)
    expected = averaged(store, (other, 0.5), (a, 0.5))
    assert (logits(store.merge(other, a)) - expected).abs().max() < ROUNDING


def test_adapters_with_the_same_a_keep_their_rank(store, a, tmp_path):
    """As a continued adapter whose A did not move, or one adapter of two rounds."""
    same = store.merge(a, a, a)
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model.json"):
        assert (same.path / file).read_bytes() == (a.path / file).read_bytes()
    half = store.merge(a, store.sft, shares=[0.5, 0.5])  # the same A, and half of B
    made = store.merge(a, half, shares=[0.5, 0.5])
    assert made.record["peft"]["r"] == LORA["rank"]
    assert (logits(made) - averaged(store, (a, 0.75), (store.sft, 0.25))).abs().max() < ROUNDING


@pytest.mark.parametrize("kind", [{}, {"dora": True}])
def test_dense_sums_hold_what_peft_merges(store, kind, b):
    adapter = store.adapter(f"d{len(kind)}aaaaaaaaaa", 7, **kind)
    made = store.merge(adapter, b, shares=[0.4, 0.6], densify=True)
    assert made.adapter is None
    assert (logits(made) - averaged(store, (adapter, 0.4), (b, 0.6))).abs().max() < ROUNDING
    alone = store.merge(adapter, b, shares=[1.0, 0.0], densify=True)
    assert (logits(alone) - averaged(store, (adapter, 1.0))).abs().max() < ROUNDING


def test_slerp_of_adapters_is_of_their_whole_weights(store, a, b):
    made = store.merge(a, b, densify=True, method="slerp")
    states = [loading.load_merged(model).state_dict() for model in (a, b)]
    name = "model.layers.1.mlp.down_proj.weight"
    x, y = (state[name].double() for state in states)
    angle = torch.acos((x * y).sum() / (x.norm() * y.norm()))
    expected = torch.sin(angle / 2) / torch.sin(angle) * (x + y)
    found = loading.load_merged(made).state_dict()[name]
    assert angle > 0.5 and (found - expected).abs().max() < 1e-6


def test_other_ranks_bases_and_kinds_are_refused_without_densify(store, a):
    other = store.adapter("eeeeeeeeeeee", 3, rank=2 * LORA["rank"])
    with pytest.raises(UserError, match=r"(?s)different ranks: .*merge\.densify=true") as fault:
        store.merge(a, other)
    assert f"{LORA['rank']} in {a.adapter} and {2 * LORA['rank']} in" in str(fault.value)
    assert store.merge(a, other, densify=True).adapter is None
    elsewhere = tiny_model(store.path / "sft" / "cccccccccccc", seed=1)
    foreign = store.adapter("ffffffffffff", 4, base=elsewhere)
    with pytest.raises(UserError, match=r"(?s)is an adapter of .*sft/c.*merge\.densify=true"):
        store.merge(a, foreign)
    with pytest.raises(UserError, match=r"(?s)is the model .*sft/c.*merge\.densify=true"):
        store.merge(a, elsewhere)
    dora = store.adapter("999999999999", 4, dora=True)
    with pytest.raises(UserError, match=r"only one of the adapters|is a DoRA adapter"):
        store.merge(a, dora)
    with pytest.raises(UserError, match="is a DoRA adapter"):
        store.merge(dora, store.sft)


def test_an_adapter_of_a_quantised_base_stays_an_adapter(store, a):
    record = {**a.record, "quantization": {"bits": 4, "double": True, "dtype": "float32"}}
    (store.path / "train" / "444444444444").mkdir()
    copy = store.path / "train" / "444444444444"
    (copy / "model.json").write_text(json.dumps(record))
    (copy / "adapter").symlink_to(a.adapter)
    made = store.merge(Model(copy), store.sft)
    assert made.record["quantization"]["bits"] == 4
    with pytest.raises(UserError, match="was quantised while it was trained"):
        store.merge(Model(copy), store.sft, densify=True)
    with pytest.raises(UserError, match="were quantised differently"):
        store.merge(Model(copy), a)
