"""Every objective of conf/train: its loss against its paper, its batch against the sampler's ids.

The formulas see log-probabilities that a float64 copy of the model gave, and nothing of TRL.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from pipeline.artifacts import Model, Pairs, write_table
from pipeline.config import TrainConfig
from pipeline.config.trl_args import LOSSES, REMOVED_ARGS, REMOVED_LOSSES
from pipeline.errors import UserError
from pipeline.stages import train
from tests.support.house import HOUSE, SMALL, composed
from tests.support.preferences import write_logps, write_pairs
from tests.support.tiny import tiny_model

NAMES = sorted(path.stem for path in (HOUSE / "conf" / "train").glob("*.yaml"))
ROWS = 4  # of one batch


@cache
def compose_objective(name: str) -> TrainConfig:
    small = (
        "gradient_checkpointing=false",
        "max_length=128",
        "dtype=float32",
        "batch=8",
        "eval_every=9",
    )
    return composed(
        *SMALL, f"train={name}", "reference.dtype=float32", *(f"train.{word}" for word in small)
    ).train


def objective(name: str, **changes: object) -> TrainConfig:
    """The objective as conf/ has it, on a tiny model's scale."""
    cfg = compose_objective(name)
    runtime = cfg.runtime.model_copy(update={"micro_batch": ROWS, "typical_learning_rate": 1e-3})
    together = ROWS if cfg.loss_group else None
    shaped = cfg.model_copy(
        update={"runtime": runtime, "loss_group": together, "learning_rate": 1e-3, **changes}
    )
    return TrainConfig(**shaped.model_dump())


# ── the papers ────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Facts:
    """Of one batch in float64: log-probabilities, summed over each answer and per token."""

    cfg: TrainConfig
    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: list[Tensor]  # log-probability of each token, under the policy
    rejected_tokens: list[Tensor]
    ref_chosen_tokens: list[Tensor]
    ref_rejected_tokens: list[Tensor]
    overlap: Tensor  # Σ_v π(v)² along the answers, in logs: (chosen + rejected) lists of tensors
    whole: Tensor  # mean log-probability of prompt and chosen answer together
    rows: list[dict]  # as the trainer gets them

    def column(self, name: str) -> Tensor:
        return torch.tensor([row[name] for row in self.rows], dtype=torch.float64)

    @property
    def b(self) -> float:
        return self.cfg.beta

    @property
    def wrong(self) -> float:
        return self.cfg.args.get("label_smoothing", 0.0)

    @property
    def up(self) -> Tensor:
        return self.chosen - self.ref_chosen

    @property
    def down(self) -> Tensor:
        return self.rejected - self.ref_rejected

    @property
    def delta(self) -> Tensor:
        return self.up - self.down

    @property
    def lengths(self) -> tuple[Tensor, Tensor]:
        return counts(self.chosen_tokens), counts(self.rejected_tokens)

    @property
    def nll(self) -> Tensor:
        """Of the chosen answers, per token of the batch."""
        return -torch.cat(self.chosen_tokens).mean()


def counts(tokens: list[Tensor]) -> Tensor:
    return torch.tensor([len(each) for each in tokens], dtype=torch.float64)


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def log_sigma(x: Tensor) -> Tensor:
    return torch.log(sigma(x))


def dpo(f: Facts) -> Tensor:
    """2305.18290, Eq. 7."""
    return -log_sigma(f.b * f.delta)


def cdpo(f: Facts) -> Tensor:
    """E. Mitchell, A note on DPO with noisy preferences, 2023, Eq. 3."""
    return -(1 - f.wrong) * log_sigma(f.b * f.delta) - f.wrong * log_sigma(-f.b * f.delta)


def robust(f: Facts) -> Tensor:
    """2403.00409, Sec. 3.1: the loss whose mean over flipped labels is the clean one."""
    clean, flipped = -log_sigma(f.b * f.delta), -log_sigma(-f.b * f.delta)
    return ((1 - f.wrong) * clean - f.wrong * flipped) / (1 - 2 * f.wrong)


