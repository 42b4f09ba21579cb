"""results/report.html in a real headless browser (Chromium through Playwright): what a reader does with it works.

The page is made from made-up records, so that it has every kind of cell. Without Chromium these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api as playwright

from nora.reporting.collation import collate_all
from nora.store.runs import Store
from nora.tables.methods import load_table
from nora.tables.target import load_target

from synthetic import complete  # isort: skip

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER TESTS: chromium is not installed (.ci/documents.sh)"),
]
TABLE2 = "#table2-mini"

# Every text on the page: contrast of its colour on the first opaque background behind it (WCAG 2, relative luminance).
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const found = [];
  for (const node of document.querySelectorAll("body, body *")) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const box = node.getBoundingClientRect();
    if (!own || !box.width || !box.height || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(node.tagName)) continue;
    if (node.closest(".hidden")) continue;
    let back = null, opacity = 1;
    for (let up = node; up; up = up.parentElement) {
      opacity *= Number(getComputedStyle(up).opacity);
      const colour = rgba(getComputedStyle(up).backgroundColor);
      if (!back && colour[3] === 255) back = colour;
    }
    const front = rgba(getComputedStyle(node).color).slice(0, 3).map((v, i) => opacity * v + (1 - opacity) * back[i]);
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const name = node.tagName + " " + node.className + ": " + node.textContent.slice(0, 40);
    found.push([(high + 0.05) / (low + 0.05), name]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of Table 2 (two tasks, two seeds, mini and paper), Table 1 and the deployment table (no runs)."""
    checkout = Path(__file__).resolve().parents[2]
    store = Store(tmp_path_factory.mktemp("report"))
    mini = load_table(checkout, "table2", ["scale=mini", "seed=0,1", "task=cb,rte"])
    for record in complete(mini).values():
        store.publish_record(record)
    paper = load_table(checkout, "table2", ["scale=paper", "seed=0,1", "task=cb,rte"])
    rest = [load_target(checkout, name) for name in ("table1", "deployment")]
    collate_all([mini, paper, *rest], store, checkout=checkout, show=lambda line: None)
    return store.root / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report opened from its file; at the end: it asked for nothing else and the console is empty."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()], "it needs no network"
    assert complaints == []


def _panel(page: Any) -> Any:
    return page.locator("dialog#panel")


def test_a_click_on_a_cell_shows_the_runs_behind_it_and_escape_closes(page: Any) -> None:
    cell = page.locator(f"{TABLE2} tbody tr", has=page.get_by_role("rowheader", name="NoRA+", exact=True)).first
    cell.locator("button.cell").first.click()
    text = _panel(page).inner_text()
    assert "NoRA+, CB: 2 done" in text and text.count("seed 0") == 1 and text.count("seed 1") == 1
    assert f"Commit {'c' * 12}" in text and "Init proof: x passed" in text
    assert "nora run scale=mini task=cb method=nora_plus" in text and "method.xi=" in text
    page.keyboard.press("Escape")
    assert not _panel(page).is_visible()


def test_the_keyboard_alone_reaches_a_cell_and_comes_back_to_it(page: Any) -> None:
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate(f"document.activeElement.matches('{TABLE2} button.cell')"):
            break
    where = (
        "(c => [c.parentNode.cells[0], c.closest('table').tHead.rows[0].cells[c.cellIndex]].map(e => e.textContent))"
    )
    label = ", ".join(page.evaluate(f"{where}(document.activeElement.closest('td'))"))
    assert label == "Prefix, CB", "the first cell of the first row comes first"
    page.keyboard.press("Enter")
    assert label in _panel(page).inner_text()
    page.keyboard.press("Escape")
    assert ", ".join(page.evaluate(f"{where}(document.activeElement.closest('td'))")) == label, (
        "the focus is where it was"
    )


def _column(page: Any, table: Any, column: int) -> list[str]:
    return table.locator(f"tbody tr > :nth-child({column + 1})").all_text_contents()


def test_a_column_sorts_down_up_and_back(page: Any) -> None:
    table = page.locator(f"{TABLE2} table").first
    original = _column(page, table, 0)
    head = table.locator("thead button.sort").nth(1)
    head.click()
    down = [float(text.split()[0]) for text in _column(page, table, 1)]
    assert down == sorted(down, reverse=True) and len(down) > 6
    head.click()
    up = [float(text.split()[0]) for text in _column(page, table, 1)]
    assert up == sorted(down)
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "ascending"
    head.click()
    assert _column(page, table, 0) == original


def test_what_has_no_number_stands_last_either_way(page: Any) -> None:
    def mixed() -> Any:
        for table in page.locator("section table").all():
            for column in range(1, table.locator("thead th").count()):
                known = [bool(re.search(r"\d", text)) for text in _column(page, table, column)]
                if known != sorted(known, reverse=True) and sum(known) > 1:
                    return table, column
        raise AssertionError("no column has both, mixed")

    table, column = mixed()
    for _ in range(2):
        table.locator("thead button.sort").nth(column).click()
        known = [bool(re.search(r"\d", text)) for text in _column(page, table, column)]
        assert known == sorted(known, reverse=True)


def test_what_is_missing_opens_too(page: Any) -> None:
    page.locator("#table1 button.cell").first.click()
    text = _panel(page).inner_text()
    assert "missing" in text and "nora run kind=factorize" in text


def test_many_runs_are_shown_in_parts_and_the_keyboard_goes_on_where_it_was(page: Any) -> None:
    page.locator("#table1 button.all").click()
    shown = page.locator("dialog .run")
    assert shown.count() == 60
    page.locator("dialog button.all").focus()
    page.keyboard.press("Enter")
    assert shown.count() == 120
    assert page.evaluate("[...document.querySelectorAll('.run')].indexOf(document.activeElement)") == 60


def test_on_paper_nothing_is_cut_and_no_button_is_left(page: Any) -> None:
    """As wide as an A4 page on its side: every table fits, what only a screen can do is gone."""
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1030, "height": 700})
    wide = "[...document.querySelectorAll('.scroll > table')].map(t => t.getBoundingClientRect().right)"
    assert max(page.evaluate(wide)) <= 1030
    assert not page.locator("section button.all").first.is_visible() and not page.locator("nav").is_visible()


def test_on_a_phone_the_page_does_not_scroll_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(f"{TABLE2} button.cell").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = _panel(page).bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_background(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.locator(f"{TABLE2} button.cell").first.click()
    found = page.evaluate(CONTRASTS)
    assert len(found) > 200
    weak = sorted(pair for pair in found if pair[0] < 4.5)
    assert weak == []


def test_the_page_is_one_small_file_with_a_short_script(report: Path, checkout: Path) -> None:
    assert report.stat().st_size < 5_000_000
    script = checkout / "src" / "nora" / "reporting" / "html" / "report.js"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 200
