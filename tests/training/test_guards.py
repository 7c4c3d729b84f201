"""Guards: what an evaluation measures, what stops a training, which weights it keeps, symptoms."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.artifacts import Model, Pairs, Prompts, write_table
from pipeline.config import TrainConfig
from pipeline.errors import StageError, UserError
from pipeline.stages import train
from pipeline.training.monitoring import early_stopping
from pipeline.training.monitoring.diagnostics import SYMPTOMS, find_symptoms
from pipeline.training.monitoring.guards import Guards
from tests.support.preferences import LORA, dpo, pair_rows, write_logps, write_pairs
from tests.support.tiny import tiny_model

NEVER = {
    "kind": "regex",
    "pattern": "no answer says this",
    "whole": False,
    "wanted": True,
    "gold": False,
}
FAST = {"learning_rate": 2e-2, "warmup": 0.0, "scheduler": "constant", "eval_every": 1}


class Round:
    """A published SFT model, pairs, unpaired answers, reference values and dev prompts."""

    def __init__(self, store: Path, **shape: object):
        self.store = store
        self.sft = tiny_model(store / "sft" / "aaaaaaaaaaaa", **shape)
        self.pairs = write_pairs(store / "pair" / "aaaaaaaaaaaa", self.sft)
        thumbs = pl.concat(
            [
                unpaired_rows(self.pairs.read_train(), "chosen", True),
                unpaired_rows(self.pairs.read_train(), "rejected", False),
            ]
        )
        write_table(self.pairs.path / "unpaired.parquet", thumbs)
        self.logps = write_logps(store / "reference" / "aaaaaaaaaaaa", self.sft, self.pairs)
        rows = [
            {k: row[k] for k in ("prompt_id", "prompt")} | {"columns": "{}"}
            for row in pair_rows(self.sft, 6, 7, "d")
        ]
        write_table(store / "prompts" / "dev" / "prompts.parquet", pl.DataFrame(rows))
        self.dev = Prompts(store / "prompts" / "dev")

    def train(self, name: str, cfg: TrainConfig, **changes) -> Model:
        given = {
            "init": self.sft,
            "reference": self.sft,
            "pairs": [self.pairs],
            "logps": [self.logps],
            "dev": self.dev,
        }
        return train.run(cfg, self.store / "train" / name, **{**given, **changes})


def unpaired_rows(rows: pl.DataFrame, side: str, label: bool) -> pl.DataFrame:
    ids = (pl.col(f"{side}_id").alias("sample_id"), pl.col(f"{side}_token_ids").alias("token_ids"))
    return rows.select("prompt_id", "prompt_token_ids", *ids, label=pl.lit(label))


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"))


def metric_by_step(model: Model, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in model.read_metrics() if name in row}


def training_summary(model: Model) -> dict:
    return json.loads((model.path / "training.json").read_text())


def chosen_logp(model: Model, round_: Round) -> float:
    """Per token, of what is published."""
    from pipeline.models import loading, logprobs

    rows = round_.pairs.read_dev()
    answers = rows["chosen_token_ids"].to_list()
    sums = logprobs.compute_logps(
        loading.load(model, "float32"), rows["prompt_token_ids"].to_list(), answers, 512
    )
    return sum(sums) / sum(map(len, answers))


def published_files(model: Model) -> dict[str, bytes]:
    files = [
        path for path in model.path.rglob("*") if path.is_file() and "scratch" not in path.parts
    ]
    found = {path.relative_to(model.path).as_posix(): path.read_bytes() for path in files}
    cost = json.loads(found["cost.json"])
    for name in ("loop", "step", "evaluation"):
        del cost[f"{name}_seconds"]  # of the clock; the other figures are the training's own
    return {**found, "cost.json": json.dumps(cost).encode()}


# ── what an evaluation measures ───────────────────────────────────────────────────────────────────


@pytest.mark.model
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_kl_is_nothing_at_the_start_and_is_that_of_the_published_model_at_the_end(round_, adapter):
    """Recomputed: the last evaluation's answers, under the published model and under SFT."""
    from pipeline.models import loading, logprobs
    from pipeline.training.monitoring.eval_generations import EvalGenerations

    cfg = dpo(LORA, **FAST) if adapter == "lora" else dpo(**{**FAST, "learning_rate": 1e-3})
    model = round_.train(f"seen-{adapter}", cfg)
    kl = metric_by_step(model, "eval_kl")
    assert sorted(kl) == list(range(7))
    assert abs(kl[0]) < 1e-4 < abs(kl[6])

    generations = EvalGenerations(cfg, round_.sft, round_.sft, round_.dev)
    policy, reference = loading.load(model, "float32"), loading.load(round_.sft, "float32")
    drawn = generations._generate(policy, in_step=False)
    prompts, answers = (
        [request.prompt_token_ids for _, request in generations.rows],
        [one.token_ids for one in drawn],
    )
    here, there = (
        logprobs.compute_logps(module, prompts, answers, 512) for module in (policy, reference)
    )
    assert kl[6] == pytest.approx((sum(here) - sum(there)) / len(here), abs=1e-3)
    assert len(generations.rows) == cfg.guards.prompts == 4
    assert metric_by_step(model, "eval_tokens")[6] == sum(map(len, answers)) / 4


