"""Annotators' labels: pairs written out, verdicts read back, scores and calibration from them."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import MANIFEST_FILE, STEP_FILE, Prompts, Samples, write_json, write_table
from pipeline.commands import calibrate, label
from pipeline.config import LabelsScorer, Local, ScoreConfig
from pipeline.data.human_pairs import HumanComparison, read_human_comparisons
from pipeline.data.label_files import find_majority
from pipeline.errors import UserError
from pipeline.pairing.label_noise import add_signs
from pipeline.scorers import Answer, open_scorer
from pipeline.stages.score import run as run_score
from tests.stages.test_pair import SAMPLE
from tests.stages.test_score import sample_row
from tests.support.house import HOUSE

NASTY = "</script><script>document.title='run'</script><img src=x onerror=alert(1)> \u2028 "


def rows_file(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def majority(pair: HumanComparison) -> float | None:
    return find_majority(pair.votes.values())


def score_labels(
    path: Path, ids: str, combine: str = "majority", least: float = 0.0
) -> dict[str, tuple]:
    cfg = LabelsScorer(
        kind="labels", path=Local(path), combine=combine, min_agreement=least, gold=False
    )  # type: ignore[arg-type]
    answers = [Answer(key, "p", [], "", {}) for key in ids]
    return {
        row.sample_id: (row.score, row.abstained, row.detail)
        for row in open_scorer(cfg).score(answers)
    }


# ── the scorer ──────────────────────────────────────────────────────────────────────────────────

RATED = [
    *(
        {"sample_id": "a", "score": s, "annotator": who}
        for who, s in (("kim", 4), ("lee", 4), ("mo", 1))
    ),
    *({"sample_id": "b", "score": s, "annotator": who} for who, s in (("kim", 2), ("lee", 3))),
    {"sample_id": "c", "score": 5, "annotator": "mo"},
]


def test_scores_of_several_annotators_are_settled_by_majority(tmp_path):
    found = score_labels(rows_file(tmp_path / "l.jsonl", RATED), "abcd")
    assert [score for score, _, _ in found.values()] == [4.0, None, 5.0, None]
    assert [abstained for _, abstained, _ in found.values()] == [False, True, False, True]
    assert json.loads(found["a"][2]) == {"annotators": [4.0, 4.0, 1.0], "agreement": 0.666667}
    assert (
        found["b"][2] == "its annotators agree too little"
        and found["d"][2] == "no annotator labelled it"
    )


def test_mean_and_least_agreement_are_asked_for(tmp_path):
    path = rows_file(tmp_path / "l.jsonl", RATED)
    assert [score for score, _, _ in score_labels(path, "abc", "mean").values()] == [3.0, 2.5, 5.0]
    assert [score for score, _, _ in score_labels(path, "abc", "majority", 0.7).values()] == [
        None,
        None,
        5.0,
    ]


def test_preferences_become_win_rates_whichever_way_round_they_were_shown(tmp_path):
    rows = [
        {"chosen_id": "a", "rejected_id": "b"},
        {"a_id": "c", "b_id": "a", "verdict": "b"},
        {"a_id": "b", "b_id": "c", "verdict": "tie"},
        {"a_id": "b", "b_id": "d", "verdict": ""},
    ]
    found = score_labels(rows_file(tmp_path / "l.jsonl", rows), "abcd")
    assert [score for score, _, _ in found.values()] == [1.0, 0.25, 0.25, None]


def test_a_folder_of_each_annotator_s_file_is_read_as_one(tmp_path):
    folder = tmp_path / "people"
    folder.mkdir()
    rows_file(
        folder / "verdicts-kim.jsonl",
        [{"a_id": "a", "b_id": "b", "verdict": "a", "annotator": "kim"}],
    )
    (folder / "sheet.csv").write_text("a_id,b_id,verdict,annotator\nb,a,b,lee\na,b,,mo\n")
    (folder / "notes.txt").write_text("not a label")
    found = score_labels(folder, "ab")
    assert json.loads(found["a"][2]) == {"annotators": [1.0, 1.0], "agreement": 1.0}
    (folder / "sheet.csv").write_text("a_id,b_id,verdict\nb,a,b,lee\n")
    with pytest.raises(UserError, match="row 1: it has more cells than"):
        score_labels(folder, "ab")


def export_nested(said: dict[str, dict[str, str]], question: str = "verdict") -> list[dict]:
    """As Argilla's `records.to_json` writes the records of `label.records` with their answers."""
    return [
        {
            "id": pair,
            "fields": {"prompt": "q", **dict(zip("ab", pair.split(), strict=True))},
            "metadata": {
                "prompt_id": "p",
                **dict(zip(("a_id", "b_id"), pair.split(), strict=True)),
            },
            "suggestions": {},
            "responses": {
                question: [{"value": value, "user_id": who} for who, value in answers.items()]
            }
            if answers
            else {},
            "vectors": {},
            "_server_id": "0b1c",
        }
        for pair, answers in said.items()
    ]


