"""One epoch of DPO over plain TRL's DPOTrainer on the same pairs.

python bench/training.py [pairs=400] [rounds=3]

`reference`: precomputed reference values and the stage that computes them, where TRL runs a second
model. `lengths`: the training without padding, or with little. `all`: the stage, and the training
by the defaults of conf/. `padding`: the gain of leaving padding out alone. `shared`: the gain of
computing each prompt once, where a prompt is as long as its two answers together.

Answers have log-normal lengths (median 60 tokens, σ 0.8, at most 512). A step has 16 pairs, in
micro-batches of 8 and with gradient checkpointing, the defaults of both sides. All train in turn,
on a random model that is large enough for arithmetic to dominate; their losses have to be equal,
step by step. The checks before the first step are in our times; loading a model is in none.
bench/gpu/speed.py trains on a GPU.
"""

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import datasets
import polars as pl
import torch
from measure import Ratio, report

from pipeline.artifacts import Logps, Model, Pairs, write_table
from pipeline.config import ReferenceConfig, TrainConfig
from pipeline.stages import reference, train
from tests.support.preferences import dpo
from tests.support.tiny import WORDS, tiny_model

MEDIAN, SPREAD, CAP = 60, 0.8, 512
BATCH, MICRO_BATCH, PAIRS, ROUNDS = 16, 8, 400, 3
EQUAL = 1e-4
# A higher rate would make the rounding of one step the difference of the next: losses rise at ten
# times that of float32, and so do gaps.
DTYPE, RATE = ("bfloat16", 1e-6) if torch.cuda.is_available() else ("float32", 3e-5)
SHAPE = {"hidden": 256, "layers": 4, "context": 2048}
Losses = list[float]


def write_pairs(
    folder: Path,
    sft: Model,
    count: int,
    long_prompts: bool = False,
    median: int = MEDIAN,
    cap: int = CAP,
) -> Pairs:
    """Random words and their token ids. A prompt is short, or as long as its two answers."""
    from transformers import AutoTokenizer

    tokenizer, draw = AutoTokenizer.from_pretrained(sft.tokenizer), random.Random(0)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    tokens_of = {word: len(ids(f" {word}")) for word in WORDS.split()}

    def text(tokens: int) -> str:
        words: list[str] = []
        while tokens > 0:
            words.append(draw.choice(list(tokens_of)))
            tokens -= tokens_of[words[-1]]
        return " ".join(words)

    def row(number: int) -> dict[str, Any]:
        sides = "chosen", "rejected"
        sizes = [min(cap, round(median * draw.lognormvariate(0, SPREAD))) for _ in sides]
        asked = sum(sizes) if long_prompts else draw.randint(10, 40)
        prompt = [{"role": "user", "content": text(asked)}]
        shown = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        pair = {"prompt_id": f"p{number}", "prompt": prompt, "prompt_token_ids": ids(shown)}
        for side, size in zip(sides, sizes, strict=True):
            answer = text(size - 1)
            pair[f"{side}_id"] = f"p{number}-{side}"
            pair[f"{side}_token_ids"] = ids(answer + "<|end|>")
            pair[side] = [{"role": "assistant", "content": answer}]
        return pair

    rows = pl.DataFrame([row(number) for number in range(count)])
    write_table(folder / "train.parquet", rows)
    write_table(folder / "dev.parquet", rows.clear())
    return Pairs(folder)


def make_config(**runtime: Any) -> TrainConfig:
    form = {"kind": "full", "learning_rate": RATE}
    knobs: dict[str, Any] = {
        "batch": BATCH,
        "dtype": DTYPE,
        "max_length": SHAPE["context"],
        "gradient_checkpointing": True,
        "scheduler": "constant",
    }
    return dpo(form, micro_batch=MICRO_BATCH, save_every=10_000, warmup=0.0, **knobs, **runtime)


def time_training(trainer: Any) -> tuple[float, Losses]:
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    return seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def time_reference(sft: Model, pairs: Pairs, out: Path) -> tuple[float, Logps]:
    runtime = {"batch_tokens": 8192, "workers": 1}
    cfg = ReferenceConfig(dtype=DTYPE, quantization=None, runtime=runtime)
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    logps = reference.run(cfg, out, model=sft, rows=pairs)
    return time.monotonic() - started, logps


