"""The figures of docs/understand: each is drawn from its JSON, and the text has its numbers there.

What makes the JSON is `make figures`. Its commands are composed here, not run.
"""

import json
import math
import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import polars as pl
import pytest

from docs import experiments, plots
from pipeline.artifacts import write_table
from pipeline.config import FileRows
from pipeline.data.preferences import read_preferences
from pipeline.results import Run
from recipes import understand
from tests.support.house import composed, fingerprints

PAGES = {path.stem: path.read_text() for path in sorted(plots.PAGES.glob("*.md"))}
FIGURES = plots.PAGES / "figures"
MEASURED = plots.read_measured(FIGURES)
SEEN = re.compile(r"\*\*Seen\.\*\*(.*?)(?=\n\n|\Z)", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[+−]?\d+(?:\.\d+)?")


def make_point(name: str, slope: float) -> dict:
    evaluations = [
        {"step": step, **dict.fromkeys((*experiments.EVALUATED, "chosen", "rejected"), 0.5)}
        | {"delta": slope * step}
        for step in (0, 8, 16)
    ]
    final = {
        "score": {"mean": 0.5 + slope, "low": 0.4, "high": 0.6},
        "gain": {"mean": slope, "low": slope - 0.01, "high": slope + 0.01},
        "kl": 10 * slope,
        "tokens": 21.25,
    }
    losses = [[step, 0.7 - 0.01 * step] for step in range(1, 17)]
    return {"name": name, "final": final, "evaluations": evaluations, "losses": losses}


BETA = {
    "sft": {**make_point("sft", 0.0)["final"], "gain": None},
    "points": [make_point("low", 0.2), make_point("high", 0.1)],
}


# ── the pages ────────────────────────────────────────────────────────────────────────────────────


def test_every_figure_is_drawn_from_its_json_and_shown():
    assert {*MEASURED} <= {*experiments.EXPERIMENTS}
    drawn = plots.draw_figures(MEASURED)
    assert {path.stem for path in FIGURES.glob("*.svg")} == {*drawn}
    for name, drawing in drawn.items():
        assert (FIGURES / f"{name}.svg").read_text() == drawing, f"{name}: type make figures"
    shown = [name for page in PAGES.values() for name in re.findall(r"figures/(\w+)\.svg", page)]
    assert sorted(shown) == sorted(drawn)


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_of_a_page_are_those_of_the_json(name):
    assert plots.fill_tables(PAGES[name], MEASURED) == PAGES[name], "type make figures"
    assert "TODO" not in PAGES[name]


def test_every_experiment_is_the_command_of_a_page():
    blocks = {line.strip() for page in PAGES.values() for line in page.splitlines()}
    for name, experiment in experiments.EXPERIMENTS.items():
        assert {*experiment.commands} <= blocks, name
        if name in MEASURED:
            assert MEASURED[name]["commands"] == [*experiment.commands]


def test_what_was_seen_has_its_numbers_in_the_json():
    """Knobs in backticks are no measurements. A sum of two measured numbers is not written."""
    checked = 0
    for name, page in PAGES.items():
        known = {*list_numbers(page)}
        for text in SEEN.findall(page):
            prose = re.sub(r"`[^`]*`", "", text)
            numbers = NUMBER.findall(prose)
            assert [number for number in numbers if number not in known] == [], name
            checked += len(numbers)
    assert bool(checked) == bool(MEASURED)


def list_numbers(page: str):
    """The numbers of a page's tables and figures, as they are written."""
    for _, name, _ in plots.PLACE.findall(page):
        yield from NUMBER.findall(plots.render_table(name, MEASURED[name]))
    for name in re.findall(r"figures/(\w+)\.svg", page):
        for text in plots.list_written_numbers(name, MEASURED):
            yield from NUMBER.findall(text)


# ── the experiments ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_the_commands_of_an_experiment_make_its_points(name):
    points = 0
    for command in experiments.EXPERIMENTS[name].commands:
        (program, _, *words) = shlex.split(command)
        if program == "strop":
            points += math.prod(len(word.split(",")) for word in words)
    assert points == (len(experiments.EXPERIMENTS[name].points) or 1)


def test_evaluations_give_log_ratios_and_their_difference():
    rows = [
        {"step": 0, "loss": 0.7},
        {"step": 8, **dict.fromkeys(experiments.EVALUATED.values(), 0.5)},
        {"step": 8, "eval_rewards/chosen": 0.1, "eval_rewards/rejected": -0.3},
        {"step": 8, "eval_rewards/margins": 0.4},
    ]
    [one] = experiments.list_evaluations(rows, beta=0.1)
    assert one["step"] == 8 and one["kl"] == 0.5
    ratios = [one[name] for name in ("chosen", "rejected", "delta")]
    assert ratios == pytest.approx([1.0, -3.0, 4.0])


def test_ties_are_counted_on_the_first_samples(tmp_path):
    scores = {"a": [0.5] * 8, "b": [0.5, 0.5, 1.0, *[0.5] * 5], "c": [0.0, *[1.0] * 7]}
    rows = [
        {"prompt_id": prompt, "sample_id": f"{prompt}-{at}", "score": score}
        for prompt, listed in scores.items()
        for at, score in enumerate(listed)
    ]
    table = pl.DataFrame(rows)
    scored = table.with_columns(scorer=pl.lit("rules"), status=pl.lit("ok"), detail=pl.lit(""))
    links = {"sample": table.drop("score"), "score": scored.reverse()}
    for at, (stage, rows_of_stage) in enumerate(links.items()):
        step = tmp_path / "store" / stage / f"{at:012d}"
        write_table(step / f"{stage}s" / "0.parquet", rows_of_stage)
        (tmp_path / "run" / "store").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "store" / f"{at:03d}-{stage}-1").symlink_to(step)
    ties = {row["n"]: row["share"] for row in experiments.measure_ties(Run(tmp_path / "run"))}
    assert ties[2] == pytest.approx(2 / 3) and ties[3] == ties[8] == pytest.approx(1 / 3)


