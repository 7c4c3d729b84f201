"""One epoch of DPO over plain TRL's DPOTrainer on the same pairs.

python bench/training.py [pairs=48] [rounds=5]

`reference`: precomputed reference values, where TRL runs a second model. The time
of `reference` itself is printed separately. `lengths`: also batches of rows of similar length, over
TRL's defaults. `padding`: the gain of these batches alone.

Answers have log-normal lengths (median 60 tokens, σ 0.8, at most 512). A step has 16 pairs, in
micro-batches of 8 and with gradient checkpointing, the defaults of both sides. All three train in
turn, on a random model that is large enough for arithmetic to dominate; their losses have to be
equal, step by step. bench/gpu/speed.py trains the same three sides on a GPU.
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
BATCH, MICRO_BATCH, PAIRS, ROUNDS = 16, 8, 48, 5
EQUAL = 1e-4
SHAPE = {"hidden": 256, "layers": 4, "context": 1024}
# In bfloat16 a higher rate would make the rounding of one step the difference of the next.
DTYPE, RATE = ("bfloat16", 1e-6) if torch.cuda.is_available() else ("float32", 3e-4)
Losses = list[float]


def write_pairs(
    folder: Path, sft: Model, count: int, median: int = MEDIAN, cap: int = CAP
) -> Pairs:
    """Random words and their token ids."""
    from transformers import AutoTokenizer

    tokenizer, draw = AutoTokenizer.from_pretrained(sft.tokenizer), random.Random(0)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    sizes = {word: len(ids(f" {word}")) for word in WORDS.split()}

    def text(tokens: int) -> str:
        words: list[str] = []
        while tokens > 0:
            words.append(draw.choice(list(sizes)))
            tokens -= sizes[words[-1]]
        return " ".join(words)

    def row(number: int) -> dict[str, Any]:
        prompt = [{"role": "user", "content": text(draw.randint(10, 40))}]
        shown = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        pair = {"prompt_id": f"p{number}", "prompt": prompt, "prompt_token_ids": ids(shown)}
        for side in ("chosen", "rejected"):
            answer = text(min(cap, round(median * draw.lognormvariate(0, SPREAD))) - 1)
            pair[f"{side}_id"] = f"p{number}-{side}"
            pair[f"{side}_token_ids"] = ids(answer + "<|end|>")
            pair[side] = [{"role": "assistant", "content": answer}]
        return pair

    rows = pl.DataFrame([row(number) for number in range(count)])
    write_table(folder / "train.parquet", rows)
    write_table(folder / "dev.parquet", rows.clear())
    return Pairs(folder)


def make_config(by_length: bool) -> TrainConfig:
    form = {"kind": "full", "learning_rate": RATE}
    knobs: dict[str, Any] = {
        "batch": BATCH,
        "dtype": DTYPE,
        "max_length": 1024,
        "gradient_checkpointing": True,
        "scheduler": "constant",
    }
    return dpo(
        form, micro_batch=MICRO_BATCH, save_every=10_000, by_length=by_length, warmup=0.0, **knobs
    )


def time_training(trainer: Any) -> tuple[float, Losses]:
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    return seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train_ours(
    sft: Model, pairs: Pairs, logps: Logps, out: Path, by_length: bool
) -> tuple[float, Losses]:
    """The stage's trainer and callbacks, without the check of its reference at the start."""
    from pipeline.training import build
    from pipeline.training.monitoring import guards
    from pipeline.training.monitoring.reference_check import StartCheck

    cfg = make_config(by_length)
    rows = {part: train.prepare_pairs(cfg, [pairs], part, [logps]) for part in ("train", "dev")}
    watch = guards.build_guards(cfg, sft, sft, None, rows["dev"], out)
    trainer, _ = build.build_trainer(cfg, build.load_policy(cfg, sft), sft, sft, rows, out, watch)
    # It runs once per training, however long; here it would cover a third of the pairs.
    trainer.remove_callback(StartCheck)
    return time_training(trainer)


def train_trl(sft: Model, pairs: Pairs, out: Path) -> tuple[float, Losses]:
    """TRL loads its own reference. Only what its defaults leave open or our side sets is set."""
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from pipeline.models import loading

    cfg = make_config(by_length=False)
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
        pairs = write_pairs(folder / "pairs", sft, count)
        started = time.monotonic()
        cfg = ReferenceConfig(
            dtype=DTYPE, quantization=None, runtime={"batch_tokens": 8192, "workers": 1}
        )
        logps = reference.run(cfg, folder / "reference", model=sft, rows=pairs)
        seconds_of_reference = time.monotonic() - started
        print(
            f"reference itself: {seconds_of_reference:.1f} s, once for all trainings on these"
            " pairs",
            flush=True,
        )
        sides = {
            "lengths": lambda: train_ours(sft, pairs, logps, folder / "out", by_length=True),
            "precomputed": lambda: train_ours(sft, pairs, logps, folder / "out", by_length=False),
            "trl": lambda: train_trl(sft, pairs, folder / "out"),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(-1, rounds):  # the first of each does not count
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


def check_equal(losses: dict[str, Losses]) -> None:
    for side, found in losses.items():
        gaps = [abs(a - b) for a, b in zip(found, losses["trl"], strict=True)]
        assert max(gaps) < EQUAL, f"{side}: losses differ from TRL's by {max(gaps):.2g}"
    print(
        f"{len(gaps)} losses equal TRL's, from {losses['trl'][0]:.4f} to {losses['trl'][-1]:.4f}",
        flush=True,
    )


def make_ratios(seconds: dict[str, list[float]]) -> dict[str, Ratio]:
    def divide(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]

    return {
        "reference": Ratio(divide("precomputed", "trl"), "<= 0.85"),
        "lengths": Ratio(divide("lengths", "trl"), "<= 0.70"),
        "padding": Ratio(divide("lengths", "precomputed"), None),
    }


if __name__ == "__main__":
    main()
