"""A pool of models that answer training prompts: who is asked what, and in whose tokens."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts import Logps, Model, Pairs, read_table, write_json, write_table
from pipeline.backends.chat import ModelTokenizer
from pipeline.config import BySource, PromptShare
from pipeline.driver.outline import select_targets
from pipeline.driver.plan_head import describe_head
from pipeline.errors import UserError
from pipeline.pairing import filters
from pipeline.plan import plan
from pipeline.report.analysis.ancestors import Ancestor
from pipeline.report.analysis.funnel import read_pair_funnel
from pipeline.report.render.tables.origins import build_sources
from pipeline.sampling.prompt_selection import answers_prompt, select_block
from pipeline.stages import pair, sample
from tests.stages import test_pair
from tests.stages.test_sample import POLICY, ask
from tests.stages.test_sample import config as request_of
from tests.support.house import SMALL, composed, fingerprints, identity_of, named
from tests.support.tiny import CHAT, tiny_model

STRONG = ["+member@sample.pool.strong=checkpoint", "sample.pool.strong.model=owner/strong"]
STRONG += [f"sample.pool.strong.revision={'a' * 40}"]
WEAK = [word.replace("strong", "weak") for word in STRONG]
RIVAL = [
    "+member@sample.pool.rival=served",
    "sample.pool.rival={model: m, runtime: {base_url: 'http://127.0.0.1:1/v1'}}",
]
ONE = "sample.settings.draw.n=1"


def by_source(chosen: str, rejected: str) -> list[str]:
    return [
        "pair=by_source",
        f"pair.strategy.chosen={chosen}",
        f"pair.strategy.rejected={rejected}",
    ]


# ── the plan ──────────────────────────────────────────────────────────────────────────────────────


def sampled_by(*words: str) -> dict[str, str]:
    """The fingerprint of each Step of round 1 that samples, by the knob of its block."""
    steps = plan(composed(*SMALL, *words)).ancestors()
    return {
        step.knob: identity_of(step) for step in steps if (step.stage, step.label) == ("sample", 1)
    }


def test_a_member_that_joins_is_sampled_and_nobody_else_again():
    alone, strong = sampled_by(), sampled_by(*STRONG)
    both = sampled_by(*STRONG, *WEAK, *RIVAL, "sample.pool.weak.share=0.5")
    assert alone.items() <= strong.items() <= both.items()
    members = {f"sample.pool.{name}" for name in ("strong", "weak", "rival")}
    assert set(both) == {"sample", *members}
    before, after = fingerprints(*SMALL), fingerprints(*SMALL, *STRONG)
    changed = {name for name in before if before[name] != after[name]}
    assert {"pair@1", "train@1"} <= changed and not changed & {"sft@0", "sample@1", "score@1"}
    assert set(after) - set(before) == {"base@pool strong"}


def test_the_policy_s_own_steps_are_the_last_of_their_stage():
    """`results` and `until` take the last Step of a stage and round."""
    steps = named(plan(composed(*SMALL, *STRONG)))
    assert steps["sample@1"].knob == "sample" and steps["sample@1"].pool_member is None
    assert steps["score@1"].inputs["samples"] is steps["sample@1"]


def test_every_member_s_answers_are_scored_like_the_policy_s():
    steps = plan(composed(*SMALL, *STRONG, *RIVAL)).ancestors()
    pool = named(steps[-1])["pair@1"].inputs["pool"]
    scores = named(steps[-1])["pair@1"].inputs["scores"]
    assert [one.pool_member for one in scores] == ["strong", "rival", None]
    assert [one.label_text for one in scores] == ["round 1 strong", "round 1 rival", "round 1"]
    assert {str(one.config) for one in scores} == {str(scores[0].config)}
    assert pool["strong"][0].inputs["tokens_of"] is named(steps[-1])["sft@0"]
    assert named(steps[-1])["base@pool rival"].inputs["like"] is named(steps[-1])["sft@0"]


def test_until_a_stage_builds_what_every_model_has_of_it():
    last = plan(composed(*SMALL, *STRONG, *WEAK, "sample.resample_ties=[2]"))
    targets = select_targets(last, "sample")
    assert [(one.pool_member, one.config.wave) for one in targets] == [
        ("strong", 0),
        ("weak", 0),
        (None, 1),
    ]
    assert len(select_targets(last, "score@1")) == 3
    assert [one.stage for one in select_targets(last, "pair")] == ["pair"]


def test_pairs_of_two_named_sources_need_no_scores_and_no_answers_of_others():
    cfg = composed(*SMALL, *STRONG, *WEAK, ONE, *by_source("strong", "weak"))
    steps = named(plan(cfg))
    assert "score@1" not in steps and set(steps["pair@1"].inputs) == {"policy", "pool"}
    assert steps["pair@1"].config.scored is False
    assert steps["evaluate@report"].config.training is None, "no scorer made the pairs"
    with_policy = named(plan(composed(*SMALL, *STRONG, ONE, *by_source("strong", "policy"))))
    assert set(with_policy["pair@1"].inputs) == {"policy", "pool", "samples"}


@pytest.mark.parametrize(
    "words",
    [
        ["sample.settings.draw.n=2"],
        [ONE, "pair.filters.min_chosen=0.1"],
        [ONE, "sample.resample_ties=[2]"],
        [ONE, "pair.unpaired_threshold=0.5"],
        [ONE, "init=best_of_n", "best_of_n=default"],
    ],
)
def test_scores_are_made_where_something_reads_them(words):
    cfg = composed(*SMALL, *STRONG, *by_source("strong", "policy"), *words)
    assert cfg.scores_samples and named(plan(cfg))["pair@1"].config.scored
    assert "score@1" in named(plan(cfg))


def test_a_member_samples_as_the_policy_does_but_for_what_it_is_given():
    words = ["sample.settings.draw.temperature=0.6", "+setting@sample.settings.calm=default"]
    words += ["sample.settings.calm.n=1", "sample.pool.strong.settings.draw.n=3"]
    words += ["sample.pool.strong.settings.calm=null", "backend=transformers"]
    cfg = composed(*SMALL, *STRONG, *RIVAL, *words)
    strong, rival = cfg.sample.pool["strong"], cfg.sample.pool["rival"]
    assert set(strong.settings) == {"draw"} and set(rival.settings) == {"draw", "calm"}
    assert (strong.settings["draw"].n, strong.settings["draw"].temperature) == (3, 0.6)
    assert strong.backend == cfg.sample.backend and rival.backend.kind == "served"
    own = composed(*SMALL, *STRONG, "backend@sample.pool.strong.backend=transformers")
    assert (own.sample.backend.kind, own.sample.pool["strong"].backend.kind) == (
        "vllm",
        "transformers",
    )


def test_the_plan_names_the_members():
    cfg = composed(*SMALL, *STRONG, *RIVAL, "sample.pool.rival.share=0.25")
    [head, *_] = describe_head(cfg, plan(cfg).ancestors())
    assert "strong owner/strong · rival m (25% of the prompts)" in head


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["+member@sample.pool.policy=checkpoint", "sample.pool.policy.model=./m"],
            r"sample\.pool\.policy: answers of another source have this name",
        ),
        ([*STRONG, "sample.pool.strong.share=0"], r"sample\.pool\.strong\.share.*greater than 0"),
        ([*STRONG, "sample.pool.strong.share=1.5"], r"share.*less than or equal to 1"),
        (
            [*STRONG, "sample.pool.strong.share=0.5", "sample.models_per_prompt=1"],
            r"share=0\.5: sample\.models_per_prompt=1 chooses who answers",
        ),
        (
            [*STRONG, "sample.models_per_prompt=3"],
            r"models_per_prompt=3: there are the policy and 1 member",
        ),
        (
            [*STRONG, *by_source("strong", "policy"), "sample.models_per_prompt=1"],
            r"models_per_prompt=1: each pair needs answers of strong and policy to one prompt",
        ),
        ([*STRONG, *by_source("stron", "policy")], r"chosen=stron: no model.*Did you mean strong"),
        ([*STRONG, "pair.at_least_one=weak"], r"pair\.at_least_one=weak: no model of this name"),
        (
            [*STRONG, *by_source("strong", "strong")],
            r"chosen=strong and pair\.strategy\.rejected=strong name no two sources",
        ),
        (
            [*STRONG, *WEAK, *by_source("strong", "policy")],
            r"sample\.pool\.weak: the strategy pairs strong with policy alone",
        ),
        (
            [*STRONG, *WEAK, *by_source("strong", "weak"), "pair.at_least_one=policy"],
            r"at_least_one=policy: the strategy pairs strong with weak alone",
        ),
        (
            [
                *STRONG,
                "offline=file",
                "offline.source.path=x",
                "pair.mix={on_policy: 0, offline: 1}",
            ],
            r"sample\.pool: pair\.mix\.on_policy=0 samples nothing",
        ),
        (
            [*RIVAL, "sample.pool.rival.settings.draw.min_p=0.1"],
            r"sample\.pool\.rival\.settings\.draw\.min_p: not every server knows it",
        ),
        (
            [
                *STRONG,
                "backend@sample.backend=endpoint",
                "sample.backend={model: m, runtime: {base_url: 'http://localhost:1/v1'}}",
            ],
            r"sample\.pool\.strong\.backend: the endpoint of sample\.backend serves the policy",
        ),
        (
            [
                *STRONG,
                "+scorer@score.scorers.judge=pairwise",
                "score.scorers.judge.engine.model=m",
                "pair.scorer=judge",
                "evaluate.scorer=rules",
            ],
            r"pair\.scorer=judge: it compares the answers of one model with each other",
        ),
        (["pair.filters.min_reference=-4"], r"it filters answers of others, and there are none"),
    ],
)
def test_a_pool_that_cannot_work_is_refused_by_its_knob(words, fault):
    with pytest.raises(UserError, match=f"(?s){fault}"):
        composed(*SMALL, *words)


# ── who answers which prompt ──────────────────────────────────────────────────────────────────────

PROMPTS = [f"p{at}" for at in range(400)]
SOURCES = ["policy", "strong", "weak", "other"]


def asked(name: str, share: float = 1.0, each: int | None = None, pool=SOURCES) -> set[str]:
    cfg = PromptShare(model=name, share=share, pool=pool if each else [], models_per_prompt=each)
    return {prompt for prompt in PROMPTS if answers_prompt(cfg, 42, prompt)}


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_share_is_a_part_of_a_larger_one(one, other):
    small, large = sorted((one, other))
    assert asked("strong", small) <= asked("strong", large)


def test_shares_have_their_sizes_and_differ_between_members():
    assert asked("strong") == set(PROMPTS)
    assert 170 < len(asked("strong", 0.5)) < 230
    assert asked("strong", 0.5) != asked("weak", 0.5)


@pytest.mark.parametrize("each", [1, 2, 3, 4])
def test_so_many_models_answer_each_prompt(each):
    by_model = {name: asked(name, each=each) for name in SOURCES}
    counts = [sum(prompt in found for found in by_model.values()) for prompt in PROMPTS]
    assert counts == [each] * len(PROMPTS)
    assert all(asked(name, each=each) <= asked(name, each=each + 1) for name in SOURCES)
    assert all(found for found in by_model.values())
    more = [*SOURCES, "new"]
    assert all(asked(name, each=each, pool=more) <= by_model[name] for name in SOURCES)


def test_the_policy_answers_its_prompts_alone():
    cfg = composed(*SMALL, *STRONG, "sample.models_per_prompt=1")
    requests = [cfg.sample.request_waves(1, "rules")[0], cfg.sample.request_member("strong", 1)]
    shares = [request.prompt_share for request in requests]
    assert [share.model for share in shares] == ["policy", "strong"]
    assert [share.mean_share for share in shares] == [0.5, 0.5]
    found = [{p for p in PROMPTS if answers_prompt(share, 42, p)} for share in shares]
    assert found[0] | found[1] == set(PROMPTS) and not found[0] & found[1]


def test_a_round_without_prompts_of_its_own_begins_again(tmp_path):
    prompts = ask(tmp_path, *(f"say {number}" for number in range(10)))
    names = prompts.read()["prompt_id"].to_list()
    cfg = request_of(per_round=4, round=3, reuse_prompts=True)
    assert select_block(cfg, prompts)["prompt_id"].to_list() == [*names[8:], *names[:2]]
    with pytest.raises(UserError, match=r"(?s)rounds=3 need 12 prompts.*reuse_prompts=true"):
        select_block(request_of(per_round=4, round=3), prompts)
    with pytest.raises(UserError, match="rounds=1 need 11 prompts"):
        select_block(request_of(per_round=11, reuse_prompts=True), prompts)


# ── its answers in the policy's tokens ────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "abc", layers=1)


@pytest.fixture(scope="module")
def chat(policy) -> ModelTokenizer:
    return ModelTokenizer(policy)


def share_of(name: str, share: float = 1.0) -> dict:
    return {"model": name, "share": share, "pool": [], "models_per_prompt": None}


def test_a_member_s_answers_are_published_in_the_tokens_of_the_policy(tmp_path, policy, chat):
    prompts = ask(tmp_path / "train", *(f"say {number} things" for number in range(6)))
    cfg = request_of(purpose="train strong", prompt_share=share_of("strong"))
    own = sample.run(cfg, tmp_path / "own", policy=POLICY, prompts=prompts).read()
    rows = sample.run(
        cfg, tmp_path / "out", policy=POLICY, prompts=prompts, tokens_of=policy
    ).read()
    assert rows["completion"].to_list() == own["completion"].to_list()
    assert set(rows["finish_reason"]) == {"stop", "length"}
    assert rows["asked_token_ids"].to_list() == own["prompt_token_ids"].to_list()
    for row in rows.iter_rows(named=True):
        assert row["prompt_token_ids"] == chat.encode(row["prompt"], {}) and row["logprob"] is None
        ids = chat.encode_answer(row["prompt"], row["completion"], {})
        assert row["token_ids"] == (ids if row["finish_reason"] == "stop" else ids[:-1])


def test_a_member_with_another_tokenizer_and_template_is_asked_in_its_own(tmp_path, policy, chat):
    template = CHAT.replace("<|{{ m.role }}|>", "<|{{ m.role }}|> ")
    other = tiny_model(tmp_path / "store" / "base" / "other", template=template, vocabulary=300)
    prompts = ask(tmp_path / "train", "name three facts", "name the quiet river")
    backend = {"kind": "transformers", "dtype": "float32", "runtime": {"batch": 4}}
    cfg = request_of(
        purpose="train strong", prompt_share=share_of("strong"), backend=backend, round=2
    )
    rows = sample.run(cfg, tmp_path / "out", policy=other, prompts=prompts, tokens_of=policy).read()
    theirs = ModelTokenizer(other)
    for row in rows.iter_rows(named=True):
        assert row["asked_token_ids"] == theirs.encode(row["prompt"], {})
        assert row["prompt_token_ids"] == chat.encode(row["prompt"], {})
        ids = row["token_ids"] if row["finish_reason"] == "stop" else [*row["token_ids"], 2]
        assert ids == chat.encode_answer(row["prompt"], row["completion"], {})


def test_a_member_without_prompts_publishes_no_rows(tmp_path, policy):
    prompts = ask(tmp_path / "train", "say it")
    cfg = request_of(purpose="train strong", prompt_share=share_of("strong", 1e-9))
    made = sample.run(cfg, tmp_path / "out", policy=POLICY, prompts=prompts, tokens_of=policy)
    assert made.read().is_empty() and read_table(tmp_path / "out" / "dropped.parquet").is_empty()


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────


def answers_of(folder: Path, chat: ModelTokenizer, name: str, texts: dict[str, tuple]) -> tuple:
    """Samples and scores of one source, an answer for each prompt, in the policy's tokens."""
    samples, scores = test_pair.drawn(
        folder / name, chat, {key: [one] for key, one in texts.items()}, {}, []
    )
    for part in ("a/samples", "b/scores"):
        for file in (folder / name / part).glob("*.parquet"):
            renamed = pl.concat_str(pl.lit(f"{name}-"), "sample_id").alias("sample_id")
            write_table(file, pl.read_parquet(file).with_columns(renamed))
    return samples, scores


