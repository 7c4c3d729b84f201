"""Settings with system text, examples or stop strings; reasoning tokens; and waves for ties."""

import json
from itertools import combinations, product
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artifacts
from pipeline.artifacts import Scores, write_table
from pipeline.backends import Completion, CompletionRequest
from pipeline.backends.scripted import ScriptedSampler
from pipeline.config import Reasoning, SampleRequest, SamplingSettings
from pipeline.config import sample as shape
from pipeline.data.columns import SCORES
from pipeline.errors import StageError
from pipeline.plan import plan
from pipeline.sampling import asking, collector, sampler, stop_strings
from pipeline.stages import sample
from tests.stages.test_sample import PLAIN, POLICY, ask, config, files, run
from tests.support.house import SMALL, composed, fingerprints, named

DRAW = {"n": 3, "temperature": 0.8, "top_p": 0.9, **PLAIN}
FEW_SHOT = [{"role": "user", "content": "two?"}, {"role": "assistant", "content": "2."}]
LONG = {"prompt": 200, "completion": 32}


@pytest.fixture
def prompts(tmp_path) -> artifacts.Prompts:
    return ask(tmp_path / "train", *(f"say {number} things" for number in range(10)))


def settings(**changes) -> dict:
    """The plain setting, and the same setting with these changes."""
    return {"settings": {"draw": DRAW, "other": {**DRAW, **changes}}, "limits": LONG}


# ── shown to the sampler alone ────────────────────────────────────────────────────────────────────


def test_what_only_the_sampler_is_shown_is_recorded_and_not_trained(tmp_path, prompts):
    changes = settings(system="Be kind.", few_shot=FEW_SHOT)
    rows = run(tmp_path / "out", prompts, **changes)
    assert (
        rows.group_by("prompt_id")
        .agg(pl.col("prompt_token_ids", "prompt").n_unique())["prompt"]
        .max()
        == 1
    )
    plain, other = rows.filter(setting="draw"), rows.filter(setting="other")
    assert plain["asked_token_ids"].null_count() == plain.height == other.height == 30
    backend = ScriptedSampler(config().backend).start(POLICY, config(limits=LONG).limits)  # type: ignore[arg-type]
    row = other.row(0, named=True)
    own = backend.tokenizer.encode(row["prompt"], {})
    asked = backend.tokenizer.encode(
        [{"role": "system", "content": "Be kind."}, *FEW_SHOT, *row["prompt"]], {}
    )
    assert (row["prompt_token_ids"], row["asked_token_ids"]) == (own, asked)
    seed = collector.derive_seed(config(**changes), "other", row["prompt_id"], 0)
    assert (
        backend.complete(CompletionRequest("", asked, 0.8, 0.9, seed)).token_ids == row["token_ids"]
    )
    cost = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert cost["prompt_tokens"] == sum(map(len, plain["prompt_token_ids"])) + sum(
        map(len, other["asked_token_ids"])
    )


def test_the_prompt_s_own_system_text_stays_below_the_setting_s():
    prompt = [{"role": "system", "content": "Own."}, {"role": "user", "content": "?"}]
    for given_text, expected in ((None, "Own."), ("Mine.", "Mine.\n\nOwn.")):
        setting = SamplingSettings.model_validate(
            {**DRAW, "system": given_text, "few_shot": FEW_SHOT}
        )
        told = [{"role": "system", "content": expected}, *FEW_SHOT, prompt[1]]
        assert asking.build_messages(setting, prompt) == told


def test_a_prompt_too_long_with_what_a_setting_shows_is_dropped_for_all(tmp_path):
    asked = ask(tmp_path / "train", "short", "long " * 164)
    changes = settings(system="Be kind.")
    assert run(tmp_path / "plain", asked, limits=LONG).height == 8
    rows = run(tmp_path / "out", asked, **{**changes, "limits": {"prompt": 165, "completion": 32}})
    dropped = artifacts.read_table(tmp_path / "out" / "dropped.parquet")
    assert rows["prompt_id"].n_unique() == 1
    [detail] = dropped["detail"]
    assert detail == "168 tokens with what the setting other shows, limits.prompt=165"


def test_the_draws_for_kl_are_the_policy_s_own():
    assert shape.KL == artifacts.KL
    plain = {"n": 1, "temperature": 1.0, "top_p": 1.0, **PLAIN}
    config(settings={"kl": plain})
    for change in (
        {"temperature": 0.9},
        {"min_p": 0.1},
        {"stop": ["a"]},
        {"system": "a"},
        {"few_shot": FEW_SHOT},
    ):
        [name] = change
        with pytest.raises(
            ValueError,
            match=f"settings.kl: the KL needs plain samples of the policy; give it {name}=",
        ):
            config(settings={"kl": plain | change})


