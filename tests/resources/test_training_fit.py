"""What a training is said to take: against figures worked out by hand, and what is refused or
chosen by it."""

import json

import polars as pl
import pytest

from pipeline import hardware
from pipeline.artifacts import Model, write_json, write_table
from pipeline.driver.outline import prepare_plan
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.preflight import lineage
from pipeline.resources import model_shape, training_fit, training_memory
from pipeline.training import micro_batch
from tests.support.house import SMALL, check_capacity, composed, describe_memory
from tests.support.preferences import FULL, LORA, QLORA, dpo

# As their config.json has them; the parameter counts beside them are those of the published
# weights.
LLAMA_1B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
PARAMETERS = [(LLAMA_1B, 1_235_814_400), (LLAMA_7B, 6_738_415_616)]
RANK_16 = {**LORA, "rank": 16}


def shape(config: dict) -> model_shape.Shape:
    found = model_shape.parse_shape(config)
    assert found
    return found


def training(
    known: model_shape.Shape, cfg, rows: int, longest: int, gpu: bool = True, world: int = 1
):
    return training_memory.ProcessMemory(known, cfg, rows, longest, world, gpu)


def fit(
    known: model_shape.Shape | None, cfg, longest: int | None = 2048, count: int = 64
) -> training_fit.TrainingFit:
    """Of one process; `longest=None`: its pairs are not built yet."""
    lengths = [longest] * 2 * count if longest else []
    rows = training_fit.count_training(cfg, count, lengths)
    return training_fit.fit_training(known, cfg, rows, world=1)


def settled(adapter, **changes):
    return dpo(adapter, dtype="bfloat16", gradient_checkpointing=True, max_length=2048, **changes)


@pytest.mark.parametrize(("config", "published"), PARAMETERS)
def test_parameters_are_counted_as_the_published_weights_have_them(config, published):
    assert shape(config).parameters == published


def test_a_model_of_another_kind_is_not_guessed_at():
    assert model_shape.parse_shape({"n_embd": 768}) is None
    assert model_shape.parse_shape({**LLAMA_1B, "num_experts": 8}) is None
    assert model_shape.parse_shape({"text_config": LLAMA_1B}) == shape(LLAMA_1B)


def test_an_output_layer_is_the_embeddings_where_the_config_or_else_the_family_says_so():
    unsaid = {name: value for name, value in LLAMA_7B.items() if name != "tie_word_embeddings"}
    found = {
        kind: shape({**unsaid, "model_type": kind}) for kind in ("llama", "gemma2", "gemma3_text")
    }
    assert [one.tied for one in found.values()] == [False, True, True]
    assert found["llama"].parameters - found["gemma2"].parameters == 32000 * 4096 - 2 * 32 * 4096, (
        "two more norms each"
    )


@pytest.mark.parametrize(
    ("config", "adapter", "gigabytes"),
    [
        # Weights 4, gradients 4, Adam 8 bytes a parameter, and 2 for rounded copies of the linear
        # layers' 973,078,528.
        (LLAMA_1B, FULL, (4 * 1.2358, 2 * 0.9731, 4 * 1.2358, 8 * 1.2358)),
        # 16 × (inputs + outputs) of seven layers, 16 times: 11,272,192 in float32, beside 2 bytes a
        # parameter.
        (LLAMA_1B, {**RANK_16}, (2 * 1.2358 + 4 * 0.01127, 0, 4 * 0.01127, 8 * 0.01127)),
        # The linear layers' 973,078,528 in 4 bits and 1/64 × (1 + 4/256) bytes of scales;
        # embeddings in bfloat16, and one layer's 2048 × 8192 as it is unpacked.
        (
            LLAMA_1B,
            {**QLORA, "rank": 16},
            (0.51587 * 0.9731 + 2 * 0.26274 + 4 * 0.01127, 0.03355, 0.04509, 0.09018),
        ),
        (LLAMA_7B, FULL, (4 * 6.7384, 2 * 6.4760, 4 * 6.7384, 8 * 6.7384)),
        (LLAMA_7B, {**RANK_16}, (2 * 6.7384 + 4 * 0.03998, 0, 4 * 0.03998, 8 * 0.03998)),
        (
            LLAMA_7B,
            {**QLORA, "rank": 16},
            (0.51587 * 6.4760 + 2 * 0.26241 + 4 * 0.03998, 0.09018, 0.15991, 0.31982),
        ),
    ],
    ids=["1B full", "1B LoRA", "1B QLoRA", "7B full", "7B LoRA", "7B QLoRA"],
)
def test_the_state_of_a_training_by_hand(config, adapter, gigabytes):
    found = training(shape(config), settled(adapter), 1, 1)
    state = (found.weights, found.rounded_copies, found.gradients, found.optimizer)
    assert state == pytest.approx([g * 1e9 for g in gigabytes], rel=2e-3)


