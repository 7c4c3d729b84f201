"""The report in a real browser: `make test-browser`.

It loads nothing, hides nothing, runs no text as a script, and is fast.
"""

import random
import shutil
import string

import polars as pl
import pytest

from pipeline.report.render.page import render_page
from tests.report.test_report import a_report, answers

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
]

SLY = (
    "<script>document.title = 'run'</script>"
    "<img src=x onerror=\"document.title = 'run'\"></p></script>"
)
GRAVE = ("serious", "critical")
MOST_BYTES, MOST_SECONDS = 15_000_000, 3.0


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(chromium, tmp_path):
    """Opens a page as a file; at the end checks that it had no error and made no other request."""
    heard, asked, contexts = [], [], []

    def open_file(text, width=1280, theme="light", ready=True, **more):
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(text)
        contexts.append(
            chromium.new_context(
                viewport={"width": width, "height": 900}, color_scheme=theme, **more
            )
        )
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        if ready:
            tab.wait_for_selector("html[data-ready=answers]", timeout=20_000)
        return tab

    yield open_file
    for context in contexts:
        context.close()
    assert heard == []
    assert len(asked) == len(contexts) and all(url.startswith("file:") for url in asked)


def make_report(better="yes", name="round-1"):
    report = a_report(name)
    report["verdict"]["better"] = better
    return report


def make_answers(prompts=30):
    """The first model wins by ever less, then loses; every fifth verdict of the judge flips."""
    rows, said = [], []
    for place in range(prompts):
        key, margin = f"p{place:04d}", 1 - 2 * place / prompts
        asked = f"Question {place} about {'foxes' if place % 3 else 'owls'}"
        rows += [(key, "sft", f"Tame {place}.", 0.5, "stop", asked)]
        rows += [
            (key, "round-1", SLY if place == 0 else f"Wild {place}.", 0.5 + margin, "length", asked)
        ]
        winner = "a" if margin > 0 else "tie" if margin == 0 else "b"
        said += [(key, "rules", winner, [], 0.5 + margin, 0.5)]
        flip = place % 5 == 0
        said += [
            (
                key,
                "prompted judge",
                "tie" if flip else "a",
                ["a", "b" if flip else "a"],
                0.5 if flip else 1.0,
                0.5,
            )
        ]
    columns = ("prompt_id", "judge", "verdict", "orders", "score_a", "score_b")
    verdicts = pl.DataFrame(said, schema=columns, orient="row").with_columns(
        a=pl.lit("round-1"), b=pl.lit("sft")
    )
    return answers(*rows), verdicts


def list_prompts(tab):
    return tab.locator("#found .ask").all_inner_texts()


def test_filters_sorting_and_both_orders(open_page):
    tab = open_page(render_page(make_report(), *make_answers()))
    from playwright.sync_api import expect

    count = tab.locator("#asked output")
    assert count.inner_text() == "30 of 30 prompts"
    assert list_prompts(tab)[0] == "Question 0 about owls" and len(list_prompts(tab)) == 20
    tab.click("#more")
    assert len(list_prompts(tab)) == 30 and list_prompts(tab)[-1] == "Question 29 about foxes"

    tab.select_option("[name=sort]", "lost")
    assert list_prompts(tab)[0] == "Question 29 about foxes"
    tab.select_option("[name=winner]", "b")
    assert count.inner_text() == "14 of 30 prompts"
    tab.fill("[name=text]", "OWLS")
    expect(count).to_have_text("4 of 30 prompts")
    assert all("owls" in asked for asked in list_prompts(tab))
    tab.fill("[name=text]", "wild 29.")
    expect(count).to_have_text("1 of 30 prompts")
    tab.fill("[name=text]", "")
    expect(count).to_have_text("14 of 30 prompts")

    tab.select_option("[name=contest]", "1")
    tab.select_option("[name=winner]", "flip")
    assert count.inner_text() == "6 of 30 prompts"
    tab.locator("#found summary").nth(1).click()
    said = tab.locator("#found details").nth(1).locator(".judged li")
    said.first.wait_for()  # an entry is filled when it has opened
    lines = said.all_inner_texts()
    assert "round-1 first: round-1, sft first: sft" in lines[1] and "a tie" in lines[1]