def test_what_argilla_exports_is_read_back(tmp_path):
    file = tmp_path / "records.json"
    file.write_text(
        json.dumps(
            export_nested({"a b": {"kim": "a", "lee": "tie"}, "c a": {"kim": "b"}, "b c": {}})
        )
    )
    found = score_labels(file, "abc", "mean")
    assert [score for score, _, _ in found.values()] == [0.875, 0.25, 0.0]
    first, second = read_human_comparisons(file)
    assert (first.first, first.second, first.votes) == ("a", "b", {"kim": 1.0, "lee": 0.5})
    assert first.prompt[0]["content"] == "q" and majority(second) == 0.0
    file.write_text(json.dumps(export_nested({"a b": {"kim": "a"}}, "preference")))
    with pytest.raises(
        UserError,
        match="row 1: its question is preference, not verdict. Name the dataset's question",
    ):
        score_labels(file, "ab")
    file.write_text("[]")
    with pytest.raises(UserError, match="no row has a label. Expected sample_id.score"):
        score_labels(file, "ab")


WHO = [f"3f1c4c3e-0000-4000-8000-00000000000{number}" for number in range(4)]
STATES = ["submitted", "submitted", "draft", "discarded"]


def export_flat(**pairs: list[str | None]) -> list[dict]:
    """The same records as Argilla's `records.to_datasets()` has them: three columns of lists."""
    rows = []
    for (a, b), answers in pairs.items():
        told = {
            "id": f"{a}{b}",
            "status": "completed",
            "prompt": "q",
            "a": a,
            "b": b,
            "a_id": a,
            "b_id": b,
        }
        given = {"": answers, ".users": WHO[: len(answers)], ".status": STATES[: len(answers)]}
        rows.append(
            told | {f"verdict.responses{name}": column or None for name, column in given.items()}
        )
    return rows


def check_votes(file: Path) -> None:
    found = score_labels(file, "abc", "mean")
    assert [score for score, _, _ in found.values()] == [0.875, 0.25, 0.0]
    first, second = read_human_comparisons(file)
    assert first.votes == {WHO[0]: 1.0, WHO[1]: 0.5} and second.votes == {WHO[0]: 0.0}
    assert (first.first, first.second, first.prompt[0]["content"]) == ("a", "b", "q")


SAID = {"ab": ["a", "tie", "b", None], "ca": ["b"], "bc": []}


@pytest.mark.model  # datasets takes seconds to import
def test_argilla_s_records_are_read_as_datasets_prints_them(tmp_path):
    """Its lists are NumPy's: without commas, and over several lines."""
    from datasets import Dataset

    file = tmp_path / "records.csv"
    Dataset.from_list(export_flat(**SAID)).to_csv(str(file))
    assert f"['{WHO[0]}'\n '{WHO[1]}'" in file.read_text()
    check_votes(file)


def test_argilla_s_flat_records_are_read_from_python_s_lists(tmp_path):
    rows = export_flat(**SAID)
    check_votes(rows_file(tmp_path / "records.jsonl", rows))
    with (tmp_path / "records.csv").open("w", newline="") as text:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert "['a', 'tie', 'b', None]" in (tmp_path / "records.csv").read_text()
    check_votes(tmp_path / "records.csv")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"verdict.responses": "['a' ... 'b']"}, "is not a list of words .*\n.*records.to_json"),
        ({"verdict.responses": "a"}, "is not a list of words .*\n.*records.to_json"),
        (
            {"verdict.responses": "['a' 'b']", "verdict.responses.users": "['kim']"},
            "as many of each were expected",
        ),
        (
            {"verdict.responses": "['x']", "verdict.responses.users": "['kim']"},
            "its verdict is 'x'. Expected a, b or tie",
        ),
        (
            {"better.responses": "['a']"},
            "row 1: its question is better, not verdict. Name the dataset's",
        ),
    ],
)
def test_a_flat_export_that_says_something_else_is_refused(tmp_path, cells, said):
    file = tmp_path / "records.csv"
    with file.open("w", newline="") as text:
        writer = csv.DictWriter(text, ["a_id", "b_id", *cells])
        writer.writeheader()
        writer.writerow({"a_id": "a", "b_id": "b", **cells})
    with pytest.raises(UserError, match=said):
        score_labels(file, "ab")