# ── stop strings ──────────────────────────────────────────────────────────────────────────────────


def test_a_completion_is_cut_before_its_stop_string_ended_and_counted(tmp_path, prompts):
    whole = run(tmp_path / "whole", prompts, settings={"draw": DRAW})
    words = pl.Series([word for text in whole["completion"] for word in text.split()])
    stop = f" {words.value_counts(sort=True).row(0)[0]}"
    cut = run(tmp_path / "cut", prompts, settings={"draw": {**DRAW, "stop": ["never", stop]}})
    hit = 0
    for before, after in zip(whole.iter_rows(named=True), cut.iter_rows(named=True), strict=True):
        if stop not in before["completion"]:
            assert after == before
            continue
        hit += 1
        kept = before["completion"].split(stop)[0]
        ids = before["token_ids"][: len(kept.split())]
        told = {
            "completion": kept,
            "token_ids": [*ids, 0],
            "finish_reason": "stop",
            "stop_string": stop,
            "logprob": None,
        }
        assert after == before | told
    cost = json.loads((tmp_path / "cut" / "cost.json").read_text())
    assert cost["stopped_by_string"] == hit == cut["stop_string"].count() > 2
    assert cost["tokens"] == cut["token_ids"].list.len().sum() < whole["token_ids"].list.len().sum()


def test_a_stop_string_that_no_tokens_can_be_cut_before_breaks_with_words(tmp_path, prompts):
    with pytest.raises(StageError, match=r"no tokens that read as .*\n.*begins where a word does"):
        run(tmp_path / "out", prompts, settings={"draw": {**DRAW, "stop": ["a"]}})


@pytest.mark.model
class TestCuttingTokens:
    """With a byte-level tokenizer characters span tokens, and stop strings begin inside one."""

    @pytest.fixture(scope="class")
    @staticmethod
    def text(tmp_path_factory):
        from pipeline.backends.chat import ModelTokenizer
        from tests.support.tiny import tiny_model

        return ModelTokenizer(
            tiny_model(tmp_path_factory.mktemp("store") / "sft" / "abc", layers=1)
        )

    @given(
        before=st.text(max_size=12),
        stop=st.text(min_size=1, max_size=4),
        after=st.text(max_size=6),
        ended=st.booleans(),
    )
    def test_what_is_kept_reads_as_what_stood_before(self, text, before, stop, after, ended):
        ids = text.encode_text(before + stop + after)
        whole = Completion(
            "a", [*ids, text.eos] if ended else ids, -1.0, "stop" if ended else "length"
        )
        kept, found = stop_strings.cut_at_stop(text, [stop], whole)
        words = text.decode_raw(ids)
        assert found == stop and kept.finish_reason == "stop" and kept.token_ids[-1] == text.eos
        assert text.decode_raw(kept.token_ids[:-1]) == words[: words.index(stop)]
        drawn = [a == b for a, b in zip(kept.token_ids[:-1], ids, strict=False)]
        assert drawn == sorted(drawn, reverse=True), (
            "only the last token's beginning is written anew"
        )

    def test_at_a_token_boundary_the_drawn_tokens_stay_as_they_were_drawn(self, text):
        drawn = [
            *text.encode_text("short"),
            *text.encode_text(" fa"),
            *text.encode_text("cts"),
            *text.encode_text("\nname"),
        ]
        assert drawn != text.encode_text("short facts\nname"), (
            "drawn otherwise than the tokenizer would write it"
        )
        kept, _ = stop_strings.cut_at_stop(text, ["\n"], Completion("a", drawn, -1.0, "length"))
        assert kept.token_ids == [*drawn[: len(kept.token_ids) - 1], text.eos]
        assert text.decode_raw(kept.token_ids[:-1]) == "short facts"

    def test_of_several_the_string_that_is_complete_first_ends_it(self, text):
        completion = Completion("a", text.encode_text("one two three"), -1.0, "length")
        assert stop_strings.cut_at_stop(text, ["one two thr", "wo", "two"], completion)[1] == "two"
        assert stop_strings.cut_at_stop(text, ["none"], completion) == (completion, None)

    def test_a_special_token_can_be_a_stop_string(self, text):
        [mark] = text.encode_text("<|user|>")
        kept, found = stop_strings.cut_at_stop(
            text, ["<|user|>"], Completion("a", [*text.encode_text("so"), mark, 40], -1.0, "length")
        )
        assert (found, kept.token_ids) == ("<|user|>", [*text.encode_text("so"), text.eos])

    @pytest.mark.parametrize(
        ("prompt", "answer", "counted"),
        [
            ("", "<think>short facts</think>name", "<think>short facts</think>"),
            ("<think>\n", "short facts</think>name", "short facts</think>"),
            ("", "<think>short", "<think>short"),
            ("<think>\n", "short", "short"),
            ("", "short facts", ""),
            ("<think>\n\n</think>\n\n", "short", ""),
        ],
    )
    def test_thinking_is_counted_apart(self, text, prompt, answer, counted):
        marks = Reasoning(open="<think>", close="</think>")
        completion = Completion("a", text.encode_text(answer), -1.0, "length")
        found = stop_strings.count_reasoning_tokens(
            text, marks, text.encode_text(prompt), completion
        )
        assert text.decode_raw(completion.token_ids[:found]).startswith(counted) and (
            found == 0
        ) == (counted == "")
        assert counted == "" or not text.decode_raw(completion.token_ids[: found - 1]).startswith(
            counted
        )
        assert (
            stop_strings.count_reasoning_tokens(text, None, text.encode_text(prompt), completion)
            == 0
        )