@pytest.fixture
def pooled(tmp_path, policy, chat):
    def make(answers: dict[str, dict[str, tuple]], *changes: str, cfg=None, **edges) -> Pairs:
        drawn = {name: answers_of(tmp_path, chat, name, texts) for name, texts in answers.items()}
        pool = {name: [samples] for name, (samples, _) in drawn.items() if name != "policy"}
        inputs = {
            "samples": [drawn["policy"][0]] if "policy" in drawn else None,
            "scores": [scores for _, scores in drawn.values()],
            "pool": pool,
            **edges,
        }
        cfg = cfg or test_pair.config(*changes)
        return pair.run(cfg, tmp_path / "out", policy=policy, **inputs)

    return make


def unscored(chosen: str, rejected: str, **changes):
    strategy = BySource(kind="by_source", chosen=chosen, rejected=rejected)
    update = {"strategy": strategy, "scored": False, **changes}
    return test_pair.config().model_copy(update=update)


def answers(**scores: float) -> dict[str, dict[str, tuple]]:
    """An answer of each source to three prompts."""
    return {
        name: {f"p{at}": (f"{name} says {at}", score, "stop") for at in range(3)}
        for name, score in scores.items()
    }


def test_best_and_worst_are_of_the_whole_pool_and_name_their_sources(pooled, chat):
    pairs = pooled(answers(policy=0.5, strong=1.0, weak=0.0))
    rows = test_pair.all_pairs(pairs)
    assert rows["chosen_source"].to_list() == ["strong"] * 3
    assert rows["rejected_source"].to_list() == ["weak"] * 3 and set(rows["origin"]) == {"pool"}
    assert pairs.read_funnel()["sources"] == {
        "policy": {"samples": 3, "chosen": 0, "rejected": 0, "nats_per_token": None},
        "strong": {"samples": 3, "chosen": 3, "rejected": 0, "nats_per_token": None},
        "weak": {"samples": 3, "chosen": 0, "rejected": 3, "nats_per_token": None},
    }
    assert "chosen, rejected from strong" in (pairs.path / "README.md").read_text()