def train_ours(
    sft: Model, pairs: Pairs, logps: Logps, out: Path, **runtime: Any
) -> tuple[float, Losses]:
    """The stage's trainer with its callbacks and checks."""
    from pipeline.training import build
    from pipeline.training.monitoring import guards

    cfg = make_config(**runtime)
    rows = {part: train.prepare_pairs(cfg, [pairs], part, [logps]) for part in ("train", "dev")}
    watch = guards.build_guards(cfg, sft, sft, None, rows["dev"], out)
    trainer, _ = build.build_trainer(cfg, build.load_policy(cfg, sft), sft, sft, rows, out, watch)
    return time_training(trainer)


def train_trl(sft: Model, pairs: Pairs, out: Path) -> tuple[float, Losses]:
    """TRL loads its own reference. Only what its defaults leave open or our side sets is set."""
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from pipeline.models import loading

    cfg = make_config()
    args = DPOConfig(
        output_dir=str(out),
        gradient_accumulation_steps=BATCH // MICRO_BATCH,
        num_train_epochs=cfg.epochs,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type=cfg.scheduler,
        warmup_steps=cfg.warmup,
        seed=cfg.seed,
        bf16=cfg.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    assert args.per_device_train_batch_size == MICRO_BATCH and args.gradient_checkpointing
    rows = pairs.read_train().select("prompt", "chosen", "rejected").to_dicts()
    trainer = DPOTrainer(
        model=loading.load_merged(sft),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=loading.load_tokenizer(sft),
    )
    trainer.remove_callback(PrinterCallback)
    assert trainer.ref_model is not None
    assert (
        trainer.train_dataset["rejected_ids"] == pairs.read_train()["rejected_token_ids"].to_list()
    )
    return time_training(trainer)


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    count, rounds = int(given.get("pairs", PAIRS)), int(given.get("rounds", ROUNDS))
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sft = tiny_model(folder / "sft" / "bench", **SHAPE)
        short = write_pairs(folder / "short", sft, count)
        long = write_pairs(folder / "long", sft, count, long_prompts=True)
        _, short_logps = time_reference(sft, short, folder / "short-logps")
        _, long_logps = time_reference(sft, long, folder / "long-logps")

        def ours(pairs: Pairs, logps: Logps, **runtime: Any) -> Any:
            return lambda: train_ours(sft, pairs, logps, folder / "out", **runtime)

        separate = {"shared_prompt": False}
        on_short: dict[str, Any] = {
            "trl": lambda: train_trl(sft, short, folder / "out"),
            "reference": lambda: (time_reference(sft, short, folder / "again")[0], None),
            "precomputed": ours(short, short_logps, by_length=False, **separate),
            "lengths": ours(short, short_logps, **separate),
            "defaults": ours(short, short_logps),
        }
        on_long = {
            "long prompts": ours(long, long_logps, **separate),
            "shared": ours(long, long_logps),
        }
        seconds: dict[str, list[float]] = {side: [] for side in (*on_short, *on_long)}
        for number in range(-1, rounds):  # the first of each does not count
            for sides in (on_short, on_long):
                losses = {}
                for side, epoch in sides.items():
                    taken, losses[side] = epoch()
                    shutil.rmtree(folder / "out", ignore_errors=True)
                    if number >= 0:
                        seconds[side].append(taken)
                check_equal(losses)
            if number >= 0:
                print(
                    ", ".join(f"{side} {taken[-1]:.1f} s" for side, taken in seconds.items()),
                    flush=True,
                )
    report("training", make_ratios(seconds))


def check_equal(losses: dict[str, Losses | None]) -> None:
    """All sides' losses equal those of the first."""
    first, *others = [side for side, found in losses.items() if found]
    expected = losses[first]
    assert expected
    for side in others:
        gaps = [abs(a - b) for a, b in zip(losses[side] or [], expected, strict=True)]
        assert max(gaps) < EQUAL, f"{side}: losses differ from {first}'s by {max(gaps):.2g}"
    equal = f"{len(expected)} losses are equal"
    print(f"{equal}, from {expected[0]:.4f} to {expected[-1]:.4f}", flush=True)


def make_ratios(seconds: dict[str, list[float]]) -> dict[str, Ratio]:
    def divide(ours: list[str], other: str) -> list[float]:
        totals = map(sum, zip(*(seconds[side] for side in ours), strict=True))
        return [total / b for total, b in zip(totals, seconds[other], strict=True)]

    return {
        "reference": Ratio(divide(["reference", "precomputed"], "trl"), "<= 0.85"),
        "lengths": Ratio(divide(["lengths"], "trl"), "<= 0.35"),
        "all": Ratio(divide(["reference", "defaults"], "trl"), None),
        "padding": Ratio(divide(["lengths"], "precomputed"), None),
        "shared": Ratio(divide(["shared"], "long prompts"), "<= 0.75"),
    }


if __name__ == "__main__":
    main()