@pytest.mark.model
def test_four_answers_are_kept_for_every_look(round_):
    model = round_.train("shown", dpo(eval_every=3))
    rows = [json.loads(line) for line in (model.path / "answers.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 4 + [3] * 4 + [6] * 4
    assert (
        [row["prompt_id"] for row in rows[:4]]
        == [row["prompt_id"] for row in rows[4:8]]
        == ["d0", "d1", "d2", "d3"]
    )
    assert all(row["prompt"] for row in rows) and any(row["answer"] for row in rows)


@pytest.mark.model
def test_answers_are_the_same_however_many_there_is_memory_for(round_, monkeypatch):
    together = round_.train("together", dpo(eval_every=6))
    monkeypatch.setattr("pipeline.resources.training_fit.choose_answer_batch", lambda *given: 1)
    alone = round_.train("alone", dpo(eval_every=6))
    first, second = ((model.path / "answers.jsonl").read_text() for model in (together, alone))
    assert first == second


@pytest.mark.model
def test_a_reference_that_is_loaded_for_a_look_is_gone_when_its_memory_is_given_back(
    round_, monkeypatch
):
    import weakref

    from pipeline.models import loading
    from pipeline.training.monitoring import eval_generations

    loaded, alive, load = [], [], loading.load

    def load_and_remember(*args):
        module = load(*args)
        loaded.append(weakref.ref(module))
        return module

    monkeypatch.setattr(eval_generations.loading, "load", load_and_remember)
    monkeypatch.setattr(
        eval_generations,
        "free_device_memory",
        lambda: alive.append([one() is not None for one in loaded]),
    )
    round_.train("freed", dpo(eval_every=3))
    assert alive == [[False], [False] * 2, [False] * 3]


@pytest.mark.model
def test_looking_changes_nothing_about_the_training(round_):
    """Not one draw of the trainer's own generators is taken."""
    plain = round_.train(
        "unseen", dpo({**LORA, "dropout": 0.3}, args={"disable_dropout": False}), dev=None
    )
    watched = round_.train(
        "watched", dpo({**LORA, "dropout": 0.3}, args={"disable_dropout": False})
    )
    assert "eval_kl" in watched.read_metrics()[1] and "eval_kl" not in plain.read_metrics()[1]
    assert metric_by_step(watched, "loss") == metric_by_step(plain, "loss")


@pytest.mark.model
@pytest.mark.parametrize("name", ["dpo", "simpo", "orpo", "kto"])
def test_every_objective_is_looked_at_and_stops_at_numbers_that_are_not_finite(round_, name):
    changes = {
        "dpo": {},
        "simpo": {"reference_logps": "none", "loss": ["simpo"]},
        "orpo": {"reference_logps": "none", "loss": ["orpo"], "loss_group": 2},
        "kto": {
            "trainer": "kto",
            "reference_logps": "online",
            "loss": ["kto"],
            "loss_group": 2,
        },
    }[name]
    given = {"logps": None} | (
        {"reference": None} if changes.get("reference_logps") == "none" else {}
    )
    given = {} if name == "dpo" else given
    model = round_.train(f"kind-{name}", dpo(epochs=0.5, **changes), **given)
    # All unpaired answers of this prompt set are for training, so kto has no evaluation.
    kl = metric_by_step(model, "eval_kl") if name != "kto" else {0: 0.0}
    assert abs(kl[0]) < 1e-4
    with pytest.raises(StageError, match=r"is (nan|inf|-inf) at step"):
        round_.train(
            f"nan-{name}",
            dpo(learning_rate=1e30, warmup=0.0, **changes),
            **given,
        )
    assert not (round_.store / "train" / f"nan-{name}" / "model.json").exists()


# ── what stops, and what is kept ──────────────────────────────────────────────────────────────────


@pytest.mark.model
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_past_the_kl_budget_training_stops_and_the_last_weights_within_it_are_published(
    round_, adapter, capfd
):
    fast = {**FAST, "learning_rate": 2e-2 if adapter == "lora" else 3e-3}
    form = LORA if adapter == "lora" else {"kind": "full", "learning_rate": 1e-3}
    free = round_.train(f"free-{adapter}", dpo(form, **fast))
    kl = metric_by_step(free, "eval_kl")
    budget = (kl[2] + kl[3]) / 2
    assert kl[1] < budget and kl[2] < budget < kl[3]
    model = round_.train(f"budget-{adapter}", dpo(form, guards={"kl_budget": budget}, **fast))
    assert training_summary(model)["steps"] == 3 and training_summary(model)["kept"] == 2
    assert (
        "over train.guards.kl_budget" in training_summary(model)["stopped"]
        and "step 2 are published" in capfd.readouterr().err
    )
    told = (model.path / "README.md").read_text()
    assert (
        "Weights of step 2 of 6 planned. Stopped at step 3: KL to" in told
        and "start: sft/aaaaaaaaaaaa" in told
    )
    assert f"| KL to the reference on generated answers, nats | {kl[2]:.4g} |" in told
    assert chosen_logp(model, round_) == pytest.approx(
        metric_by_step(free, "eval_chosen_logp")[2], abs=1e-4
    )
    assert chosen_logp(model, round_) != pytest.approx(
        metric_by_step(free, "eval_chosen_logp")[3], abs=1e-4
    )


@pytest.mark.model
def test_a_budget_that_the_first_look_exceeds_publishes_nothing(round_):
    with pytest.raises(
        StageError,
        match=r"kl_budget=1e-09, at the first evaluation after the start \(step 1\)",
    ):
        round_.train("tight", dpo(**FAST, guards={"kl_budget": 1e-9}))
    assert not (round_.store / "train" / "tight" / "model.json").exists()


def test_a_start_over_the_budget_does_not_count_against_what_was_trained():
    guards = dpo(guards={"kl_budget": 9.0}).guards
    nats = [(0, 9.1), (1, 8.9), (2, 8.8)]
    evaluations = [{"step": step, "eval_kl": kl} for step, kl in nats]
    assert early_stopping.choose_step(guards, evaluations) == 2
    assert early_stopping.starts_over_budget(guards, evaluations)
    assert not early_stopping.starts_over_budget(guards, evaluations[1:])


def test_a_start_over_the_budget_is_named_where_nothing_can_be_published(tmp_path):
    watch = Guards(dpo(guards={"kl_budget": 1.0}), None, {"prompts": [], "answers": []}, tmp_path)
    history = [{"step": step, "eval_kl": 9.1} for step in (0, 1)]
    with pytest.raises(StageError, match=r"The start itself is over it.*reference.model=init"):
        watch.restore_weights(1, history, {})


@pytest.mark.parametrize(("step", "budget"), [(0, None), (2, None), (2, 6.0)])
def test_a_warning_offers_nothing_that_is_given_and_no_rate_before_a_step(
    step, budget, tmp_path, capsys
):
    cfg = dpo(guards={"warn_kl": 5.0, "kl_budget": budget})
    watch = Guards(cfg, None, {"prompts": [], "answers": []}, tmp_path)
    watch._warn_of_drift([{"step": step, "eval_kl": 5.2}])
    warning = capsys.readouterr().err
    assert ("train.learning_rate" in warning) == (step > 0)
    assert ("kl_budget" in warning) == (step > 0 and budget is None)


@pytest.mark.model
def test_displaced_likelihood_is_said_with_its_remedies_and_stops_when_asked(round_, capfd):
    fast = {**FAST, "learning_rate": 1e-2}
    model = round_.train("displaced", dpo(**fast, guards={"warn_chosen_logp_drop": 0.05}))
    fall = metric_by_step(model, "eval_chosen_logp_drop")
    assert max(fall.values()) > 0.05
    assert (
        "nats per token, over train.guards.warn_chosen_logp_drop=0.05"
        in (said := capfd.readouterr().err)
        and "train=rpo" in said
    )
    assert said.count("warn_chosen_logp_drop") == 1
    budget = max(fall.values()) / 2
    over = min(step for step, value in fall.items() if value > budget)
    held = round_.train("held", dpo(**fast, guards={"max_chosen_logp_drop": budget}))
    assert training_summary(held)["steps"] == over and training_summary(held)["kept"] == over - 1
    assert chosen_logp(held, round_) == pytest.approx(
        metric_by_step(model, "eval_chosen_logp")[over - 1], abs=1e-4
    )


@pytest.mark.model
def test_kl_past_its_limit_is_said_once(round_, capfd):
    round_.train("far", dpo(**FAST, guards={"warn_kl": 0.01}))
    assert capfd.readouterr().err.count("over train.guards.warn_kl=0.01") == 1


@pytest.mark.model
def test_training_stops_when_the_score_of_own_answers_does_not_rise(round_):
    guards = {"stop_on": "score", "patience": 2, "scorer": NEVER}
    model = round_.train("no-better", dpo(**FAST, guards=guards))
    assert set(metric_by_step(model, "eval_score").values()) == {0.0}
    assert training_summary(model) | {"symptoms": []} == {
        "steps": 2, "planned": 6, "kept": 1, "symptoms": [], "unchanged": False,
        "stopped": "score was not better than 0 (step 0) for 2 evaluations "
        "(train.guards.patience=2)",
    }  # fmt: skip


@pytest.mark.model
def test_the_best_look_at_the_dev_pairs_is_published(round_):
    model = round_.train(
        "best", dpo(**{**FAST, "learning_rate": 1e-1}, guards={"stop_on": "loss", "patience": 2})
    )
    losses = {step: loss for step, loss in metric_by_step(model, "eval_loss").items() if step}
    best = min(losses, key=losses.__getitem__)
    assert training_summary(model)["kept"] == best < training_summary(model)["steps"]
    assert chosen_logp(model, round_) == pytest.approx(
        metric_by_step(model, "eval_chosen_logp")[best], abs=1e-4
    )


@pytest.mark.model
def test_a_stopped_training_that_was_cut_off_ends_with_the_same_bytes(round_, monkeypatch):
    """Cut off twice after saving the best weights and before the stop, and once after the stop."""
    from pipeline.training.monitoring import guards as room

    cfg = dpo(**{**FAST, "learning_rate": 1e-1}, guards={"stop_on": "loss", "patience": 2})
    whole = round_.train("whole", cfg)
    steps, finish = training_summary(whole)["steps"], room.Guards.restore_weights

    def cut(self, *given):
        raise KeyboardInterrupt

    monkeypatch.setattr(room.Guards, "restore_weights", cut)
    with pytest.raises(KeyboardInterrupt):
        round_.train("cut", cfg)
    monkeypatch.setattr(room.Guards, "restore_weights", finish)
    again = round_.train("cut", cfg)
    assert steps < 6 and published_files(again) == published_files(whole)


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(ValidationError, match="prompts=0 samples no answers.*give prompts=64"):
        dpo(guards={"prompts": 0, "kl_budget": 3.0})
    with pytest.raises(ValidationError, match=r"prompts=65: .*give prompts=64"):
        dpo(guards={"prompts": 65})
    with pytest.raises(ValidationError, match="stop_on=score needs a scorer"):
        dpo(guards={"stop_on": "score"})
    with pytest.raises(ValidationError, match="guards.stop_on=accuracy: .*loss or margin"):
        dpo(
            trainer="kto",
            reference_logps="online",
            loss=["kto"],
            loss_group=2,
            guards={"stop_on": "accuracy"},
        )


@pytest.mark.model
def test_a_margin_that_thumbs_of_one_kind_do_not_have_is_said(round_, tmp_path):
    """TRL logs none where no batch holds both kinds, as when every unpaired dev answer is good."""
    up = unpaired_rows(
        pl.concat([round_.pairs.read_train(), round_.pairs.read_dev()]), "chosen", True
    )
    write_table(
        tmp_path / "unpaired.parquet",
        pl.concat([up, unpaired_rows(round_.pairs.read_train(), "rejected", False)]),
    )
    for part in ("train", "dev"):
        write_table(tmp_path / f"{part}.parquet", getattr(round_.pairs, f"read_{part}")())
    cfg = dpo(
        trainer="kto",
        loss=["kto"],
        reference_logps="online",
        loss_group=2,
        guards={"stop_on": "margin"},
    )
    with pytest.raises(
        StageError,
        match=r"train.guards.stop_on=margin: .* step 0 .*\n  Give train.guards.stop_on=loss",
    ):
        round_.train("one kind", cfg, pairs=[Pairs(tmp_path)], logps=None)


@pytest.mark.model
def test_a_budget_without_dev_prompts_is_refused(round_):
    with pytest.raises(UserError, match="need dev prompts"):
        round_.train("blind", dpo(guards={"kl_budget": 3.0}), dev=None)


# ── symptoms ──────────────────────────────────────────────────────────────────────────────────────


def steps(**curves: list[float]) -> list[dict]:
    rows = enumerate(zip(*curves.values(), strict=True), 1)
    return [{"step": at, **dict(zip(curves, row, strict=True))} for at, row in rows]


def line(slope: float) -> list[float]:
    return [slope * at for at in range(20)]


def falling_losses(count: int = 20) -> list[float]:
    return [0.69 * 0.95**at for at in range(count)]


EVALUATIONS = {
    "eval_rewards/margins": [0.1, 0.3, 0.6, 1.0, 1.5],
    "eval_score": [0.6, 0.7, 0.66, 0.62, 0.6],
}
CASES = {
    "the loss stays at 0.693": (
        steps(loss=[0.693 + 1e-3 * (-1) ** at for at in range(20)]),
        steps(loss=falling_losses()),
    ),
    "chosen and rejected rewards both rise": (
        steps(**{"rewards/chosen": line(0.02), "rewards/rejected": line(0.01)}),
        steps(**{"rewards/chosen": line(0.02), "rewards/rejected": line(-0.01)}),
    ),
    "the margin grows without plateau while the dev score falls": (
        steps(**EVALUATIONS),
        steps(**{**EVALUATIONS, "eval_rewards/margins": [0.1, 0.5, 0.6, 0.62, 0.63]}) + steps(),
    ),
    "the loss swings": (
        steps(loss=[0.7, 0.2] * 10),
        steps(loss=[0.6 + 0.05 * (-1) ** at for at in range(20)]),
    ),
    "most sampled answers are cut at limits.completion": (
        steps(**{"completions/clipped_ratio": [0.1] * 12 + [0.7] * 4}),
        steps(**{"completions/clipped_ratio": [0.7] * 12 + [0.1] * 4}),
    ),
    "answers have grown past 1.5 times their length": (
        steps(eval_tokens=[100.0, 120.0, 160.0]),
        steps(eval_tokens=[100.0, 140.0, 149.0]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_symptom_is_seen_where_it_is_and_not_beside_it(name):
    ill, well = CASES[name]
    assert [one.name for one in find_symptoms(ill)] == [name]
    assert find_symptoms(well) == []


def test_equal_rewards_are_named_with_their_share():
    rows = steps(frac_reward_zero_std=[0.75, 1.0, 0.75])
    [symptom] = find_symptoms(rows)
    assert symptom.name == "nothing to learn here: 83% of the groups have equal rewards"
    assert find_symptoms(steps(frac_reward_zero_std=[0.25, 0.5, 0.25])) == []


def test_a_margin_that_grows_with_the_score_is_health():
    rising = {**EVALUATIONS, "eval_score": [0.6, 0.62, 0.65, 0.68, 0.7]}
    assert find_symptoms(steps(**rising)) == []


def test_every_symptom_has_its_case_and_short_curves_say_nothing():
    assert [one.name for one in SYMPTOMS] == list(CASES)
    assert find_symptoms([]) == find_symptoms(steps(loss=[math.log(2)] * 3)) == []