def test_pairs_without_a_pool_have_the_columns_that_they_had(tmp_path, policy, chat):
    drawn = test_pair.drawn(tmp_path / "in", chat, {"p": test_pair.GOOD_AND_BAD}, {}, [])
    inputs = {"samples": [drawn[0]], "scores": [drawn[1]]}
    pairs = pair.run(test_pair.config(), tmp_path / "out", policy=policy, **inputs)
    assert not [name for name in pairs.read_train().columns if name.endswith("_source")]
    assert "sources" not in pairs.read_funnel()


def test_two_sources_are_paired_without_any_score(pooled):
    cfg = unscored("strong", "policy")
    pairs = pooled(answers(policy=0.9, strong=0.1), cfg=cfg, scores=None)
    rows = test_pair.all_pairs(pairs)
    assert rows["chosen_source"].to_list() == ["strong"] * 3
    assert rows["margin"].null_count() == rows["chosen_score"].null_count() == 3
    assert "without scores, by who answered" in (pairs.path / "README.md").read_text()
    assert pairs.read_funnel()["ties"]["prompts"] == 0


def test_sources_that_never_answered_one_prompt_are_counted_and_refused(pooled):
    apart = answers(strong=1.0, weak=0.0)
    apart["weak"] = {"q": ("weak says it", 0.0, "stop")}
    with pytest.raises(UserError, match=r"(?s)not answered by both sources|one usable sample"):
        pooled(apart, cfg=unscored("strong", "weak"), scores=None)
    mixed = answers(policy=0.5, strong=1.0)
    mixed["weak"] = {"q": ("weak says it", 0.0, "stop")}
    with pytest.raises(
        UserError, match=rf"(?s){filters.NOT_BY_BOTH}: 3.*sample\.pool\.NAME\.share"
    ):
        pooled(mixed, cfg=unscored("strong", "weak"), scores=None)