def test_annotators_who_differ_are_noise_that_pairs_see(tmp_path):
    votes = [("kim", "a", "b"), ("lee", "a", "b"), ("mo", "b", "a"), ("kim", "a", "c")]
    rows = [{"chosen_id": c, "rejected_id": r, "annotator": who} for who, c, r in votes]
    found = score_labels(rows_file(tmp_path / "l.jsonl", rows), "abc")
    assert [score for score, _, _ in found.values()] == [1.0, 0.0, 0.0]
    told = {"scorer": "people", "prompt_id": "p", "status": "ok"}
    table = pl.DataFrame(
        [{"sample_id": key, "score": s, "detail": d, **told} for key, (s, _, d) in found.items()]
    )
    pairs = pl.DataFrame({"chosen_id": ["a", "a"], "rejected_id": ["b", "c"]})
    assert add_signs(pairs, table, "people")["annotators"].to_list() == [
        pytest.approx(2 / 3),
        None,
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": 3}], "l.jsonl:1: its columns are id. Expected sample_id\\+score or"),
        ([{"sample_id": "a", "score": "good"}], "score='good' is not a number"),
        ([{"sample_id": "a", "score": float("nan")}], "score=nan is not a number"),
        ([["a", 1]], "l.jsonl:1: this line is not a JSON object"),
        (
            [{"a_id": "a", "b_id": "b", "verdict": "left"}],
            "its verdict is 'left'. Expected a, b or tie",
        ),
        ([{"a_id": "a", "b_id": "a", "verdict": "a"}], "a is compared with itself"),
        ([{"a_id": "a", "b_id": "b", "verdict": ""}], "no row has a label"),
        (
            [{"sample_id": "a", "score": 1}, {"chosen_id": "a", "rejected_id": "b"}],
            "some rows are scores and some",
        ),
        (
            [{"chosen_id": "a", "rejected_id": "b"}, {"chosen_id": "b", "rejected_id": "a"}],
            "labelled a and b otherwise before. Keep one of the two rows",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        score_labels(rows_file(tmp_path / "l.jsonl", rows), "ab")


def test_what_nobody_labelled_is_no_failure_but_labels_of_other_samples_are_refused(tmp_path):
    rows = [sample_row("p", f"p-{i}", "x" * (i + 1)) for i in range(4)]
    write_table(tmp_path / "s" / "samples" / "0.parquet", pl.DataFrame(rows, schema=SAMPLE))
    write_table(
        tmp_path / "p" / "prompts.parquet",
        pl.DataFrame([{"prompt_id": "p", "prompt": [], "columns": "{}"}]),
    )

    def run_labels(name: str, label: dict) -> pl.DataFrame:
        path = Local(rows_file(tmp_path / name, [label]))
        labels = LabelsScorer(
            kind="labels", path=path, combine="majority", min_agreement=0, gold=False
        )
        cfg = ScoreConfig(scorers={"people": labels}, max_failed=0.0, runtime={"workers": 1})
        out = tmp_path / f"out-{name}"
        return run_score(
            cfg, out, samples=Samples(tmp_path / "s"), prompts=Prompts(tmp_path / "p")
        ).read()

    table = run_labels("mine.jsonl", {"chosen_id": "p-0", "rejected_id": "p-3"})
    assert table["status"].to_list() == ["ok", "abstained", "abstained", "ok"]
    with pytest.raises(
        UserError, match="score.scorers.people: it has no opinion on any of these answers"
    ):
        run_labels("other.jsonl", {"chosen_id": "q-0", "rejected_id": "q-3"})


# ── make label ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(tmp_path) -> Path:
    for name, count in (
        ("03-sample-1", 3),
        ("08-sample-test-sft", 1),
        ("09-sample-test-round-1", 1),
    ):
        rows = [
            sample_row(f"p{p}", f"{name}-{p}-{i}", f"={name} answers {i} {NASTY if p else ''}")
            for p in range(20)
            for i in range(count)
        ]
        rows.append({**sample_row("p0", f"{name}-kl", "drift"), "setting": "kl"})
        rows += [sample_row("same", f"{name}-same-{i}", "the same") for i in range(2)]
        write_samples(tmp_path / "run" / "store" / name, rows)
    return tmp_path / "run"


def write_samples(step: Path, rows: list[dict], purpose: str = "train") -> None:
    record = {"config": {"purpose": purpose}, "inputs": {}}
    write_json(step / STEP_FILE, record)
    write_json(step / MANIFEST_FILE, {**record, "files": []})
    write_table(step / "samples" / "0.parquet", pl.DataFrame(rows, schema=SAMPLE))


def test_a_round_s_later_waves_are_shown_as_well(run):
    rows = [sample_row("late", f"late-{i}", f"wave {i}") for i in range(2)]
    write_samples(run / "store" / "05-sample-1", rows)
    assert {"late", "p1"} <= {
        row["prompt_id"]
        for row in label.choose_pairs(run, {"of": "1", "pairs": "99", "seed": "0"})[0]
    }


def test_a_round_is_the_policy_s_and_a_member_of_the_pool_has_its_name(run):
    others = ("04-sample-1", "train strong", "strong"), ("05-sample-1", "steps", "continued")
    for name, purpose, text in others:
        rows = [
            sample_row(f"p{p}", f"{name}-{p}-{i}", f"{text} {i}") for p in range(20) for i in "ab"
        ]
        write_samples(run / "store" / name, rows, purpose)
    own = {pair[side] for pair in write_pairs(run, "of=1") for side in ("a_id", "b_id")}
    assert own and all(one.startswith("03-") for one in own)
    assert write_pairs(run) == write_pairs(run, "of=1")
    strong = write_pairs(run, "of=1-strong")
    assert {pair[side][:6] for pair in strong for side in "ab"} == {"strong"}
    mixed = write_pairs(run, "of=1,1-strong")
    assert len(mixed) == 20
    assert all({pair["a_id"][:2], pair["b_id"][:2]} == {"03", "04"} for pair in mixed)
    for name, _, _ in others:  # as they are left when they are pruned
        for file in ("step.json", "samples/0.parquet"):
            (run / "store" / name / file).unlink()
    assert own == {pair[side] for pair in write_pairs(run, "of=1") for side in ("a_id", "b_id")}


def write_pairs(run: Path, *words: str) -> list[dict]:
    shutil.rmtree(run / "label", ignore_errors=True)  # of other words, which it would not replace
    assert label.main([str(run), *words]) == 0
    page = (run / "label" / "pairs.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["pairs"]  # type: ignore[index]


def test_pairs_are_two_answers_of_a_prompt_drawn_by_the_seed_and_sides_are_mixed(run):
    pairs = write_pairs(run)
    assert len(pairs) == 20 and len({pair["prompt_id"] for pair in pairs}) == 20
    assert all(
        pair["a_id"] != pair["b_id"] and "kl" not in pair["a_id"] + pair["b_id"] for pair in pairs
    )
    assert all(pair["a"].strip() and pair["a"] != pair["b"] for pair in pairs)
    assert write_pairs(run) == pairs != write_pairs(run, "seed=1")
    assert write_pairs(run, "pairs=5") == pairs[:5]


def test_two_models_are_compared_blind(run):
    pairs = write_pairs(run, "of=test-sft,test-round-1")
    lefts = [pair["a_id"].split("-")[3] for pair in pairs]
    assert {"sft", "round"} == set(lefts) and 3 < lefts.count("sft") < 17
    assert all(
        {"sft", "round"} == {pair[side].split("-")[3] for side in ("a_id", "b_id")}
        for pair in pairs
    )


def test_no_text_can_leave_its_place_on_the_page(run):
    write_pairs(run)
    page = (run / "label" / "pairs.html").read_text()
    assert page.count("<script") == page.count("</script>") == 2 and "<img" not in page
    assert not re.search(
        r"""(src|href)\s*=\s*["']|https?://""", page
    )  # nothing comes from elsewhere


def test_the_spreadsheet_runs_no_formula_and_is_read_back_as_it_was(run, tmp_path):
    pairs = write_pairs(run)
    table = list(csv.DictReader((run / "label" / "pairs.csv").open(newline="")))
    assert all(row["a"].startswith("'=") and not row["verdict"] for row in table)
    filled = tmp_path / "filled.csv"
    with filled.open("w", newline="") as file:
        sheet = csv.DictWriter(file, label.COLUMNS)
        sheet.writeheader()
        sheet.writerows({**row, "verdict": "a" if i < 10 else ""} for i, row in enumerate(table))
    judged = read_human_comparisons(filled)
    assert [(j.first, j.second) for j in judged] == [(pair["a"], pair["b"]) for pair in pairs[:10]]
    assert {majority(j) for j in judged} == {1.0}
    records = [
        json.loads(line) for line in (run / "label" / "pairs.jsonl").read_text().split("\n") if line
    ]
    assert (
        records[0]["fields"]["a"] == pairs[0]["a"]
        and records[0]["metadata"]["a_id"] == pairs[0]["a_id"]
    )


@pytest.mark.parametrize("column", ["verdict", "annotator"])
def test_a_spreadsheet_that_was_filled_in_is_never_written_over(run, capsys, column):
    write_pairs(run)
    file = run / "label" / "pairs.csv"
    table = list(csv.DictReader(file.open(newline="")))
    table[3][column] = "a"
    with file.open("w", newline="") as opened:
        sheet = csv.DictWriter(opened, label.COLUMNS)
        sheet.writeheader()
        sheet.writerows(table)
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    assert label.main([str(run), "seed=1"]) == 2
    assert f"mv -n {file.parent}" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before


@pytest.mark.parametrize("name", ["pairs.html", "pairs.jsonl"])
def test_what_was_changed_by_hand_is_never_written_over(run, capsys, name):
    assert label.main([str(run)]) == 0
    assert label.main([str(run)]) == 0, "the same pairs once more are the same files"
    file = run / "label" / name
    file.write_text(file.read_text() + "a note of mine\n")
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    assert label.main([str(run)]) == 2
    assert f"mv -n {file.parent}" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before


def test_where_it_writes_is_said_as_the_run_s_own_folder(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    Path("latest").symlink_to(run)
    assert label.main(["latest"]) == 0
    shown = capsys.readouterr()
    assert (
        shown.out.strip() == f"{run.name}/label/pairs.html"
        and f"in {run.name}/label: pairs.csv" in shown.err
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["of=2"], "no samples of 2. Known: 1, test-round-1, test-sft"),
        (["pears=3"], "pears=3: not understood. Did you mean pairs"),
        (["pairs=some"], "pairs=some: expected a whole number"),
        (["of=1,1,1"], "a pair has two sides"),
    ],
)
def test_what_cannot_be_labelled_is_refused(run, capsys, words, said):
    assert label.main([str(run), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.browser
def test_the_page_shows_pairs_and_takes_keys_offline(run, tmp_path):
    """By key in a real browser: the page keeps its title and shows progress and the choice."""
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        pytest.skip("no Chromium on this machine")
    write_pairs(run)
    page = (run / "label" / "pairs.html").read_text()
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"
    keys = f"for (const key of 'abt') {press}"
    probe = tmp_path / "probe.html"
    probe.write_text(page.replace("show();\n</script>", f"show();\n{keys}\n</script>"))
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    dom = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "<title>Which answer is better?</title>" in dom and "pair 4 of 20 · 3 judged" in dom


# ── calibrate ───────────────────────────────────────────────────────────────────────────────────

LONG, SHORT = "a long answer with many words that says little", "brief"


def test_the_published_formats_are_read(tmp_path):
    texts = {"response1": "one", "response2": "two"}
    asked = {"idx": 0, "motivation_app": "x", "instruction": "Sum up.", "input": "A text."}
    bare = {"idx": 1, "instruction": "Say.", "input": float("nan")}
    panda = [
        {**asked, **texts, "annotator1": 1, "annotator2": 0, "annotator3": 1},
        {**bare, **texts, "annotator1": 2, "annotator2": 0, "annotator3": 1},
    ]
    (tmp_path / "testset-v1.json").write_text(json.dumps(panda))
    first, second = read_human_comparisons(tmp_path / "testset-v1.json")
    assert (
        first.prompt[0]["content"] == "Sum up.\n\nA text." and second.prompt[0]["content"] == "Say."
    )
    assert (
        list(first.votes.values()) == [1.0, 0.5, 1.0]
        and majority(first) == 1.0
        and majority(second) is None
    )
    (tmp_path / "llmbar.json").write_text(
        json.dumps([{"input": "i", "output_1": "x", "output_2": "y", "label": 2}])
    )
    [bar] = read_human_comparisons(tmp_path / "llmbar.json")
    assert (bar.first, bar.second, majority(bar)) == ("x", "y", 0.0)


def test_a_published_pair_names_no_sample_and_a_verdict_without_texts_is_not_calibrated(tmp_path):
    published = tmp_path / "llmbar.json"
    published.write_text(json.dumps([{"input": "i", "output_1": "x", "output_2": "y", "label": 2}]))
    with pytest.raises(UserError, match=r"row 1: this pair does not name its .*\bids\b.*calibrate"):
        score_labels(published, "ab")
    bare = rows_file(tmp_path / "v.jsonl", [{"a_id": "a", "b_id": "b", "verdict": "a"}])
    with pytest.raises(UserError, match=r"v.jsonl:1: .*texts.* Give rows with prompt, a and b"):
        read_human_comparisons(bare)


def test_own_verdicts_of_several_people_meet_whichever_side_was_a(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "q"}],
        "a": "x",
        "b": "y",
        "a_id": "1",
        "b_id": "2",
    }
    turned = {**row, "a": "y", "b": "x", "a_id": "2", "b_id": "1"}
    rows = [
        {**row, "verdict": "a", "annotator": "kim"},
        {**turned, "verdict": "b", "annotator": "lee"},
        {**turned, "verdict": "a", "annotator": "mo"},
    ]
    path = rows_file(tmp_path / "v.jsonl", rows)
    [judged] = read_human_comparisons(path)
    assert (
        judged.votes == {"kim": 1.0, "lee": 1.0, "mo": 0.0}
        and majority(judged) == 1.0
        and judged.first == "x"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "not a list of objects"),
        ("[{}]", "row 1: its columns are"),
        ("[", "cannot be read as JSON"),
        ("[]", "no row has a label"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('[{"input": 1, "output_1": "x", "output_2": "y", "label": 1}]', "row 1: the prompt is"),
        ('[{"fields": {}, "metadata": null, "responses": {}}]', "row 1: it is not as"),
        (
            '[{"fields": {}, "metadata": {}, "responses": {"verdict": ["a"]}}]',
            "row 1: it is not as",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_human_comparisons(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"a_id": "\ud800"}, "an id or the annotator holds half"),
        ({"annotator": "\ud800"}, "an id or the annotator holds half"),
        ({"a": None}, "the first answer is not text"),
        ({"b": 1}, "the second answer is not text"),
        ({"b": "\ud800"}, "the second answer holds half"),
        ({"a": []}, "the first answer is not text"),
        ({"prompt": None}, "the prompt is not text or messages"),
        ({"prompt": [{"role": "user"}]}, "the prompt is not text or messages"),
        ({"verdict.responses": 1, "verdict.responses.users": []}, "not a list of words"),
    ],
)
def test_a_verdict_whose_values_are_no_texts_is_refused_with_its_line(tmp_path, changes, said):
    row = {"prompt": "q", "a": "x", "b": "y", "a_id": "1", "b_id": "2", "verdict": "a"}
    path = rows_file(tmp_path / "v.jsonl", [row, {**row, **changes}])
    with pytest.raises(UserError, match=rf"v\.jsonl:2: .*{said}"):
        read_human_comparisons(path)


def people_s(tmp_path: Path, shorter_is_better: int, pairs: int = 40) -> Path:
    """LLMBar's shape. The short answer is better in so many pairs, and is first in every other."""
    rows = []
    for i in range(pairs):
        two, good = ([SHORT, LONG], 0) if i % 2 else ([LONG, SHORT], 1)
        good = good if i < shorter_is_better else 1 - good
        rows.append(
            {"input": f"question {i}", "output_1": two[0], "output_2": two[1], "label": good + 1}
        )
    path = tmp_path / "people.json"
    path.write_text(json.dumps(rows))
    return path


SHORTER = [
    "+scorer@score.scorers.short=length",
    "score.scorers.short.min=0",
    "score.scorers.short.max=1",
]


def test_a_reader_that_leaves_early_is_no_fault(tmp_path):
    file = people_s(tmp_path, 3)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "pipeline", "calibrate", str(file), "score=rules"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "calibration.json").is_file()


