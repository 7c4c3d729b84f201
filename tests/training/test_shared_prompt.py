"""Both answers to a prompt in one row: the same losses and gradients, of fewer tokens."""

import json
import re
from functools import partial
from types import SimpleNamespace

import polars as pl
import pytest
import torch

from pipeline.artifacts import read_table, write_table
from pipeline.config import TrainConfig
from pipeline.training import prompt_sharing
from pipeline.training.row_packing import RowPacking
from pipeline.training.trainers import segment_attention
from pipeline.training.trainers.passes import Arrangement, arrange_rows, estimate_cost, use_layout
from pipeline.training.trainers.segment_attention import SEGMENTS
from pipeline.training.trainers.shared_prompt import SharedRows
from tests.support.preferences import LORA, dpo, write_logps
from tests.training.test_guards import Round, metric_by_step

pytestmark = pytest.mark.model

OBJECTIVES = {
    "dpo": {},
    "full": {"adapter": {"kind": "full", "learning_rate": 1e-3}},
    "checkpointed": {"gradient_checkpointing": True},
    "padded": {"by_length": False},  # a mask hides the other answer, as on a GPU
    "padded and checkpointed": {"by_length": False, "gradient_checkpointing": True},
    "online": {"reference_logps": "online"},
    "ld_dpo": {"reference_logps": "online", "args": {"ld_alpha": 0.5}},
    "wpo": {"args": {"use_weighting": True}},
    "aot": {"loss": ["aot"], "loss_group": 8},
    "ipo": {"loss": ["ipo"]},
    "rpo": {"loss": ["sigmoid", "sft"], "loss_group": 8},
}


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    """Pairs whose prompts are four times as long as they were."""
    round_ = Round(tmp_path_factory.mktemp("store"), context=512)
    for file in ("train", "dev"):
        table = read_table(path := round_.pairs.path / f"{file}.parquet")
        write_table(path, table.with_columns(pl.concat_list(["prompt_token_ids"] * 4)))
    round_.logps = write_logps(
        round_.store / "reference" / "bbbbbbbbbbbb", round_.sft, round_.pairs
    )
    return round_


def settings(**changes) -> TrainConfig:
    return dpo(**{"adapter": LORA, "batch": 8, "micro_batch": 8, "max_length": 300, **changes})


def tokens_through(monkeypatch) -> list[int]:
    """The tokens of every pass of a training that follows."""
    from transformers import LlamaModel

    passes, plain = [], LlamaModel.forward

    def forward(self, *args, **kwargs):
        passes.append(kwargs["input_ids"].numel() if torch.is_grad_enabled() else 0)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    return passes


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_are_those_of_separate_rows(round_, monkeypatch, name):
    tokens, runs = [], []
    for choice in ("auto", False):
        passes = tokens_through(monkeypatch)
        cfg = settings(shared_prompt=choice, **OBJECTIVES[name])
        runs.append(round_.train(f"{name}-{choice}", cfg))
        tokens.append(sum(passes))
        monkeypatch.undo()
    for figure in ("loss", "grad_norm", "eval_loss", "eval_mean_token_accuracy"):
        ours, theirs = (metric_by_step(run, figure) for run in runs)
        assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-4)
    assert len(metric_by_step(runs[0], "loss")) >= 3
    assert tokens[0] < 0.7 * tokens[1]