def test_thinking_stands_in_a_column_and_in_the_cost(tmp_path, prompts):
    whole = run(tmp_path / "whole", prompts)
    words = whole["completion"][0].split()
    close = next(
        word for word in words[3:] if len(word) == 4
    )  # two syllables: it is part of no other word
    rows = run(tmp_path / "out", prompts, reasoning={"open": "ö", "close": close})
    counted = [
        row.split().index(close) + 1 if close in row.split() else 0 for row in rows["completion"]
    ]
    assert rows["reasoning_tokens"].to_list() == counted and counted[0] == words.index(close) + 1
    assert json.loads((tmp_path / "out" / "cost.json").read_text())["reasoning_tokens"] == sum(
        counted
    )
    assert whole["reasoning_tokens"].sum() == 0


# ── waves ─────────────────────────────────────────────────────────────────────────────────────────


def scored(folder: Path, rows: pl.DataFrame, score_of) -> Scores:
    table = rows.select(
        "sample_id", "prompt_id", scorer=pl.lit("rules"), status=pl.lit("ok"), detail=pl.lit("")
    )
    marks = [score_of(row) for row in rows.iter_rows(named=True)]
    parts = [table.with_columns(score=pl.Series(marks, dtype=pl.Float64))]
    parts += [
        parts[0].with_columns(
            scorer=pl.lit("other"), score=pl.int_range(rows.height).cast(pl.Float64)
        )
    ]
    write_table(folder / "scores" / "00000.parquet", pl.concat(parts).select(*SCORES))
    return Scores(folder)


def test_a_later_wave_draws_only_where_all_scores_so_far_tie(tmp_path, prompts):
    first = run(tmp_path / "0", prompts)
    tied, single, split, failed, *_ = names = first["prompt_id"].unique().sort().to_list()

    def score_of(row) -> float | None:
        at = first.filter(prompt_id=row["prompt_id"])["sample_id"].to_list().index(row["sample_id"])
        marks = {tied: 0.1, single: None if at else 1.0, split: float(at == 2), failed: None}
        return marks.get(row["prompt_id"], float(at))

    scores = [scored(tmp_path / "s0", first, score_of)]
    later = config(wave=1, ties_by="rules")
    rows = sample.run(later, tmp_path / "1", policy=POLICY, prompts=prompts, scores=scores).read()
    assert set(rows["prompt_id"]) == {tied, single, failed}
    assert rows.height == 12 and not set(rows["sample_id"]) & set(first["sample_id"])
    scores.append(
        scored(tmp_path / "s1", rows, lambda row: 0.1 if row["prompt_id"] == tied else 0.7)
    )
    last = sample.run(
        later.model_copy(update={"wave": 2}),
        tmp_path / "2",
        policy=POLICY,
        prompts=prompts,
        scores=scores,
    )
    assert set(last.read()["prompt_id"]) == {tied, failed}, (
        "one score of the second wave differs from that of the first"
    )
    assert len(names) == 10


def test_a_wave_that_no_prompt_needs_publishes_no_rows_and_starts_nothing(
    tmp_path, prompts, monkeypatch
):
    first = run(tmp_path / "0", prompts)
    scores = scored(tmp_path / "s0", first, lambda row: int(row["sample_id"], 16) / 2**64)
    monkeypatch.setattr(
        sampler, "open_backend", lambda *_: pytest.fail("a backend, and so a tokenizer, was opened")
    )
    made = sample.run(
        config(wave=1, ties_by="rules"),
        tmp_path / "1",
        policy=POLICY,
        prompts=prompts,
        scores=[scores],
    )
    assert made.read().schema == first.schema and made.read().is_empty()
    before = files(tmp_path / "1")
    sample.run(
        config(wave=1, ties_by="rules"),
        tmp_path / "1",
        policy=POLICY,
        prompts=prompts,
        scores=[scores],
    )
    assert files(tmp_path / "1") == before

    from pipeline.stages import score

    marked = score.run(
        composed("recipes=smoke").score, tmp_path / "s1", samples=made, prompts=prompts
    )
    assert marked.read().is_empty() and marked.read().schema == scores.read().schema


