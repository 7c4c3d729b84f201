"""Writes docs/gpu.md from the lines that bench/gpu.sh wrote on a GPU.

python3 docs/gpu.py gpu.jsonl

The lines are kept as docs/gpu.jsonl. Without an argument the page is made from these once more.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

PAGE = Path(__file__).with_suffix(".md")
LINES = Path(__file__).with_suffix(".jsonl")
HEAD = """# Measured on a GPU

What a GPU alone can show: trainings in bfloat16, the estimate of their memory against what they
took, their speed against plain TRL, a kill and a resume, a run by the command line. One command
measures it, in ten minutes at most on an H100 or H200. It needs no network:

    bash bench/gpu_wheels.sh
    bash bench/gpu.sh gpu.jsonl
    python3 docs/gpu.py gpu.jsonl

The first line runs where there is a network. It fetches the wheels that a machine with torch,
transformers, peft and accelerate lacks into `wheels/`, in parts of at most 60 MB; where all is
installed leave it out. `bash bench/gpu_wheels.sh 3.12 wheels 1 2 3 4` also brings pyarrow, pandas
and matplotlib, for that version of Python. A machine that takes one part at a time installs each by
`bash bench/gpu.sh install`.

The second line writes JSON lines as they come, so that a run which is cut short keeps what it has.
Its models have random weights. Without a GPU it runs at toy size. The third line makes this page.
"""
NONE_YET = "Not run on a GPU yet: there are no figures to show.\n"
Line = dict[str, Any]


def render_page(lines: list[Line]) -> str:
    return "\n".join([HEAD, *(render_lines(lines) if lines else [NONE_YET])])


def render_lines(lines: list[Line]) -> Iterator[str]:
    yield f"Measured on {lines[-1]['card']}, {lines[-1]['date'][:10]}.\n"
    measured = [line for line in lines if not {"failed", "skipped"} & line["values"].keys()]
    yield from render_tests(line for line in measured if line["check"] == "test")
    yield from render_memory(line for line in measured if line["check"].startswith("memory of"))
    yield from render_speed([line["values"] for line in measured if line["check"] == "speed"])
    yield from render_resume(line for line in measured if line["check"] == "kill and resume")
    yield from render_run(line for line in measured if line["check"] == "whole run")
    yield from render_rest(line for line in lines if line not in measured)
    versions = ", ".join(f"{name} {version}" for name, version in lines[-1]["versions"].items())
    yield f"Versions: {versions}.\n"


def render_tests(lines: Iterable[Line]) -> Iterator[str]:
    rows = [[line["values"]["name"], f"{line['seconds']:.0f}"] for line in lines]
    yield from render_table("## Tests that passed", ["test", "seconds"], rows)


def render_memory(lines: Iterable[Line]) -> Iterator[str]:
    rows = []
    for line in sorted(lines, key=lambda line: line["values"]["parameters"]):
        values, kind = line["values"], line["check"].rpartition(", ")[2]
        names = "estimated", "measured", "reserved"
        sizes = [f"{values[name]:.2f}" if name in values else "" for name in names]
        mark = "" if values["holds"] else "**"
        model = format_count(values["parameters"])
        ratio = f"{mark}{values['ratio']:.2f}{mark}"
        rows.append([model, kind, f"{values['rows']} × {values['longest']}", *sizes, ratio])
    columns = ["parameters", "trained", "rows × tokens", "estimate", "measured", "reserved"]
    yield from render_table("## Memory of a training, GiB", [*columns, "estimate ÷ measured"], rows)
    if rows:
        yield (
            "Measured is the most that torch's allocator gave out, with the state of a paged"
            " optimizer; reserved\nis what it took from the device for that. Both answers of a row"
            " have these tokens. A ratio in bold is\noff by more than a tenth.\n"
        )


def render_speed(rounds: list[Line]) -> Iterator[str]:
    if not rounds:
        return
    rows = []
    for side, what in (
        ("trl", "plain TRL"),
        ("precomputed", "precomputed reference"),
        ("lengths", "and batches of similar length"),
        ("defaults", "and each prompt computed once where that is faster"),
    ):
        speeds = [values["tokens_per_second"][side] for values in rounds]
        shares = [values["mfu"][side] for values in rounds if values["mfu"]]
        times = [values["time_over_trl"][side] for values in rounds]
        mfu = f"{median(shares):.1%}" if shares else ""
        spread = f"{median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
        rows.append([what, f"{median(speeds):,.0f}", mfu, spread])
    columns = ["one epoch of DPO, full weights", "tokens/s", "MFU", "time over TRL's"]
    yield from render_table("## Speed against TRL", columns, rows)
    gaps = [gap for values in rounds for gap in values["greatest_loss_difference"].values()]
    yield (
        f"{format_count(rounds[0]['parameters'])} parameters, {rounds[0]['tokens']:,} tokens"
        " without padding. Medians, and the range of the ratio;\nrounds, the three in turn:"
        f" {len(rounds)}. No step's loss differs from TRL's by more than {max(gaps):.2g}.\n"
    )


def render_resume(lines: Iterable[Line]) -> Iterator[str]:
    for values in (line["values"] for line in lines):
        yield "## Kill and resume\n"
        yield (
            f"Killed after step {values['killed_after']} of {values['steps']}, resumed at step"
            f" {values['resumed_at']}. No step's loss differs from that\nof a training without a"
            f" kill by more than {values['greatest_loss_difference']:.2g}; the gap between their"
            f" weights\nis {values['weights_gap']:.2g} of the way that the training moved them."
            f"{'' if values['holds'] else ' **It is another training.**'}\n"
        )


def render_run(lines: Iterable[Line]) -> Iterator[str]:
    for values in (line["values"] for line in lines):
        rows = [[stage, f"{seconds:.0f}"] for stage, seconds in values["seconds"].items()]
        yield from render_table("## A run by the command line", ["step", "seconds"], rows)
        speed = values["sampled_tokens_per_second"]
        yield f"Sampled with transformers, {speed:,.0f} tokens/s of a tiny model.\n"


def render_rest(lines: Iterable[Line]) -> Iterator[str]:
    rows = []
    for line in lines:
        values = line["values"]
        word = "failed" if "failed" in values else "skipped"
        rows.append([values.get("name", line["check"]), word, values[word].replace("|", "\\|")])
    yield from render_table("## What failed or was left out", ["check", "", "why"], rows)


def render_table(title: str, columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    if rows:
        lines = [columns, ["---"] * len(columns), *rows]
        yield f"{title}\n"
        yield "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def format_count(parameters: int) -> str:
    """`135M`, `1.24B`."""
    billions = parameters / 1e9
    return f"{billions:.3g}B" if billions >= 1 else f"{parameters / 1e6:.3g}M"


def read_lines(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(words: list[str]) -> None:
    if words:
        file = Path(words[0])
        lines = read_lines(file)
        cards = sorted({line["card"] for line in lines})
        if len(cards) != 1 or "cores of" in cards[0]:
            raise SystemExit(
                f"{file}: lines of {' and '.join(cards) or 'nothing'}; one GPU's are expected.\n"
                "  Type bash bench/gpu.sh on a machine with a GPU."
            )
        shutil.copyfile(file, LINES)
    PAGE.write_text(render_page(read_lines(LINES)))
    print(PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