def test_the_fullest_moment_of_a_7b_by_hand():
    """2 × 1024 tokens. With checkpointing it is the end of the forward pass, where all rounded
    copies are there: 32 inputs of 4096 float32, the mask, the last norm in and out, its output and
    a copy. Without, the head's backward pass: blocks of norms 2 × 8 × 4096, heads 2 × 4 × 4096, the
    mask, gates 6 × 11008, inputs 2 × (5 × 4096 + 11008)."""
    found = training(shape(LLAMA_7B), settled(FULL), 1, 1024).peak
    after = 8 * 4096 + 2 * 4 * 4096
    assert found.activations == 2048 * (32 * 4 * 4096 + 1024 + after)
    assert found.weights == 4 * 6_738_415_616 + 2 * 6_476_005_376
    assert found.gradients == 4 * 6_738_415_616, "of the three micro-batches before"
    whole = settled(FULL).model_copy(update={"gradient_checkpointing": False})
    block = 16 * 4096 + 2 * (4 * 4096 + 1024) + 6 * 11008 + 2 * (5 * 4096 + 11008)
    found = training(shape(LLAMA_7B), whole, 1, 1024).peak
    assert found.activations == 2048 * (32 * block + 1024 + after + 4 * 4096)
    assert found.gradients == 4 * (6_738_415_616 + 32000 * 4096), "the output layer's beside them"


def test_a_step_of_one_micro_batch_has_no_gradients_until_its_backward_pass():
    one, four = (
        training(shape(LLAMA_7B), settled(FULL, batch=n, micro_batch=1), 1, 1024).peak
        for n in (1, 4)
    )
    assert one.total < four.total - 0.5 * 4 * 6_738_415_616


def test_a_gpu_folds_logits_without_the_copies_of_a_cpu():
    cfg = settled(RANK_16)
    gpu, cpu = (training(shape(LLAMA_1B), cfg, 1, 512, there) for there in (True, False))
    assert gpu._tile_bytes(29) == 2 * 1024 * 32768, "in bfloat16"
    assert cpu._tile_bytes(29) == gpu._tile_bytes(29) + 29 * 1024 * 32768


def test_own_answers_are_drawn_as_many_at_once_as_fit_beside_the_state(card):
    """2048 tokens of 32 × 2 × 4096 bfloat16 are 1 GiB each; the weights take 12.7 GiB, and a prompt
    some more."""
    cfg = settled(RANK_16)
    card(80)
    assert 30 < training_fit.choose_answer_batch(shape(LLAMA_7B), cfg, 64) < 58
    card(24)
    assert 4 < training_fit.choose_answer_batch(shape(LLAMA_7B), cfg, 64) < 9
    card(12)
    assert training_fit.choose_answer_batch(shape(LLAMA_7B), cfg, 64) == 1
    card(80)
    assert training_fit.choose_answer_batch(shape(LLAMA_1B), cfg, 64) == 64