def test_an_answer_that_spells_special_tokens_passes_the_token_check_or_is_dropped(pooled):
    odd = answers(policy=0.0, strong=1.0)
    odd["strong"]["p0"] = ("it has <s> in it", 1.0, "stop")
    odd["strong"]["p1"] = ("  spaces  ", 1.0, "stop")
    pairs = pooled(odd)
    assert test_pair.reasons(pairs) == {"strong-p0-0": "second BOS", "p0": "one usable sample"}
    assert test_pair.all_pairs(pairs)["prompt_id"].to_list() == ["p1", "p2"]


def test_answers_that_the_sft_model_would_not_give_are_left_out(pooled, tmp_path):
    rows = [
        {"sample_id": f"strong-p{at}-0", "prompt_id": f"p{at}", "logp": -4.0 * at, "tokens": 2}
        for at in range(3)
    ]
    write_table(tmp_path / "logps" / "logps.parquet", pl.DataFrame(rows))
    known = [Logps(tmp_path / "logps")]
    cfg = test_pair.config()
    cfg = cfg.model_copy(update={"filters": cfg.filters.model_copy(update={"min_reference": -3})})
    pairs = pooled(answers(policy=0.0, strong=1.0), cfg=cfg, pool_logps=known)
    assert pairs.read_funnel()["dropped_pairs"] == {"unlikely under the reference": 1}
    assert pairs.read_funnel()["sources"]["strong"]["nats_per_token"] == -2.0
    assert "answers of strong have -2.00 nats per token" in (pairs.path / "README.md").read_text()


