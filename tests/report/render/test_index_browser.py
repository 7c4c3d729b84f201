"""runs/index.html in a real browser: `make test-browser`. It fits every width and hides nothing."""

import shutil

import pytest

from pipeline.report.render.index_page import RunFigures, RunRow, render_index

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
]

GAP = {"mean": 0.12, "low": 0.09, "high": 0.15}
FIGURES = RunFigures("yes", "round-1", "rules", "test", 0.48, 0.6, GAP, GAP, 21.9, 23.7)
LINKS = [(name, f"{name}.html") for name in ("report", "config", "log")]


def make_page() -> str:
    shared = {"choices": "train.beta=0.1 " * 12, "started": "2026-11-01 10:00:00"}
    rows = [
        RunRow(
            name=f"a-recipe-with-a-long-name-{status}",
            status=status,
            detail="step 3 of 16, sample test round-1",
            reason="a reason " * 20 if status == "failed" else "",
            seconds=4321.0,
            figures=FIGURES if status == "finished" else None,
            links=LINKS,
            is_latest=status == "finished",
            **shared,
        )
        for status in ("running", "finished", "interrupted", "failed")
    ]
    return render_index("runs", rows, ["foreign/plan.json: cannot be read."], "2026-11-01 11:00")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_it_fits_loads_nothing_and_axe_finds_nothing_serious(tmp_path, theme, width):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    file, asked, heard = tmp_path / "index.html", [], []
    file.write_text(make_page())
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        size = {"width": width, "height": 900}
        tab = browser.new_context(viewport=size, color_scheme=theme).new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: heard.append(message.text))
        tab.goto(file.as_uri())
        across = tab.evaluate("document.documentElement.scrollWidth")
        found = Axe().run(tab).response["violations"]
        browser.close()
    assert across == width and len(asked) == 1 and heard == []
    assert [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")] == []
