"""GRPO and RLOO: our ids, our scorers, a right reference, exact resume, and what is said."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import DROPPED_FILE, Model
from pipeline.config.online import CONTINUOUS
from pipeline.errors import StageError, UserError
from pipeline.stages import train
from tests.support.online import LETTER, N, online, request, write_prompts
from tests.support.preferences import FULL, LORA
from tests.support.tiny import tiny_model
from tests.training.test_sharded import SHARING, furthest, shard_on_a_cpu

pytestmark = pytest.mark.model

ENSEMBLE = {
    "letter": LETTER,
    "vowel": {**LETTER, "pattern": "o"},
    "both": {"kind": "ensemble", "weights": {"letter": 1.0, "vowel": 3.0}, "combine": "mean",
             "gates": {}, "gold": False},
}  # fmt: skip
NEVER = {"same": {**LETTER, "pattern": ""}}


class Killed(Exception):
    """Ends a training where it is: what is on disk is what a kill leaves."""


class Rounds:
    def __init__(self, store: Path):
        self.store = store
        self.sft = tiny_model(store / "sft" / "aaaaaaaaaaaa", spread=0.05)
        self.other = tiny_model(store / "sft" / "cccccccccccc", seed=1)
        self.prompts = write_prompts(store / "prompts" / "train")
        self.dev = write_prompts(store / "prompts" / "dev", 4, seed=1)

    def train(self, name: str, cfg, **changes) -> Model:
        inputs = {"init": self.sft, "reference": self.sft, "prompts": self.prompts}
        inputs |= {"dev": self.dev, **changes}
        if cfg.reference_logps == "none":
            inputs.pop("reference")
        return train.run(cfg, self.store / "train" / name, **inputs)


@pytest.fixture(scope="module")
def rounds(tmp_path_factory) -> Rounds:
    return Rounds(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def grpo(rounds) -> Model:
    return rounds.train("two epochs", online(epochs=2))


def published(model: Model) -> dict[str, bytes]:
    paths = [path for path in model.path.rglob("*") if path.is_file()]
    names = {path.relative_to(model.path).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items()
            if not name.startswith("scratch/") and name != "cost.json"}  # fmt: skip


def curve(model: Model, name: str) -> list[float]:
    return [row[name] for row in model.read_metrics() if row.get(name) is not None]


def collect_batches(rounds: Rounds, cfg, out: Path, monkeypatch) -> list[dict]:
    """What TRL trains on: the batch after it was sampled and scored."""
    from pipeline.training.trainers.online import OnlineTrainer

    batches, generate = [], OnlineTrainer._generate_and_score_completions

    def record(self, inputs):
        batches.append({"rows": inputs, **generate(self, inputs)})
        return dict(list(batches[-1].items())[1:])

    monkeypatch.setattr(OnlineTrainer, "_generate_and_score_completions", record)
    rounds.train(out.name, cfg)
    return batches


def test_the_policy_answers_the_ids_that_a_pair_would_have(rounds, tmp_path, monkeypatch):
    from pipeline.backends.chat import ModelTokenizer

    tokenizer = ModelTokenizer(rounds.sft)
    batches = collect_batches(rounds, online(), tmp_path, monkeypatch)
    answered = []
    for batch in batches:
        for row, ids, mask in zip(
            batch["rows"], batch["prompt_ids"], batch["prompt_mask"], strict=True
        ):
            assert ids[mask.bool()].tolist() == tokenizer.encode(row["prompt"], {})
            answered.append(row["prompt_id"])
    assert answered == [f"p{number:02d}" for number in range(12) for _ in range(N)]


def test_the_advantages_are_those_of_our_scores(rounds, tmp_path, monkeypatch):
    """GRPO: (r − mean) / (spread + 1e-4) of the group; RLOO: r − mean of the others."""
    import torch

    from pipeline.backends.chat import ModelTokenizer

    tokenizer = ModelTokenizer(rounds.sft).tokenizer
    different = 0
    for trainer, loss in (("grpo", "dapo"), ("rloo", "rloo")):
        cfg = online(trainer=trainer, loss=[loss], reference_logps="none")
        batches = collect_batches(rounds, cfg, tmp_path / trainer, monkeypatch)
        monkeypatch.undo()
        for batch in batches:
            texts = tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
            # TRL has shuffled nothing yet: answers to a prompt are neighbours.
            rewards = torch.tensor([float("e" in text) for text in texts]).view(-1, N)
            different += rewards.std(1).count_nonzero()
            mean, spread = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
            others = (rewards.sum(1, keepdim=True) - rewards) / (N - 1)
            expected = (rewards - mean) / (spread + 1e-4) if trainer == "grpo" else rewards - others
            assert batch["advantages"].tolist() == pytest.approx(expected.flatten(), abs=1e-5)
    assert different > 6


def test_grpo_learns_what_is_rewarded(rounds):
    model = rounds.train("learns", online(epochs=8, learning_rate=3e-3, beta=0.001))
    reward = curve(model, "reward")
    assert len(reward) == 48
    assert sum(reward[-16:]) / 16 > sum(reward[:16]) / 16 + 0.1
    cost = json.loads((model.path / "cost.json").read_text())
    assert cost["completions"] == 48 * 2 * N and cost["sampled_by"] == "transformers"


def test_the_first_answers_have_no_kl_where_training_starts_from_its_reference(rounds, grpo):
    kl = curve(grpo, "kl")
    assert abs(kl[0]) < 1e-6 < kl[-1]
    other = rounds.train("other reference", online(), reference=rounds.other)
    assert curve(other, "kl")[0] > 1e-3
    assert curve(other, "eval_kl")[0] > 0.1


@pytest.mark.parametrize("name", ["reference_logps=none", "lora"])
def test_a_training_without_reference_and_one_of_an_adapter(rounds, name):
    changes = {"reference_logps": "none"} if name != "lora" else {}
    model = rounds.train(name, online(*([LORA] if name == "lora" else []), **changes))
    assert ("kl" in model.read_metrics()[2]) == (name == "lora")
    assert bool(model.adapter) == (name == "lora")


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
@pytest.mark.parametrize("args", [{}, {"generation_batch_size": 16, "num_iterations": 2}])
def test_a_killed_training_ends_with_the_same_bytes(rounds, trainer, args, monkeypatch):
    """In its second epoch; with answers in use, the checkpoint is of the step that drew them."""
    from pipeline.training.trainers.rewards import Rewards

    loss = ["dapo"] if trainer == "grpo" else ["rloo"]
    cfg = online(trainer=trainer, loss=loss, epochs=2, args=args, save_every=2)
    name = f"{trainer} {len(args)}"
    whole = rounds.train(f"{name} whole", cfg)
    score, calls = Rewards.__call__, []

    def die(self, **given):
        calls.append(1)
        if len(calls) == (9 if not args else 5):
            raise Killed
        return score(self, **given)

    monkeypatch.setattr(Rewards, "__call__", die)
    with pytest.raises(Killed):
        rounds.train(f"{name} killed", cfg)
    monkeypatch.undo()
    checkpoints = rounds.store / "train" / f"{name} killed" / "scratch" / "checkpoints"
    steps = 16 if args else 8
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == [f"checkpoint-{steps}"]
    assert published(rounds.train(f"{name} killed", cfg)) == published(whole)


def test_each_prompt_is_answered_or_left_out_with_its_reason(rounds):
    from pipeline.backends.chat import ModelTokenizer

    tokenizer, block = ModelTokenizer(rounds.sft), rounds.prompts.read()["prompt"].head(11)
    lengths = [len(tokenizer.encode(prompt, {})) for prompt in block.to_list()]
    limit = max(lengths) - 1
    fitting = sum(length <= limit for length in lengths)
    model = rounds.train("left out", online(asks=request(per_round=11, prompt=limit)))
    reasons = pl.read_parquet(model.path / DROPPED_FILE)["reason"].to_list()
    assert reasons.count("prompt_too_long") == 11 - fitting > 0
    assert reasons.count("batch_incomplete") == fitting % 2
    completions = json.loads((model.path / "cost.json").read_text())["completions"]
    assert completions == N * (fitting - fitting % 2)
    with pytest.raises(UserError, match=r"16 answers are sampled at once, 4 to each of 4 prompts"):
        rounds.train("none left", online(batch=16, asks=request(per_round=3)))


def test_several_scorers_make_one_reward(rounds, tmp_path, monkeypatch):
    cfg = online(scorers=ENSEMBLE, reward="both", reference_logps="none")
    seen = []
    from pipeline.training.trainers.rewards import Rewards

    score = Rewards._score

    def record(self, answers):
        found = score(self, answers)
        seen.extend((answer, found[answer.sample_id].score) for answer in answers)
        return found

    monkeypatch.setattr(Rewards, "_score", record)
    rounds.train("several", cfg)
    assert len(seen) == 6 * 2 * N
    for answer, value in seen:
        letter, vowel = ("e" in answer.completion), ("o" in answer.completion)
        assert value == pytest.approx((letter + 3 * vowel) / 4)
    assert len({value for _, value in seen}) > 1


def test_a_reward_that_never_differs_is_said_with_its_share(rounds, capsys):
    model = rounds.train("same", online(scorers=NEVER, reward="same", reference_logps="none"))
    said = capsys.readouterr().err
    assert "the first answers to each of 2 prompts have equal rewards by same" in said
    assert "nothing to learn here: 100% of the groups have equal rewards" in said
    summary = json.loads((model.path / "training.json").read_text())
    assert any("100% of the groups" in one["symptom"] for one in summary["symptoms"])


def test_rewards_that_fail_stop_the_training(rounds, monkeypatch):
    from pipeline.scorers import Score, rules

    def fail(self, answers):
        return (Score(answer.sample_id, None, detail="the server is gone") for answer in answers)

    monkeypatch.setattr(rules.Rules, "score", fail)
    with pytest.raises(
        StageError, match=re.escape("8 of 48 rewards by letter failed already (the server is gone)")
    ):
        rounds.train("fails", online())


def test_failures_are_counted_from_the_start_of_a_training_that_was_killed(rounds, monkeypatch):
    """One answer of each batch fails; of 96, the fifth is one too many."""
    from pipeline.scorers import Score, rules

    score, batches = rules.Rules.score, []

    def fail_first(self, answers):
        batches.append(len(answers))
        if len(batches) == killed_at:
            raise Killed
        scores = [*score(self, answers)]
        return [Score(answers[0].sample_id, None, detail="it is busy"), *scores[1:]]

    monkeypatch.setattr(rules.Rules, "score", fail_first)
    cfg = online(epochs=2, save_every=2, reference_logps="none")
    cfg = cfg.model_copy(update={"score": cfg.score.model_copy(update={"max_failed": 0.05})})
    killed_at, message = 4, r"5 of 96 rewards by letter failed already \(it is busy\)"
    with pytest.raises(Killed):
        rounds.train("fails and is killed", cfg)
    batches.clear()
    killed_at = 0
    with pytest.raises(StageError, match=message):
        rounds.train("fails and is killed", cfg)
    assert len(batches) == 3, "from the checkpoint of step 2, which has two failures"
    batches.clear()
    with pytest.raises(StageError, match=message):
        rounds.train("fails", cfg)
    assert len(batches) == 5


def test_a_sampler_that_was_never_tried_on_shards_is_refused():
    cfg = online(launch="fsdp2", processes=2, args={CONTINUOUS: True})
    assert "give train.runtime.launch=zero3" in (cfg.explain_misfit(2) or "")


@pytest.mark.slow
@pytest.mark.parametrize("asked", SHARING)
@pytest.mark.parametrize(
    ("trainer", "loss", "adapter"),
    [("grpo", "dapo", FULL), ("grpo", "dapo", LORA), ("rloo", "rloo", FULL)],
    ids=["grpo", "grpo-lora", "rloo"],
)
def test_weights_in_shares_sample_and_train_as_copies_do(
    rounds, monkeypatch, asked, trainer, loss, adapter
):
    shard_on_a_cpu(monkeypatch)
    cfg = {"trainer": trainer, "loss": [loss], "adapter": adapter, "processes": 2}
    name = f"{trainer} {adapter['kind']} {asked}"
    copies = rounds.train(f"copies {name}", online(**cfg))
    shared = rounds.train(f"shared {name}", online(**cfg, launch=asked))
    assert curve(shared, "reward") == curve(copies, "reward")
    assert furthest(shared, copies) < 1e-4


@pytest.mark.slow
def test_two_processes_share_the_answers(rounds):
    model = rounds.train("two", online(processes=2))
    assert len(curve(model, "reward")) == 6
    again = rounds.train("two again", online(processes=2))
    assert published(model) == published(again)