def test_a_script_in_an_answer_stays_text(open_page):
    tab = open_page(render_page(make_report(), *make_answers()))
    answer = tab.locator("#found .answer p").nth(1)
    assert answer.inner_text().startswith(SLY)
    assert tab.title() == "Strop · round-1 is better than sft."
    assert tab.locator("#found img, #found script").count() == 0
    quiet = open_page(
        render_page(make_report(name="<b>x</b>"), *make_answers()),
        java_script_enabled=False,
        ready=False,
    )
    assert quiet.locator("h1").inner_text() == "<b>x</b> is better than sft."


def test_without_scripts_the_largest_gains_and_losses_are_there(open_page):
    tab = open_page(
        render_page(make_report(), *make_answers()), java_script_enabled=False, ready=False
    )
    assert tab.locator("#some details").count() == 12 + 12 + 1
    assert tab.locator("#some .answer p").nth(1).inner_text().startswith(SLY)
    assert not tab.locator("#asked").is_visible() and not tab.locator("#more").is_visible()


@pytest.mark.parametrize("better", ["yes", "no"])
def test_a_phone_scrolls_in_one_direction_alone(open_page, better):
    tab = open_page(render_page(make_report(better), *make_answers()), width=380)
    assert tab.evaluate("document.documentElement.scrollWidth") == 380
    beyond = (
        "[...document.querySelectorAll('main *, header *')]"
        ".filter(e => e.getBoundingClientRect().right > 381)"
    )
    inside = ".filter(e => !e.closest('.scroll, .sheet, svg')).map(e => e.outerHTML.slice(0, 90))"
    assert tab.evaluate(beyond + inside) == []
    smallest = (
        "Math.min(...[...document.querySelectorAll('p, td, dd, li, summary')]"
        ".filter(e => e.offsetParent)"
    )
    assert tab.evaluate(smallest + ".map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 13


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
@pytest.mark.parametrize("better", ["yes", "no", "unclear"])
def test_axe_finds_nothing_serious(open_page, theme, width, better):
    from axe_playwright_python.sync_playwright import Axe

    tab = open_page(render_page(make_report(better), *make_answers()), width=width, theme=theme)
    for summary in tab.locator("figure summary").all():
        summary.click()
    found = Axe().run(tab).response["violations"]
    grave = [
        (rule["id"], [node["html"][:120] for node in rule["nodes"][:3]])
        for rule in found
        if rule["impact"] in GRAVE
    ]
    assert grave == []


def test_two_thousand_prompts_and_four_models_stay_small_and_open_at_once(open_page):
    """Answers of 1,200 random letters pack worse than any language."""
    rng = random.Random(0)
    letters = string.ascii_lowercase + "     "
    names = ("base", "sft", "round-1", "round-2")
    rows = [
        (
            f"p{i:04d}",
            name,
            "".join(rng.choices(letters, k=1200)),
            rng.random(),
            "stop",
            f"Question {i}?",
        )
        for i in range(2000)
        for name in names
    ]
    report = a_report("round-2")
    verdicts = pl.DataFrame(
        [(f"p{i:04d}", "round-2", "sft", "rules", "a", [], 1.0, rng.random()) for i in range(2000)],
        schema=["prompt_id", "a", "b", "judge", "verdict", "orders", "score_a", "score_b"],
        orient="row",
    )
    text = render_page(report, answers(*rows), verdicts)
    tab = open_page(text)
    seconds = tab.evaluate("performance.now()") / 1000  # since the page was asked for
    print(f"{len(text.encode()) / 1e6:.1f} MB, opened in {seconds:.2f} s")
    assert tab.locator("#asked output").inner_text() == "2,000 of 2,000 prompts"
    assert len(text.encode()) < MOST_BYTES and seconds < MOST_SECONDS