def run_calibrate(tmp_path: Path, file: Path, *words: str) -> dict:
    out = tmp_path / "calibration.json"
    assert calibrate.main([str(file), f"out={out}", "score=rules", *words]) == 0
    return json.loads(out.read_text())


def test_the_table_of_another_file_is_not_written_over(tmp_path, capsys):
    file = people_s(tmp_path, 3)
    before, other = run_calibrate(tmp_path, file), file.rename(file.with_name(f"b-{file.name}"))
    assert calibrate.main([str(other), f"out={tmp_path / 'calibration.json'}", "score=rules"]) == 2
    assert f"out=calibration-{other.stem}.json" in capsys.readouterr().err
    assert json.loads((tmp_path / "calibration.json").read_text()) == before


def test_a_scorer_is_compared_with_people_and_with_length_alone(tmp_path, capsys):
    told = run_calibrate(tmp_path, people_s(tmp_path, 30), "scorer=short", *SHORTER)
    short, longer = told["scorers"]["short"], told["scorers"]["longer wins"]
    assert short["agreement"]["mean"] == 0.75 and longer["agreement"]["mean"] == 0.25
    assert short["agreement"]["low"] < 0.75 < short["agreement"]["high"] and short[
        "kappa"
    ] == pytest.approx(0.5, abs=0.01)
    assert (
        short["prefers_longer"],
        longer["prefers_longer"],
        told["annotators_prefer"]["longer"],
    ) == (
        0.0,
        1.0,
        0.25,
    )
    assert (short["prefers_first"], short["order_flips"], short["failed"]) == (0.5, 0.0, 0)
    assert short["by_length"]["much shorter"] == {"pairs": 30, "agreement": 1.0}
    assert short["by_length"]["much longer"] == {"pairs": 10, "agreement": 0.0}
    assert told["warnings"] == [] and "0.750" in capsys.readouterr().out