def test_a_second_wave_repeats_the_first_no_more_often_than_chance(tmp_path):
    """Completions are one of three syllables, so that two samples of a prompt often agree."""
    asked = ask(tmp_path / "train", *(f"say {number} things" for number in range(400)))
    small = {
        "settings": {"draw": {**DRAW, "n": 4}},
        "limits": {"prompt": 64, "completion": 1},
        "backend": {"kind": "scripted", "vocabulary": 4},
        "shard": 400,
    }
    drawn = [
        run(tmp_path / str(wave), asked, wave=wave, **small)["completion"].to_list()
        for wave in (0, 1)
    ]
    first, second = ([wave[at : at + 4] for at in range(0, 1600, 4)] for wave in drawn)
    within = [a == b for four in (*first, *second) for a, b in combinations(four, 2)]
    across = [a == b for one, two in zip(first, second, strict=True) for a, b in product(one, two)]
    same, other = sum(within) / len(within), sum(across) / len(across)
    assert abs(same - 1 / 3) < 0.03 and abs(other - same) < 0.03
    indices = [
        sum(a[i] == b[i] for a, b in zip(first, second, strict=True)) / 400 for i in range(4)
    ]
    assert all(abs(share - 1 / 3) < 0.1 for share in indices), (
        "no index of a wave repeats that of another"
    )


def test_waves_know_nothing_of_later_ones_and_greedy_settings_are_drawn_once():
    calm = {**DRAW, "n": 1, "temperature": 0.0}
    block = composed(*SMALL).sample
    both = {"draw": DRAW, "calm": calm}
    block = type(block).model_validate(
        {**block.model_dump(), "settings": both, "resample_ties": [4, 8]}
    )
    waves = block.request_waves(2, "rules")
    assert [{name: each.n for name, each in wave.settings.items()} for wave in waves] == [
        {"draw": 3, "calm": 1},
        {"draw": 4},
        {"draw": 8},
    ]
    assert [(w.purpose, w.round, w.wave, w.ties_by) for w in waves] == [
        ("train", 2, 0, None),
        ("train", 2, 1, "rules"),
        ("train", 2, 2, "rules"),
    ]
    fewer = block.model_copy(update={"resample_ties": [4]})
    assert (
        fewer.request_waves(2, "rules") == waves[:2]
        and fewer.request_waves(2, "other")[0] == waves[0]
    )
    assert isinstance(waves[0], SampleRequest)


def test_one_more_wave_samples_nothing_anew():
    """Each wave reads the scores of all earlier waves; a later wave does not change them."""
    one, two, three = (
        named(plan(composed(*SMALL, f"sample.resample_ties={more}")))
        for more in ("[]", "[4]", "[4, 8]")
    )
    samples, scores = three["pair@1"].inputs["samples"], three["pair@1"].inputs["scores"]
    assert [each.inputs.get("scores", []) for each in samples] == [[], scores[:1], scores[:2]]
    assert [each.inputs["samples"] for each in scores] == samples
    marks = ["sample.resample_ties=[4]"]
    assert (
        fingerprints(*SMALL, *marks)["sample@test sft"] == fingerprints(*SMALL)["sample@test sft"]
    )
    assert [s.config for s in two["pair@1"].inputs["samples"]] == [s.config for s in samples[:2]]
    assert one["sample@1"].config == samples[0].config


def test_template_kwargs_reach_every_stage_that_writes_a_prompt():
    kwargs = {"enable_thinking": False}
    steps = plan(composed("recipes=smoke", "template.kwargs={enable_thinking: false}")).ancestors()
    told = {}
    for step in steps:
        block = step.config.model_dump()
        if "template_kwargs" in block or "template" in block:
            told[step.stage] = (
                block["template_kwargs"]
                if "template_kwargs" in block
                else block["template"]["kwargs"]
            )
    assert told == dict.fromkeys(("sft", "sample", "pair"), kwargs)
    offline = composed(
        *SMALL,
        "offline=file",
        "offline.source.path=x",
        "pair.mix={on_policy: 0, offline: 1, per_round: null}",
        "template.kwargs={enable_thinking: false}",
    )
    assert offline.offline is not None and offline.offline.template_kwargs == kwargs