def ipo(f: Facts) -> Tensor:
    """2310.12036, Eq. 17, with log-ratios per token."""
    mine, theirs = f.lengths
    return (f.up / mine - f.down / theirs - 1 / (2 * f.b)) ** 2


def hinge(f: Facts) -> Tensor:
    """2305.10425, Sec. 2, on log-ratios as in 2309.06657 (hinge-norm)."""
    return torch.clamp(1 - f.b * f.delta, min=0)


def sigmoid_norm(f: Facts) -> Tensor:
    """2411.15124 (Tülu 3), Eq. 6."""
    mine, theirs = f.lengths
    return -log_sigma(f.b / mine * f.up - f.b / theirs * f.down)


def ld_dpo(f: Facts) -> Tensor:
    """2409.06411, Sec. 3: tokens beyond the shorter answer's length weigh α."""
    alpha, total = f.cfg.args["ld_alpha"], []
    sides = (f.chosen_tokens, f.rejected_tokens, f.ref_chosen_tokens, f.ref_rejected_tokens)
    for row in zip(*sides, strict=True):
        shared = min(len(row[0]), len(row[1]))
        c, r, rc, rr = (each[:shared].sum() + alpha * each[shared:].sum() for each in row)
        total.append((c - rc) - (r - rr))
    return -log_sigma(f.b * torch.stack(total))


def wpo(f: Facts) -> Tensor:
    """2406.11827, Eq. 2, each token aligned by Σ_v π(v)² (Sec. 3.2)."""
    chosen, rejected = f.overlap
    weights = [
        torch.exp((c - oc).mean()) * torch.exp((r - orr).mean())
        for c, oc, r, orr in zip(f.chosen_tokens, chosen, f.rejected_tokens, rejected, strict=True)
    ]
    return torch.stack(weights) * dpo(f)


def rpo(f: Facts) -> Tensor:
    """2404.19733, Eq. 1, the likelihood per token."""
    return dpo(f) + f.nll


def exo(f: Facts) -> Tensor:
    """2402.00856, Eq. 16: KL from the policy's preference to the smoothed label's."""
    p = sigma(f.b * f.delta)
    return p * torch.log(p / (1 - f.wrong)) + (1 - p) * torch.log((1 - p) / f.wrong)


def nca(f: Facts) -> Tensor:
    """2402.05369, Sec. 4.1, for two answers."""
    up, down = f.b * f.up, f.b * f.down
    return -log_sigma(up) - 0.5 * log_sigma(-up) - 0.5 * log_sigma(-down)


def sppo_hard(f: Facts) -> Tensor:
    """2405.00675, Eq. 4.7, with P = 1 and 0, and β = 1/η."""
    return (f.up - 0.5 / f.b) ** 2 + (f.down + 0.5 / f.b) ** 2


def aot(f: Facts) -> Tensor:
    """2406.05882, Sec. 3, paired: the policy's sorted margins over the reference's."""
    mine, theirs = (
        torch.sort(f.chosen - f.rejected).values,
        torch.sort(f.ref_chosen - f.ref_rejected).values,
    )
    return -log_sigma(f.b * (mine - theirs))


def aot_unpaired(f: Facts) -> Tensor:
    """2406.05882, Sec. 3, unpaired."""
    return -log_sigma(f.b * (torch.sort(f.up).values - torch.sort(f.down).values))


def apo_zero(f: Facts) -> Tensor:
    """2408.06266, Eq. 7."""
    return 1 - sigma(f.b * f.up) + sigma(f.b * f.down)


def apo_down(f: Facts) -> Tensor:
    """2408.06266, Eq. 8."""
    return sigma(f.b * f.up) - sigma(f.b * f.delta) + 1


def discopop(f: Facts) -> Tensor:
    """2406.08414, Eq. 5."""
    x = f.b * f.delta
    share = sigma(x / f.cfg.args["discopop_tau"])
    return (1 - share) * -log_sigma(x) + share * torch.exp(-x)