def test_agreement_is_told_by_prompt_and_by_pair_with_the_counts(tmp_path, capsys):
    """Of one prompt the longer answer is right in three pairs, of a second wrong in one; of a third
    none is longer.

    By prompt (1 + 0 + 1/2) / 3 = 0.5, by pair (3 + 0 + 1/2) / 5 = 0.7; a tie of the people decides
    nothing.
    """
    told_by_people = [("a", LONG, SHORT, 1)] * 2 + [("a", SHORT, LONG, 2), ("b", LONG, SHORT, 2)]
    told_by_people += [("c", "same", "long", 1), ("d", LONG, SHORT, 0)]
    rows = [
        {"idx": at, "instruction": asked, "input": "", "response1": one, "response2": two}
        | dict.fromkeys(("annotator1", "annotator2", "annotator3"), vote)
        for at, (asked, one, two, vote) in enumerate(told_by_people)
    ]
    (tmp_path / "panda.json").write_text(json.dumps(rows))
    told = run_calibrate(tmp_path, tmp_path / "panda.json")
    longer = told["scorers"]["longer wins"]
    assert (longer["agreement"]["mean"], longer["agreement"]["n"]) == (pytest.approx(0.5), 3)
    assert (longer["pair_agreement"], longer["decided"]) == (pytest.approx(0.7), 5)
    assert (told["pairs"], told["prompts"], told["decided"], told["split"]) == (6, 4, 5, 0)
    shown = capsys.readouterr().out
    assert "6 pairs of 4 prompts judged by annotators: 5 decided" in shown
    head, row = (
        next(one for one in shown.splitlines() if one.startswith(start))
        for start in ("   ", "longer wins")
    )
    cells = dict(
        zip(re.split(r"  +", head.strip()), re.split(r"  +", row.strip())[1:], strict=True)
    )
    assert (cells["by prompt"], cells["by pair"], cells["pairs"]) == ("0.500", "0.700", "5")