def test_processes_share_what_their_launcher_shares():
    def of(launch: str, processes: int = 4) -> training_memory.ProcessMemory:
        cfg = settled(FULL, batch=8, processes=processes, launch=launch)
        return training(shape(LLAMA_7B), cfg, 2, 512, world=processes)

    alone, ddp, zero1, zero2, fsdp = (
        of("ddp", 1),
        of("ddp"),
        of("zero1"),
        of("zero2"),
        of("fsdp2"),
    )
    assert ddp.gradients == 2 * alone.gradients, "what is sent is a copy"
    assert (zero1.optimizer, zero1.gradients) == (ddp.optimizer / 4, alone.gradients)
    assert (zero2.optimizer, zero2.gradients, zero2.weights) == (
        zero1.optimizer,
        alone.gradients / 4,
        ddp.weights,
    )
    assert ddp.weights / 4 < fsdp.weights < ddp.weights / 4 * 1.15  # one block is whole at a time
    assert ddp.token.block == fsdp.token.block


def test_disk_by_hand():
    full, lora = (
        model_shape.estimate_disk(shape(LLAMA_7B), settled(adapter)) for adapter in (FULL, RANK_16)
    )
    assert (
        full.checkpoint == pytest.approx(12 * 6.7384e9, rel=1e-4)
        and full.published == 2 * 6_738_415_616
    )
    assert full.peak == 2 * full.checkpoint + full.published
    assert lora.peak == pytest.approx((2 * 12 + 4) * 0.03998e9, rel=1e-3)


# ── on a machine ──────────────────────────────────────────────────────────────────────────────────


def test_auto_takes_the_most_rows_that_fit_and_divide(card):
    cfg = settled(RANK_16, batch=48, micro_batch="auto")
    card(80)
    most = fit(shape(LLAMA_7B), cfg).micro_batch
    assert 48 % most == 0 and most > 1
    room = fit(shape(LLAMA_7B), cfg).available
    larger = next(n for n in range(most + 1, 49) if 48 % n == 0)
    taken = [training(shape(LLAMA_7B), cfg, n, 2048).peak.total for n in (most, larger)]
    assert taken[0] <= room < taken[1]
    card(24)
    assert fit(shape(LLAMA_7B), cfg).micro_batch < most
    assert fit(shape(LLAMA_7B), settled(RANK_16, batch=48, micro_batch=3)).micro_batch == 3


def test_auto_on_a_cpu_and_where_rows_belong_together(card):
    card()
    assert fit(None, dpo(batch=20, micro_batch="auto")).micro_batch == 5
    coupled = dpo(
        batch=12, micro_batch="auto", loss=["aot"], loss_group=6, args={"label_smoothing": 0.0}
    )
    assert fit(None, coupled).micro_batch == 6


def test_an_evaluation_at_the_end_is_counted():
    counts = {steps: training_fit.count_evaluations(8, steps) for steps in (6, 8, 9, 16)}
    assert counts == {6: 2, 8: 2, 9: 3, 16: 3}


def test_no_size_is_written_with_a_power_of_ten():
    mib = 1 << 20
    assert (
        model_shape.format_bytes(1010 * mib) == "0.986 GiB"
        and model_shape.format_bytes(999 * mib) == "999 MiB"
    )


def test_a_plan_tells_what_a_look_at_own_answers_may_come_to(card):
    """The weights' 12.7 GiB, and four answers of 1 GiB each with the pass over their prompts."""
    card(80)

    def told(**changes) -> list[str]:
        needs = fit(shape(LLAMA_7B), settled(RANK_16, **changes), longest=64)
        return [line for line in needs.describe() if "generates" in line]

    [line] = told()
    assert "4 answers at once" in line
    assert float(line.split("up to ")[1].split(" GiB")[0]) == pytest.approx(
        12.7 + 4 * 1.2, rel=0.05
    )
    assert told(guards={"prompts": 0}) == [], "none is drawn"
    card(16)
    assert "1 answer at once" in told()[0], "as many as fit"


