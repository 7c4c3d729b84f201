"""The sampler's log-probabilities against the trainer's: equal in float32, a planted gap warns."""

import json
import random

import polars as pl
import pytest

from pipeline.artifacts import Model, write_json
from pipeline.models import loading
from pipeline.stages import sample, train
from pipeline.training.monitoring.sampler_check import measure_gaps, report_gaps
from tests.stages import test_sample
from tests.support.preferences import LORA, dpo, write_logps, write_pairs
from tests.support.tiny import WORDS, tiny_model

pytestmark = pytest.mark.model
# A hot and narrow setting: the log-probabilities are of the model without either.
DRAW = {"draw": {"n": 2, "temperature": 1.3, "top_p": 0.7, **test_sample.PLAIN}}
TRANSFORMERS = {"kind": "transformers", "dtype": "float32", "runtime": {"batch": 8}}
FLOAT32 = 2e-5  # nats per token


class Round:
    def __init__(self, store):
        self.store = store
        self.sft = tiny_model(store / "sft" / "aaaaaaaaaaaa")
        self.pairs = write_pairs(store / "pair" / "aaaaaaaaaaaa", self.sft)
        self.logps = write_logps(store / "reference" / "aaaaaaaaaaaa", self.sft, self.pairs)
        chance = random.Random(1)
        texts = (" ".join(chance.choices(WORDS.split(), k=6)) for _ in range(40))
        self.prompts = test_sample.ask(store / "prompts" / "aaaaaaaaaaaa", *texts)

    def sample(self, name: str, policy: Model, backend=TRANSFORMERS) -> None:
        out = self.store / "sample" / name
        cfg = test_sample.config(settings=DRAW, backend=backend)
        sample.run(cfg, out, policy=policy, prompts=self.prompts)
        write_json(out / "manifest.json", {"config": cfg.model_dump(mode="json"), "files": []})

    def list_ancestors(self, out, *samples: str) -> None:
        steps = [
            {"stage": "sample", "label": 1, "path": str(self.store / "sample" / name)}
            | {"fingerprint": name}
            for name in samples
        ]
        write_json(out / "step.json", {"ancestors": steps})

    def train(self, name: str, samples: str, **changes):
        out = self.store / "train" / name
        self.list_ancestors(out, samples)
        inputs = {"pairs": [self.pairs], "logps": [self.logps], "reference": self.sft}
        return train.run(dpo(LORA, **changes), out, init=self.sft, **inputs)


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    made = Round(tmp_path_factory.mktemp("store"))
    made.sample("of_sft", made.sft)
    return made


def read_gap(model: Model) -> float | None:
    return json.loads((model.path / "cost.json").read_text()).get("sampler_gap")


def test_in_float32_the_trainer_computes_what_the_sampler_computed(round_, capsys):
    gap = read_gap(round_.train("equal", "of_sft"))
    assert gap is not None and gap < FLOAT32
    printed = capsys.readouterr().err
    assert "│ the sampler's log-probabilities differ from the trainer's by" in printed
    assert "64 answers" in printed and "! the sampler" not in printed


def test_it_changes_nothing_that_is_published(round_):
    with_check = round_.train("with", "of_sft")
    without = round_.train("without", "of_sft", runtime={"warn_sampler_gap": None})
    assert read_gap(with_check) is not None and read_gap(without) is None
    name = "adapter/adapter_model.safetensors"
    assert (with_check.path / name).read_bytes() == (without.path / name).read_bytes()


def test_another_scale_of_an_adapter_in_the_sampler_is_warned_of(round_, capsys):
    """The weights are right and the sampler applies them by half."""
    adapter = random_adapter(round_, alpha=LORA["alpha"])
    wrong = random_adapter(round_, alpha=LORA["alpha"] / 2, name="wrong")
    round_.sample("scaled", wrong)
    out = round_.store / "train" / "scaled"
    round_.list_ancestors(out, "scaled")
    assert train.find_sampled_answers(out, adapter) is None  # they name another policy
    answers = train.find_sampled_answers(out, wrong)
    gaps = measure_gaps(loading.load(adapter, "float32"), answers, 64)
    report_gaps(gaps, dpo(runtime={"warn_sampler_gap": 0.02}), out)
    printed = capsys.readouterr().err
    assert "! the sampler's log-probabilities differ" in printed and "warn_sampler_gap" in printed
    assert measure_gaps(loading.load(wrong, "float32"), answers, 64).max() < FLOAT32


def random_adapter(round_: Round, alpha: float, name: str = "right") -> Model:
    import torch

    from pipeline.config import LoraAdapter

    cfg = LoraAdapter(**{**LORA, "alpha": alpha})
    torch.manual_seed(3)
    module = loading.load_with_adapter(round_.sft, cfg, "float32")
    with torch.no_grad():
        for key, weight in module.named_parameters():
            if "lora_" in key:
                weight.copy_(torch.randn_like(weight) / 4)
    out = round_.store / "train" / name
    out.mkdir(parents=True, exist_ok=True)
    return loading.save_adapter(module, round_.sft, cfg, "float32", out)


def test_only_the_policy_s_own_answers_count(round_):
    """Not those of another model, a scripted sampler, or of a step that was pruned."""
    out = round_.store / "train" / "other"
    round_.sample("scripted", round_.sft, {"kind": "scripted", "vocabulary": 200})
    write_json(
        round_.store / "sample" / "pruned" / "manifest.json",
        {"config": {"backend": TRANSFORMERS}, "files": []},
    )
    round_.list_ancestors(out, "of_sft", "scripted", "pruned")
    found = train.find_sampled_answers(out, round_.sft)
    assert found is not None and found.height == 64  # of 80
    other = tiny_model(round_.store / "sft" / "bbbbbbbbbbbb", seed=1)
    assert train.find_sampled_answers(out, other) is None
    round_.list_ancestors(out, "scripted", "pruned")
    assert train.find_sampled_answers(out, round_.sft) is None


@pytest.mark.parametrize(("mean", "warns"), [(0.019, False), (0.021, True)])
def test_the_mean_decides_and_the_99th_percentile_is_shown(tmp_path, capsys, mean, warns):
    gaps, cfg = pl.Series([mean] * 200), dpo(runtime={"warn_sampler_gap": 0.02})
    report_gaps(gaps, cfg, tmp_path)
    assert ("! " in capsys.readouterr().err) == warns
    report_gaps(pl.Series([0.0] * 197 + [0.5] * 3), cfg, tmp_path)
    assert "99 % of 200 answers: at most 0.5" in capsys.readouterr().err