def test_a_scorer_that_does_not_beat_length_is_warned_of(tmp_path, capsys):
    told = run_calibrate(tmp_path, people_s(tmp_path, 10), "scorer=short", *SHORTER)
    assert told["scorers"]["short"]["agreement"]["mean"] == 0.25
    assert "short does not beat 'longer wins': −0.500" in told["warnings"][0]
    assert "! short does not beat" in capsys.readouterr().out


def write_votes(tmp_path, *pairs: tuple[str, str, int], votes: int = 1):
    """A file of pairs, each with annotators of one mind: 0 a tie, 1 the first, 2 the second."""
    rows = [
        {"idx": at, "instruction": f"Ask {at}", "input": "", "response1": a, "response2": b}
        | {f"annotator{who}": vote for who in range(1, votes + 1)}
        for at, (a, b, vote) in enumerate(pairs)
    ]
    file = tmp_path / "votes.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.mark.parametrize(
    ("pairs", "warning"),
    [
        ([("aa bb", "cc dd ee", 0)], "annotators decided no pair, so short cannot be compared"),
        ([("a", "bbbbb", 1)], "One prompt is too few to tell whether short beats"),
        (
            [("a", "bbbbb", 1), ("a", "bbbbb", 1), ("aaaaa", "b", 1), ("a", "bbbbb", 1)],
            "short does not clearly beat 'longer wins': +0.250",
        ),
    ],
)
def test_a_warning_says_why_a_scorer_is_not_to_be_trusted(tmp_path, pairs, warning):
    file = write_votes(tmp_path, *pairs, votes=3)
    [only] = run_calibrate(tmp_path, file, "scorer=short", *SHORTER)["warnings"]
    assert warning in only and "could not score" not in only