def bco_pair(f: Facts) -> Tensor:
    """2404.04656, Sec. 4, the classifier's cross-entropy on either side."""
    return -log_sigma(f.b * f.up) - log_sigma(-f.b * f.down)


def simpo(f: Facts) -> Tensor:
    """2405.14734, Eq. 6."""
    mine, theirs = f.lengths
    return -log_sigma(f.b / mine * f.chosen - f.b / theirs * f.rejected - f.cfg.args["simpo_gamma"])


def cpo(f: Facts) -> Tensor:
    """2401.08417, Eq. 3 without reference, and the likelihood of the chosen answer."""
    return -log_sigma(f.b * (f.chosen - f.rejected)) + f.cfg.loss_weights[1] * f.nll


def orpo(f: Facts) -> Tensor:
    """2403.07691, Eq. 6 and 7: odds of the mean log-probabilities."""
    mine, theirs = f.lengths
    up, down = f.chosen / mine, f.rejected / theirs
    odds = up - torch.log(1 - torch.exp(up)) - down + torch.log(1 - torch.exp(down))
    return -f.whole - f.b * log_sigma(odds)


def soft_dpo(f: Facts) -> Tensor:
    """E. Mitchell's cDPO, Eq. 3, with 1 − p in place of the share of wrong labels."""
    p = f.column("p_chosen")
    return -p * log_sigma(f.b * f.delta) - (1 - p) * log_sigma(-f.b * f.delta)


def soft_ipo(f: Facts) -> Tensor:
    """2310.12036, Eq. 17, its mean over a label drawn with p, less the label's variance."""
    mine, theirs = f.lengths
    gap, p, target = f.up / mine - f.down / theirs, f.column("p_chosen"), 1 / (2 * f.b)
    mean = p * (gap - target) ** 2 + (1 - p) * (-gap - target) ** 2
    return mean - 4 * p * (1 - p) * target**2


def sppo(f: Facts) -> Tensor:
    """2405.00675, Eq. 4.7, with P = p_chosen and 1 − p_chosen, and β = 1/η."""
    p = f.column("p_chosen")
    return (f.up - (p - 0.5) / f.b) ** 2 + (f.down - ((1 - p) - 0.5) / f.b) ** 2


def reward_aware(f: Facts) -> Tensor:
    """2406.11704, Sec. 3.3.2: D[a ‖ b] = σ(b) log σ(b)/σ(a) + (1−σ(b)) log (1−σ(b))/(1−σ(a))."""
    a, b = sigma(f.b * f.delta), sigma(f.cfg.args["reward_scale"] * f.column("margin"))
    return b * torch.log(b / a) + (1 - b) * torch.log((1 - b) / (1 - a))


PAIRED = {
    each.__name__: each
    for each in (
        dpo, cdpo, robust, ipo, hinge, sigmoid_norm, ld_dpo, wpo, rpo, exo, nca, sppo_hard, aot,
        aot_unpaired, apo_zero, apo_down, discopop, bco_pair, simpo, cpo, orpo, soft_dpo, soft_ipo,
        sppo, reward_aware,
    )
} | {"tr_dpo": dpo}  # fmt: skip  # 2404.09656 changes the reference alone


# ── the models ────────────────────────────────────────────────────────────────────────────────────