def test_a_resumed_training_keeps_its_rows_whatever_memory_is_free_by_then(card, tmp_path):
    """Another number of rows at once would round otherwise, and the resumed weights would
    differ."""
    init = Model(tmp_path / "sft")
    write_json(init.path / "model.json", {"weights": "weights", "tokenizer": "weights"})
    write_json(init.path / "weights" / "config.json", LLAMA_1B)
    ids = {
        "prompt_ids": [[1] * 1000] * 8,
        "chosen_ids": [[1] * 1000] * 8,
        "rejected_ids": [[1] * 1000] * 8,
    }
    cfg, rows = settled(RANK_16, batch=8, micro_batch="auto"), {"train": pl.DataFrame(ids)}

    def choose_micro_batch(name: str, free: float) -> int:
        card(80, free=free)
        return micro_batch.check_fit(cfg, init, rows, 1, tmp_path / name).micro_batch

    tight, roomy = choose_micro_batch("tight", 6), choose_micro_batch("roomy", 80)
    assert tight < roomy == 8
    assert (choose_micro_batch("tight", 80), choose_micro_batch("roomy", 80)) == (tight, roomy)
    with pytest.raises(UserError, match="train needs about"):
        choose_micro_batch("none", 2)
    assert choose_micro_batch("none", 80) == 8, "what was refused settles nothing"
    with pytest.raises(
        UserError, match="There are 5.4 GiB .train.runtime.memory=0.9 of 6 GiB free on NVIDIA"
    ):
        choose_micro_batch("roomy", 6)


def test_too_little_memory_says_what_it_needs_what_there_is_and_what_to_lower(card):
    card(24)
    said = fit(shape(LLAMA_7B), settled(FULL, micro_batch=2)).explain_memory_shortage()
    assert said and "weights 37.2 GiB, gradients 25.1 GiB, optimizer 50.2 GiB" in said
    assert "There are 21.6 GiB (train.runtime.memory=0.9 of 24 GiB free on NVIDIA H100" in said
    assert (
        "Lower train.runtime.micro_batch, limits, or give" in said
        and "adapter=lora or qlora" in said
    )
    overruled = settled(FULL, micro_batch=2, runtime={"memory": 9.0})
    assert fit(shape(LLAMA_7B), overruled).explain_memory_shortage() is None


@pytest.mark.parametrize(
    ("there", "visible", "fault"),
    [(2, "0,1", False), (2, "2", True), (0, "0", True), (0, "", False)],
)
def test_a_gpu_that_is_asked_for_and_is_not_there(card, there, visible, fault):
    card(*[80] * there, visible=visible)
    said = hardware.explain_missing_gpus()
    assert bool(said) is fault
    assert (
        said is None or f"CUDA_VISIBLE_DEVICES={visible}: this machine has no GPU {visible}" in said
    )


def planned_on(tmp_path, config: dict, *words: str):
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(config))
    given = [
        "prompts=playground",
        f"sft.model={model}",
        "sample.per_round=100",
        f"store={tmp_path / 'store'}",
    ]
    cfg = composed(*given, "dtype=bfloat16", "dry_run=true", *words)
    return prepare_plan(cfg, [plan(cfg)])


def test_a_plan_tells_what_is_known_before_anything_is_built(card, tmp_path):
    card(80)
    planned = planned_on(tmp_path, LLAMA_7B, "adapter=lora", "cost.gpu_hour=2.5")
    shown = describe_memory(planned)
    engine = "13.6 GiB at least (weights 12.6 GiB, one longest sequence 1 GiB)"
    assert (
        shown[0] == f"  sample test sft and 3 more: memory {engine}"
        " · there are 72 GiB (a share of 0.9 of 80 GiB)"
    )
    assert shown[1] == "  train round 1: at most 2 steps of 64 · 100 rows · 409,600 tokens"
    assert any("memory" in line and "weights 12.7 GiB" in line for line in shown)
    # 2 × (2 + 1 for checkpointing) operations a parameter and token, at 35 % of 989e12 a second.
    hours = 6 * 6.738e9 * 409_600 / (0.35 * 989e12) / 3600
    assert any(
        f"time     {hours * 60:.1f} min on 1 process, by the GPU's name · money {hours * 2.5:.2f}"
        in at
        for at in shown
    )


