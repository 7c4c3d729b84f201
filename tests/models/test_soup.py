"""Sums of models: exact at their ends, equal to the formulas between, refused where meaningless."""

import json
import math
import shutil
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.artifacts import Model
from pipeline.errors import UserError
from pipeline.models import soup
from pipeline.models.interpolation import choose_wide, slerp_shares, split_shares, sum_tensors
from pipeline.models.tensor_files import open_tensors, write_folder
from tests.support.tiny import tiny_tokenizer

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
DTYPES = st.sampled_from([*BITS])
SHARES = st.lists(st.floats(0.001, 1), min_size=2, max_size=7).map(
    lambda parts: [part / math.fsum(parts) for part in parts]
)


def any_bits(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Values of all sizes: subnormal ones and −0 too, without infinities."""
    chance = torch.Generator().manual_seed(seed)
    bits = BITS[dtype]
    limits = torch.iinfo(bits)
    drawn = torch.randint(limits.min, limits.max, (500,), generator=chance, dtype=torch.int64)
    values = torch.cat([drawn.to(bits).view(dtype), torch.tensor([0.0, -0.0], dtype=dtype)])
    return values[values.isfinite()]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(BITS[a.dtype]), b.view(BITS[b.dtype]))


@settings(max_examples=200, deadline=None)
@given(DTYPES, st.integers(0, 10**6), SHARES)
def test_a_soup_of_equal_values_is_that_value_bit_for_bit(dtype, seed, shares):
    values = any_bits(dtype, seed)
    assert same_bits(sum_tensors([values] * len(shares), shares, dtype), values)


@settings(max_examples=50, deadline=None)
@given(DTYPES, st.integers(0, 10**6), st.integers(2, 4))
def test_shares_of_0_and_1_return_a_parent_bit_for_bit(dtype, seed, count):
    parents = [any_bits(dtype, seed)]
    parents += [parents[0].roll(step) for step in range(1, count)]
    assert same_bits(sum_tensors(parents, split_shares(1.0, count), dtype), parents[0])
    assert same_bits(sum_tensors(parents[:2], split_shares(0.0, 2), dtype), parents[1])


@settings(max_examples=50, deadline=None)
@given(DTYPES, st.integers(0, 10**6), st.floats(0, 1))
def test_a_sum_is_the_exact_one_rounded_once(dtype, seed, alpha):
    chance = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(300, generator=chance).to(dtype) for _ in range(2))
    exact = alpha * a.double() + (1 - alpha) * b.double()
    found = sum_tensors([a, b], [alpha, 1 - alpha], dtype).double()
    narrow, wide = torch.finfo(dtype), torch.finfo(choose_wide(dtype))
    half_a_unit = (exact.abs() * narrow.eps).clamp(min=narrow.smallest_normal * narrow.eps) / 2
    before_rounding = 2 * wide.eps * (a.abs() + b.abs()).double()
    assert ((found - exact).abs() <= half_a_unit + before_rounding).all()


def test_shares_are_alpha_and_the_rest_or_all_equal():
    assert split_shares(0.9, 3) == [0.9, pytest.approx(0.05), pytest.approx(0.05)]
    assert split_shares(None, 4) == [0.25] * 4


@settings(max_examples=50, deadline=None)
@given(DTYPES, st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([1.0, 0.1, 1e-3]))
def test_slerp_follows_its_formula_in_float64(dtype, seed, alpha, distance):
    """Also for a model that training moved by a thousandth."""
    chance = torch.Generator().manual_seed(seed)
    a = torch.randn(20, 30, generator=chance).to(dtype)
    b = (a.double() + distance * torch.randn(20, 30, generator=chance)).to(dtype)
    x, y = a.double().flatten(), b.double().flatten()
    # Half the angle by Kahan's formula, which is exact for small angles, where acos is not.
    u, v = x / x.norm(), y / y.norm()
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm()).item()
    exact = [math.sin(share * angle) / math.sin(angle) for share in (alpha, 1 - alpha)]
    assert slerp_shares(a, b, alpha) == pytest.approx(exact, abs=1e-12)
    made = sum_tensors([a, b], slerp_shares(a, b, alpha), torch.float64).double().flatten()
    expected = exact[0] * x + exact[1] * y
    assert (made - expected).abs().max() < 1e-11


def test_slerp_keeps_the_norm_where_the_mean_does_not():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    made = sum_tensors([a, b], slerp_shares(a, b, 0.5), torch.float32)
    assert made.norm() == pytest.approx(1)
    assert sum_tensors([a, b], [0.5, 0.5], torch.float32).norm() < 0.8


def test_slerp_of_equal_tensors_is_linear_and_of_opposite_ones_unknown():
    a = torch.randn(400, generator=torch.Generator().manual_seed(1))
    assert slerp_shares(a, a, 0.3) == [0.3, 0.7]
    assert slerp_shares(a, torch.zeros(400), 0.3) == [0.3, 0.7]
    with pytest.raises(ValueError, match="opposite"):
        slerp_shares(a, -a, 0.3)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────

TENSORS = {
    "model.embed_tokens.weight": (320, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.norm.weight": (8,),
}
CONFIG = {"model_type": "llama", "hidden_size": 8, "rope_parameters": {"rope_theta": 1e4}}


def write_model(step, seed=0, dtype=torch.bfloat16, files=1, config=CONFIG, **extra) -> Model:
    """A published folder with random weights, in several files where asked."""
    folder = step / "weights"
    tiny_tokenizer(folder)
    chance = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randn(s, generator=chance).to(dtype) for n, s in TENSORS.items()}
    tensors = drawn | {name: make(drawn) for name, make in extra.items()}
    if files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        parts = [[*tensors][at::files] for at in range(files)]
        places = {}
        for at, names in enumerate(parts, 1):
            file = f"model-{at:05d}-of-{files:05d}.safetensors"
            part = {name: tensors[name] for name in names}
            save_file(part, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(names, file)
        index = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps(config))
    (step / "model.json").write_text(json.dumps({"weights": "weights", "tokenizer": "weights"}))
    return Model(step)


def merge(tmp_path, *models, shares=None, method="linear"):
    parents = [soup.open_parent(model) for model in models]
    soup.check_alike(parents)
    out = tmp_path / "merge" / "made"
    return soup.write_weights(parents, shares or split_shares(None, len(parents)), method, out)


def read(model: Model) -> dict[str, torch.Tensor]:
    files = sorted((model.path / "weights").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_a_soup_of_one_model_has_its_files_byte_for_byte(tmp_path, files, method):
    models = [write_model(tmp_path / "train" / f"{at}", files=files) for at in range(2)]
    made = merge(tmp_path, *models, method=method)
    for file in (models[0].path / "weights").glob("*.safetensors"):
        assert (made.path / "weights" / file.name).read_bytes() == file.read_bytes()
    assert made.weights == made.path / "weights"


def test_files_may_be_split_in_other_ways_and_the_ends_are_the_parents(tmp_path):
    a = write_model(tmp_path / "train" / "a", seed=1, files=2)
    b = write_model(tmp_path / "train" / "b", seed=2)
    for shares, parent in (([1.0, 0.0], a), ([0.0, 1.0], b)):
        made = merge(tmp_path, a, b, shares=shares)
        assert len([*(made.path / "weights").glob("*.safetensors")]) == 2
        assert all(same_bits(read(made)[name], value) for name, value in read(parent).items())
        index = json.loads((made.path / "weights" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(TENSORS)
        assert index["metadata"]["total_size"] == 2 * (320 * 8 + 64 + 8)


def test_the_widest_dtype_is_kept_so_that_neither_end_is_rounded(tmp_path):
    a = write_model(tmp_path / "train" / "a", seed=1)
    b = write_model(tmp_path / "train" / "b", seed=2, dtype=torch.float32)
    made = read(merge(tmp_path, a, b, shares=[1.0, 0.0]))
    assert all(torch.equal(made[name], value.float()) for name, value in read(a).items())
    made = read(merge(tmp_path, a, b, shares=[0.0, 1.0]))
    assert all(same_bits(made[name], value) for name, value in read(b).items())


def test_a_tied_copy_that_only_one_stores_is_left_out(tmp_path):
    tied = {"lm_head.weight": lambda drawn: drawn["model.embed_tokens.weight"].clone()}
    a = write_model(tmp_path / "train" / "a", seed=1)
    b = write_model(tmp_path / "train" / "b", seed=2, **tied)
    for pair in ((a, b), (b, a)):
        assert set(read(merge(tmp_path, *pair))) == set(TENSORS)
    both = write_model(tmp_path / "train" / "c", seed=3, **tied)
    made = read(merge(tmp_path, b, both))
    assert torch.equal(made["lm_head.weight"], made["model.embed_tokens.weight"])
    untied = {"lm_head.weight": lambda drawn: drawn["model.embed_tokens.weight"] + 1}
    c = write_model(tmp_path / "train" / "d", seed=2, **untied)
    with pytest.raises(UserError, match=r"tensor lm_head\.weight, and .*/a/weights has none"):
        merge(tmp_path, a, c)


def test_other_shapes_dtypes_tokens_and_settings_are_refused_by_name(tmp_path):
    a = write_model(tmp_path / "train" / "a")
    norm = {"model.norm.weight": lambda _: torch.zeros(9, dtype=torch.bfloat16)}
    b = write_model(tmp_path / "train" / "b", **norm)
    with pytest.raises(UserError, match=r"model\.norm\.weight has the shape \[8\] in .*\[9\] in"):
        merge(tmp_path, a, b)
    eight = {"model.norm.weight": lambda _: torch.zeros(8, dtype=torch.int8)}
    c = write_model(tmp_path / "train" / "c", **eight)
    with pytest.raises(UserError, match=r"model\.norm\.weight of .*/c/weights has the dtype I8"):
        merge(tmp_path, a, c)
    d = write_model(tmp_path / "train" / "d")
    tiny_tokenizer(d.path / "weights", vocabulary=300)
    with pytest.raises(UserError, match=r"tokens differ between .*: '.+' has the id .* is missing"):
        merge(tmp_path, a, d)
    other = {**CONFIG, "rope_parameters": {"rope_theta": 1e6}}
    e = write_model(tmp_path / "train" / "e", config=other)
    with pytest.raises(UserError, match="rope_theta is 10000.0 in .* and 1000000.0 in"):
        merge(tmp_path, a, e)
    old = {"model_type": "llama", "hidden_size": 8, "rope_theta": 1e4, "torch_dtype": "float32"}
    merge(tmp_path, a, write_model(tmp_path / "train" / "f", config=old))


@pytest.mark.parametrize("cut", [4, 40, -1])
def test_a_damaged_file_is_refused(tmp_path, cut):
    model = write_model(tmp_path / "train" / "a")
    file = model.path / "weights" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"model\.safetensors: it is damaged or not complete"):
        open_tensors(file.parent)


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    model = write_model(tmp_path / "train" / "a", files=2)
    (model.path / "weights" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="it has no model-00002-of-00002"):
        open_tensors(model.path / "weights")
    shutil.rmtree(model.path / "weights")
    (model.path / "weights").mkdir()
    with pytest.raises(UserError, match=r"it has no model\.safetensors"):
        open_tensors(model.path / "weights")


def test_one_tensor_after_the_other_is_made_and_written(tmp_path):
    """None is held while the next one is made."""
    model = write_model(tmp_path / "train" / "a")
    source, made = open_tensors(model.path / "weights"), []

    def make(name):
        assert all(tensor() is None for tensor in made)
        tensor = source.read(name)
        made.append(weakref.ref(tensor))
        return tensor

    write_folder(tmp_path / "copy", source.files, make, lambda _: None)
    assert len(made) == len(TENSORS)


@pytest.mark.parametrize("name", ["nothing", "empty", "adapter_only"])
def test_a_folder_that_is_not_a_model_is_refused(tmp_path, name):
    folder = tmp_path / name
    if name != "nothing":
        folder.mkdir()
    if name == "adapter_only":
        (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"merge\.models\.0=.*{name}: it is "):
        soup.open_folder(str(folder), "merge.models.0")


def test_a_step_or_its_weights_or_any_checkpoint_is_opened(tmp_path):
    model = write_model(tmp_path / "train" / "a")
    for path in (model.path, model.path / "weights"):
        assert soup.open_folder(str(path), "k").model == model
    shutil.copytree(model.path / "weights", tmp_path / "elsewhere")
    assert soup.open_folder(str(tmp_path / "elsewhere"), "k").model is None