class Two:
    """A policy near its reference, with pairs, unpaired answers and the reference's values."""

    def __init__(self, store: Path):
        self.store = store
        self.reference = tiny_model(store / "sft" / "aaaaaaaaaaaa")
        self.policy = perturb(self.reference, store / "train" / "bbbbbbbbbbbb")
        self.pairs = write_pairs(store / "pair" / "aaaaaaaaaaaa", self.reference, train=16)
        write_table(self.pairs.path / "unpaired.parquet", unpaired_of(self.pairs))
        self.logps = write_logps(store / "reference" / "aaaaaaaaaaaa", self.reference, self.pairs)

    def trainer(self, cfg: TrainConfig, out: Path):
        from pipeline.training import build
        from pipeline.training.monitoring import guards

        logps = [self.logps] if cfg.reference_logps == "precomputed" else []
        rows = {
            part: train.prepare_pairs(cfg, [self.pairs], part, logps) for part in ("train", "dev")
        }
        reference = None if cfg.reference_logps == "none" else self.reference
        watch = guards.build_guards(cfg, self.policy, reference, None, rows["dev"], out)
        policy = build.load_policy(cfg, self.policy)
        return build.build_trainer(cfg, policy, self.policy, reference, rows, out, watch)[0]

    def run(self, cfg: TrainConfig, name: str, **changes) -> Model:
        given = {
            "init": self.policy,
            "reference": self.reference,
            "pairs": [self.pairs],
            "logps": [self.logps],
        }
        return train.run(cfg, self.store / "train" / name, **{**given, **changes})


def perturb(model: Model, step: Path) -> Model:
    import json

    from pipeline.models import loading

    module = loading.load(model, "float32")
    torch.manual_seed(5)
    for weight in module.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    module.save_pretrained(step / "weights")
    loading.load_tokenizer(model).save_pretrained(step / "weights")
    (step / "model.json").write_text(json.dumps({"weights": "weights", "tokenizer": "weights"}))
    return Model(step)


def unpaired_of(pairs: Pairs):
    table = pl.concat([pairs.read_train(), pairs.read_dev()])
    sides = []
    for side, label in (("chosen", True), ("rejected", False)):
        names = {f"{side}_id": "sample_id", f"{side}_token_ids": "token_ids", side: "completion"}
        columns = ["prompt", "prompt_id", "prompt_token_ids", *names]
        sides.append(table.select(columns).rename(names).with_columns(label=pl.lit(label)))
    return pl.concat(sides).sort("prompt_id", "sample_id", "label")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Two:
    return Two(tmp_path_factory.mktemp("store"))