def test_a_round_after_a_gate_has_the_size_of_what_it_chose_or_may_choose(card, tmp_path):
    card(80)
    planned = planned_on(tmp_path, LLAMA_1B, "rounds=2", "gate=best")
    steps = {(step.stage, step.label): step for step in planned.steps}
    init = steps["train", 2].inputs["init"]
    assert init is steps["gate", 1]
    assert [*lineage.trace_lineage(init)] == [steps["gate", 1], steps["sft", 0]], (
        "who knows the context"
    )
    assert lineage.find_shape(planned, init) == shape(LLAMA_1B), "before the gate"
    sft = planned.folder(steps["sft", 0])
    write_json(sft / "model.json", {"weights": str(tmp_path / "model")})
    write_json(planned.folder(init) / "model.json", {"target": f"sft/{sft.name}", "content": "0"})
    assert lineage.find_shape(planned, init) == shape(LLAMA_1B), "behind its pointer"
    check_capacity(planned)
    write_json(
        sft / "model.json", {"base": "train/pruned", "adapter": "adapter", "tokenizer": "tokenizer"}
    )
    assert lineage.find_shape(planned, init) is None
    check_capacity(planned)


def test_what_is_rehearsed_beside_the_pairs_needs_memory_too():
    """Four demonstrations for eight pairs: with two pairs at once one of them, its logits as a
    whole."""
    plain = settled(FULL, batch=8)
    rehearsing = composed(
        *SMALL, "+rehearsal@train.rehearsal=default", "train.rehearsal.share=0.5"
    ).train
    cfg = plain.model_copy(update={"rehearsal": rehearsing.rehearsal})
    assert cfg.rehearsal_rows == 4
    without, found = (training(shape(LLAMA_1B), one, 2, 512) for one in (plain, cfg))
    assert (without.untiled_logits, found.untiled_logits) == (0, 512 * shape(LLAMA_1B).vocabulary)
    assert (
        without.pair_tokens,
        found.pair_tokens,
        without.rehearsal_tokens,
        found.rehearsal_tokens,
    ) == (2048, 2048, 0, 512)


@pytest.mark.parametrize(
    ("words", "few"),
    [
        ([], False),
        (["sample.per_round=50"], True),
        (["sample.per_round=50", "train.batch=4"], False),
        (["sample.per_round=50", "train.warmup=0"], False),
    ],
)
def test_a_plan_says_that_its_steps_are_too_few_for_the_warm_up(card, tmp_path, words, few):
    card()
    planned = planned_on(
        tmp_path, LLAMA_1B, *words, "train.epochs=4" if not words else "train.epochs=1"
    )
    shown = describe_memory(planned)
    said = [
        line
        for line in shown
        if "too few steps (1) for train.warmup=0.1: the warm-up takes 1 of them" in line
    ]
    assert len(said) == few


def test_a_plan_counts_thumbs_for_kto(card, tmp_path):
    card()
    for words, said in (
        ([], "at most 4 steps of 64 · 200 rows"),
        (["pair.unpaired_threshold=0.5"], "how many rows is not known"),
    ):
        planned = planned_on(tmp_path, LLAMA_1B, "train=kto", *words)
        shown = describe_memory(planned)
        assert "memory 2.36 GiB at least" in shown[0] and shown[0].endswith(
            "on a GPU (here there is none: main memory)"
        )
        assert said in shown[1]