@pytest.mark.slow
def test_two_processes_share_prompts_and_give_the_losses_of_one(round_):
    one = round_.train("one", settings(shared_prompt=False))
    two = round_.train("two", settings(micro_batch=4, processes=2))
    for figure in ("loss", "grad_norm"):
        ours, theirs = (metric_by_step(run, figure) for run in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.slow
def test_the_log_and_the_costs_say_what_share_of_the_tokens_is_computed(round_, capfd):
    model = round_.train("noted", settings())
    share = json.loads((model.path / "cost.json").read_text())["computed_share"]
    assert 0.5 < share < 0.7
    assert f"│ prompts  computed once for both answers: {share:.0%}" in capfd.readouterr().err
    plain = round_.train("plain", settings(shared_prompt=False))
    assert "computed_share" not in json.loads((plain.path / "cost.json").read_text())
    assert "prompts  " not in capfd.readouterr().err


# ── one pass ──────────────────────────────────────────────────────────────────────────────────────


def random_model(kind: str = "llama", **changes):
    """With TRL's output head, which gives the log-probability of each label."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    shape = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **changes}))
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model.eval()


def collate(pairs: list[tuple[int, int, int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """TRL's batch of random tokens: of each pair its prompt, chosen and rejected tokens."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    draw = torch.Generator().manual_seed(seed)
    names = "prompt_ids", "chosen_ids", "rejected_ids"
    rows = [
        {
            name: torch.randint(1, 97, (count,), generator=draw).tolist()
            for name, count in zip(names, counts, strict=True)
        }
        for counts in pairs
    ]
    batch = DataCollatorForPreference(pad_token_id=0)(rows)
    is_answer = batch.pop("completion_mask").bool()
    return {**batch, "labels": batch["input_ids"].masked_fill(~is_answer, -100)}


KTO = {"trainer": "kto", "loss": ["kto"], "loss_group": 8, "reference_logps": "online"}
PAIRS = [(40, 5, 9), (2, 1, 1), (1, 3, 2), (60, 20, 1), (9, 1, 30)]


def compute(
    model, batch: dict[str, torch.Tensor], shares: bool, by_length: bool = True, packs: bool = False
):
    attention = model.config._attn_implementation
    arrangement = Arrangement(
        hidden=10**9,
        attention=attention,
        by_length=by_length,
        shares_prompts=shares,
        sharded=False,
        packs=packs or attention == SEGMENTS,
    )
    with arrange_rows([model], arrangement):
        return model(**batch, fused_lm_head=True, use_cache=False)


@pytest.mark.parametrize("by_length", [True, False])
def test_each_token_and_each_gradient_is_that_of_a_row_by_itself(by_length):
    """Prompts and answers of one token too."""
    model, batch = random_model(), collate(PAIRS)
    shared, separate = (
        measure(model, batch, shares, by_length=by_length) for shares in (True, False)
    )
    assert_equal(shared, separate)
    assert (shared[0].log_probs != 0).sum() == sum(a + b for _, a, b in PAIRS)


def measure(model, batch: dict[str, torch.Tensor], shares: bool, **changes):
    """What the loss reads, and the gradient of each weight."""
    result = compute(model, batch, shares, **changes)
    factors = torch.linspace(-1, 2, result.log_probs.numel()).view_as(result.log_probs)
    model.zero_grad()
    (result.log_probs * factors).sum().backward()
    return result, {name: each.grad.clone() for name, each in model.named_parameters()}


def assert_equal(one, other) -> None:
    for name in ("log_probs", "entropy"):
        assert torch.allclose(one[0][name], other[0][name], atol=1e-4)
    for name, gradient in one[1].items():
        assert torch.allclose(gradient, other[1][name], atol=1e-3, rtol=1e-3), name


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_rows_packed_into_one_are_those_of_rows_by_themselves(kind):
    """As under flash attention: sdpa too takes positions that start again for another row."""
    model, batch = random_model(kind), collate(PAIRS)
    packed, separate = (measure(model, batch, shares=False, packs=packs) for packs in (True, False))
    assert_equal(packed, separate)


def test_packed_rows_are_one_without_padding(monkeypatch):
    from transformers import LlamaModel

    model, batch, sizes, plain = random_model(), collate(PAIRS), [], LlamaModel.forward
    monkeypatch.setattr(
        LlamaModel,
        "forward",
        lambda self, **given: sizes.append(given["input_ids"].shape) or plain(self, **given),
    )
    compute(model, batch, shares=False, packs=True)
    # But for the last token of each row, which predicts nothing.
    assert sizes == [(1, batch["attention_mask"].sum() - len(batch["input_ids"]))]


@pytest.mark.parametrize("shares", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_rows_by_segments_are_those_of_rows_by_themselves(kind, shares):
    model, batch = random_model(kind), collate(PAIRS)
    separate = measure(model, batch, shares=False)
    assert_equal(measure(cut_into_segments(model), batch, shares), separate)


def cut_into_segments(model):
    segment_attention.register()
    model.set_attn_implementation(SEGMENTS)
    return model


def test_segments_are_as_many_tokens_as_predict_another(monkeypatch):
    from transformers import LlamaModel

    model, batch, sizes = cut_into_segments(random_model()), collate(PAIRS), []
    plain = LlamaModel.forward
    monkeypatch.setattr(
        LlamaModel,
        "forward",
        lambda self, **given: sizes.append(given["input_ids"].numel()) or plain(self, **given),
    )
    for shares in (True, False):
        compute(model, batch, shares)
    once = sum(prompt - 1 + chosen + rejected for prompt, chosen, rejected in PAIRS)
    twice = sum(2 * (prompt - 1) + chosen + rejected for prompt, chosen, rejected in PAIRS)
    assert sizes == [once, twice]


@pytest.mark.parametrize(
    ("kind", "shape", "drops", "why"),
    [
        ("llama", {}, False, None),
        ("llama", {}, True, "the model refuses such rows"),
        ("mistral", {"sliding_window": 16}, False, "window of 16 tokens is shorter"),
    ],
    ids=["cut", "segments dropped", "window"],
)
def test_a_model_that_takes_no_segments_keeps_its_attention(kind, shape, drops, why):
    model = random_model(kind, **shape)
    if drops:
        plain = model.model.forward
        model.model.forward = lambda *given, segments=None, **more: plain(*given, **more)
    packing = RowPacking(settings(), {"train": make_pairs(60, 20)})
    packing.attach(make_trainer(model))
    found = packing._cut_into_segments()
    assert (why is None and found is None) or re.search(why, found)
    assert model.config._attn_implementation == ("sdpa" if why else SEGMENTS)


def test_without_segments_a_model_is_as_before():
    model, batch = random_model(), collate(PAIRS)
    plain = model(**batch, fused_lm_head=True).log_probs
    assert torch.equal(cut_into_segments(model)(**batch, fused_lm_head=True).log_probs, plain)


@pytest.fixture
def flex_on_a_cpu(monkeypatch) -> None:
    """Flex attention as torch defines it, not compiled. On a CPU torch refuses its gradient."""
    from torch.nn.attention import flex_attention
    from transformers.integrations.flex_attention import WrappedFlexAttention

    monkeypatch.setattr(
        WrappedFlexAttention, "__call__", lambda self: flex_attention.flex_attention
    )
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *given: None)


def test_flex_attention_shares_prompts_by_blocks_of_its_mask(flex_on_a_cpu):
    model, batch = random_model(hidden_size=64), collate([(200, 90, 150), (40, 5, 9)])
    separate = measure(model, batch, shares=False)
    model.set_attn_implementation("flex_attention")
    assert_equal(measure(model, batch, shares=True), separate)


@pytest.mark.parametrize("prepare", [lambda model: model, cut_into_segments], ids=["mask", "cut"])
def test_no_answer_sees_the_other_one(prepare):
    model, batch = prepare(random_model()), collate(PAIRS)
    other = {name: tensor.clone() for name, tensor in batch.items()}
    chosen = slice(0, len(PAIRS))
    is_answer = batch["labels"][chosen] != -100
    for name in ("input_ids", "labels"):
        other[name][chosen][is_answer] = (batch["input_ids"][chosen][is_answer] + 13) % 96 + 1
    before, after = (compute(model, each, shares=True).log_probs for each in (batch, other))
    assert torch.equal(before[len(PAIRS) :], after[len(PAIRS) :])
    assert not torch.equal(before[chosen], after[chosen])


# ── which models and pairs ────────────────────────────────────────────────────────────────────────


def make_trainer(model) -> SimpleNamespace:
    """What the decision asks of a trainer."""
    from contextlib import nullcontext

    from trl.trainer.dpo_trainer import DataCollatorForPreference

    return SimpleNamespace(
        model=model,
        list_models=lambda: [model],
        data_collator=DataCollatorForPreference(pad_token_id=0),
        accelerator=SimpleNamespace(unwrap_model=lambda module: module),
        aux_loss_enabled=False,
        _prepare_inputs=lambda batch: batch,
        compute_loss_context_manager=nullcontext,
    )


def make_pairs(prompt: int, answer: int) -> pl.DataFrame:
    names = "prompt_ids", "chosen_ids", "rejected_ids"
    counts = prompt, answer, answer + 1
    ids = {name: [[5 + at % 80 for at in range(n)]] for name, n in zip(names, counts, strict=True)}
    return pl.DataFrame(ids)


def explain(model, prompt: int = 60, answer: int = 20, **changes) -> str | None:
    return prompt_sharing.explain_separate(
        settings(**changes), make_trainer(model), make_pairs(prompt, answer)
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2", "gemma", "olmo2"])
def test_models_of_full_attention_share(kind):
    assert explain(random_model(kind)) is None


@pytest.mark.parametrize(
    ("kind", "shape", "changes", "why"),
    [
        ("llama", {}, KTO, "only train.trainer=dpo shares them"),
        ("llama", {}, {"prompt": 3}, "too short to save time"),
        ("llama", {"attn_implementation": "eager"}, {}, "attention by eager takes no mask"),
        ("mistral", {"sliding_window": 16}, {}, "window of 16 tokens is shorter than .*=300"),
        ("bloom", {}, {}, "attention by eager takes no mask"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, {}, "the model has layers of conv"),
    ],
    ids=["kto", "short prompts", "eager", "window", "bloom", "convolution"],
)
def test_others_do_not_and_say_why(kind, shape, changes, why):
    assert re.search(why, explain(random_model(kind, **shape), **changes) or "")


def test_a_window_with_room_for_the_longest_row_changes_nothing():
    assert explain(random_model("mistral", sliding_window=301)) is None


def test_a_model_that_computes_a_shared_row_otherwise_is_found_by_its_log_probabilities():
    """Of its config's word: here the window is there, and nothing names it."""
    share, pairs = partial(use_layout, SharedRows), make_pairs(60, 20)
    whys = [
        prompt_sharing.explain_difference(settings(), make_trainer(model), pairs, share)
        for model in (random_model("mistral", sliding_window=16), random_model())
    ]
    assert whys[0] and "would differ by" in whys[0]
    assert whys[1] is None


def test_the_share_counts_a_pair_as_it_costs_least():
    assert prompt_sharing.measure_share(make_pairs(60, 20), 32) == pytest.approx(101 / 161)
    assert prompt_sharing.measure_share(make_pairs(3, 200), 32) == 1
    both = pl.concat([make_pairs(60, 20), make_pairs(3, 200)])
    assert prompt_sharing.measure_share(both, 32) == pytest.approx((101 + 407) / (161 + 407))


def test_attention_costs_as_much_as_the_linear_layers_at_four_widths():
    assert estimate_cost(4 * 32, 32) == 2 * 4 * 32