def token_logps(
    model: Model, prompt: list[int], answer: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each answer token; its overlap log Σ_v π(v)²; and of prompt and answer together."""
    from transformers import AutoModelForCausalLM

    module = opened.setdefault(
        str(model.weights), AutoModelForCausalLM.from_pretrained(model.weights).double().eval()
    )
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logs = module(ids).logits[0].log_softmax(-1)[:-1]
    picked = logs[torch.arange(len(logs)), ids[0, 1:]]
    start = len(prompt) - 1
    return picked[start:], torch.logsumexp(2 * logs, -1)[start:], picked


opened: dict[str, torch.nn.Module] = {}


def facts(cfg: TrainConfig, two: Two, rows: list[dict]) -> Facts:
    def side(model: Model, name: str) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [token_logps(model, row["prompt_ids"], row[f"{name}_ids"]) for row in rows]

    chosen, rejected = side(two.policy, "chosen"), side(two.policy, "rejected")
    ref_chosen, ref_rejected = side(two.reference, "chosen"), side(two.reference, "rejected")
    sums = [
        torch.stack([each[0].sum() for each in one])
        for one in (chosen, rejected, ref_chosen, ref_rejected)
    ]
    tokens = [[each[0] for each in one] for one in (chosen, rejected, ref_chosen, ref_rejected)]
    overlap = ([each[1] for each in chosen], [each[1] for each in rejected])
    whole = torch.cat([each[2] for each in chosen]).mean()
    return Facts(cfg, *sums, *tokens, overlap, whole, rows)


def loss_of(trainer, rows: list[dict]) -> float:
    trainer.model.eval()
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, batch).item()


# ── each loss is its paper's ──────────────────────────────────────────────────────────────────────


def test_every_objective_has_its_formula():
    """Those of online training are in test_online.py."""
    assert {*PAIRED, "kto", "apo_zero_unpaired", "grpo", "rloo"} == set(NAMES)


@pytest.mark.model
@pytest.mark.parametrize("name", sorted(PAIRED))
def test_the_loss_is_the_paper_s(two, tmp_path, name):
    cfg = objective(name)
    trainer = two.trainer(cfg, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(ROWS)]
    expected = PAIRED[name](facts(cfg, two, rows)).mean().item()
    assert loss_of(trainer, rows) == pytest.approx(expected, rel=2e-5, abs=1e-6)
    apart = [abs(row["margin"]) for row in margins(cfg, two, rows)]
    assert max(apart) > 0.5  # a policy at its reference would make many formulas equal


def margins(cfg: TrainConfig, two: Two, rows: list[dict]) -> list[dict]:
    return [{"margin": value} for value in facts(cfg, two, rows).delta.tolist()]


@pytest.mark.model
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_the_loss_on_thumbs_is_the_paper_s(two, tmp_path, name):
    """2402.01306, Eq. 7, with z₀ over each row's mismatched answer; 2408.06266, Eq. 7, per side."""
    cfg = objective(name, args={"desirable_weight": 1.5, "undesirable_weight": 0.5})
    trainer = two.trainer(cfg, tmp_path)
    groups = [[trainer.train_dataset[at + i] for i in range(ROWS)] for at in range(0, 32, ROWS)]
    mixed = [group for group in groups if {row["label"] for row in group} == {True, False}]
    if name == "kto":
        shifts = [mismatched_kl(two, rows) for rows in mixed]
        trainer._metrics["eval"].clear()
        for rows in mixed:
            loss_of(trainer, rows)
        assert trainer._metrics["eval"]["kl"] == pytest.approx(
            [max(shift, 0.0) for shift in shifts], abs=1e-3
        )
        rows = mixed[shifts.index(max(shifts))]
        shift = max(shifts)
        assert shift > 0.1  # where it is not, the loss would not know it
    else:
        rows, shift = mixed[0], 0.0
    losses = []
    for row in rows:
        sign, weight = (1, 1.5) if row["label"] else (-1, 0.5)
        losses.append(
            weight * (1 - sigma(cfg.beta * sign * (ratio(two, row, "completion_ids") - shift)))
        )
    assert loss_of(trainer, rows) == pytest.approx(torch.stack(losses).mean().item(), rel=2e-5)


def ratio(two: Two, row: dict, answer: str) -> Tensor:
    policy, reference = (
        token_logps(module, row["prompt_ids"], row[answer])[0].sum()
        for module in (two.policy, two.reference)
    )
    return policy - reference


def mismatched_kl(two: Two, rows: list[dict]) -> float:
    """z₀ of 2402.01306 before the cut at zero: the mean log-ratio of other rows' answers."""
    return torch.stack([ratio(two, row, "KL_completion_ids") for row in rows]).mean().item()


@pytest.mark.model
def test_conservative_dpo_is_the_mixture_and_without_smoothing_dpo(two, tmp_path):
    """Its gradient too: with all labels possibly wrong by half it would not learn at all."""
    found = {}
    for wrong in (0.0, 0.2, 0.4):
        trainer = two.trainer(
            objective("cdpo", args={"label_smoothing": wrong}), tmp_path / str(wrong)
        )
        rows = [trainer.train_dataset[i] for i in range(ROWS)]
        found[wrong] = loss_of(trainer, rows)
        exact = facts(objective("dpo"), two, rows)
        mixture = (1 - wrong) * -log_sigma(0.1 * exact.delta) + wrong * -log_sigma(
            -0.1 * exact.delta
        )
        assert found[wrong] == pytest.approx(mixture.mean().item(), rel=1e-5)
    plain = loss_of(two.trainer(objective("dpo"), tmp_path / "dpo"), rows)
    assert found[0.0] == pytest.approx(plain, abs=1e-6)
    assert len({round(value, 4) for value in found.values()}) == 3


@pytest.mark.model
def test_a_weighted_mix_is_the_sum(two, tmp_path):
    cfg = objective("dpo", loss=["sigmoid", "hinge", "apo_zero"], loss_weights=[0.5, 2.0, 0.25])
    trainer = two.trainer(cfg, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(ROWS)]
    f = facts(cfg, two, rows)
    expected = (0.5 * dpo(f) + 2 * hinge(f) + 0.25 * apo_zero(f)).mean().item()
    assert loss_of(trainer, rows) == pytest.approx(expected, rel=1e-5)


# ── what each trainer class sees is what was sampled ──────────────────────────────────────────────


@pytest.mark.model
@pytest.mark.parametrize("name", ["simpo", "orpo", "kto"])
def test_the_batch_holds_the_sampler_s_own_ids(two, tmp_path, name):
    """As test_train.py does for DPO: one BOS, the EOS is learned, nothing is lost."""
    trainer = two.trainer(objective(name), tmp_path)
    table = two.pairs.read_train().to_dicts()
    answers = {
        (*row["prompt_token_ids"], *row[f"{side}_token_ids"]): row[f"{side}_token_ids"]
        for row in table
        for side in ("chosen", "rejected")
    }
    seen = [each for batch in trainer.get_train_dataloader() for each in unpad_rows(batch)]
    assert len(seen) == 2 * len(table)
    for ids, learned in seen:
        assert answers[tuple(ids)] == learned
        assert ids.count(1) == 1 and ids[0] == 1 and learned[-1] == 2
    assert {tuple(ids) for ids, _ in seen} == set(answers)


def unpad_rows(batch: dict) -> list[tuple[list[int], list[int]]]:
    """The ids of each row without padding, and those that the loss sees."""
    masks = (batch[name] for name in ("input_ids", "attention_mask", "completion_mask"))
    return [
        (ids[there.bool()].tolist(), ids[learned.bool()].tolist())
        for ids, there, learned in zip(*masks, strict=True)
    ]


@pytest.mark.model
def test_a_thumb_s_mismatched_answer_is_another_prompt_s(two, tmp_path):
    """A micro-batch's KL answers are its own answers, rotated by one: z₀ is estimated on them."""
    rows = train.prepare_pairs(objective("kto"), [two.pairs], "train", []).to_dicts()
    assert len(rows) == 32 and "sample_id" not in rows[0]
    for at in range(0, 32, ROWS):
        group = rows[at : at + ROWS]
        assert [r["KL_completion_ids"] for r in group] == [
            group[i - 1]["completion_ids"] for i in range(ROWS)
        ]
    mismatched = [row["prompt_ids"] != before["prompt_ids"] for before, row in pairwise(rows)]
    assert sum(mismatched) > 25


# ── training through the stage ────────────────────────────────────────────────────────────────────


@pytest.mark.model
@pytest.mark.parametrize("name", ["cdpo", "simpo", "orpo", "sppo", "kto", "tr_dpo"])
def test_a_training_of_each_class_ends_with_a_model(two, name):
    given = {} if objective(name).reference_logps != "none" else {"reference": None, "logps": None}
    made = two.run(objective(name, scheduler="constant", warmup=0.0, eval_every=2), name, **given)
    steps = [entry for entry in made.read_metrics() if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, len(steps) + 1)) and len(steps) >= 2
    assert all(math.isfinite(entry["loss"]) for entry in steps)
    assert any("eval_loss" in entry for entry in made.read_metrics())
    before = (two.policy.weights / "model.safetensors").read_bytes()
    assert (made.weights / "model.safetensors").read_bytes() != before