def test_a_plan_counts_the_thumbs_that_are_there_without_those_of_dev_prompts(card, tmp_path):
    card()
    planned = planned_on(tmp_path, LLAMA_1B, "train=kto")
    folder = planned.folder(next(step for step in planned.steps if step.stage == "pair"))
    ids = {"prompt_token_ids": [[1]] * 4, "token_ids": [[2]] * 4}
    thumbs = {
        "prompt_id": list("aabb"),
        "sample_id": list("stuv"),
        **ids,
        "label": [True, False] * 2,
    }
    write_table(folder / "unpaired.parquet", pl.DataFrame(thumbs))
    for part, prompt in (("train", "a"), ("dev", "b")):
        write_table(folder / f"{part}.parquet", pl.DataFrame({"prompt_id": [prompt]}))
    shown = describe_memory(planned)
    assert "1 step of 64 · 2 rows · 4 tokens" in shown[1]


def test_what_cannot_be_trained_here_is_refused_before_anything_is_built(card, tmp_path):
    card(24)
    planned = planned_on(tmp_path, LLAMA_7B, "train.learning_rate=1e-8")
    with pytest.raises(UserError, match="train needs at least 101 GiB .weights"):
        check_capacity(planned)
    shown = describe_memory(planned)
    assert any(
        "! a run here refuses this: train needs at least 101 GiB (weights" in line for line in shown
    )
    assert any(
        line.startswith("    ! learning_rate=1e-08 ") and "(5e-07)" in line for line in shown
    )
    card(80, 80, visible="3")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=3: this machine has no GPU 3"):
        check_capacity(planned)
    card(80, 80)
    two = planned_on(tmp_path, LLAMA_1B, "train.runtime.processes=3")
    with pytest.raises(UserError, match="processes=3: this machine has 2 GPUs"):
        check_capacity(two)


def test_a_layer_that_no_weight_is_of_is_refused_before_anything_is_built(card, tmp_path):
    card()
    named = {"model.embed_tokens.weight": "1", "model.layers.0.self_attn.q_proj.weight": "1"}
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model" / "model.safetensors.index.json", {"weight_map": named})
    wrong, pattern, right = (
        planned_on(tmp_path, LLAMA_1B, "adapter=lora", f"train.adapter.targets={names}")
        for names in ("[q_proj,q_prjo]", "q_proj", "[q_proj]")
    )
    expected = r"Expected names of linear layers.*\(q_proj\), or all-linear"
    with pytest.raises(
        UserError, match=rf"targets: q_prjo: no module of this model .*\n.*{expected}"
    ):
        check_capacity(wrong)
    check_capacity(pattern)  # its whole names are checked in training
    check_capacity(right)


def test_a_disk_that_is_too_small_is_refused(card, tmp_path, monkeypatch):
    from shutil import _ntuple_diskusage

    card(80)
    monkeypatch.setattr(
        training_fit.shutil,
        "disk_usage",
        lambda path: _ntuple_diskusage(0, 0, 10 * model_shape.GIB),
    )
    full, lora = (fit(shape(LLAMA_1B), settled(adapter)) for adapter in (FULL, RANK_16))
    said = full.explain_disk_shortage(tmp_path / "not" / "yet")
    assert (
        said
        and "needs 29.9 GiB of disk: a checkpoint of 13.8 GiB and the one before it," in said
        and "10 GiB free" in said
    )
    assert lora.explain_disk_shortage(tmp_path) is None


def test_a_plan_of_more_processes_than_pairs_a_step_says_so_and_still_estimates(card, tmp_path):
    card()
    words = ["train.batch=4", "train.runtime.processes=8", "train.runtime.micro_batch=auto"]
    shown = describe_memory(planned_on(tmp_path, LLAMA_1B, *words))
    assert any("for 1 row at once" in line for line in shown)
    assert any("refuses this: train.batch=4 does not divide evenly among 8" in at for at in shown)