def test_what_annotators_prefer_names_what_it_is_a_share_of(tmp_path, capsys):
    pairs = [("same", "long", 1)] * 3 + [("longer", "short", 1)]
    run_calibrate(tmp_path, write_votes(tmp_path, *pairs, votes=3))
    shown = capsys.readouterr().out
    assert "the longer one in 100.0 % of those between answers of different length" in shown
    assert "each two count in both directions" in shown


def test_what_a_scorer_cannot_mark_is_counted_and_a_coin_knows_nothing(tmp_path):
    told = run_calibrate(
        tmp_path, people_s(tmp_path, 200, pairs=400), "scorer=rules"
    )  # no constraints to check
    assert (
        told["scorers"]["rules"]["failed"] == 400
        and told["scorers"]["rules"]["agreement"]["mean"] is None
    )
    assert "rules could not score both answers" in told["warnings"][0]
    head = next(line for line in calibrate.format_lines(told) if "about as long" in line)
    assert (
        sum(map(int, re.findall(r"\((\d+)\)", head))) == 400
    )  # of all pairs, not of those that the scorer marked
    assert (
        told["scorers"]["random"]["agreement"]["low"]
        < 0.5
        < told["scorers"]["random"]["agreement"]["high"]
    )
    assert told["warnings"]


def test_people_are_measured_against_each_other(tmp_path):
    """Three who say 1, 1, 2: of the six ways to hold one against another, two agree."""
    votes = {"annotator1": 1, "annotator2": 1, "annotator3": 2}
    texts = {"input": "", "response1": LONG, "response2": SHORT}
    rows = [{"idx": i, "instruction": f"q{i}", **texts, **votes} for i in range(10)]
    (tmp_path / "panda.json").write_text(json.dumps(rows))
    told = run_calibrate(tmp_path, tmp_path / "panda.json")
    assert told["scorers"]["annotators"]["agreement"]["mean"] == pytest.approx(1 / 3)
    assert told["scorers"]["annotators"]["exact"] == pytest.approx(1 / 3) and told["split"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "calibrate needs a FILE"),
        (
            ["FILE", "scorer=shirt", *SHORTER],
            "scorer=shirt: score.scorers has no such scorer. Did you mean short",
        ),
        (
            ["FILE", "score.max_faild=1"],
            "score.max_faild is not a knob of stage 'score'. Did you mean max_failed",
        ),
    ],
)
def test_calibrate_refuses_in_the_house_form(tmp_path, capsys, words, said):
    file = str(people_s(tmp_path, 1))
    assert calibrate.main([file if word == "FILE" else word for word in words]) == 2
    assert said in capsys.readouterr().err