@pytest.mark.model
@pytest.mark.parametrize("name", ["simpo", "orpo", "reward_aware", "kto"])
def test_a_training_cut_off_goes_on_to_the_same_bytes(two, name, monkeypatch):
    """test_train.py kills DPO. Here the order of rows and the trainer's state must come back."""
    from pipeline.training.monitoring import callbacks

    given = {} if objective(name).reference_logps != "none" else {"reference": None, "logps": None}
    runtime = objective(name).runtime.model_copy(update={"save_every": 1})
    cfg = objective(name, runtime=runtime, batch=4)
    whole, plain = two.run(cfg, f"{name}-whole", **given), callbacks.MetricsLog.on_log

    def cut(self, args, state, control, **kwargs):
        plain(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(callbacks.MetricsLog, "on_log", cut)
        with pytest.raises(KeyboardInterrupt):
            two.run(cfg, f"{name}-cut", **given)
    again = two.run(cfg, f"{name}-cut", **given)
    for file in ("metrics.jsonl", "weights/model.safetensors"):
        assert (again.path / file).read_bytes() == (whole.path / file).read_bytes()


@pytest.mark.model
def test_the_reference_of_tr_dpo_moves(two, tmp_path):
    cfg = objective(
        "tr_dpo",
        args={"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1},
    )
    trainer = two.trainer(cfg, tmp_path)
    trainer.train()
    mine, theirs = (dict(model.named_parameters()) for model in (trainer.model, trainer.ref_model))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not list(tmp_path.rglob("checkpoint-*"))  # its reference would be lost with a checkpoint


@pytest.mark.model
def test_pairs_without_thumbs_are_no_food_for_kto(two, tmp_path):
    write_table(tmp_path / "unpaired.parquet", two.pairs.read_unpaired().clear())
    for part in ("train", "dev"):
        write_table(tmp_path / f"{part}.parquet", getattr(two.pairs, f"read_{part}")())
    with pytest.raises(
        UserError, match=r"train.trainer=kto .* has 0 .* 0 .*\n.*pair.unpaired_threshold"
    ):
        two.run(objective("kto"), "refused", pairs=[Pairs(tmp_path)])


# ── refused on the command line, before anything is loaded ────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.beta=0"], r"train.beta=0: Input should be greater than 0"),
        (["train.beta=-0.1"], r"train.beta=-0.1: Input should be greater than 0"),
        (["train.loss=[sigmod]"], r"sigmod .* Did you mean sigmoid"),
        (["train.loss=[robst]"], r"Did you mean robust"),
        (["train=simpo", "train.loss=[simppo]"], r"Did you mean simpo"),
        (["train.loss=[simpo]"], r"=precomputed does not fit simpo: it has no reference"),
        (["train.loss=[kto]"], r"use train=kto"),
        (
            ["train.args={label_smoothing: 0.1}"],
            r"label_smoothing would be ignored by sigmoid: use train=cdpo",
        ),
        (["train=cdpo", "train.args={label_smoothing: 0.5}"], r"from 0 to below 0.5"),
        (["train.args={max_prompt_length: 9}"], r"max_prompt_length is gone .* limits.prompt"),
        (["train.args={reference_free: true}"], r"reference_free is gone .* train=simpo"),
        (
            ["train=nca", "train.reference_logps=none"],
            r"reference_logps=none does not fit nca_pair: it needs a reference",
        ),
        (
            ["train=simpo", "train.reference_logps=precomputed"],
            r"precomputed does not fit simpo: it has no reference. Give train.reference_logps=none",
        ),
        (["train=kto", "train.loss=[kto,kto]"], r"kto takes one loss, not 2"),
        (["train.args={cpo_alpha: 1}"], r"cpo_alpha is gone .*train.loss=\[simpo,sft\]"),
        (
            ["train.args={simpo_gamma: 1}"],
            r"ignored without train.loss=\[simpo\]",
        ),
        (["train=simpo", "train.args={simpo_gamma: x}"], r"simpo_gamma=x: expected a number"),
        (["train=sppo", "train.args={use_weighting: true}"], r"ignored by sppo, which is not TRL"),
        (["train=kto", "train.weight.column=margin"], r"weight.column: kto .* unpaired answers"),
        (["train=aot", "train.weight.column=margin"], r"weight.column: aot compares sorted values"),
        (["train.mask.format_tokens=true"], r"values are of whole answers; .*logps=online"),
        (["train=orpo", "train.mask.format_tokens=true"], r"likelihood of orpo is of prompts"),
        (["train=sigmoid_norm", "train.beta=0.1"], r"beta=0.1 is 20 times less than sigmoid_norm"),
        (["train=simpo", "train.beta=0.1"], r"simpo usually has \(2 to 10\).*typical_beta=0.1"),
        (["train.weight.column=weight"], r"pair.weight is null, so no pair has one"),
        (["pair=demonstration", "train=sppo"], r"its pairs have no p_chosen, which the training"),
        (["train.beta=10"], r"beta=10 is 20 times more than sigmoid usually has \(0.01 to 0.5\)"),
        (
            ["train.beta=1", "train.runtime.typical_beta=0.05"],
            r"20 times more than sigmoid usually has \(0.05\)",
        ),
        (
            ["train=kto", "train.reference_logps=precomputed"],
            r"reference_logps=precomputed does not fit the trainer kto",
        ),
        (["train=rpo", "train.loss_weights=[1]"], r"loss_weights has 1 weight for 2 losses"),
        (
            ["train=tr_dpo", "adapter=lora"],
            r"sync_ref_model updates a separate reference",
        ),
        (["train.loss=[sigmoid,sft]"], r"loss_group: sigmoid, sft .*give .*loss_group=8"),
        (
            ["train=rpo", "train.runtime.micro_batch=4"],
            r"give train.loss_group=4, which is another experiment",
        ),
        (["train.loss_group=8"], r"loss_group=8 would be ignored"),
        (["train=kto", "train.loss_group=1"], r"kto estimates its KL from the other rows"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        composed(*SMALL, *words)


def test_an_unusual_beta_can_be_meant():
    words = "train=sigmoid_norm", "train.beta=0.1", "train.runtime.typical_beta=0.1"
    assert composed(*SMALL, *words).train.beta == 0.1
    for name in NAMES:  # what the files give is usual
        assert objective(name).runtime.typical_beta is None


def test_what_a_training_does_not_use_leaves_its_fingerprint_alone():
    assert objective("dpo").outside_identity == {"attention", "weight", "mask"}
    used = objective("dpo", weight={"column": "margin", "scale": 1.0})
    assert used.outside_identity == {"attention", "mask"}


# ── docs/objectives.md ────────────────────────────────────────────────────────────────────────────

DOCS = HOUSE / "docs" / "objectives.md"


def test_the_table_lists_every_objective_with_its_logps():
    """`| train=dpo | … | logps | …`: the names of conf/train, and the configs' reference values."""
    rows = re.findall(
        r"^\| `(\w+)` \|.*?\| (precomputed|online|none) \| (pairs|unpaired|prompts) \|",
        DOCS.read_text(),
        re.M,
    )
    assert [name for name, *_ in rows] == sorted(NAMES, key=order)
    for name, logps, food in rows:
        cfg = objective(name)
        reads = {"kto": "unpaired", "grpo": "prompts", "rloo": "prompts"}.get(cfg.trainer, "pairs")
        assert (cfg.reference_logps, reads) == (
            logps,
            food,
        ), name


def test_every_objective_says_when_to_choose_it():
    said = {
        path.stem: path.read_text().partition("\n")[0]
        for path in (HOUSE / "conf" / "train").glob("*.yaml")
    }
    assert [
        name for name, line in said.items() if not re.search(r": (when|the place to begin)\b", line)
    ] == []


def order(name: str) -> int:
    return DOCS.read_text().index(f"| `{name}` |")


def test_the_document_names_what_is_gone():
    text = DOCS.read_text()
    assert [name for name in (*REMOVED_ARGS, *REMOVED_LOSSES) if f"`{name}`" not in text] == []
    assert [name for losses in LOSSES.values() for name in losses if f"`{name}`" not in text] == []