# ── what is reported ──────────────────────────────────────────────────────────────────────────────


def test_the_report_tells_each_source_s_share_and_its_nats_under_the_reference(pooled, tmp_path):
    made = pooled(answers(policy=0.0, strong=1.0))
    rows = test_pair.all_pairs(made)
    logps = [
        {
            "sample_id": name,
            "prompt_id": "",
            "logp": -6.0 if side == "chosen" else -1.0,
            "tokens": 2,
        }
        for side in ("chosen", "rejected")
        for name in rows[f"{side}_id"]
    ]
    write_table(tmp_path / "reference" / "logps.parquet", pl.DataFrame(logps))
    steps = [Ancestor("reference", 1, tmp_path / "reference", {})]
    funnel = read_pair_funnel(steps, made, 1)
    nats = {source: counts["nats_per_token"] for source, counts in funnel["sources"].items()}
    assert nats == {"policy": -0.5, "strong": -3.0}
    assert read_pair_funnel([], made, 1)["sources"]["strong"]["nats_per_token"] is None
    report = {"funnel": {"pairs": [{"round": 1, **funnel}, {"round": 2, "pairs": 3}]}}
    table = build_sources(json.loads(json.dumps(report)))
    cells = [[cell.text for cell in row] for row in table.rows]
    assert cells == [
        ["round 1", "policy", "3", "0", "3", "−0.50"],
        ["round 1", "strong", "3", "3", "0", "−3.00"],
    ]


def test_a_later_round_leaves_out_prompts_that_have_had_their_pairs(tmp_path, pooled):
    first = Pairs(tmp_path / "before")
    write_table(first.path / "train.parquet", pl.DataFrame({"prompt_id": ["p0", "p1", "p1"]}))
    write_json(first.path / "funnel.json", {})
    changes = ("pair.budget.per_prompt=2", "pair.dev={share: 0, min: 0, max_share: 0}")
    pairs = pooled(answers(policy=0.0, strong=1.0), *changes, earlier=[first])
    assert test_pair.all_pairs(pairs)["prompt_id"].to_list() == ["p0", "p2"]
    assert pairs.read_funnel()["dropped_pairs"] == {"over the budget of its prompt": 1}


def test_rounds_know_the_pairs_before_them_only_where_prompts_have_a_budget():
    words = [*SMALL, "rounds=2", "sample.per_round=100"]
    assert "earlier" not in named(plan(composed(*words)))["pair@2"].inputs
    steps = named(plan(composed(*words, "pair.budget.per_prompt=1", "sample.reuse_prompts=true")))
    assert steps["pair@2"].inputs["earlier"] == [steps["pair@1"]]
