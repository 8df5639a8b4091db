"""What every page keeps to, in headless Chromium: a row a page."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import report
from tests.browser import PHONE, Tab
from tests.reports import ended, seen, small_network

pytestmark = pytest.mark.slow

LARGEST = 15_000_000  # bytes


def report_page(folder):
    return report.write(ended(folder, n=1000, skill=1.0), small_network(), seen)[-1]


PAGES: dict[str, Callable[[Path], Path]] = {
    "report": report_page,
}


@pytest.fixture(scope="module", params=PAGES)
def page(request, tmp_path_factory):
    """A page's file."""
    return PAGES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def tab(driver):
    """Afterwards nothing may have been complained about, nor asked of any server."""
    tab = Tab(driver)
    tab.requests()
    yield tab
    assert tab.complaints() == []
    assert [url for url in tab.requests() if not url.startswith(("file:", "data:", "about:", "blob:"))] == []
    driver.get("about:blank")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 1400])
def test_it_opens_offline_and_fits(tab, page, width, scheme):
    tab.open(page.as_uri(), width, prefers_color_scheme=scheme)
    assert page.stat().st_size < LARGEST
    assert tab.one("h1").text
    assert tab.run("return document.documentElement.scrollWidth") <= width
    background = tab.run("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 24, 30)") == (scheme == "dark")
    # Text is told from what is behind it: charts too follow the scheme.
    for selector in ("h1", "figcaption", "svg.chart text"):
        for color in tab.run(
            "return [...document.querySelectorAll(arguments[0])].slice(0, 40).map(e => {"
            " const style = getComputedStyle(e); return style[e.ownerSVGElement ? 'fill' : 'color']; })",
            selector,
        ):
            level = sum(map(float, color[color.index("(") + 1 : -1].split(",")[:3])) / 3
            assert (level > 130) == (scheme == "dark"), (selector, color)


def test_every_picture_is_described(tab, page):
    tab.open(page.as_uri())
    assert tab.run("return [...document.images].filter(i => !i.alt.trim()).length") == 0
    assert tab.run("return [...document.images].filter(i => !i.src.startsWith('data:image/')).length") == 0
    assert tab.run("return [...document.querySelectorAll('svg.chart')].filter(s => !s.ariaLabel).length") == 0


def test_names_are_unique(tab, page):
    tab.open(page.as_uri())
    assert (
        tab.run("""
        const seen = [...document.querySelectorAll("[id]")].map(e => e.id);
        return seen.filter((id, place) => seen.indexOf(id) !== place);
    """)
        == []
    )


def test_tables_sort_by_any_column(tab, page):
    tab.open(page.as_uri())
    tables = tab.all("table.sortable")
    assert tables
    for table in tables:
        result = tab.run(
            """
            const [table] = arguments, cells = column => [...table.tBodies[0].rows].map(row =>
                (row.cells[column].dataset.value ?? row.cells[column].textContent.trim()).replaceAll(",", ""));
            const number = text => text !== "" && isFinite(text);
            const wrong = [];
            [...table.tHead.rows[0].cells].forEach((head, column) => {
                if (!head.querySelector("button")) return;
                const before = cells(column).slice().sort();
                for (const order of ["ascending", "descending"]) {
                    head.querySelector("button").click();
                    const sorted = cells(column);
                    if (head.getAttribute("aria-sort") !== order) wrong.push([head.textContent, "aria-sort"]);
                    const kept = sorted.slice().sort().join("\\n") === before.join("\\n");
                    if (!kept) wrong.push([head.textContent, "rows"]);
                    const numbers = sorted.filter(number).map(Number);
                    const sign = order === "ascending" ? 1 : -1;
                    const falls = numbers.some((n, i) => i && sign * (n - numbers[i - 1]) < 0);
                    if (falls) wrong.push([head.textContent, order]);
                }
            });
            return wrong;
            """,
            table,
        )
        assert result == []


def test_a_click_on_the_matrix_shows_its_pictures(tab, tmp_path):
    run = ended(tmp_path, n=60, skill=1.0)
    *_, path = report.write(run, small_network(), seen)
    tab.open(path.as_uri())
    shown = lambda: tab.run("return [...document.querySelectorAll('#gallery figure')].filter(f => !f.hidden).length")  # noqa: E731
    (a, wrong_a), (wrong_b, b) = run.scores.confusion
    assert shown() == wrong_a + wrong_b
    tab.one(".matrix td button[data-true='0'][data-predicted='0']").click()
    assert shown() == a
    assert tab.text("#shown") == f"{a} pictures: of ants, given ants"
    tab.one(".matrix th button[data-true='1']").click()
    assert shown() == wrong_b + b
    tab.one(".matrix th button[data-predicted='1']").click()
    assert shown() == wrong_a + b
    tab.one("#all").click()
    assert shown() == 60