def test_numbers_are_kept_to_four_digits():
    measured = {"a": [0.123456, (1234567.0, 3)], "b": "β 0.123456", "c": None}
    assert experiments.round_numbers(measured) == {
        "a": [0.1235, [1235000.0, 3]],
        "b": "β 0.123456",
        "c": None,
    }


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


def read_curves(drawing: str) -> list[list[tuple[float, float]]]:
    root = ET.fromstring(drawing)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    return [
        [tuple(map(float, spot.split(","))) for spot in line.get("points").split()]
        for line in lines
    ]


def test_panels_have_a_line_for_each_point_and_one_legend():
    panels = plots.list_panels(BETA["points"], {"Δ": "delta", "loss": "losses"})
    drawing = plots.draw_panels("Δ by step", "step", panels)
    (low, high, first_loss, _) = read_curves(drawing)
    assert len(low) == 3 and len(first_loss) == 12  # of 16 losses, each the mean of five
    assert low[0][1] == high[0][1] and low[-1][1] < high[-1][1]  # a higher value is further up
    texts = [text.text for text in ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("low") == texts.count("high") == 1
    assert "var(--" not in drawing and ".stroke.c5 " in drawing


def test_the_frontier_has_the_models_that_no_other_dominates():
    spots = [("x", "a", 1.0, 0.5), ("x", "b", 0.5, 0.6), ("y", "c", 2.0, 0.7), ("y", "d", 3.0, 0.7)]
    assert plots.select_frontier(spots) == [(0.5, 0.6), (2.0, 0.7)]


def test_a_model_of_several_experiments_is_one_dot():
    measured = dict.fromkeys(plots.FRONTIER, BETA)
    drawing = plots.draw_frontier(measured)
    assert drawing.count("<circle") == 2


def test_rows_lie_on_both_sides_of_zero():
    drawing = plots.draw_rows("change", {"rule": {"open": 0.2, "close": -0.1}})
    circles = ET.fromstring(drawing).findall("{http://www.w3.org/2000/svg}circle")
    (gain, loss) = (float(circle.get("cx")) for circle in circles)
    [zero] = re.findall(r'class="half" x1="([\d.]+)"', drawing)
    assert loss < float(zero) < gain


def test_a_table_has_sft_first_and_fills_its_place():
    page = "Before\n\n<!-- table beta -->\nold\n<!-- end -->\n\nAfter"
    filled = plots.fill_tables(page, {"beta": BETA})
    assert filled.startswith("Before\n\n<!-- table beta -->\n| |") and "old" not in filled
    rows = [line for line in filled.splitlines() if line.startswith("| ")][2:]
    assert rows[0].startswith("| sft | 0.500 | | 0.00 | 21.2 |")
    assert rows[1].startswith("| low | 0.700 | +0.200 (0.190 to 0.210) | 2.00 |")
    assert plots.fill_tables(filled, {"beta": BETA}) == filled


# ── what the recipe brings ───────────────────────────────────────────────────────────────────────


def test_a_larger_share_of_wrong_labels_holds_the_smaller_one():
    wanted = [{"kind": "lower"}]
    counts = {understand.flip_a_fifth: set(), understand.flip_two_fifths: set()}
    for number in range(500):
        prompt = [{"role": "user", "content": f"Write about topic {number}."}]
        answers = [[{"content": "all small."}], [{"content": "Not Small."}]]
        for flip, wrong in counts.items():
            scores = flip([prompt] * 2, answers, [wanted] * 2, topic=["x"] * 2)
            assert sorted(scores) == [0.0, 1.0]
            if scores == [0.0, 1.0]:
                wrong.add(number)
    (fifth, two_fifths) = counts.values()
    assert fifth < two_fifths
    assert 60 < len(fifth) < 140 and 160 < len(two_fifths) < 240


def test_both_files_of_offline_pairs_hold_the_same_sentences(tmp_path):
    understand.write_offline(tmp_path / "runs")
    files = [tmp_path / "runs" / f"{name}.jsonl" for name in ("close", "foreign")]
    (close, foreign) = ([json.loads(line) for line in path.open()] for path in files)
    assert len(close) == len(foreign) == understand.OFFLINE.rows
    for row, other in zip(close, foreign, strict=True):
        assert row["prompt"] == other["prompt"] and row["chosen"] != row["rejected"]
        for side in ("chosen", "rejected"):
            items = [line.removeprefix("- ") for line in other[side].splitlines()]
            assert " ".join(items) == row[side]
    words = [*experiments.ALL_OFFLINE.split(), f"offline.source.path={files[1]}"]
    cfg = composed("recipes=understand", *words).offline
    assert isinstance(cfg.source, FileRows)
    assert len(read_preferences(cfg).rows) == understand.OFFLINE.rows
    assert Path(cfg.source.path).name == "foreign.jsonl"


def test_the_experiments_share_all_that_comes_before_their_pairs():
    base, length = (
        fingerprints("recipes=understand", *words) for words in ([], ["pair.scorer=biased"])
    )
    shared = {name for name, key in base.items() if length.get(name) == key}
    assert {"sft@0", "sample@1", "score@1", "score@dev sft"} <= shared
    assert not {"pair@1", "train@1"} & shared
    assert fingerprints("recipes=smoke")["sft@0"] == base["sft@0"]
